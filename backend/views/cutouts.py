"""Boxes of a view that show something else: noise, or another sample (Swin UNETR's pretraining)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from backend.views.randomness import integers, normal, uniform

_SHARE, _EDGES, _STARTS, _NOISE, _PARTNER = 711, 712, 713, 714, 715
_BOXES = 192
"""Boxes that are drawn. The mean box of the released sizes covers 0.23 % of a view, so 30 % take
about 133."""


def cut_outs(
    keys: Int64[Tensor, " b"],
    size: tuple[int, int, int],
    *,
    most: float,
    edges: tuple[float, float],
) -> Bool[Tensor, "b z y x"]:
    """True inside random boxes, which are added until their volumes reach a share of the view.

    The share is drawn from 0 to `most`; where boxes overlap or leave the view it is less that is
    covered (Tang et al. 2022, sec. 3.2, and the released code).

    Args:
        keys: one for each sample.
        size: edges of the view (z, y, x).
        most: largest share of the view.
        edges: bounds of a box's edges, as shares of the view's; the upper one is not reached.
    """
    extent = torch.tensor(size, device=keys.device)
    low, high = ((share * extent).long() for share in edges)
    edge = low + _drawn(keys, (high - low).clamp(min=1), _EDGES)
    start = _drawn(keys, extent - low, _STARTS)
    end = torch.minimum(start + edge, extent)  # (b, boxes, 3)
    volume = (end - start).prod(dim=2).cumsum(dim=1)
    wanted = uniform(keys, 1, stream=_SHARE) * most * math.prod(size)
    before = torch.cat([torch.zeros_like(volume[:, :1]), volume[:, :-1]], dim=1)
    used = (before < wanted).float()
    z, y, x = (_spans(start[..., axis], end[..., axis], n) for axis, n in enumerate(size))
    # How many boxes cover a voxel is a sum of products of one factor for each axis.
    return torch.einsum("bn,bnz,bny,bnx->bzyx", used, z, y, x) > 0.5


def noise_like(
    image: Float[Tensor, "b 1 z y x"], keys: Int64[Tensor, " b"]
) -> Float[Tensor, "b 1 z y x"]:
    """Gaussian noise whose least value in each sample is 0 and whose largest is 1."""
    noise = normal(keys, image[0].numel(), stream=_NOISE)
    low, high = noise.aminmax(dim=1, keepdim=True)
    return ((noise - low) / (high - low)).view_as(image)


def partners(keys: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """For each sample the index of one of the batch, maybe its own."""
    return integers(keys, len(keys), 1, stream=_PARTNER)[:, 0]


def _drawn(
    keys: Int64[Tensor, " b"], bounds: Int64[Tensor, " 3"], stream: int
) -> Int64[Tensor, "b n 3"]:
    return integers(keys, bounds.repeat(_BOXES), 3 * _BOXES, stream=stream).view(-1, _BOXES, 3)


def _spans(
    start: Int64[Tensor, "b n"], end: Int64[Tensor, "b n"], length: int
) -> Float[Tensor, "b n length"]:
    at = torch.arange(length, device=start.device)
    return ((at >= start.unsqueeze(2)) & (at < end.unsqueeze(2))).float()
