"""A Swin transformer as the published codes run it: one attention matrix after the other.

Attention weights and the bias are spelt out, the mask of shifted windows is made anew in each pass
and tensors go back and forth between channels first and last. The arithmetic is that of
`backend.models.swin` (Liu et al., doi:10.1109/ICCV48922.2021.00986).
"""

from __future__ import annotations

from itertools import product
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import Tensor, nn

from backend.models.swin import (
    EncoderOutput,
    Grid,
    PatchMerging,
    SwinBlock,
    SwinEncoder,
    WindowAttention,
    fitting_window,
    relative_index,
    upsample_cells,
)

_APART = -100.0
"""Added where two tokens only meet because the grid was rolled."""


class PlainSwin(nn.Module):
    """The encoder's arithmetic, plainly.

    Args:
        encoder: whose weights it takes; they are shared.
    """

    def __init__(self, encoder: SwinEncoder) -> None:
        super().__init__()
        self.weights = encoder

    def forward(
        self, volume: Tensor, mask: Tensor | None = None, branch_scale: Tensor | None = None
    ) -> EncoderOutput:
        """As `SwinEncoder`."""
        e = self.weights
        x = e.patch_embed(volume)
        b, c, z, y, width = x.shape
        x = e.patch_norm(x.flatten(2).transpose(1, 2))
        if mask is not None:
            hidden = upsample_cells(mask, (z, y, width)).flatten(1).unsqueeze(-1).to(x.dtype)
            x = x * (1 - hidden) + e.mask_token.expand(b, x.shape[1], -1) * hidden
        x = x.transpose(1, 2).reshape(b, c, z, y, width)
        pyramid, before_last, site = [], x, 0
        for number, blocks in enumerate(cast(list[list[SwinBlock]], e.stages)):
            before_last = x
            x = x.permute(0, 2, 3, 4, 1).contiguous()
            for block in blocks:
                scales = None if branch_scale is None else branch_scale[site : site + 2]
                x = _block(block, x, scales)
                site += 2
            pyramid.append(e.norms[number](x).permute(0, 4, 1, 2, 3).contiguous())
            if number < len(e.merges):
                x = _merged(cast(PatchMerging, e.merges[number]), x)
            x = x.permute(0, 4, 1, 2, 3).contiguous()
        return EncoderOutput(tuple(pyramid), x if e.final_merge else pyramid[-1], before_last)


def _block(block: SwinBlock, x: Tensor, scales: Tensor | None) -> Tensor:
    shortcut = x
    x = _attended(block, block.norm1(x))
    if scales is not None:
        x = x * scales[0].view(-1, 1, 1, 1, 1)
    x = shortcut + x
    second = block.linear2(F.gelu(block.linear1(block.norm2(x))))
    if scales is not None:
        second = second * scales[1].view(-1, 1, 1, 1, 1)
    result: Tensor = x + second
    return result


def _attended(block: SwinBlock, x: Tensor) -> Tensor:
    size: Grid = (x.shape[1], x.shape[2], x.shape[3])
    window, shift = fitting_window(size, block.window, block.shift)
    pad = [-n % w for n, w in zip(size, window, strict=True)]
    x = F.pad(x, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
    padded = x.shape
    mask = None
    if any(shift):
        mask = _shift_mask((padded[1], padded[2], padded[3]), window, shift, x.device)
        x = torch.roll(x, [-s for s in shift], (1, 2, 3))
    windows = _cut(x, window)
    windows = _attention(block.attention, windows, window, mask)
    x = _joined(windows, window, padded)
    if any(shift):
        x = torch.roll(x, shift, (1, 2, 3))
    return x[:, : size[0], : size[1], : size[2]].contiguous()


def _attention(attention: WindowAttention, x: Tensor, window: Grid, mask: Tensor | None) -> Tensor:
    count, n, c = x.shape
    heads = attention.heads
    qkv = attention.qkv(x).reshape(count, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0] * (c // heads) ** -0.5, qkv[1], qkv[2]
    logits = q @ k.transpose(-2, -1)
    index = relative_index(window, attention.window).to(x.device)
    bias = attention.relative_bias[index.reshape(-1)].reshape(n, n, heads)
    logits = logits + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
    if mask is not None:
        logits = logits.view(-1, len(mask), heads, n, n) + mask.unsqueeze(1).unsqueeze(0)
        logits = logits.view(-1, heads, n, n)
    shares = torch.softmax(logits, dim=-1)
    gathered = (shares @ v).transpose(1, 2).reshape(count, n, c)
    projected: Tensor = attention.project(gathered)
    return projected


def _merged(merge: PatchMerging, x: Tensor) -> Tensor:
    z, y, width = x.shape[1:4]
    x = F.pad(x, (0, 0, 0, width % 2, 0, y % 2, 0, z % 2))
    x = torch.cat([x[:, i::2, j::2, k::2] for i, j, k in product((0, 1), repeat=3)], dim=-1)
    merged: Tensor = merge.reduction(merge.norm(x))
    return merged


def _cut(x: Tensor, window: Grid) -> Tensor:
    b, z, y, width, c = x.shape
    wz, wy, wx = window
    x = x.view(b, z // wz, wz, y // wy, wy, width // wx, wx, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).contiguous().view(-1, wz * wy * wx, c)


def _joined(windows: Tensor, window: Grid, shape: torch.Size) -> Tensor:
    b, z, y, width, c = shape
    wz, wy, wx = window
    x = windows.view(b, z // wz, y // wy, width // wx, wz, wy, wx, c)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).contiguous().view(shape)


def _shift_mask(size: Grid, window: Grid, shift: Grid, device: torch.device) -> Tensor:
    region = torch.zeros((1, *size, 1), device=device)
    spans = [
        (slice(0, -w), slice(-w, -s), slice(-s, None)) if s else (slice(None),)
        for w, s in zip(window, shift, strict=True)
    ]
    for number, (z, y, x) in enumerate(product(*spans)):
        region[:, z, y, x] = number
    ids = _cut(region, window).squeeze(-1)
    apart = ids.unsqueeze(1) - ids.unsqueeze(2)
    return torch.zeros_like(apart).masked_fill(apart != 0, _APART)
