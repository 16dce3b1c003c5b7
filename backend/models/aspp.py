"""Segmentation networks on the ResNet: the light decoder of PGL, and a plain U-Net.

The first is that of the paper's appendix (arXiv 2011.12640): an atrous spatial pyramid (Chen et al.
2018, sec. 3) on the coarsest map, then steps up that add the encoder's stages.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from backend.geometry import Index3
from backend.models.blocks import ResidualBlock, UpBlock
from backend.models.resnet import ResnetEncoder, norm_layer

_DILATIONS = (2, 4, 8)


class AsppSegmenter(nn.Module):
    """The segmentation network of PGL: encoder, ASPP, three steps up, logits, upsampling.

    On the default encoder what stands on it has 2,380,929 parameters for one class and 2,381,358
    for 14: the 2.38 million of the paper (sec. 5.1). Its text has two separable convolutions in a
    residual block, which would make 2.41 million (2,408,929): `separable=2` builds that.

    Args:
        encoder: gives the pyramid.
        classes: outputs.
        width: channels of the last step; the steps have 4, 2 and 1, the ASPP 5 times as many.
        norm: see `norm_layer`.
        separable: separable convolutions in the residual block of each step.
    """

    def __init__(
        self,
        encoder: ResnetEncoder,
        *,
        classes: int,
        width: int = 32,
        norm: str = "batch",
        separable: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.aspp = Aspp(encoder.bottleneck_width, 5 * width, norm=norm)
        widths = (5 * width, 4 * width, 2 * width, width)
        self.steps = nn.ModuleList(
            _StepUp(inputs, outputs, skip=skip, norm=norm, separable=separable)
            for inputs, outputs, skip in zip(
                widths[:-1], widths[1:], reversed(encoder.widths[:-1]), strict=True
            )
        )
        self.out = nn.Conv3d(width, classes, kernel_size=1)

    def forward(self, volume: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b classes z y x"]:
        """Logits at the input's resolution; edges are multiples of the encoder's stride."""
        features = self.encoder(volume)
        x = self.aspp(features.bottleneck)
        for step, skip in zip(self.steps, reversed(features.pyramid[:-1]), strict=True):
            x = step(x, skip)
        # The first stage's cells are (2, 4, 4) voxels large where the stem keeps the slices, so
        # the last step is not ×2.
        return functional.interpolate(
            self.out(x), size=volume.shape[2:], mode="trilinear", align_corners=False
        )


class ResnetUnetSegmenter(nn.Module):
    """A plain U-Net on the ResNet, a 3D U-Net whose first half is pretrained.

    Each step up is a transposed convolution, a concatenation with the stage and a residual block;
    the last one goes straight from the first stage to voxels.

    Args:
        encoder: gives the pyramid.
        classes: outputs.
        width: channels at full resolution; the steps have 8, 4 and 2 times as many.
        norm: "batch" or "instance".
    """

    def __init__(
        self, encoder: ResnetEncoder, *, classes: int, width: int = 32, norm: str = "batch"
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.image_block = ResidualBlock(in_channels=1, out_channels=width, norm=norm)
        skips = (*reversed(encoder.widths[:-1]), width)
        widths = (encoder.bottleneck_width, 8 * width, 4 * width, 2 * width, width)
        factors: tuple[int | Index3, ...] = (2, 2, 2, encoder.strides[0])
        self.lateral = nn.ModuleList(
            nn.Conv3d(skip, outputs, kernel_size=1)
            for skip, outputs in zip(skips[:-1], widths[1:-1], strict=True)
        )
        self.steps = nn.ModuleList(
            UpBlock(
                in_channels=inputs,
                out_channels=outputs,
                factor=factor,
                norm=norm,
            )
            for inputs, outputs, factor in zip(widths[:-1], widths[1:], factors, strict=True)
        )
        self.out = nn.Conv3d(width, classes, kernel_size=1)

    def forward(self, volume: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b classes z y x"]:
        """Logits at the input's resolution; edges are multiples of the encoder's stride."""
        features = self.encoder(volume)
        coarse = reversed(features.pyramid[:-1])
        skips = [conv(stage) for conv, stage in zip(self.lateral, coarse, strict=True)]
        x = features.bottleneck
        for step, skip in zip(self.steps, (*skips, self.image_block(volume)), strict=True):
            x = step(x, skip)
        logits: Tensor = self.out(x)
        return logits


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling: one map seen at five ranges, fused.

    Args:
        inputs: channels of the map.
        width: channels of each range and of the result.
        norm: see `norm_layer`.
    """

    def __init__(self, inputs: int, width: int, *, norm: str) -> None:
        super().__init__()
        self.near = _ConvNorm(inputs, width, norm=norm)
        self.dilated = nn.ModuleList(
            _Separable(inputs, width, dilation=dilation, norm=norm) for dilation in _DILATIONS
        )
        self.pooled = nn.Conv3d(inputs, width, kernel_size=1, bias=False)
        # One vector per sample has no statistics over space, and over a batch of one sample none
        # at all: it is normalised over its channels.
        self.pooled_norm = nn.GroupNorm(1, width)
        self.fuse = _ConvNorm((2 + len(_DILATIONS)) * width, width, norm=norm)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b w z y x"]:
        """The grid stays."""
        pooled = torch.relu(self.pooled_norm(self.pooled(x.mean((2, 3, 4), keepdim=True))))
        ranges = [self.near(x), *(branch(x) for branch in self.dilated)]
        fused: Tensor = self.fuse(torch.cat([*ranges, pooled.expand_as(ranges[0])], dim=1))
        return fused


class _ConvNorm(nn.Module):
    """Convolution of 1³, norm and activation."""

    def __init__(self, inputs: int, outputs: int, *, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel_size=1, bias=False)
        self.norm = norm_layer(norm, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class _Separable(nn.Module):
    """A convolution of 3³ in each channel alone, then one of 1³ over the channels."""

    def __init__(self, inputs: int, outputs: int, *, dilation: int = 1, norm: str) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(
            inputs,
            inputs,
            kernel_size=3,
            padding=dilation,
            dilation=dilation,
            groups=inputs,
            bias=False,
        )
        self.pointwise = _ConvNorm(inputs, outputs, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise(self.depthwise(x))
        return y


class _StepUp(nn.Module):
    """Transposed convolution ×2, sum with the encoder's stage, separable residual block."""

    def __init__(self, inputs: int, outputs: int, *, skip: int, norm: str, separable: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(inputs, outputs, kernel_size=2, stride=2, bias=False)
        self.up_norm = norm_layer(norm, outputs)
        self.skip = nn.Conv3d(skip, outputs, kernel_size=1, bias=False)
        self.skip_norm = norm_layer(norm, outputs)
        self.block = nn.Sequential(
            *(_Separable(outputs, outputs, norm=norm) for _ in range(separable))
        )

    def forward(self, x: Tensor, stage: Tensor) -> Tensor:
        x = torch.relu(self.up_norm(self.up(x)) + self.skip_norm(self.skip(stage)))
        y: Tensor = x + self.block(x)
        return y
