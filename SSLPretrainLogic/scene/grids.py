"""Voxel grids in space, without VTK: right angles, straight grids around slanted ones, equal grids.

Indices are (i, j, k) = (x, y, z) as in MRML, arrays (z, y, x), space is RAS in millimetres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Size = tuple[int, int, int]

SHEAR_TOLERANCE = 1e-4
"""Largest cosine between two axes of a grid that counts as rectangular: 0.006 degrees."""

_SAME_VOXELS = 0.1
"""Corners of equal grids are at most this part of a voxel apart; NIfTI rounds to single floats."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Where the voxels of a volume lie.

    Attributes:
        size: voxels along i, j, k.
        ijk_to_ras: (4, 4), from voxel indices to millimetres, columns may be slanted.
    """

    size: Size
    ijk_to_ras: Array

    @property
    def spacing_mm(self) -> Array:
        """Length of a step along i, j, k; shape (3,)."""
        return np.asarray(np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0), dtype=np.float64)

    def corners(self) -> Array:
        """Centres of the eight corner voxels in space, shape (8, 3)."""
        return placed(self.ijk_to_ras, _corner_indices(self.size))

    def moved(self, matrix: Array) -> Grid:
        """The same voxels after a linear transform (4, 4) of space."""
        return Grid(size=self.size, ijk_to_ras=matrix @ self.ijk_to_ras)


def placed(matrix: Array, points: Array) -> Array:
    """Points (n, 3) after a linear transform (4, 4)."""
    return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3], dtype=np.float64)


def inverse(matrix: Array) -> Array:
    """The transform (4, 4) back."""
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def is_usable(grid: Grid) -> bool:
    """Whether the grid spans space at all: finite, three dimensions, no length of zero."""
    matrix = grid.ijk_to_ras
    if not np.all(np.isfinite(matrix)) or min(grid.size) < 1 or np.any(grid.spacing_mm <= 0):
        return False
    return abs(float(np.linalg.det(matrix[:3, :3] / grid.spacing_mm))) > SHEAR_TOLERANCE


def is_rectangular(grid: Grid) -> bool:
    """Whether the axes meet at right angles, as NIfTI, DICOM and the networks need it."""
    axes = grid.ijk_to_ras[:3, :3] / grid.spacing_mm
    return bool(np.max(np.abs(axes.T @ axes - np.eye(3))) <= SHEAR_TOLERANCE)


def straightened(grid: Grid, points: Array) -> Grid:
    """A rectangular grid around some points, as close to a slanted grid as can be.

    The first axis is kept; of the others the part at right angles to those before is kept, so a
    gantry tilt leaves planes as far apart as the planes of the scan are.

    Args:
        grid: gives directions, spacing and handedness.
        points: what must lie inside, (n, 3).
    """
    columns = grid.ijk_to_ras[:3, :3]
    axes = np.linalg.qr(columns)[0]
    # QR is free to turn axes round; they shall point as before.
    axes = axes * np.sign(np.sum(axes * columns, axis=0))
    spacing = np.sum(axes * columns, axis=0)
    along = points @ axes / spacing
    first = along.min(axis=0)
    # A last plane is not added for a rounding error.
    steps = np.ceil(along.max(axis=0) - first - 1e-6).astype(int)
    matrix = np.eye(4)
    matrix[:3, :3] = axes * spacing
    matrix[:3, 3] = axes @ (first * spacing)
    return Grid(size=(int(steps[0]) + 1, int(steps[1]) + 1, int(steps[2]) + 1), ijk_to_ras=matrix)


def brought(voxels: NDArray[np.generic], source: Grid, target: Grid) -> NDArray[np.generic] | None:
    """Voxels (z, y, x) of one grid in the axis order of another that has the same voxels.

    Returns:
        The array on the target grid, None if the two grids are not the same set of voxels.
    """
    turn = inverse(target.ijk_to_ras) @ source.ijk_to_ras
    steps = np.rint(turn[:3, :3]).astype(int)
    if not np.array_equal(np.abs(steps).sum(axis=0), (1, 1, 1)):
        return None
    if not np.array_equal(np.abs(steps).sum(axis=1), (1, 1, 1)):
        return None
    came_from = np.abs(steps).argmax(axis=1)
    backward = steps.sum(axis=1) < 0
    if tuple(source.size[axis] for axis in came_from) != target.size:
        return None
    corners = _corner_indices(source.size)
    wanted = corners[:, came_from]
    wanted = np.where(backward, np.asarray(target.size) - 1 - wanted, wanted)
    if np.max(np.abs(placed(turn, corners) - wanted)) > _SAME_VOXELS:
        return None
    turned = voxels.transpose([2 - int(axis) for axis in came_from[::-1]])
    return turned[tuple(slice(None, None, -1 if back else 1) for back in backward[::-1])]


def box(where: NDArray[np.bool_]) -> tuple[tuple[int, int], ...] | None:
    """First and last index along each axis of what is true, None if nothing is."""
    # Two passes over the voxels; the planes they leave are small.
    yx, zy = np.any(where, axis=0), np.any(where, axis=2)
    found = [np.flatnonzero(np.any(p, axis=a)) for p, a in ((zy, 1), (zy, 0), (yx, 0))]
    if not len(found[0]):
        return None
    return tuple((int(places[0]), int(places[-1])) for places in found)


def value_counts(voxels: NDArray[np.generic], length: int = 1) -> NDArray[np.int64]:
    """How often each value from 0 on occurs in (z, y, x), for at least `length` values.

    Plane by plane: counting all at once takes eight bytes a voxel.
    """
    counts = np.zeros(length, dtype=np.int64)
    for plane in voxels:
        found = np.bincount(plane.ravel())
        counts = np.pad(counts, (0, max(0, len(found) - len(counts))))
        counts[: len(found)] += found
    return counts


def degrees_of_shear(grid: Grid) -> float:
    """How far the two axes that meet least squarely are from a right angle."""
    axes = grid.ijk_to_ras[:3, :3] / grid.spacing_mm
    worst = float(np.max(np.abs(axes.T @ axes - np.eye(3))))
    return math.degrees(math.asin(min(worst, 1.0)))


def _corner_indices(size: Sequence[int]) -> Array:
    return np.array(list(product(*((0, n - 1) for n in size))), dtype=np.float64)
