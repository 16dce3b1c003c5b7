"""How far predicted voxels are from the true ones."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

_EPSILON = 1e-5
"""Keeps the quotient finite where nothing is masked; the value of SMIT's released code."""


def masked_l1(
    prediction: Float[Tensor, "b 1 z y x"],
    target: Float[Tensor, "b 1 z y x"],
    mask: Bool[Tensor, "b z y x"],
) -> Float[Tensor, ""]:
    """Mean absolute error over masked voxels, one quotient over the whole batch (SMIT, eq. 1).

    Both views stand in one batch, so the sum over views is a sum over samples.
    """
    weight = mask.unsqueeze(1).float()
    error = (prediction.float() - target.float()).abs()
    return (error * weight).sum() / (weight.sum() + _EPSILON)
