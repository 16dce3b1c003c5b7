"""A grid on which a phantom is painted: shapes as signed distances, tissues as textures.

Distances are millimetres, negative inside. A voxel that a surface cuts gets a share of the new
tissue by how far its centre lies from the surface: this is the partial-volume effect without
rendering on a finer grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter

from backend.geometry import Geometry, Vec3

Array = NDArray[np.float32]
Window = tuple[slice, slice, slice]

_TEXTURE_MM = {"fine": 1.6, "mid": 4.0, "coarse": 10.0}
_REACH_MM = 6.0  # shapes are computed this far beyond their surface: rims and soft edges need it
_FAR_MM = 1e3


@dataclass(frozen=True, eq=False)
class Region:
    """A shape on a part of the grid: signed distance in mm, negative inside."""

    window: Window
    distance: Array

    def __and__(self, other: Region) -> Region:
        """What lies in both; `other` must be given on the whole grid or on the same window."""
        return replace(self, distance=np.maximum(self.distance, self.local(other)))

    def __sub__(self, other: Region) -> Region:
        """What lies in this region but not in `other` (whole grid or the same window)."""
        return replace(self, distance=np.maximum(self.distance, -self.local(other)))

    def grown(self, margin_mm: float) -> Region:
        """The region with its surface moved outwards (inwards if negative)."""
        return replace(self, distance=self.distance - np.float32(margin_mm))

    def local(self, other: Region) -> Array:
        """The distances of `other` on this region's window."""
        same = other.distance.shape == self.distance.shape and other.window == self.window
        return other.distance if same else other.distance[self.window]


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """Mean Hounsfield units and the standard deviation of its texture at three grain sizes."""

    hu: float
    fine: float = 0.0
    mid: float = 0.0
    coarse: float = 0.0
    fibre: float = 0.0


