"""The 3D ResNet-50 of PGL (Xie et al. 2020, arXiv 2011.12640, sec. 3.3), after He et al. 2016.

Shapes: b batch, c channels, (z, y, x) the grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Triple = tuple[int, int, int]

_EXPANSION = 4
"""Output channels of a bottleneck block over those of its 3³ convolution."""


class ResnetOutput(NamedTuple):
    """What the encoder gives to heads and decoders.

    Attributes:
        pyramid: outputs of the four stages, finest first, (b, c, z, y, x).
        bottleneck: the coarsest of them.
    """

    pyramid: tuple[Tensor, ...]
    bottleneck: Tensor


class ResnetEncoder(nn.Module):
    """3D ResNet with bottleneck blocks; as it stands the encoder of PGL, 46,155,072 parameters.

    The stem is a convolution of 7³ and a max-pool of 3³ with stride 2; stages 2, 3 and 4 halve the
    grid. The stem keeps the slices by default, as in the code of PGL's authors: the strides in all
    are (16, 32, 32).

    Args:
        depths: bottleneck blocks of each of the four stages.
        width: channels of the stem; the stages give 4, 8, 16 and 32 times as many.
        stem_stride: stride of the first convolution along (z, y, x).
        norm: "batch", "instance" or "group".

    Attributes:
        widths: channels of the four stages.
        strides: voxels per cell of the four stages along (z, y, x).
        stride: voxels per cell of the bottleneck.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        stem_stride: Sequence[int] = (1, 2, 2),
        norm: str = "batch",
    ) -> None:
        super().__init__()
        stages = range(len(depths))
        z, y, x = stem_stride
        stem: Triple = (z, y, x)
        self.widths = tuple(_EXPANSION * width * 2**stage for stage in stages)
        # The max-pool halves the grid once, each stage after the first once more.
        self.strides = tuple(_times(stem, 2 ** (stage + 1)) for stage in stages)
        self.stride = self.strides[-1]
        self.bottleneck_width = self.widths[-1]
        self.stem = nn.Conv3d(1, width, kernel_size=7, stride=stem, padding=3, bias=False)
        self.stem_norm = norm_layer(norm, width)
        self.stages = nn.ModuleList(
            _stage(
                width if stage == 0 else self.widths[stage - 1],
                width * 2**stage,
                depth=depth,
                stride=1 if stage == 0 else 2,
                norm=norm,
            )
            for stage, depth in enumerate(depths)
        )
        self.apply(_initialise)

    def forward(self, volume: Float[Tensor, "b 1 z y x"]) -> ResnetOutput:
        """Encode volumes.

        Raises:
            ValueError: if an edge is no multiple of the stride.
        """
        if any(n % s for n, s in zip(volume.shape[2:], self.stride, strict=True)):
            raise ValueError(f"edges {tuple(volume.shape[2:])} are no multiples of {self.stride}")
        x = torch.relu(self.stem_norm(self.stem(volume)))
        x = functional.max_pool3d(x, kernel_size=3, stride=2, padding=1)
        pyramid = []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        return ResnetOutput(tuple(pyramid), x)


class BottleneckBlock(nn.Module):
    """Convolutions of 1³, 3³ (which carries the stride) and 1³ beside a shortcut.

    Args:
        inputs: channels that come in.
        width: channels of the 3³ convolution; four times as many go out.
        stride: of the block.
        norm: see `norm_layer`.
    """

    def __init__(self, inputs: int, width: int, *, stride: int, norm: str) -> None:
        super().__init__()
        outputs = _EXPANSION * width
        self.conv1 = nn.Conv3d(inputs, width, kernel_size=1, bias=False)
        self.norm1 = norm_layer(norm, width)
        self.conv2 = nn.Conv3d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm2 = norm_layer(norm, width)
        self.conv3 = nn.Conv3d(width, outputs, kernel_size=1, bias=False)
        self.norm3 = norm_layer(norm, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv3d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
                norm_layer(norm, outputs),
            )

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c2 z2 y2 x2"]:
        """The block's sum after its last activation."""
        branch = torch.relu(self.norm1(self.conv1(x)))
        branch = torch.relu(self.norm2(self.conv2(branch)))
        return torch.relu(self.norm3(self.conv3(branch)) + self.shortcut(x))


def norm_layer(norm: str, width: int) -> nn.Module:
    """A normalisation with learned scale and shift: "batch", "instance" or "group" (up to 16).

    Raises:
        ValueError: if there is no such normalisation.
    """
    if norm == "batch":
        return nn.BatchNorm3d(width)
    if norm == "instance":
        return nn.InstanceNorm3d(width, affine=True)
    if norm == "group":
        return nn.GroupNorm(math.gcd(16, width), width)
    raise ValueError(f"norm {norm!r} is none of batch, instance, group")


def _stage(inputs: int, width: int, *, depth: int, stride: int, norm: str) -> nn.Sequential:
    first = BottleneckBlock(inputs, width, stride=stride, norm=norm)
    rest = (
        BottleneckBlock(_EXPANSION * width, width, stride=1, norm=norm) for _ in range(depth - 1)
    )
    return nn.Sequential(first, *rest)


def _times(stride: Triple, factor: int) -> Triple:
    z, y, x = stride
    return (z * factor, y * factor, x * factor)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
