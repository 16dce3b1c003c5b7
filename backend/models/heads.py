"""What stands on an encoder while it is pretrained: prototypes, pixels, class attention."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from jaxtyping import Float
from torch import Tensor, nn


class PrototypeHead(nn.Module):
    """The projection head of DINO (Caron et al. 2021, sec. 3.1) as SMIT uses it.

    Three linears, the result scaled to length 1, then its similarity to K prototypes of length 1.
    With 384 inputs and the default widths it has 7,614,720 parameters.

    Args:
        width: channels of a token.
        hidden: width of the two hidden layers.
        bottleneck: width before the prototypes.
        prototypes: how many, K.
    """

    def __init__(self, width: int, *, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        # The length of the prototypes is frozen at 1; kept as a tensor, because released weights
        # carry it.
        self.prototype_length = nn.Parameter(torch.ones(prototypes, 1), requires_grad=False)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, tokens: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch prototypes"]:
        """Cosine of each token to each prototype, in fp32 whatever the autocast."""
        projected = self.mlp(tokens)
        with _full_precision(projected.device.type):
            unit = F.normalize(projected.float(), dim=-1, eps=1e-6)
            weight = F.normalize(self.prototypes.float(), dim=-1) * self.prototype_length
            return F.linear(unit, weight)


def _full_precision(device_type: str) -> contextlib.AbstractContextManager[None]:
    # Counting on the meta device computes nothing, and knows no autocast.
    if device_type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


class PixelHead(nn.Module):
    """One linear layer from each bottleneck cell to the voxels it stands for (SMIT, sec. 2).

    Args:
        width: channels of the bottleneck.
        stride: voxels per cell, of each axis alike or along (z, y, x); the layer has an output
            for each voxel of a cell.
    """

    def __init__(self, width: int, *, stride: int | tuple[int, int, int]) -> None:
        super().__init__()
        self.stride = (stride, stride, stride) if isinstance(stride, int) else stride
        self.linear = nn.Conv3d(width, math.prod(self.stride), kernel_size=1)

    def forward(self, cells: Float[Tensor, "b c gz gy gx"]) -> Float[Tensor, "b 1 z y x"]:
        """Predicted voxels, edges `stride` times those of the grid."""
        x = self.linear(cells)
        b, _, gz, gy, gx = x.shape
        sz, sy, sx = self.stride
        x = x.view(b, sz, sy, sx, gz, gy, gx).permute(0, 4, 1, 5, 2, 6, 3)
        voxels: Tensor = x.reshape(b, 1, gz * sz, gy * sy, gx * sx)
        return voxels


class ConvProjector(nn.Sequential):
    """Convolutions of 1³ with batch norm and ReLU between (PGL, sec. 3.3; BYOL, sec. 3.3).

    On a map it keeps the places apart, as in PGL; on one cell it is the perceptron of BYOL. With
    2048 inputs and (4096, 256) it has 9,445,632 parameters.

    Args:
        inputs: channels that come in.
        widths: channels after each convolution.
        last_norm: a batch norm without scale and shift after the last one, as in MoCo v3.
    """

    def __init__(self, inputs: int, widths: Sequence[int], *, last_norm: bool = False) -> None:
        layers: list[nn.Module] = []
        for width in widths[:-1]:
            layers += [
                nn.Conv3d(inputs, width, kernel_size=1, bias=False),
                nn.BatchNorm3d(width),
                nn.ReLU(),
            ]
            inputs = width
        layers.append(nn.Conv3d(inputs, widths[-1], kernel_size=1, bias=not last_norm))
        if last_norm:
            layers.append(nn.BatchNorm3d(widths[-1], affine=False))
        super().__init__(*layers)


class DeconvHead(nn.Sequential):
    """Voxels from bottleneck cells by transposed convolutions that double the grid each.

    Kernel and stride 2, halving the channels, without norms or activations: the decoder of several
    layers that SMIT compares its one layer with (sec. 3, ablation experiments: five of them), and
    an option of Swin UNETR's pretraining.

    Args:
        width: channels of the bottleneck.
        stride: voxels per cell along each axis, a power of 2.

    Raises:
        ValueError: if the stride is no power of 2.
    """

    def __init__(self, width: int, *, stride: int) -> None:
        inputs = [width // 2**step for step in range(_doublings(stride))]
        super().__init__(
            *(
                nn.ConvTranspose3d(before, after, kernel_size=2, stride=2)
                for before, after in zip(inputs, [*inputs[1:], 1], strict=True)
            )
        )


class ConvUpHead(nn.Sequential):
    """Voxels from bottleneck cells by convolutions and interpolation.

    The "vae" decoder of Swin UNETR's pretraining (Tang et al. 2022; released code): as often as the
    grid must be doubled a 3³ convolution that halves the channels (not below a sixteenth), instance
    norm, leaky ReLU and trilinear upsampling; one 1³ convolution at the end.

    Args:
        width: channels of the bottleneck.
        stride: voxels per cell along each axis, a power of 2.

    Raises:
        ValueError: if the stride is no power of 2.
    """

    def __init__(self, width: int, *, stride: int) -> None:
        steps = _doublings(stride)
        widths = [width, *(width // 2 ** min(step, 4) for step in range(1, steps + 1))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv3d(before, after, kernel_size=3, padding=1),
                nn.InstanceNorm3d(after),
                nn.LeakyReLU(),
                nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
            ]
        super().__init__(*layers, nn.Conv3d(widths[-1], 1, kernel_size=1))


def _doublings(stride: int) -> int:
    times = stride.bit_length() - 1
    if stride != 2**times:
        raise ValueError(f"stride {stride} is no power of 2")
    return times


class ClassAttention(nn.Module):
    """A class token that gathers from the patch tokens (CaiT, Touvron et al. 2021, sec. 3).

    SMIT's authors put two such blocks on the tokens in their later work; here an option.
    """

    def __init__(self, width: int, *, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.blocks = nn.ModuleList(_ClassAttentionBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, tokens: Float[Tensor, "b n width"]) -> Float[Tensor, "b width"]:
        """The class token after all blocks."""
        token = self.token.expand(tokens.shape[0], -1, -1)
        for block in self.blocks:
            token = block(token, tokens)
        normed: Tensor = self.norm(token[:, 0])
        return normed


class _ClassAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, token: Tensor, tokens: Tensor) -> Tensor:
        both = self.norm1(torch.cat([token, tokens], dim=1))
        gathered, _ = self.attention(both[:, :1], both, both, need_weights=False)
        token = token + gathered
        result: Tensor = token + self.mlp(self.norm2(token))
        return result