class Canvas:
    """Hounsfield units and labels under construction, with the patient's own coordinates.

    Attributes:
        x, y, z: millimetres in the reference body, towards Left, Posterior and Superior. The
            patient's size and a smooth random deformation are already taken out, so that organs
            are drawn at their places in the reference body. Each has the grid's shape.
        hu: float Hounsfield units, air at first.
        labels: uint8, 0 at first.
    """

    def __init__(
        self, geometry: Geometry, rng: np.random.Generator, *, scale: Vec3, bend_mm: float
    ) -> None:
        """Lay out coordinates and textures.

        Args:
            geometry: the grid.
            rng: source of the deformation and the textures.
            scale: size of the patient relative to the reference body, along world (x, y, z).
            bend_mm: standard deviation of the smooth deformation.
        """
        self.geometry = geometry
        self.scale = np.asarray(scale)
        self._to_index = np.linalg.inv(geometry.affine)
        self._edge_mm = float(np.prod(geometry.spacing_mm) ** (1 / 3))
        bends = _smooth_waves(geometry, rng, sd_mm=bend_mm)
        self._reach_mm = _REACH_MM + max(float(np.abs(b).max()) for b in bends) * max(scale)
        straight = [
            _coordinate(geometry, axis, divide_by=factor) for axis, factor in enumerate(scale)
        ]
        self.x, self.y, self.z = (
            (line + bend).astype(np.float32) for line, bend in zip(straight, bends, strict=True)
        )
        self.table_y = np.broadcast_to(straight[1] * scale[1], geometry.size)
        self.table_x = np.broadcast_to(straight[0] * scale[0], geometry.size)
        self.hu = np.full(geometry.size, -1000.0, dtype=np.float32)
        self.labels = np.zeros(geometry.size, dtype=np.uint8)
        self.textures = _textures(geometry, rng)

    @property
    def everywhere(self) -> Window:
        """The window of the whole grid."""
        return slice(0, self.hu.shape[0]), slice(0, self.hu.shape[1]), slice(0, self.hu.shape[2])

    def window(self, low: ArrayLike, high: ArrayLike) -> Window:
        """The part of the grid that holds a box of the reference body given by (x, y, z) in mm."""
        corners = np.asarray([low, high], dtype=np.float64) * self.scale
        centre, half = corners.mean(axis=0), np.abs(corners[1] - corners[0]) / 2 + self._reach_mm
        middle = (self._to_index @ np.append(centre, 1.0))[:3]
        reach = np.abs(self._to_index[:3, :3]) @ half
        start = np.clip(np.floor(middle - reach), 0, self.hu.shape).astype(int)
        stop = np.clip(np.ceil(middle + reach) + 1, 0, self.hu.shape).astype(int)
        z, y, x = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        return z, y, x

    def whole(self, distance: NDArray[np.floating]) -> Region:
        """A region given by its distances on the whole grid."""
        return Region(self.everywhere, distance.astype(np.float32))

    def ellipsoid(self, centre: Vec3, radii: Vec3, *, turn_deg: float = 0.0) -> Region:
        """An ellipsoid with half axes along (x, y, z), turned in the axial plane."""
        longest = np.array([max(radii[0], radii[1])] * 2 + [radii[2]])
        window = self.window(np.asarray(centre) - longest, np.asarray(centre) + longest)
        x, y, z = (
            a[window] - np.float32(c) for a, c in zip((self.x, self.y, self.z), centre, strict=True)
        )
        cos, sin = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
        parts = [
            (a / np.float32(r)) ** 2
            for a, r in zip((cos * x + sin * y, cos * y - sin * x, z), radii, strict=True)
        ]
        level = np.sqrt(parts[0] + parts[1] + parts[2])
        # First-order distance: the level set's value over the length of its gradient.
        slope = np.sqrt(
            sum(p / np.float32(r * r) for p, r in zip(parts, radii, strict=True)) + 1e-9
        )
        return Region(window, (level * (level - 1.0) / slope).astype(np.float32))

    def tube(self, points: ArrayLike, radii: ArrayLike) -> Region:
        """A chain of rounded cones through `points` (n, 3) as (x, y, z), with `radii` (n,)."""
        path = np.asarray(points, dtype=np.float32)
        thick = np.broadcast_to(np.asarray(radii, dtype=np.float32), len(path))
        pad = thick.max()
        window = self.window((path - pad).min(axis=0), (path + pad).max(axis=0))
        distance = np.full([s.stop - s.start for s in window], _FAR_MM, dtype=np.float32)
        for a, b, r, s in zip(path[:-1], path[1:], thick[:-1], thick[1:], strict=True):
            part = self.window(np.minimum(a, b) - max(r, s), np.maximum(a, b) + max(r, s))
            inner = tuple(
                slice(p.start - w.start, p.stop - w.start)
                for p, w in zip(part, window, strict=True)
            )
            near = distance[inner]
            np.minimum(near, self._cone(part, a, b, radii=(float(r), float(s))), out=near)
        return Region(window, distance)

    def _cone(self, window: Window, a: Array, b: Array, *, radii: tuple[float, float]) -> Array:
        x, y, z = self.x[window] - a[0], self.y[window] - a[1], self.z[window] - a[2]
        along = b - a
        share = (x * along[0] + y * along[1] + z * along[2]) / np.float32(along @ along + 1e-6)
        np.clip(share, 0.0, 1.0, out=share)
        gap = np.sqrt(
            (x - share * along[0]) ** 2 + (y - share * along[1]) ** 2 + (z - share * along[2]) ** 2
        )
        cone: Array = gap - (np.float32(radii[0]) + share * np.float32(radii[1] - radii[0]))
        return cone

    def paint(
        self, region: Region, tissue: Tissue, *, label: int | None = None, rim_mm: float = 0.0
    ) -> None:
        """Fill a region with a tissue.

        Args:
            region: where.
            tissue: what.
            label: the value its voxels get in the label map; None leaves what is there.
            rim_mm: a rim of fat of this thickness round the region, painted first, so that
                touching organs stay apart as they do in a patient.
        """
        window = region.window
        if rim_mm > 0:
            self.paint(region.grown(rim_mm), FAT, label=None if label is None else 0)
        share = np.clip(0.5 - region.distance / np.float32(self._edge_mm), 0.0, 1.0)
        hu = self.hu[window]
        hu += share * (self._filled(tissue, window) - hu)
        if label is not None:
            self.labels[window][region.distance < 0] = label

    def _filled(self, tissue: Tissue, window: Window) -> Array:
        filled = np.full([s.stop - s.start for s in window], tissue.hu, dtype=np.float32)
        for name, texture in self.textures.items():
            amount = float(getattr(tissue, name))
            if amount:
                filled += np.float32(amount) * texture[window]
        return filled


