"""Mirror images and quarter turns of a batch, drawn for each sample, and what tells them apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from backend.views.randomness import integers, uniform

_FLIPS, _QUARTERS = 801, 802

INDICATOR_LENGTH = 7
"""Three mirrors and four turns."""


class Turns(NamedTuple):
    """How each sample is transformed: mirrored first, then turned in the axial plane.

    Attributes:
        flips: whether along (z, y, x), (b, 3).
        quarters: quarter turns from y towards x, 0 to 3, (b).
    """

    flips: Bool[Tensor, "b 3"]
    quarters: Int64[Tensor, " b"]

    @property
    def indicator(self) -> Float[Tensor, "b 7"]:
        """Ones where mirrored, and at the number of quarter turns."""
        steps = torch.arange(4, device=self.quarters.device)
        return torch.cat([self.flips, self.quarters.unsqueeze(1) == steps], dim=1).float()


def draw_turns(keys: Int64[Tensor, " b"]) -> Turns:
    """Each mirror with a chance of a half, each number of quarter turns equally often."""
    quarters = integers(keys, 4, 1, stream=_QUARTERS)[:, 0]
    return Turns(uniform(keys, 3, stream=_FLIPS) < 0.5, quarters)


def no_turns(keys: Int64[Tensor, " b"]) -> Turns:
    """Leave everything as it is."""
    return Turns(keys.new_zeros(len(keys), 3, dtype=torch.bool), torch.zeros_like(keys))


def turned(image: Float[Tensor, "b c z y x"], turns: Turns) -> Float[Tensor, "b c z y x"]:
    """The samples transformed; y and x are equally long."""
    for axis in range(3):
        image = torch.where(_per_sample(turns.flips[:, axis]), image.flip(axis + 2), image)
    result = image
    for quarters in (1, 2, 3):
        chosen = _per_sample(turns.quarters == quarters)
        result = torch.where(chosen, image.rot90(quarters, (3, 4)), result)
    return result


def _per_sample(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1, 1)
