"""How far predicted voxels are from the true ones."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from backend.losses.processes import mean_of_sums

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
    return mean_of_sums((error * weight).sum(), weight.sum() + _EPSILON)


def masked_mse(
    prediction: Float[Tensor, "b n voxels"],
    target: Float[Tensor, "b n voxels"],
    mask: Bool[Tensor, "b n"],
) -> Float[Tensor, ""]:
    """Mean squared error over the voxels of masked patches (GL-MAE, eq. 2), fp32.

    Views of one grid stand in one batch and hide the same number of patches each, so that this
    one quotient is the mean over views of each view's mean. At least one patch is masked.
    """
    weight = mask.float()
    error = (prediction.float() - target.float()).square().mean(dim=-1)
    return mean_of_sums((error * weight).sum(), weight.sum())
