"""Augmentation of labelled crops, in a batch on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from backend.views.randomness import uniform

_TURN, _TURNS, _SCALE, _SHIFT, _FLIP = 301, 302, 303, 304, 305


class Labelled(NamedTuple):
    """Crops with the class of each voxel."""

    image: Float[Tensor, "b 1 z y x"]
    target: Int64[Tensor, "b z y x"]


def turn_axial(crops: Labelled, keys: Int64[Tensor, " b"], *, probability: float) -> Labelled:
    """Turn some samples by 90, 180 or 270 degrees in the axial plane.

    Crops must be square there, unless the probability is 0.
    """
    if probability == 0:
        return crops
    turned = uniform(keys, 1, stream=_TURN)[:, 0] < probability
    turns = (uniform(keys, 1, stream=_TURNS)[:, 0] * 3).long() + 1
    turns = torch.where(turned, turns, 0)
    image, target = crops
    for times in (1, 2, 3):
        chosen = turns == times
        image = torch.where(
            chosen.view(-1, 1, 1, 1, 1), torch.rot90(crops.image, times, (-2, -1)), image
        )
        target = torch.where(
            chosen.view(-1, 1, 1, 1), torch.rot90(crops.target, times, (-2, -1)), target
        )
    return Labelled(image, target)


def mirror(crops: Labelled, keys: Int64[Tensor, " b"], *, probability: float) -> Labelled:
    """Mirror some samples along each axis on its own."""
    if probability == 0:
        return crops
    image, target = crops
    flips = uniform(keys, 3, stream=_FLIP) < probability
    for axis in range(3):
        chosen = flips[:, axis]
        image = torch.where(chosen.view(-1, 1, 1, 1, 1), image.flip(axis - 3), image)
        target = torch.where(chosen.view(-1, 1, 1, 1), target.flip(axis - 3), target)
    return Labelled(image, target)


def scale_values(
    image: Float[Tensor, "b 1 z y x"], keys: Int64[Tensor, " b"], *, probability: float, by: float
) -> Float[Tensor, "b 1 z y x"]:
    """Multiply the values of some samples by a factor in 1 +- `by`."""
    chance, spread = uniform(keys, 2, stream=_SCALE).unbind(1)
    factor = torch.where(chance < probability, 1 + by * (2 * spread - 1), 1.0)
    return image * factor.view(-1, 1, 1, 1, 1)


def shift_values(
    image: Float[Tensor, "b 1 z y x"], keys: Int64[Tensor, " b"], *, probability: float, by: float
) -> Float[Tensor, "b 1 z y x"]:
    """Add a number in +- `by` to the values of some samples."""
    chance, spread = uniform(keys, 2, stream=_SHIFT).unbind(1)
    offset = torch.where(chance < probability, by * (2 * spread - 1), 0.0)
    return image + offset.view(-1, 1, 1, 1, 1)
