"""Attention and MLP of a block in chunks that fit a processor's cache, keeping only their inputs.

What lies between is large and cheap: written to memory and read again it costs more time than
making it twice. So nothing of it is kept for the backward pass, which makes it anew, chunk by chunk
(as FlashAttention does on a GPU, Dao et al. 2022, arXiv 2205.14135). Only what lies inside a wide
MLP is kept once, as making it takes the longer for each byte the wider its input is. The numbers
are those of the plain operations but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from jaxtyping import Float
from torch import Tensor

_CHUNK_BYTES = 2 << 20
"""Of the largest tensor inside; processors hold about so much in their caches."""
_WIDE = 512
"""Channels from which on the first product of an MLP is kept: ViT-B has 768, Swin 48 to 384."""

Saved = tuple[Tensor | None, ...]


def pays(x: Tensor) -> bool:
    """Whether chunks are worth it: on a processor, in float32, where gradients are asked for.

    Shapes on the meta device stand for tensors on this machine's best device.
    """
    kind = x.device.type
    here = kind == "cpu" or (kind == "meta" and not torch.cuda.is_available())
    plain = here and x.dtype == torch.float32 and torch.is_grad_enabled()
    return plain and not torch.is_autocast_enabled("cpu")


def mlp(
    x: Float[Tensor, "*batch c"], first: torch.nn.Linear, second: torch.nn.Linear
) -> Float[Tensor, "*batch c2"]:
    """`second(gelu(first(x)))`."""
    if not pays(x):
        plain: Tensor = second(F.gelu(first(x)))
        return plain
    flat = x.reshape(-1, x.shape[-1])
    apply = cast(Callable[..., Tensor], _Mlp.apply)
    result = apply(flat, first.weight, first.bias, second.weight, second.bias)
    return result.view(*x.shape[:-1], -1)


def window_attention(
    qkv: Float[Tensor, "b w n c3"],
    bias: Float[Tensor, "h n n"],
    mask: Float[Tensor, "w n n"] | None,
) -> Float[Tensor, "b w n c"]:
    """Multi-head attention inside windows.

    Args:
        qkv: queries, keys and values beside each other, heads inside each of them.
        bias: added to the logits of every window.
        mask: added as well, one for each window; no gradient reaches it.
    """
    b, w, n, _ = qkv.shape
    apply = cast(Callable[..., Tensor], _WindowAttention.apply)
    result = apply(qkv.reshape(b * w, n, -1), bias, mask)
    return result.view(b, w, n, -1)


def _rows(like: Tensor, bytes_of_one: int) -> Iterator[slice]:
    # Where nothing is computed each chunk costs the same; some more of them at once change no sum.
    at_once = _CHUNK_BYTES * (16 if like.is_meta else 1)
    step = max(1, at_once // bytes_of_one)
    return (slice(first, min(first + step, len(like))) for first in range(0, len(like), step))


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        kept = torch.addmm(b1, x, w1.T) if w1.shape[1] >= _WIDE else None
        ctx.save_for_backward(x, w1, b1, w2, kept)
        result = x.new_empty(len(x), len(w2))
        for rows, hidden in _hidden(x, w1, b1, kept):
            torch.addmm(b2, F.gelu(hidden), w2.T, out=result[rows])
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Saved:
        x, w1, b1, w2, kept = ctx.saved_tensors
        dy = gradients[0].contiguous()
        dx, db1 = torch.empty_like(x), torch.zeros_like(b1)
        # Where all comes at once there is nothing that it adds to: wide weights are large.
        beta, blank = (1, torch.zeros_like) if kept is None else (0, torch.empty_like)
        dw1, dw2 = blank(w1), blank(w2)
        for rows, hidden in _hidden(x, w1, b1, kept):
            dw2.addmm_(dy[rows].T, F.gelu(hidden), beta=beta)
            inner = torch.ops.aten.gelu_backward(dy[rows] @ w2, hidden)
            dw1.addmm_(inner.T, x[rows], beta=beta)
            db1 += inner.sum(dim=0)
            torch.mm(inner, w1, out=dx[rows])
        return dx, dw1, db1, dw2, dy.sum(dim=0)


def _hidden(
    x: Tensor, w1: Tensor, b1: Tensor, kept: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """What an MLP has before its GELU: all that is kept, or made chunk by chunk."""
    if kept is not None:
        yield slice(None), kept
        return
    for rows in _rows(x, 4 * len(w1)):
        yield rows, torch.addmm(b1, x[rows], w1.T)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(qkv, bias, mask)
        windows, n, width = qkv.shape
        result = qkv.new_empty(windows, n, width // 3)
        for part in _rows(qkv, 4 * len(bias) * n * n):
            q, k, v = _heads(qkv[part], len(bias))
            out = torch.matmul(_shares(q, k, bias, mask, part), v)
            result[part] = out.transpose(1, 2).reshape(-1, n, width // 3)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Saved:
        qkv, bias, mask = ctx.saved_tensors
        heads, n = bias.shape[:2]
        dqkv, dbias = torch.empty_like(qkv), torch.zeros_like(bias)
        for part in _rows(qkv, 4 * heads * n * n):
            q, k, v = _heads(qkv[part], heads)
            shares = _shares(q, k, bias, mask, part)
            dy = gradients[0][part].view(len(q), n, heads, -1).transpose(1, 2).contiguous()
            inner = torch._softmax_backward_data(dy @ v.transpose(-2, -1), shares, -1, shares.dtype)
            dbias += inner.sum(dim=0)
            scale = q.shape[-1] ** -0.5
            three = torch.stack(
                [
                    inner @ k * scale,
                    inner.transpose(-2, -1) @ q * scale,
                    shares.transpose(-2, -1) @ dy,
                ]
            )
            dqkv[part] = three.permute(1, 3, 0, 2, 4).reshape(len(q), n, -1)
        return dqkv, dbias, None


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, (windows, heads, n, c / heads) each."""
    windows, n, _ = qkv.shape
    q, k, v = qkv.view(windows, n, 3, heads, -1).permute(2, 0, 3, 1, 4).contiguous().unbind()
    return q, k, v


def _shares(q: Tensor, k: Tensor, bias: Tensor, mask: Tensor | None, part: slice) -> Tensor:
    """What each token takes of each other one: rows add up to 1."""
    logits = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1)).add_(bias)
    if mask is not None:
        # The windows of one sample follow those of the other.
        places = torch.arange(part.start, part.stop) % len(mask)
        logits += mask[places].unsqueeze(1)
    return torch.softmax(logits, dim=-1)
