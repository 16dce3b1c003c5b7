"""The form in which a method hands its losses to whoever trains it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Losses(NamedTuple):
    """What one forward pass of a method gives.

    Attributes:
        total: what is minimised, a scalar with gradient.
        terms: the parts of it by name, detached scalars before weighting.
        monitors: what tells whether training is healthy, detached scalars.
    """

    total: Tensor
    terms: dict[str, Tensor]
    monitors: dict[str, Tensor]