FAT = Tissue(hu=-102.0, fine=4.0, mid=5.0, coarse=3.0)


def spline(points: Sequence[ArrayLike], samples: int) -> NDArray[np.float64]:
    """A smooth curve through control points of any dimension, (samples, dimension)."""
    at = np.linspace(0.0, len(points) - 1.0, samples)
    curve: NDArray[np.float64] = CubicSpline(np.arange(len(points)), np.asarray(points))(at)
    return curve


def _coordinate(geometry: Geometry, axis: int, *, divide_by: float) -> NDArray[np.float64]:
    """World coordinate `axis` (0 for x) of every voxel over `divide_by`, broadcastable to zyx."""
    row = geometry.affine[axis] / divide_by
    z, y, x = (step * np.arange(n) for step, n in zip(row[:3], geometry.size, strict=True))
    total: NDArray[np.float64] = z[:, None, None] + y[None, :, None] + x[None, None, :] + row[3]
    return total


def _smooth_waves(geometry: Geometry, rng: np.random.Generator, *, sd_mm: float) -> list[Array]:
    """Three smooth random fields (x, y, z), sums of waves that are fixed in the world.

    Depending on world position alone, the same patient bends alike on every grid.
    """
    waves = 5
    fields = []
    for _ in range(3):
        field = np.zeros(geometry.size, dtype=np.float32)
        for _ in range(waves):
            direction = rng.normal(size=3)
            direction *= 2 * np.pi / rng.uniform(90, 220) / np.linalg.norm(direction)
            phase = rng.uniform(0, 2 * np.pi)
            steps = direction @ geometry.affine[:3, :3]
            phase += float(direction @ geometry.affine[:3, 3])
            z, y, x = (
                np.exp(1j * step * np.arange(n)).astype(np.complex64)
                for step, n in zip(steps, geometry.size, strict=True)
            )
            plane = np.exp(1j * phase).astype(np.complex64) * y[:, None] * x[None, :]
            field += np.float32(sd_mm * np.sqrt(2 / waves)) * (z[:, None, None] * plane).imag
        fields.append(field)
    return fields


def _textures(geometry: Geometry, rng: np.random.Generator) -> dict[str, Array]:
    """Unit-variance noise at several grain sizes, and one with long fibres along z."""
    spacing = np.asarray(geometry.spacing_mm)
    grains = {name: np.full(3, mm) / spacing for name, mm in _TEXTURE_MM.items()}
    grains["fibre"] = np.array([14.0, 1.6, 4.0]) / spacing
    return {name: correlated_noise(geometry.size, rng, sigma) for name, sigma in grains.items()}


def correlated_noise(
    size: Sequence[int], rng: np.random.Generator, sigma_vox: Sequence[float] | NDArray[np.float64]
) -> Array:
    """Gaussian noise of unit variance, correlated over `sigma_vox` voxels along (z, y, x)."""
    noise = rng.standard_normal(tuple(size), dtype=np.float32)
    smooth: Array = gaussian_filter(noise, sigma=tuple(sigma_vox), mode="wrap", truncate=2.5)
    smooth /= smooth.std()
    return smooth
