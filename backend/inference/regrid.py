"""From logits on the preprocessed grid to labels on the source grid, slab by slab.

Preprocessing only crops, permutes, flips and rescales axes, so the way back is linear
interpolation along each axis. Interpolated logits are convex combinations of eight corners: where
all eight have the same winner, it wins in between as well. So only the voxels of cells with two or
more winners are interpolated, a few per cent of them, and the labels are those of interpolating
everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from backend.geometry import Geometry, Index3, Volume, index3

_DRIFT_VOXELS = 0.05
"""Axes of both grids may diverge by this much over the whole volume: rounding in file headers."""

_BEYOND_VOXELS = 0.5
"""The preprocessed grid has whole voxels, so it may end half a voxel before the box it covers."""

_DENSE_SHARE = 0.25
"""If more of a plane is mixed, it is quicker to interpolate all of it."""


def labels_on_grid(
    slabs: Iterable[tuple[int, Float[Tensor, "k dz y x"]]],
    *,
    from_geometry: Geometry,
    to_geometry: Geometry,
    values: Sequence[int],
) -> Volume:
    """The label of every voxel of `to_geometry`, from logits on `from_geometry`.

    Args:
        slabs: `(first z, logits)` in rising z, adjoining, together all planes of `from_geometry`;
            one slab `[(0, logits)]` for a whole volume. Kept only until the next one comes.
        from_geometry: the grid of the logits.
        to_geometry: the wanted grid: the same axes in any order and sense, any spacing and size.
        values: the label value of each class, the same for several or not; `values[0]` is
            background and also fills what `from_geometry` does not cover.

    Returns:
        Labels, uint8, or int16 where a value exceeds 255.

    Raises:
        ValueError: if the grids are rotated against each other, or the slabs do not fit.
    """
    axes, coordinates = axis_coordinates(from_geometry, to_geometry)
    table = _value_table(values)
    labels = np.full(to_geometry.size, table[0], dtype=table.dtype)
    # The same memory, seen along the axes of the logits' grid.
    view = labels.transpose(axes)
    # Slabs come in rising z; the other axes need no order.
    if len(coordinates[0]) > 1 and coordinates[0][0] > coordinates[0][-1]:
        view, coordinates = view[::-1], (coordinates[0][::-1], *coordinates[1:])
    steps = [_Steps.of(c, n) for c, n in zip(coordinates, from_geometry.size, strict=True)]
    covered = view[tuple(step.inside for step in steps)]
    next_plane, carried = 0, None
    for start, logits in slabs:
        held = 0 if carried is None else 1
        _check_slab(logits, start, expected=next_plane, size=from_geometry.size, k=len(table))
        planes = logits if carried is None else torch.cat((carried, logits), dim=1)
        next_plane = start + logits.shape[1]
        _fill(covered, planes, start - held, steps, table)
        carried = logits[:, -1:].clone()
    if next_plane != from_geometry.size[0]:
        raise ValueError(f"slabs end at plane {next_plane} of {from_geometry.size[0]}")
    return Volume(labels, to_geometry)


def axis_coordinates(
    from_geometry: Geometry, to_geometry: Geometry
) -> tuple[Index3, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """Where the voxels of `to_geometry` lie on `from_geometry`, axis by axis.

    Returns:
        `(axes, coordinates)`: axis i of `from_geometry` runs along axis `axes[i]` of
        `to_geometry`, whose voxels lie at `coordinates[i]`, in voxels of `from_geometry`.

    Raises:
        ValueError: if the grids are rotated against each other.
    """
    matrix = np.linalg.inv(from_geometry.affine) @ to_geometry.affine
    linear = matrix[:3, :3]
    axes = np.abs(linear).argmax(axis=1)
    drift = np.abs(linear) * np.array(to_geometry.size)
    drift[np.arange(3), axes] = 0
    if sorted(axes) != [0, 1, 2] or drift.max() > _DRIFT_VOXELS:
        raise ValueError("the grids are rotated against each other")
    z, y, x = (
        linear[i, a] * np.arange(to_geometry.size[a]) + matrix[i, 3] for i, a in enumerate(axes)
    )
    return index3(axes), (z, y, x)


@dataclass(frozen=True)
class _Steps:
    """Linear interpolation along one axis: for every covered voxel its two planes and a share.

    Attributes:
        inside: the covered voxels of the axis.
        lower: index of the plane below each of them.
        upper: index of the plane above.
        share: weight of the upper plane, 0 to 1.
    """

    inside: slice
    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    share: NDArray[np.float32]

    @staticmethod
    def of(coordinates: NDArray[np.float64], count: int) -> _Steps:
        """Half a voxel of cell before the first centre, half and `_BEYOND_VOXELS` at the end."""
        # The tolerance keeps rounding from deciding at a face where both grids end.
        covered = (coordinates > -0.5 - 1e-6) & (coordinates < count - 0.5 + _BEYOND_VOXELS + 1e-6)
        inside = _span(covered)
        clamped = coordinates[inside].clip(0, count - 1)
        lower = np.floor(clamped).astype(np.int64).clip(0, max(count - 2, 0))
        upper = np.minimum(lower + 1, count - 1)
        return _Steps(inside, lower, upper, (clamped - lower).astype(np.float32))

    def within(self, cells: NDArray[np.bool_]) -> _Steps:
        """The steps in the cells from the first to the last that is true; `inside` is of these."""
        wanted = _span(cells)
        inside = _span((self.lower >= wanted.start) & (self.lower < wanted.stop))
        return _Steps(inside, self.lower[inside], self.upper[inside], self.share[inside])

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Lower, upper and share as tensors."""
        lower, upper, share = map(torch.from_numpy, (self.lower, self.upper, self.share))
        return lower.to(device), upper.to(device), share.to(device)


