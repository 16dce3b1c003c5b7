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

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from backend.geometry import Geometry, Index3, Volume, index3

_DRIFT_VOXELS = 0.05
"""Axes of both grids may diverge by this much over the whole volume: rounding in file headers."""

_BEYOND_VOXELS = 0.5
"""The preprocessed grid has whole voxels, so it may end half a voxel before the box it covers."""

_CHUNK_BYTES = 64 << 20


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
        values: the label value of each class; `values[0]` is background and also fills what
            `from_geometry` does not cover.

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
        where = np.flatnonzero(covered)
        inside = slice(int(where[0]), int(where[-1]) + 1) if where.size else slice(0, 0)
        clamped = coordinates[inside].clip(0, count - 1)
        lower = np.floor(clamped).astype(np.int64).clip(0, max(count - 2, 0))
        upper = np.minimum(lower + 1, count - 1)
        return _Steps(inside, lower, upper, (clamped - lower).astype(np.float32))


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
    if wanted.size == 0 or along_y.lower.size == 0 or along_x.lower.size == 0:
        return
    winners = _winners(planes).cpu().numpy()
    rows = planes.flatten(1).T.contiguous()
    for j in wanted:
        low, high = along_z.lower[j] - first, along_z.upper[j] - first
        near = winners[low][np.ix_(along_y.lower, along_x.lower)]
        agree = _agreeing(winners[low : high + 1])
        mixed = ~agree[np.ix_(along_y.lower, along_x.lower)]
        plane = table[near]
        y, x = np.nonzero(mixed)
        plane[y, x] = table[_interpolated(rows, planes.shape[2:], steps, (int(j), y, x), first)]
        covered[j] = plane


def _winners(planes: Float[Tensor, "k dz y x"]) -> Tensor:
    """The class of the largest logit; as a running maximum, since argmax over few is slow."""
    best = planes[0].clone()
    winner = torch.zeros_like(best, dtype=torch.int16)
    for label in range(1, planes.shape[0]):
        higher = planes[label] > best
        winner.masked_fill_(higher, label)
        torch.maximum(best, planes[label], out=best)
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


def _interpolated(
    rows: Float[Tensor, "voxels k"],
    plane_size: Sequence[int],
    steps: Sequence[_Steps],
    where: tuple[int, NDArray[np.int64], NDArray[np.int64]],
    first: int,
) -> NDArray[np.int64]:
    """The winning class of single voxels, from the logits of their eight corners."""
    j, y, x = where
    winner = np.empty(len(y), dtype=np.int64)
    step = max(1, _CHUNK_BYTES // (4 * rows.shape[1] + 96))
    for begin in range(0, len(y), step):
        part = slice(begin, begin + step)
        places = (np.array([j]), y[part], x[part])
        pairs = [
            ((s.lower[p], 1 - s.share[p]), (s.upper[p], s.share[p]))
            for s, p in zip(steps, places, strict=True)
        ]
        corners = np.empty((len(places[1]), 8), dtype=np.int64)
        weights = np.empty((len(places[1]), 8), dtype=np.float32)
        for corner in range(8):
            (iz, wz), (iy, wy), (ix, wx) = (
                pair[corner >> bit & 1] for bit, pair in zip((2, 1, 0), pairs, strict=True)
            )
            corners[:, corner] = ((iz - first) * plane_size[0] + iy) * plane_size[1] + ix
            weights[:, corner] = wz * wy * wx
        logits = functional.embedding_bag(
            torch.from_numpy(corners).to(rows.device),
            rows,
            mode="sum",
            per_sample_weights=torch.from_numpy(weights).to(rows.device),
        )
        winner[part] = logits.argmax(dim=1).cpu().numpy()
    return winner


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
