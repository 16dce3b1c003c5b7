"""The U-Net with a residual encoder, which can leave out what a mask hides.

The network is nnU-Net's ResEnc-L (Isensee et al. 2024, arXiv 2404.09556). That convolutions must
not see what is hidden, and how the holes are filled before the decoder, is SparK's (Tian et al.
2023, arXiv 2301.03580, sec. 3), in 3D that of S3D (Wald et al. 2025, arXiv 2410.23132, sec. 3).
Shapes: b batch, c channels, (z, y, x) the grid of a level; level 0 is the finest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from backend.models.unet import EncoderDecoder, UnetDecoder, UnetOutput, check_edges

RESENC_L_WIDTHS = (32, 64, 128, 256, 320, 320)
RESENC_L_BLOCKS = (1, 3, 4, 6, 6, 6)

_SLOPE = 0.01
"""Of the leaky rectifier, for values below 0."""

_EPSILON = 1e-5
"""Added to the variance in norms."""


class ResencBackbone(EncoderDecoder):
    """U-Net of residual blocks on the way down and single convolutions on the way up.

    Args:
        widths: channels of each level, finest first.
        blocks: residual blocks of each level of the encoder.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = RESENC_L_WIDTHS,
        blocks: Sequence[int] = RESENC_L_BLOCKS,
    ) -> None:
        self.blocks = tuple(blocks)
        super().__init__(widths=widths)
        self.stem = SparseConvolution(1, self.widths[0], kernel=3)

    def _new_down(self) -> nn.ModuleList:
        levels = nn.ModuleList()
        before = self.widths[0]
        for number, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            level = nn.ModuleList([ResidualBlock(before, width, stride=2 if number else 1)])
            level.extend(ResidualBlock(width, width, stride=1) for _ in range(count - 1))
            levels.append(level)
            before = width
        return levels

    def new_decoder(self) -> UnetDecoder:
        """A way up with fresh weights."""
        steps = list(pairwise(self.widths))
        return UnetDecoder(
            (nn.ConvTranspose3d(below, width, kernel_size=2, stride=2) for width, below in steps),
            (
                nn.Sequential(
                    nn.Conv3d(2 * width, width, kernel_size=3, padding=1),
                    nn.InstanceNorm3d(width, affine=True, eps=_EPSILON),
                    nn.LeakyReLU(_SLOPE, inplace=True),
                )
                for width, _ in steps
            ),
        )

    def encode(
        self,
        volume: Float[Tensor, "b 1 z y x"],
        visible: Bool[Tensor, "b gz gy gx"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Maps of all levels of the encoder, finest first; the last is the bottleneck.

        Args:
            volume: edges are multiples of `stride`.
            visible: cells that may be seen; None for all. What is hidden is 0 at every level,
                and neither value nor statistic of it reaches what is visible.

        Raises:
            ValueError: if an edge is no multiple of the stride, or cells and a level's grid do
                not divide each other.
        """
        check_edges(volume, self.stride)
        seen = None if visible is None else visible_at(visible, volume.shape[2:])
        x = self.stem(volume if seen is None else volume * seen, seen)
        x = functional.leaky_relu(x, _SLOPE, inplace=True)
        levels: list[Tensor] = []
        for level, stage in enumerate(self.down):
            if visible is not None and level:
                seen = visible_at(visible, [n // 2 for n in x.shape[2:]])
            for block in stage.children():
                x = block(x, seen)
            levels.append(x)
        return tuple(levels)

    def forward(
        self,
        volume: Float[Tensor, "b 1 z y x"],
        visible: Bool[Tensor, "b gz gy gx"] | None = None,
        densifier: Densifier | None = None,
    ) -> UnetOutput:
        """Down and up.

        Args:
            volume: edges are multiples of `stride`.
            visible: cells that may be seen; None for all.
            densifier: fills what is hidden before the way up; None leaves it 0.
        """
        levels = self.encode(volume, visible)
        if visible is not None and densifier is not None:
            levels = densifier(levels, visible)
        return self.decode(levels)


class Densifier(nn.Module):
    """Fills the holes of sparse maps, so that a dense decoder can work on them.

    A learned token of each level stands in every hidden place. With `convolution` the visible
    places are normalised first and a convolution follows, as in SparK; on the bottleneck it has
    size 1, elsewhere 3.

    Args:
        widths: channels of each level, finest first.
        convolution: whether to normalise before and convolve after filling.
    """

    def __init__(self, *, widths: Sequence[int], convolution: bool) -> None:
        super().__init__()
        self.tokens = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths)
        for token in self.tokens:
            nn.init.trunc_normal_(token, std=0.02)
        self.norms = nn.ModuleList(SparseNorm(w) for w in widths if convolution)
        kernels = [3] * (len(widths) - 1) + [1]
        self.convolutions = nn.ModuleList(
            nn.Conv3d(width, width, kernel_size=kernel, padding=kernel // 2)
            for width, kernel in zip(widths, kernels, strict=True)
            if convolution
        )

    def forward(
        self, levels: Sequence[Tensor], visible: Bool[Tensor, "b gz gy gx"]
    ) -> tuple[Tensor, ...]:
        """The maps of the encoder's levels without holes; shapes stay."""
        filled: list[Tensor] = []
        for level, (x, token) in enumerate(zip(levels, self.tokens, strict=True)):
            seen = visible_at(visible, x.shape[2:])
            if self.norms:
                x = self.norms[level](x, seen)
            x = torch.where(seen.bool(), x, token.view(1, -1, 1, 1, 1).to(x.dtype))
            if self.convolutions:
                x = self.convolutions[level](x)
            filled.append(x)
        return tuple(filled)


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity, or beside a pooled and projected input.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first convolution, 1 or 2.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.first = SparseConvolution(inputs, outputs, kernel=3, stride=stride)
        self.second = SparseConvolution(outputs, outputs, kernel=3)
        self.pool = nn.AvgPool3d(stride) if stride > 1 else None
        self.project = (
            SparseConvolution(inputs, outputs, kernel=1, bias=False) if inputs != outputs else None
        )

    def forward(
        self, x: Float[Tensor, "b c z y x"], seen: Float[Tensor, "b 1 z2 y2 x2"] | None
    ) -> Float[Tensor, "b c2 z2 y2 x2"]:
        """`seen` is 1 where the result may be seen, at the result's resolution."""
        y = self.second(functional.leaky_relu(self.first(x, seen), _SLOPE, inplace=True), seen)
        if self.pool is not None:
            x = self.pool(x)
        if self.project is not None:
            x = self.project(x, seen)
        return functional.leaky_relu(y + x, _SLOPE, inplace=True)


class SparseConvolution(nn.Module):
    """A convolution and an instance norm whose result is 0 where nothing may be seen."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(
            inputs, outputs, kernel_size=kernel, stride=stride, padding=kernel // 2, bias=bias
        )
        self.norm = SparseNorm(outputs)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """`seen` is 1 where the result may be seen, (b, 1, z, y, x) at the result's resolution."""
        result: Tensor = self.norm(self.convolution(x), seen)
        return result


class SparseNorm(nn.Module):
    """Instance norm with scale and offset whose statistics are those of what may be seen."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "b c z y x"], seen: Tensor | None) -> Tensor:
        """Normalised where `seen` (b, 1, z, y, x) is 1, and 0 elsewhere; None sees all."""
        if seen is None:
            return functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=_EPSILON)
        axes = (2, 3, 4)
        # At least 1, because a sample may have nothing to see at the coarsest level.
        count = seen.sum(axes, keepdim=True).clamp(min=1)
        values = x.float()
        centred = (values - (values * seen).sum(axes, keepdim=True) / count) * seen
        variance = centred.square().sum(axes, keepdim=True) / count
        scale = self.weight.view(1, -1, 1, 1, 1) * torch.rsqrt(variance + _EPSILON)
        return (centred * scale + self.bias.view(1, -1, 1, 1, 1) * seen).to(x.dtype)


def visible_at(
    visible: Bool[Tensor, "b gz gy gx"], size: Sequence[int]
) -> Float[Tensor, "b 1 z y x"]:
    """1 at the places of a level's grid that may be seen, 0 elsewhere.

    Where the grid is finer than the cells each cell is repeated; where it is coarser a place may
    be seen if any cell in it may.

    Raises:
        ValueError: if cells and grid do not divide each other.
    """
    cells = visible.shape[1:]
    if any(max(n, c) % min(n, c) for n, c in zip(size, cells, strict=True)):
        raise ValueError(f"cells {tuple(cells)} and grid {tuple(size)} do not divide each other")
    # Adaptive windows of a finer grid hold exactly one cell.
    return functional.adaptive_max_pool3d(visible.unsqueeze(1).float(), tuple(size))
