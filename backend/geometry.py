"""Where voxels lie in the patient: the one place that knows about axis order and world axes.

Conventions, said once: arrays are (z, y, x); world coordinates are LPS millimetres in (x, y, z)
order (the DICOM and ITK convention: +x towards Left, +y Posterior, +z Superior); tensors are
(b, c, z, y, x). An orientation code such as "LPS" names, for the array axes x, y, z in that
order, the patient side towards which the index grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Index3 = tuple[int, int, int]
Vec3 = tuple[float, float, float]
Direction = tuple[float, float, float, float, float, float, float, float, float]

IDENTITY_DIRECTION: Direction = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_POSITIVE_SIDES = "LPS"
_NEGATIVE_SIDES = "RAI"


def vec3(values: Sequence[float]) -> Vec3:
    """Three numbers as a tuple of plain floats."""
    a, b, c = values
    return float(a), float(b), float(c)


def index3(values: Sequence[int]) -> Index3:
    """Three whole numbers as a tuple of plain ints."""
    a, b, c = values
    return int(a), int(b), int(c)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The grid of one volume.

    Attributes:
        size: voxels along (z, y, x).
        spacing_mm: distance of neighbouring voxel centres along (z, y, x).
        origin_mm: world position (x, y, z) of the centre of voxel (0, 0, 0).
        direction: nine cosines, row by row, exactly as SimpleITK and ITK give them: column k is
            the world direction of array axis x, y, z for k = 0, 1, 2.
    """

    size: Index3
    spacing_mm: Vec3
    origin_mm: Vec3 = (0.0, 0.0, 0.0)
    direction: Direction = IDENTITY_DIRECTION

    @property
    def direction_matrix(self) -> NDArray[np.float64]:
        """Columns are the world (x, y, z) directions of the array axes x, y, z. Shape (3, 3)."""
        return np.asarray(self.direction, dtype=np.float64).reshape(3, 3)

    @property
    def affine(self) -> NDArray[np.float64]:
        """Matrix (4, 4) from an index (z, y, x, 1) to world LPS millimetres (x, y, z, 1)."""
        matrix = np.eye(4)
        for array_axis in range(3):
            column = self.direction_matrix[:, 2 - array_axis]
            matrix[:3, array_axis] = column * self.spacing_mm[array_axis]
        matrix[:3, 3] = self.origin_mm
        return matrix

    @property
    def orientation(self) -> str:
        """Three letters for the array axes x, y, z, e.g. "LPS"; the nearest ones if oblique."""
        return orientation_code(self.direction)

    @property
    def extent_mm(self) -> Vec3:
        """Edge lengths of the whole grid along (z, y, x)."""
        return vec3([n * s for n, s in zip(self.size, self.spacing_mm, strict=True)])

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    def world(self, index: Sequence[float]) -> Vec3:
        """World LPS position (x, y, z) in mm of the (fractional) index (z, y, x)."""
        return vec3((self.affine @ np.array([*index, 1.0]))[:3])

    def cropped(self, start: Index3, size: Index3) -> Geometry:
        """The grid of `size` voxels that begins at voxel `start` (may lie outside), both zyx."""
        return replace(self, size=size, origin_mm=self.world(start))

    def resized(self, size: Index3, spacing_mm: Vec3) -> Geometry:
        """A grid over the same box: the outer faces of voxel (0, 0, 0) coincide."""
        pairs = zip(spacing_mm, self.spacing_mm, strict=True)
        shift = [(new - old) / 2 / old for new, old in pairs]
        return replace(self, size=size, spacing_mm=spacing_mm, origin_mm=self.world(shift))

    def matches(self, other: Geometry, *, tolerance_mm: float = 1e-2) -> bool:
        """Whether both grids have the same size and their corners lie within the tolerance."""
        if self.size != other.size:
            return False
        corners = [(0, 0, 0), *np.diag([n - 1 for n in self.size]).tolist()]
        return all(
            np.allclose(self.world(c), other.world(c), atol=tolerance_mm, rtol=0) for c in corners
        )