def _span(where: NDArray[np.bool_]) -> slice:
    """From the first to the last that is true; empty if none is."""
    found = np.flatnonzero(where)
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0)


def _fill(
    covered: NDArray[np.generic],
    planes: Float[Tensor, "k dz y x"],
    first: int,
    steps: Sequence[_Steps],
    table: NDArray[np.generic],
) -> None:
    """Write every plane of `covered` that lies between the given planes; `first` is their z."""
    along_z, along_y, along_x = steps
    last = first + planes.shape[1] - 1
    # A plane at a slab's very last position was written with that slab: it needs nothing above.
    wanted = np.flatnonzero((along_z.lower >= first) & (along_z.upper <= last))
    winners = _winners(planes).cpu().numpy()
    for low, places in groupby(wanted, key=lambda j: int(along_z.lower[j]) - first):
        high = min(low + 1, winners.shape[0] - 1)
        agree = _agreeing(winners[low : high + 1])
        # Most of a scan is background, which is there already.
        values = table[winners[low]]
        found = ~agree | (values != table[0])
        y, x = along_y.within(found.any(axis=1)), along_x.within(found.any(axis=0))
        if not (y.lower.size and x.lower.size):
            continue
        near = values.take(y.lower, axis=0).take(x.lower, axis=1)
        mixed = ~agree.take(y.lower, axis=0).take(x.lower, axis=1)
        for j in places:
            covered[j, y.inside, x.inside] = near
            if mixed.any():
                pair = planes[:, low], planes[:, high], float(along_z.share[j])
                part = covered[j, y.inside, x.inside]
                part[mixed] = table[_between(pair, (y, x), mixed)]


def _winners(classes: Iterable[Tensor]) -> Tensor:
    """The class of the largest logit; as a running maximum, since argmax over few is slow."""
    logits = iter(classes)
    best = next(logits).clone()
    winner = torch.zeros_like(best, dtype=torch.int16)
    for label, values in enumerate(logits, 1):
        winner.masked_fill_(values > best, label)
        torch.maximum(best, values, out=best)
    return winner


def _agreeing(winners: NDArray[np.int16]) -> NDArray[np.bool_]:
    """For every (y, x) whether the cell that begins there has one winner at all its corners.

    Args:
        winners: one or two planes (z, y, x).
    """
    flat = (winners == winners[:1]).all(axis=0)
    below = np.minimum(np.arange(flat.shape[0]) + 1, flat.shape[0] - 1)
    right = np.minimum(np.arange(flat.shape[1]) + 1, flat.shape[1] - 1)
    plane = winners[0]
    same_y = (plane == plane[below]) & flat & flat[below]
    agree: NDArray[np.bool_] = same_y & same_y[:, right] & (plane == plane[:, right])
    return agree


def _between(
    pair: tuple[Float[Tensor, "k y x"], Float[Tensor, "k y x"], float],
    steps: tuple[_Steps, _Steps],
    mixed: NDArray[np.bool_],
) -> NDArray[np.int16]:
    """The winning classes of the voxels of a plane that are mixed.

    Both ways do the same arithmetic for a voxel, so it gets the same label from either.

    Args:
        pair: the logits below and above the plane, and the share of the upper ones.
        steps: along y and x.
        mixed: (y, x) as the steps have them.
    """
    lower, upper, share = pair
    (y0, y1, sy), (x0, x1, sx) = (step.on(lower.device) for step in steps)
    if np.count_nonzero(mixed) > _DENSE_SHARE * mixed.size:
        # All source rows that are needed, and no others.
        rows = slice(int(y0.min()), int(y1.max()) + 1)

        def everywhere(low: Tensor, high: Tensor) -> Tensor:
            plane = _blend(low[rows], high[rows], share)
            plane = _blend(plane.index_select(1, x0), plane.index_select(1, x1), sx)
            below, above = y0 - rows.start, y1 - rows.start
            return _blend(plane.index_select(0, below), plane.index_select(0, above), sy[:, None])

        winner = _winners(everywhere(*c) for c in zip(lower, upper, strict=True))
        return winner.cpu().numpy()[mixed]
    y, x = (torch.from_numpy(places).to(lower.device) for places in np.nonzero(mixed))
    places = [r[y] * lower.shape[2] + c[x] for r in (y0, y1) for c in (x0, x1)]
    sy, sx = sy[y], sx[x]

    def here(low: Tensor, high: Tensor) -> Tensor:
        a, b, c, d = (_blend(low.take(p), high.take(p), share) for p in places)
        return _blend(_blend(a, b, sx), _blend(c, d, sx), sy)

    return _winners(here(*c) for c in zip(lower, upper, strict=True)).cpu().numpy()


def _blend(low: Tensor, high: Tensor, share: Tensor | float) -> Tensor:
    """Linear interpolation, rounded after every step.

    `torch.lerp` may round once less, and where it does depends on the place in memory.
    """
    return (low * (1 - share)).add_(high * share)


def _value_table(values: Sequence[int]) -> NDArray[np.generic]:
    if not values or min(values) < 0 or max(values) > np.iinfo(np.int16).max:
        raise ValueError(f"label values {list(values)} are not whole numbers from 0 to 32767")
    small = max(values) <= np.iinfo(np.uint8).max
    return np.asarray(values, dtype=np.uint8 if small else np.int16)


def _check_slab(logits: Tensor, start: int, *, expected: int, size: Index3, k: int) -> None:
    if start != expected or logits.shape[0] != k or tuple(logits.shape[2:]) != size[1:]:
        raise ValueError(
            f"slab {tuple(logits.shape)} at plane {start} does not fit {k} classes on {size} "
            f"from plane {expected}"
        )
