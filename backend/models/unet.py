"""The 3D U-Net of Models Genesis.

Zhou et al. 2021, doi:10.1016/j.media.2020.101840, sec. 4, after Cicek et al. 2016, arXiv
1606.06650. Shapes: b batch, c channels, (z, y, x) the grid of a level; level 0 is the finest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

Norm = Literal["instance", "batch"]

GENESIS_WIDTHS = (64, 128, 256, 512)
"""Channels of the published network's levels; with them the body has 19,073,600 parameters."""


class UnetOutput(NamedTuple):
    """What an encoder-decoder gives.

    Attributes:
        decoded: the decoder's map at the input's resolution, (b, c, z, y, x).
        pyramid: maps of the decoder's levels, finest first; the first one is `decoded`.
        bottleneck: the coarsest map, (b, c, z, y, x).
        skips: maps of the encoder's levels above the bottleneck, finest first.
    """

    decoded: Tensor
    pyramid: tuple[Tensor, ...]
    bottleneck: Tensor
    skips: tuple[Tensor, ...]


class EncoderDecoder(nn.Module):
    """What the networks with skip connections share: the way down, the way up, their names.

    A subclass fills the module lists and says how to encode.

    Args:
        widths: channels of each level, finest first; each level halves the grid of the one before.
    """

    def __init__(self, *, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        edge = 2 ** (len(self.widths) - 1)
        self.stride = (edge, edge, edge)
        self.bottleneck_width = self.widths[-1]
        self.encoder = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.decoder = nn.ModuleList()

    def encode(self, volume: Float[Tensor, "b 1 z y x"]) -> tuple[Tensor, ...]:
        """Maps of all levels of the encoder, finest first; the last is the bottleneck.

        Raises:
            ValueError: if an edge is no multiple of the stride.
        """
        raise NotImplementedError

    def decode(self, levels: Sequence[Tensor]) -> UnetOutput:
        """Go up from what `encode` gave."""
        x = levels[-1]
        pyramid: list[Tensor] = []
        for index in reversed(range(len(self.decoder))):
            x = self.decoder[index](torch.cat([self.ups[index](x), levels[index]], dim=1))
            pyramid.insert(0, x)
        return UnetOutput(x, tuple(pyramid), levels[-1], tuple(levels[:-1]))

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
    """

    def __init__(self, *, widths: Sequence[int] = GENESIS_WIDTHS, norm: Norm = "instance") -> None:
        super().__init__(widths=widths)
        self.pool = nn.MaxPool3d(2)
        for before, width in zip((1, *widths[:-1]), widths, strict=True):
            half = (width + 1) // 2
            self.encoder.append(_two_layers(before, half, width, norm))
        for width, below in pairwise(widths):
            self.ups.append(nn.ConvTranspose3d(below, below, kernel_size=2, stride=2))
            self.decoder.append(_two_layers(width + below, width, width, norm))

    def encode(self, volume: Float[Tensor, "b 1 z y x"]) -> tuple[Tensor, ...]:
        """Maps of all levels of the encoder, finest first; the last is the bottleneck.

        Raises:
            ValueError: if an edge is no multiple of the stride.
        """
        check_edges(volume, self.stride)
        levels: list[Tensor] = []
        x = volume
        for level in self.encoder:
            x = level(self.pool(x) if levels else x)
            levels.append(x)
        return tuple(levels)


class UnetSegmenter(nn.Module):
    """An encoder-decoder with one linear layer from its finest map to logits.

    Args:
        backbone: an encoder-decoder, pretrained or not.
        classes: outputs, background included.
    """

    def __init__(self, backbone: EncoderDecoder, *, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.out = nn.Conv3d(backbone.widths[0], classes, kernel_size=1)

    def forward(self, volume: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b classes z y x"]:
        """Logits at the input's resolution; edges are multiples of the backbone's stride."""
        logits: Tensor = self.out(self.backbone(volume).decoded)
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
    return nn.Conv3d(inputs, outputs, kernel_size=3, padding=1), normalise, nn.ReLU()
