"""Which cells of a view the student does not see."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from backend.cells import hidden_count
from backend.views.randomness import uniform

_STREAM = 101
_COUNT, _BOXES, _REST = 701, 702, 703
_BOXES_DRAWN = 16
_LONGEST_EDGE = 1 / 0.3
"""Largest ratio of two edges of a box, as iBOT's of a rectangle."""


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


class HiddenCells(NamedTuple):
    """Hidden cells of a batch, of which each sample may hide a number of its own.

    Attributes:
        grid: true where hidden, (b, gz, gy, gx).
        listed: flat indices, ascending, (b, k): a sample's hidden cells, and some of the others
            where it hides fewer than k.
        counted: true where a listed cell is hidden, (b, k); None: all are.
    """

    grid: Bool[Tensor, "b gz gy gx"]
    listed: Int64[Tensor, "b k"]
    counted: Bool[Tensor, "b k"] | None


def drawn_cells(
    keys: Int64[Tensor, " b"],
    grid: tuple[int, int, int],
    shares: tuple[float, float],
    *,
    chance: float = 1.0,
    blocks: bool = False,
) -> HiddenCells:
    """Hide a share of the cells that is drawn for each key, at random or as boxes.

    With one share for all it hides the cells of `random_cells`.

    Args:
        keys: one for each sample.
        grid: cells along (z, y, x).
        shares: bounds of the share that is hidden; the number is rounded up.
        chance: that a sample hides any at all.
        blocks: hide boxes, after iBOT's rectangles (Zhou et al. 2022, app. on blockwise masking).
    """
    cells = math.prod(grid)
    most = hidden_count(cells, shares[1])
    count = _counts(keys, cells, shares, chance).clamp(max=most)
    scores = _box_scores(keys, grid, count) if blocks else uniform(keys, cells, stream=_STREAM)
    order = torch.argsort(scores, dim=1, stable=True)
    listed = order[:, :most].sort(dim=1).values
    flat = order.argsort(dim=1) < count.unsqueeze(1)
    even = shares[0] == shares[1] and chance == 1
    return HiddenCells(flat.view(-1, *grid), listed, None if even else flat.gather(1, listed))


def _counts(
    keys: Int64[Tensor, " b"], cells: int, shares: tuple[float, float], chance: float
) -> Int64[Tensor, " b"]:
    drawn, place = uniform(keys, 2, stream=_COUNT).double().unbind(1)
    share = shares[0] + (shares[1] - shares[0]) * place
    # Rounded first, as in `hidden_count`.
    count = (share * cells).round(decimals=9).ceil().long()
    return torch.where(drawn < chance, count, 0)


def _box_scores(
    keys: Int64[Tensor, " b"], grid: tuple[int, int, int], count: Int64[Tensor, " b"]
) -> Float[Tensor, "b cells"]:
    """Scores whose lowest `count` cells form boxes: one after the other, each from its centre.

    The reference draws rectangles until there are enough; how many is unknown beforehand. Here
    sixteen are drawn, the last one needed is cut, and if all do not suffice, scattered cells
    follow. A box holds at least the cube of a third of the grid, and at most what is to be hidden.
    """
    axes = (torch.arange(n, device=keys.device) for n in grid)
    cell = torch.cartesian_prod(*axes)  # (cells, 3)
    room = torch.tensor(grid, device=keys.device)
    drawn = uniform(keys, 7 * _BOXES_DRAWN, stream=_BOXES).view(-1, _BOXES_DRAWN, 7)
    least = (min(grid) // 3) ** 3
    volume = least + (count.view(-1, 1, 1) - least).clamp(min=0) * drawn[..., :1]
    # Three exponents that add up to 0: the edges differ, the volume stays.
    bend = (drawn[..., 1:4] - 0.5) * math.log(_LONGEST_EDGE)
    edges = volume ** (1 / 3) * torch.exp(bend - bend.mean(dim=-1, keepdim=True))
    edges = torch.minimum(edges.round().clamp(min=1), room)  # (b, boxes, 3)
    start = (drawn[..., 4:] * (room - edges + 1)).floor()
    off = (cell + 0.5 - (start + edges / 2).unsqueeze(2)).abs() / edges.unsqueeze(2)
    distance = off.amax(dim=-1)  # (b, boxes, cells); below 0.5 inside
    number = torch.arange(_BOXES_DRAWN, device=keys.device).view(1, -1, 1)
    rest = _BOXES_DRAWN + uniform(keys, len(cell), stream=_REST).unsqueeze(1)
    return torch.where(distance < 0.5, number + distance, rest).amin(dim=1)
