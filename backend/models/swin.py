"""The Swin transformer of SMIT in 3D.

Jiang et al. 2022, sec. 2, after Liu et al., doi:10.1109/ICCV48922.2021.00986. Shapes: b batch,
c channels, (z, y, x) the token grid, w windows, n tokens in a window, h heads. Inside the blocks
tensors are channels-last, (b, z, y, x, c), so that norms and linears need no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from jaxtyping import Bool, Float
from torch import Tensor, nn

from backend.models import chunked

Grid = tuple[int, int, int]


class EncoderOutput(NamedTuple):
    """What an encoder gives to heads and decoders.

    Attributes:
        pyramid: normalised outputs of the stages before merging, finest first, (b, c, z, y, x).
        bottleneck: the coarsest map, (b, c, z, y, x).
        before_last_stage: the map that enters the last stage, (b, c, z, y, x).
    """

    pyramid: tuple[Tensor, ...]
    bottleneck: Tensor
    before_last_stage: Tensor


class SwinEncoder(nn.Module):
    """Swin transformer with a mask token, giving a pyramid of features.

    With `embed_dim=48, depths=(2, 2, 4, 2), heads=(4, 4, 4, 4)` and a final merge this is the
    encoder of SMIT's released code: 8,763,832 parameters.

    Args:
        embed_dim: channels of the first stage, doubled by each merge.
        depths: blocks per stage.
        heads: attention heads per stage.
        window: edge of an attention window in tokens; every other block shifts it by half.
        patch: edge of a token in voxels.
        mlp_ratio: hidden width of a block's MLP over its width.
        qkv_bias: bias in the projection to queries, keys and values.
        final_merge: whether the last stage is merged as well.
        patch_norm: whether tokens are normalised once they are embedded.
    """

    def __init__(  # noqa: PLR0913 - the plain arguments of a weights file
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int = 4,
        patch: int = 2,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        final_merge: bool = True,
        patch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.final_merge = final_merge
        self.widths = tuple(embed_dim * 2**i for i in range(len(depths)))
        merges = len(depths) - (0 if final_merge else 1)
        self.stride = patch * 2**merges
        self.bottleneck_width = embed_dim * 2**merges
        self.patch_embed = nn.Conv3d(1, embed_dim, kernel_size=patch, stride=patch)
        self.patch_norm = nn.LayerNorm(embed_dim) if patch_norm else nn.Identity()
        self.mask_token = nn.Parameter(torch.zeros(embed_dim))
        self.stages = nn.ModuleList(
            nn.ModuleList(
                SwinBlock(
                    width,
                    heads=stage_heads,
                    window=window,
                    shift=0 if block % 2 == 0 else window // 2,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                )
                for block in range(depth)
            )
            for width, depth, stage_heads in zip(self.widths, depths, heads, strict=True)
        )
        self.merges = nn.ModuleList(PatchMerging(width) for width in self.widths[:merges])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.widths)
        self.apply(_initialise)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    @property
    def drop_sites(self) -> int:
        """How many residual branches stochastic depth may drop: two in each block."""
        return 2 * sum(len(stage) for stage in self._stages())

    def _stages(self) -> list[list[SwinBlock]]:
        return cast(list[list[SwinBlock]], self.stages)

    def forward(
        self,
        volume: Float[Tensor, "b 1 z y x"],
        mask: Bool[Tensor, "b gz gy gx"] | None = None,
        branch_scale: Float[Tensor, "sites b"] | None = None,
    ) -> EncoderOutput:
        """Encode volumes.

        Args:
            volume: values in [0, 1]; edges are multiples of `stride`.
            mask: cells hidden behind the mask token; the grid divides the token grid.
            branch_scale: factor of each residual branch of each sample, 0 where stochastic depth
                drops it. None keeps all branches as they are (evaluation, teacher).

        Raises:
            ValueError: if an edge is no multiple of the stride.
        """
        if any(n % self.stride for n in volume.shape[2:]):
            raise ValueError(f"edges {tuple(volume.shape[2:])} are no multiples of {self.stride}")
        x = self.patch_norm(self.patch_embed(volume).permute(0, 2, 3, 4, 1))
        if mask is not None:
            x = torch.where(
                upsample_cells(mask, x.shape[1:4]).unsqueeze(-1), self.mask_token.to(x.dtype), x
            )
        pyramid = []
        before_last = x
        site = 0
        for index, blocks in enumerate(self._stages()):
            before_last = x
            for block in blocks:
                scales = None if branch_scale is None else branch_scale[site : site + 2]
                x = block(x, scales)
                site += 2
            pyramid.append(_channels_first(self.norms[index](x)))
            if index < len(self.merges):
                x = self.merges[index](x)
        # Without a final merge the last stage's normalised output is the bottleneck.
        bottleneck = _channels_first(x) if self.final_merge else pyramid[-1]
        return EncoderOutput(tuple(pyramid), bottleneck, _channels_first(before_last))


class SwinBlock(nn.Module):
    """Pre-norm window attention and MLP, each a residual branch."""

    def __init__(
        self, width: int, *, heads: int, window: int, shift: int, mlp_ratio: float, qkv_bias: bool
    ) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads=heads, window=window, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(
        self, x: Float[Tensor, "b z y x c"], branch_scale: Float[Tensor, "2 b"] | None = None
    ) -> Float[Tensor, "b z y x c"]:
        """Shape stays."""
        first = self._attend(self.norm1(x))
        if branch_scale is not None:
            first = first * branch_scale[0].view(-1, 1, 1, 1, 1).to(first.dtype)
        x = x + first
        second = chunked.mlp(self.norm2(x), self.linear1, self.linear2)
        if branch_scale is not None:
            second = second * branch_scale[1].view(-1, 1, 1, 1, 1).to(second.dtype)
        result: Tensor = x + second
        return result

    def _attend(self, x: Tensor) -> Tensor:
        size: Grid = (x.shape[1], x.shape[2], x.shape[3])
        window, shift = fitting_window(size, self.window, self.shift)
        # Grids that windows do not divide are padded with zeros, as in the reference code.
        pad = [-n % w for n, w in zip(size, window, strict=True)]
        if any(pad):
            x = F.pad(x, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
        padded: Grid = (x.shape[1], x.shape[2], x.shape[3])
        if any(shift):
            x = torch.roll(x, [-s for s in shift], (1, 2, 3))
        windows = split_windows(x, window)
        mask = shift_mask(padded, window, shift).to(x.device) if any(shift) else None
        x = join_windows(self.attention(windows, window, mask), window, padded)
        if any(shift):
            x = torch.roll(x, shift, (1, 2, 3))
        return x[:, : size[0], : size[1], : size[2]]


class WindowAttention(nn.Module):
    """Multi-head attention inside windows with a learned relative position bias."""

    def __init__(self, width: int, *, heads: int, window: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.project = nn.Linear(width, width)
        self.relative_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 3, heads))
        nn.init.trunc_normal_(self.relative_bias, std=0.02)

    def forward(
        self,
        x: Float[Tensor, "b w n c"],
        window: Grid,
        mask: Float[Tensor, "w n n"] | None = None,
    ) -> Float[Tensor, "b w n c"]:
        """Attend inside each window; `mask` is added to the logits, -inf where none may pass."""
        b, w, n, c = x.shape
        index = relative_index(window, self.window).to(x.device)
        bias = self.relative_bias[index].permute(2, 0, 1)  # (h, n, n)
        qkv = self.qkv(x)
        if chunked.pays(qkv):
            result: Tensor = self.project(chunked.window_attention(qkv, bias, mask))
            return result
        qkv = qkv.view(b, w, n, 3, self.heads, c // self.heads)
        if mask is None:
            # Every window has the same bias: windows go into the batch, nothing is repeated.
            q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).reshape(3, b * w, self.heads, n, -1).unbind()
            bias = bias.unsqueeze(0)
        else:
            # Windows differ by their mask: they go beside the heads, so that the mask is not
            # repeated for each sample of the batch.
            q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).reshape(3, b, w * self.heads, n, -1).unbind()
            bias = (bias + mask.unsqueeze(1)).reshape(1, w * self.heads, n, n)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        out = out.reshape(b, w, self.heads, n, -1).transpose(2, 3).reshape(b, w, n, c)
        projected: Tensor = self.project(out)
        return projected


class PatchMerging(nn.Module):
    """Halves the grid: eight neighbours are concatenated, normalised and projected to 2c.

    The neighbours stand in the lexicographic order of their offset (z, y, x), as in MONAI's
    `PatchMergingV2`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * width)
        self.reduction = nn.Linear(8 * width, 2 * width, bias=False)

    def forward(self, x: Float[Tensor, "b z y x c"]) -> Float[Tensor, "b z2 y2 x2 c2"]:
        """Odd edges are padded with zeros."""
        b, z, y, width, c = x.shape
        if z % 2 or y % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, y % 2, 0, z % 2))
            b, z, y, width, c = x.shape
        x = x.view(b, z // 2, 2, y // 2, 2, width // 2, 2, c)
        x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, z // 2, y // 2, width // 2, 8 * c)
        merged: Tensor = self.reduction(self.norm(x))
        return merged


def upsample_cells(
    mask: Bool[Tensor, "b gz gy gx"], size: Sequence[int]
) -> Bool[Tensor, "b z y x"]:
    """Repeat each cell so that the grid has `size`.

    Raises:
        ValueError: if the cells do not divide the grid.
    """
    for axis, target in enumerate(size, start=1):
        times, rest = divmod(target, mask.shape[axis])
        if rest or times == 0:
            raise ValueError(f"cells {tuple(mask.shape[1:])} do not divide the grid {tuple(size)}")
        mask = mask.repeat_interleave(times, dim=axis)
    return mask


def fitting_window(size: Grid, window: int, shift: int) -> tuple[Grid, Grid]:
    """Window and shift per axis; where the grid is not larger than a window, it is the window."""
    small = [n <= window for n in size]
    windows = tuple(n if s else window for n, s in zip(size, small, strict=True))
    shifts = tuple(0 if s else shift for s in small)
    return windows, shifts  # type: ignore[return-value]


def split_windows(x: Float[Tensor, "b z y x c"], window: Grid) -> Float[Tensor, "b w n c"]:
    """Cut a grid into windows, in (z, y, x) order."""
    b, z, y, width, c = x.shape
    wz, wy, wx = window
    x = x.view(b, z // wz, wz, y // wy, wy, width // wx, wx, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, wz * wy * wx, c)


def join_windows(
    x: Float[Tensor, "b w n c"], window: Grid, size: Grid
) -> Float[Tensor, "b z y x c"]:
    """The inverse of `split_windows` for a grid of `size`."""
    b, c = x.shape[0], x.shape[-1]
    (z, y, width), (wz, wy, wx) = size, window
    x = x.view(b, z // wz, y // wy, width // wx, wz, wy, wx, c)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, z, y, width, c)


# The tables are cached on the processor, whatever the default device is when they are made, and
# as normal tensors even if that is while segmenting: inference tensors could not serve training.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def relative_index(window: Grid, table_window: int) -> Tensor:
    """Row of the bias table for each pair of tokens of a window. Shape (n, n), whole numbers.

    A window smaller than the table's uses the rows of the offsets that occur in it.
    """
    coordinates = torch.tensor(list(product(*(range(n) for n in window))), device="cpu")
    offset = coordinates[:, None] - coordinates[None] + table_window - 1
    edge = 2 * table_window - 1
    return (offset[..., 0] * edge + offset[..., 1]) * edge + offset[..., 2]


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def shift_mask(size: Grid, window: Grid, shift: Grid) -> Tensor:
    """Keeps apart tokens that only meet because the grid was rolled. Shape (w, n, n), 0 or -inf."""
    region = torch.zeros(1, *size, 1, device="cpu")
    spans = [
        (slice(0, -w), slice(-w, -s), slice(-s, None)) if s else (slice(None),)
        for w, s in zip(window, shift, strict=True)
    ]
    for number, (z, y, x) in enumerate(product(*spans)):
        region[:, z, y, x] = number
    ids = split_windows(region, window).squeeze(0).squeeze(-1)  # (w, n)
    apart = ids[:, :, None] != ids[:, None, :]
    return torch.zeros(apart.shape, device="cpu").masked_fill_(apart, float("-inf"))


def branch_rates(drop_path: float, sites: int) -> list[float]:
    """Chance to drop each residual branch: linear over the blocks, two branches in each."""
    blocks = sites // 2
    per_block = [drop_path * i / max(1, blocks - 1) for i in range(blocks)]
    return [rate for rate in per_block for _ in range(2)]


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 4, 1, 2, 3)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