def orientation_code(direction: Sequence[float]) -> str:
    """Letters for the array axes x, y, z of a direction matrix given as nine cosines.

    Each axis gets the world axis it lies nearest to; no world axis is given twice, so that an
    oblique grid has a valid code as well.
    """
    matrix = np.asarray(direction, dtype=np.float64).reshape(3, 3)
    letters = ["", "", ""]
    free = np.abs(matrix)
    for _ in range(3):
        world, axis = np.unravel_index(int(np.argmax(free)), (3, 3))
        sides = _POSITIVE_SIDES if matrix[world, axis] >= 0 else _NEGATIVE_SIDES
        letters[axis] = sides[world]
        free[world, :] = -1.0
        free[:, axis] = -1.0
    return "".join(letters)


def axes_to(code: str, target: str) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """How to bring an array of orientation `code` to orientation `target`.

    Returns:
        `(axes, flips)`, both for array axes (z, y, x): `array.transpose(axes)` and then a flip of
        every axis whose entry in `flips` is true.

    Raises:
        ValueError: if one of the codes is no orientation such as "LPS".
    """
    for text in (code, target):
        if sorted(_world_axis(letter) for letter in text) != [0, 1, 2]:
            raise ValueError(f"{text!r} is no orientation code such as 'LPS' or 'RAS'")
    # In array order (z, y, x) the letters stand in reverse.
    source, wanted = code[::-1], target[::-1]
    axes = [next(i for i in range(3) if _world_axis(source[i]) == _world_axis(w)) for w in wanted]
    flips = [source[axis] != w for axis, w in zip(axes, wanted, strict=True)]
    return index3(axes), (flips[0], flips[1], flips[2])


def reoriented(geometry: Geometry, target: str) -> Geometry:
    """The grid after `axes_to(geometry.orientation, target)` was applied to its array."""
    axes, flips = axes_to(geometry.orientation, target)
    start = [0, 0, 0]
    columns = []
    for new_axis, old_axis in enumerate(axes):
        sign = -1.0 if flips[new_axis] else 1.0
        if flips[new_axis]:
            start[old_axis] = geometry.size[old_axis] - 1
        columns.append(sign * geometry.direction_matrix[:, 2 - old_axis])
    # `columns` is in array order (z, y, x); the direction matrix wants x, y, z.
    matrix = np.stack(columns[::-1], axis=1)
    flat = tuple(float(v) for v in matrix.ravel())
    return Geometry(
        size=index3([geometry.size[a] for a in axes]),
        spacing_mm=vec3([geometry.spacing_mm[a] for a in axes]),
        origin_mm=geometry.world(start),
        direction=direction9(flat),
    )


def direction9(values: Sequence[float]) -> Direction:
    """Nine cosines as a tuple of plain floats."""
    a, b, c, d, e, f, g, h, i = (float(v) for v in values)
    return a, b, c, d, e, f, g, h, i


def _world_axis(letter: str) -> int:
    sides = _POSITIVE_SIDES if letter in _POSITIVE_SIDES else _NEGATIVE_SIDES
    return sides.find(letter)


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels with the grid they lie on.

    Attributes:
        voxels: array (z, y, x); int16 Hounsfield units for a CT, uint8 or int16 for labels.
        geometry: its grid; `geometry.size == voxels.shape`.
    """

    voxels: NDArray[np.generic]
    geometry: Geometry

    def __post_init__(self) -> None:
        """Refuse an array that does not fit the grid."""
        if self.voxels.shape != self.geometry.size:
            raise ValueError(f"array {self.voxels.shape} does not fit grid {self.geometry.size}")


def reorient(volume: Volume, target: str) -> Volume:
    """The same voxels at the same places in the patient, with array axes near `target`'s."""
    axes, flips = axes_to(volume.geometry.orientation, target)
    slices = tuple(slice(None, None, -1 if flip else None) for flip in flips)
    voxels = volume.voxels.transpose(axes)[slices]
    return Volume(np.ascontiguousarray(voxels), reoriented(volume.geometry, target))
