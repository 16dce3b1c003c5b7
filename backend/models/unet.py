"""The 3D U-Net of Models Genesis.

Zhou et al. 2021, doi:10.1016/j.media.2020.101840, sec. 4, after Cicek et al. 2016, arXiv
1606.06650. Shapes: b batch, c channels, (z, y, x) the grid of a level; level 0 is the finest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["instance", "batch"]

GENESIS_WIDTHS = (64, 128, 256, 512)
"""Channels of the published network's levels; with them the body has 19,073,600 parameters."""


class UnetOutput(NamedTuple):
    """What an encoder-decoder gives.

    Attributes:
        decoded: the decoder's map at the input's resolution, (b, c, z, y, x).
        pyramid: maps of the decoder's levels, finest first; the first one is `decoded`. Where
            there is no decoder, both are the encoder's.
        bottleneck: the coarsest map, (b, c, z, y, x).
        skips: maps of the encoder's levels above the bottleneck, finest first.
    """

    decoded: Tensor
    pyramid: tuple[Tensor, ...]
    bottleneck: Tensor
    skips: tuple[Tensor, ...]


class UnetDecoder(nn.Module):
    """The way up: grow the coarser map, join it with the encoder's map, convolve.

    Args:
        ups: one for each level above the bottleneck, finest first: doubles the grid.
        joins: one for each of these levels: takes the grown map and the encoder's, concatenated.
    """

    def __init__(self, ups: Iterable[nn.Module], joins: Iterable[nn.Module]) -> None:
        super().__init__()
        self.ups = nn.ModuleList(ups)
        self.joins = nn.ModuleList(joins)

    def forward(self, levels: Sequence[Tensor]) -> UnetOutput:
        """Go up from the maps of the encoder's levels, finest first."""
        x = levels[-1]
        pyramid: list[Tensor] = []
        for index in reversed(range(len(self.joins))):
            x = self.joins[index](torch.cat([self.ups[index](x), levels[index]], dim=1))
            pyramid.insert(0, x)
        return UnetOutput(x, tuple(pyramid), levels[-1], tuple(levels[:-1]))


class EncoderDecoder(nn.Module, ABC):
    """What the networks with skip connections share.

    Attributes:
        widths: channels of each level, finest first.
        stride: voxels per cell of the bottleneck, (z, y, x).
        bottleneck_width: channels of the coarsest level.
        decoder: the way up; None where only the way down is pretrained.

    Args:
        widths: channels of each level; each level halves the grid of the one before.
        decoder: whether to have the way up.
    """

    decoder: UnetDecoder | None

    def __init__(self, *, widths: Sequence[int], decoder: bool = True) -> None:
        super().__init__()
        self.widths = tuple(widths)
        edge = 2 ** (len(self.widths) - 1)
        self.stride = (edge, edge, edge)
        self.bottleneck_width = self.widths[-1]
        self.down = self._new_down()
        self.decoder = self.new_decoder() if decoder else None

    @abstractmethod
    def _new_down(self) -> nn.ModuleList:
        """The levels of the encoder, finest first."""

    @abstractmethod
    def new_decoder(self) -> UnetDecoder:
        """A way up with fresh weights."""

    @abstractmethod
    def encode(self, volume: Float[Tensor, "b 1 z y x"]) -> tuple[Tensor, ...]:
        """Maps of all levels of the encoder, finest first; the last is the bottleneck.

        Raises:
            ValueError: if an edge is no multiple of the stride.
        """

    def decode(self, levels: Sequence[Tensor]) -> UnetOutput:
        """Go up from what `encode` gave; without a decoder, hand on what the encoder knows."""
        if self.decoder is None:
            return UnetOutput(levels[0], tuple(levels[:-1]), levels[-1], tuple(levels[:-1]))
        output: UnetOutput = self.decoder(levels)
        return output

    def forward(self, volume: Float[Tensor, "b 1 z y x"]) -> UnetOutput:
        """Down and up; edges are multiples of `stride`."""
        return self.decode(self.encode(volume))


class UnetBackbone(EncoderDecoder):
    """Encoder-decoder with two convolutions in each level and skip connections.

    In the encoder the first convolution of a level gives half the level's width, in the decoder
    both give all of it. Maximum pooling leads down, a transposed convolution that keeps the width
    leads up.

    Args:
        widths: channels of each level, finest first.
        norm: "instance", or "batch" as published.
        decoder: whether to have the way up.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = GENESIS_WIDTHS,
        norm: Norm = "instance",
        decoder: bool = True,
    ) -> None:
        self.norm = norm
        super().__init__(widths=widths, decoder=decoder)

    def _new_down(self) -> nn.ModuleList:
        return nn.ModuleList(
            _two_layers(before, (width + 1) // 2, width, self.norm)
            for before, width in zip((1, *self.widths[:-1]), self.widths, strict=True)
        )

    def new_decoder(self) -> UnetDecoder:
        """A way up with fresh weights."""
        steps = list(pairwise(self.widths))
        return UnetDecoder(
            (nn.ConvTranspose3d(below, below, kernel_size=2, stride=2) for _, below in steps),
            (_two_layers(width + below, width, width, self.norm) for width, below in steps),
        )

    def encode(self, volume: Float[Tensor, "b 1 z y x"]) -> tuple[Tensor, ...]:
        """Maps of all levels of the encoder, finest first; the last is the bottleneck.

        Raises:
            ValueError: if an edge is no multiple of the stride.
        """
        check_edges(volume, self.stride)
        levels: list[Tensor] = []
        x = volume
        for level in self.down:
            x = level(functional.max_pool3d(x, 2) if levels else x)
            levels.append(x)
        return tuple(levels)


class UnetSegmenter(nn.Module):
    """An encoder-decoder with one linear layer from its finest map to logits.

    Args:
        encoder: pretrained or not; if it has no decoder, a fresh one is put on it.
        classes: outputs, background included.
    """

    def __init__(self, encoder: EncoderDecoder, *, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = encoder.new_decoder() if encoder.decoder is None else None
        self.out = nn.Conv3d(encoder.widths[0], classes, kernel_size=1)

    def forward(self, volume: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b classes z y x"]:
        """Logits at the input's resolution; edges are multiples of the encoder's stride."""
        levels = self.encoder.encode(volume)
        decode = self.encoder.decode if self.decoder is None else self.decoder
        logits: Tensor = self.out(decode(levels).decoded)
        return logits


def check_edges(volume: Tensor, stride: tuple[int, int, int]) -> None:
    """Refuse a volume that pooling would cut.

    Raises:
        ValueError: if an edge is no multiple of the stride.
    """
    edges = tuple(volume.shape[2:])
    if any(edge % step for edge, step in zip(edges, stride, strict=True)):
        raise ValueError(f"edges {edges} are no multiples of {stride}")


def _two_layers(inputs: int, between: int, outputs: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(*_layer(inputs, between, norm), *_layer(between, outputs, norm))


def _layer(inputs: int, outputs: int, norm: Norm) -> tuple[nn.Module, ...]:
    normalise = (
        nn.BatchNorm3d(outputs) if norm == "batch" else nn.InstanceNorm3d(outputs, affine=True)
    )
    return nn.Conv3d(inputs, outputs, kernel_size=3, padding=1), normalise, nn.ReLU(inplace=True)
