"""Which cells of a view the student does not see."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from backend.views.randomness import uniform

_STREAM = 101


class CellMask(NamedTuple):
    """Hidden cells of a batch.

    Attributes:
        grid: true where hidden, (b, gz, gy, gx).
        hidden: flat indices of the hidden cells, ascending, (b, k); k is the same for all samples.
        visible: those of the others, ascending.
    """

    grid: Bool[Tensor, "b gz gy gx"]
    hidden: Int64[Tensor, "b k"]
    visible: Int64[Tensor, "b v"]


def hidden_count(cells: int, ratio: float) -> int:
    """How many of `cells` a mask ratio hides: rounded up, e.g. 152 of 216 at 0.7."""
    return math.ceil(round(ratio * cells, 9))


def random_cells(keys: Int64[Tensor, " b"], grid: tuple[int, int, int], ratio: float) -> CellMask:
    """Hide a uniformly random subset of the cells, of fixed size, for each key on its own.

    This is SMIT's mask (sec. 2, p = 0.7 in the implementation details) and GL-MAE's (sec. 3.1,
    75 %: 250 of 1000 cells and 54 of 216 stay visible).

    Args:
        keys: one for each sample.
        grid: cells along (z, y, x).
        ratio: share that is hidden.
    """
    cells = math.prod(grid)
    count = hidden_count(cells, ratio)
    # The cells with the lowest of independent scores are a uniformly random subset.
    scores = uniform(keys, cells, stream=_STREAM)
    order = torch.argsort(scores, dim=1, stable=True)
    hidden = order[:, :count].sort(dim=1).values
    visible = order[:, count:].sort(dim=1).values
    flat = torch.zeros(len(keys), cells, dtype=torch.bool, device=keys.device)
    flat.scatter_(1, hidden, True)
    return CellMask(flat.view(-1, *grid), hidden, visible)
