"""Residual branches of a Swin transformer that are dropped while it learns."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from backend.models.swin import branch_rates
from backend.views.randomness import uniform

_STREAM = 201


def branch_scale(
    keys: Int64[Tensor, " b"], *, drop_path: float, sites: int
) -> Float[Tensor, "sites b"] | None:
    """Factor of each branch of each sample, for the encoder; None where none is ever dropped.

    Kept branches are scaled up to the same mean (Huang et al. 2016, arXiv 1603.09382).

    Args:
        keys: one for each sample.
        drop_path: chance to drop a branch of the last block, rising linearly from 0.
        sites: branches, two in each block.
    """
    if drop_path == 0:
        return None
    rate = torch.tensor(branch_rates(drop_path, sites), device=keys.device)
    kept = uniform(keys, sites, stream=_STREAM) >= rate
    return (kept / (1 - rate)).T
