"""The vision transformer of GL-MAE in 3D and the decoder of a masked autoencoder.

Zhuang et al., arXiv 2306.08913, sec. 3.1 and 4, after Dosovitskiy et al., arXiv 2010.11929, and He
et al., doi:10.1109/CVPR52688.2022.01553, sec. 3. Shapes: b batch, n all tokens of a view, k the
visible ones, c channels. Tokens stand in the (z, y, x) order of their patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from jaxtyping import Float, Int64
from torch import Tensor, nn

from backend.models import chunked
from backend.models.swin import Grid

_EPSILON = 1e-6
_LONGEST_WAVE = 10000.0
"""Wavelengths go from 2 pi to 2 pi times this, in tokens (He et al., after Vaswani et al.)."""


class VitOutput(NamedTuple):
    """What the encoder gives to heads and decoders.

    Attributes:
        cls: the class token after the final norm, (b, c).
        tokens: the tokens that went in, after the final norm, (b, n, c) or (b, k, c).
        hidden: the same tokens after the blocks that were asked for, not normalised.
        grid: patches along (z, y, x).
    """

    cls: Tensor
    tokens: Tensor
    hidden: tuple[Tensor, ...]
    grid: Grid


class VitEncoder(nn.Module):
    """Pre-norm vision transformer that can leave out the tokens nobody may see.

    With width 192, depth 12 and 3 heads (ViT-T) it has 6,125,568 parameters, with 768, 12 and 12
    (ViT-B) 88,203,264. Positions are frozen and made for whatever grid a view has, so they are no
    part of the weights.

    Args:
        width: channels of a token, a multiple of 6 and of `heads`.
        depth: blocks.
        heads: attention heads of each block.
        patch: edge of a token in voxels.
        mlp_ratio: hidden width of a block's MLP over its width.
        qkv_bias: bias in the projection to queries, keys and values.

    Raises:
        ValueError: if the width cannot be shared out to the axes or the heads.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int = 16,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        if width % 6:
            raise ValueError(f"width {width} is no multiple of 6: sine and cosine of three axes")
        self.width, self.depth, self.patch = width, depth, patch
        self.stride: Grid = (patch, patch, patch)
        self.patch_embed = nn.Conv3d(1, width, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(
            VitBlock(width, heads=heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.apply(_initialise)
        # As a linear layer on the patch's voxels, not as a convolution (He et al., appendix A.1).
        nn.init.xavier_uniform_(self.patch_embed.weight.view(width, -1))
        nn.init.normal_(self.cls_token, std=0.02)

    @property
    def read_after(self) -> tuple[int, ...]:
        """Numbers of the blocks whose tokens a decoder reads beside the final ones, rising.

        One for each doubling of the edge between the first and the last: after 3, 6 and 9 of 12
        blocks with patches of 16 voxels (Hatamizadeh et al., doi:10.1109/WACV51458.2022.00181).
        """
        doublings = self.patch.bit_length() - 1
        return tuple(sorted({self.depth * n // doublings for n in range(1, doublings)} - {0}))

    def forward(
        self,
        volume: Float[Tensor, "b 1 z y x"],
        visible: Int64[Tensor, "b k"] | None = None,
        hidden_after: Sequence[int] = (),
    ) -> VitOutput:
        """Encode volumes.

        Args:
            volume: values in [0, 1]; edges are multiples of `patch`.
            visible: flat indices of the patches that enter the blocks; None for all.
            hidden_after: numbers of blocks, rising, after which the tokens are given as well.

        Raises:
            ValueError: if an edge is no multiple of the patch, or a block does not exist.
        """
        _check_blocks(hidden_after, self.depth)
        grid = patch_grid(volume.shape[2:], self.patch)
        x = self.patch_embed(volume).flatten(2).transpose(1, 2)
        x = x + sincos_positions(grid, self.width, x.device)
        if visible is not None:
            x = pick(x, visible)
        # The class token has no place, and so no position.
        x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        hidden = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number in hidden_after:
                hidden.append(x[:, 1:])
        x = self.norm(x)
        return VitOutput(x[:, 0], x[:, 1:], tuple(hidden), grid)


class MaeDecoder(nn.Module):
    """From visible tokens to the voxels of all patches (He et al., sec. 3, MAE decoder).

    One decoder serves views of any grid: GL-MAE shares it between global and local ones. Where the
    width is no multiple of 6 the last channels carry no position.

    Args:
        encoder_width: channels of the encoder's tokens.
        width: channels inside the decoder, a multiple of `heads`.
        depth: blocks.
        heads: attention heads of each block.
        patch: edge of a token in voxels.
        mlp_ratio: hidden width of a block's MLP over its width.

    Raises:
        ValueError: if the heads do not divide the width.
    """

    def __init__(
        self,
        *,
        encoder_width: int,
        width: int = 576,
        depth: int = 8,
        heads: int = 16,
        patch: int = 16,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(
            VitBlock(width, heads=heads, mlp_ratio=mlp_ratio, qkv_bias=True) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.predict = nn.Linear(width, patch**3)
        self.apply(_initialise)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        cls: Float[Tensor, "b c"],
        tokens: Float[Tensor, "b k c"],
        visible: Int64[Tensor, "b k"],
        grid: Grid,
    ) -> Float[Tensor, "b n voxels"]:
        """Predict every patch, the visible ones too.

        Args:
            cls: the encoder's class token.
            tokens: the encoder's visible tokens.
            visible: flat index of each visible token in the grid.
            grid: patches along (z, y, x).
        """
        positions = sincos_positions(grid, self.width, tokens.device)
        x = self.embed(torch.cat([cls.unsqueeze(1), tokens], dim=1))
        every = self.mask_token.to(x.dtype).expand(len(x), len(positions), -1)
        index = visible.unsqueeze(-1).expand(-1, -1, self.width)
        every = every.scatter(1, index, x[:, 1:]) + positions
        x = torch.cat([x[:, :1].to(every.dtype), every], dim=1)
        for block in self.blocks:
            x = block(x)
        predicted: Tensor = self.predict(self.norm(x[:, 1:]))
        return predicted


class VitBlock(nn.Module):
    """Pre-norm attention among all tokens and MLP, each a residual branch."""

    def __init__(self, width: int, *, heads: int, mlp_ratio: float, qkv_bias: bool) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide width {width}")
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=_EPSILON)
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=_EPSILON)
        hidden = int(width * mlp_ratio)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Shape stays."""
        x = x + self._attend(self.norm1(x))
        return x + chunked.mlp(self.norm2(x), self.linear1, self.linear2)

    def _attend(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        gathered = F.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.project(gathered.transpose(1, 2).reshape(b, n, c))
        return projected


def patch_grid(size: Sequence[int], patch: int) -> Grid:
    """Patches along (z, y, x) of a volume of `size` voxels.

    Raises:
        ValueError: if an edge is no multiple of the patch.
    """
    if any(n % patch for n in size):
        raise ValueError(f"edges {tuple(size)} are no multiples of {patch}")
    z, y, x = (n // patch for n in size)
    return z, y, x


def patchify(volume: Float[Tensor, "b 1 z y x"], patch: int) -> Float[Tensor, "b n voxels"]:
    """Cut volumes into cubes of `patch` voxels, cubes and their voxels in (z, y, x) order.

    Raises:
        ValueError: if an edge is no multiple of the patch.
    """
    z, y, x = patch_grid(volume.shape[2:], patch)
    cut = volume.reshape(-1, z, patch, y, patch, x, patch).permute(0, 1, 3, 5, 2, 4, 6)
    return cut.reshape(-1, z * y * x, patch**3)


def unpatchify(
    patches: Float[Tensor, "b n voxels"], grid: Grid, patch: int
) -> Float[Tensor, "b 1 z y x"]:
    """The inverse of `patchify` for a grid of patches."""
    z, y, x = grid
    joined = patches.reshape(-1, z, y, x, patch, patch, patch).permute(0, 1, 4, 2, 5, 3, 6)
    return joined.reshape(-1, 1, z * patch, y * patch, x * patch)


def as_map(tokens: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b c gz gy gx"]:
    """Tokens at their places in the grid."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)


def pick(tokens: Float[Tensor, "b n c"], index: Int64[Tensor, "b k"]) -> Float[Tensor, "b k c"]:
    """Tokens of each sample at its own indices."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


# Kept on the device that asks, so that no step copies it there, and as a normal tensor even if
# made while segmenting: inference tensors could not serve training.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def sincos_positions(grid: Grid, width: int, device: torch.device) -> Float[Tensor, "n width"]:
    """Frozen positions on the whole-numbered grid, one row for each token in (z, y, x) order.

    A row holds the sines, then the cosines of z, then those of y and of x, width // 6 of each,
    wavelengths rising geometrically (He et al., after Vaswani et al., extended to three axes).
    What is left of a width that 6 does not divide is zero.
    """
    count = width // 6
    rate = _LONGEST_WAVE ** (-torch.arange(count, dtype=torch.float64, device="cpu") / count)
    steps = [torch.arange(n, dtype=torch.float64, device="cpu") for n in grid]
    places = torch.cartesian_prod(*steps)  # (n, 3)
    angle = places.unsqueeze(-1) * rate  # (n, 3, count)
    waves = torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)
    return F.pad(waves, (0, width - 6 * count)).float().to(device)


def _check_blocks(numbers: Sequence[int], depth: int) -> None:
    rising = all(a < b for a, b in pairwise((0, *numbers, depth + 1)))
    if not rising:
        raise ValueError(f"hidden_after {tuple(numbers)} must rise within 1 to {depth}")


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
