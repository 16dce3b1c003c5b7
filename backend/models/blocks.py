"""Convolutional blocks in 3D, as every decoder here uses them.

The arithmetic is that of MONAI's `UnetrBasicBlock`, `UnetrUpBlock`, `UnetrPrUpBlock` (with residual
blocks) and `UnetOutBlock`, of which the released networks of UNETR (DOI
10.1109/WACV51458.2022.00181) and SMIT (DOI 10.1007/978-3-031-16440-8_53) are made; parameters have
the same names, shapes and initial values. They are written anew because to import MONAI takes
longer than to load a model and segment a scan with it.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backend.geometry import Index3

_SLOPE = 0.01
"""Of the leaky ReLU where it is negative."""


class ResidualBlock(nn.Module):
    """Two convolutions of 3³ beside a shortcut, each normalised.

    The shortcut is the input itself, or where the number of channels changes a normalised
    convolution of 1³. The sum goes through a leaky ReLU.

    Args:
        in_channels: i, of the input.
        out_channels: o, of what comes out.
        norm: "instance" (without learned scale and shift) or "batch".
    """

    def __init__(self, *, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.layer = _Residual(in_channels, out_channels, norm)

    def forward(self, x: Float[Tensor, "b i z y x"]) -> Float[Tensor, "b o z y x"]:
        """As large as the input."""
        out: Tensor = self.layer(x)
        return out


class UpBlock(nn.Module):
    """A transposed convolution, the skip beside what it gives, a residual block.

    Args:
        in_channels: i, of what is made finer.
        out_channels: o, of the skip and of what comes out.
        factor: by which it is made finer; along each axis, or (z, y, x).
        norm: see `ResidualBlock`.
    """

    def __init__(
        self, *, in_channels: int, out_channels: int, factor: int | Index3, norm: str
    ) -> None:
        super().__init__()
        self.transp_conv = _upsampling(in_channels, out_channels, factor)
        self.conv_block = _Residual(2 * out_channels, out_channels, norm)

    def forward(
        self, x: Float[Tensor, "b i z y x"], skip: Float[Tensor, "b o fz fy fx"]
    ) -> Float[Tensor, "b o fz fy fx"]:
        """`factor` times as large as x."""
        out: Tensor = self.conv_block(torch.cat((self.transp_conv(x), skip), dim=1))
        return out


class TokenUpBlock(nn.Module):
    """Transposed convolutions with residual blocks between, of factor 2 each.

    Args:
        in_channels: of the tokens.
        out_channels: of what comes out, 2^steps times as fine.
        steps: at least 1.
        norm: see `ResidualBlock`.
    """

    def __init__(self, *, in_channels: int, out_channels: int, steps: int, norm: str) -> None:
        super().__init__()
        self.transp_conv_init = _upsampling(in_channels, out_channels, 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                _upsampling(out_channels, out_channels, 2),
                _Residual(out_channels, out_channels, norm),
            )
            for _ in range(steps - 1)
        )

    def forward(self, x: Float[Tensor, "b i z y x"]) -> Float[Tensor, "b o fz fy fx"]:
        """2^steps times as large as x."""
        out: Tensor = self.transp_conv_init(x)
        for block in self.blocks:
            out = block(out)
        return out


class OutBlock(nn.Module):
    """Logits of each voxel: a convolution of 1³ with bias.

    Args:
        in_channels: of the features.
        out_channels: classes.
    """

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = _named(nn.Conv3d(in_channels, out_channels, 1))

    def forward(self, x: Float[Tensor, "b i z y x"]) -> Float[Tensor, "b o z y x"]:
        """As large as the input."""
        logits: Tensor = self.conv(x)
        return logits


class _Residual(nn.Module):
    """See `ResidualBlock`, which holds it as `layer`; the up blocks hold it as it is."""

    def __init__(self, inputs: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.conv1 = _named(nn.Conv3d(inputs, outputs, 3, padding=1, bias=False))
        self.conv2 = _named(nn.Conv3d(outputs, outputs, 3, padding=1, bias=False))
        self.norm1, self.norm2 = _norm(norm, outputs), _norm(norm, outputs)
        self.conv3: nn.Module | None = None
        self.norm3: nn.Module | None = None
        if inputs != outputs:
            self.conv3 = _named(nn.Conv3d(inputs, outputs, 1, bias=False))
            self.norm3 = _norm(norm, outputs)

    def forward(self, x: Tensor) -> Tensor:
        # In place: what is overwritten here, no gradient asks for.
        out = nn.functional.leaky_relu(self.norm1(self.conv1(x)), _SLOPE, inplace=True)
        out = self.norm2(self.conv2(out))
        out += x if self.conv3 is None or self.norm3 is None else self.norm3(self.conv3(x))
        return nn.functional.leaky_relu(out, _SLOPE, inplace=True)


def _norm(name: str, channels: int) -> nn.Module:
    kinds: dict[str, type[nn.Module]] = {"instance": nn.InstanceNorm3d, "batch": nn.BatchNorm3d}
    return kinds[name](channels)


def _upsampling(inputs: int, outputs: int, factor: int | Index3) -> nn.Sequential:
    return _named(nn.ConvTranspose3d(inputs, outputs, factor, stride=factor, bias=False))


def _named(convolution: nn.Module) -> nn.Sequential:
    """A convolution under the name that MONAI gives it, which stands in weights files."""
    return nn.Sequential(OrderedDict(conv=convolution))
