"""From a scan as it was acquired to int16 HU on the grid that a network is trained on.

Pure functions: volumes in, volumes out, no files. The order is body box, crop, reorient, resample,
so that only what is kept is ever copied. Voxels are never rotated: an oblique scan keeps its own
axes, in the order and sense nearest to the recipe's orientation.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from backend.errors import ScanError, UserError
from backend.geometry import (
    Geometry,
    Index3,
    Vec3,
    Volume,
    axes_to,
    index3,
    reoriented,
    vec3,
)

_COARSE_MM = 4.0
"""The body is sought on about this grid: fine enough for a box that gets a margin anyway."""

_OUTSIDE_AIR_HU = -900
"""What is cut away must be darker than this in the median, or it is lung and not outside air."""

_GRID_TOLERANCE_VOXELS = 0.1
"""Headers round: corners of an image and its label may differ by this share of a voxel."""

_TIE_SHIFT_VOXELS = 1e-3
"""At whole factors a border often falls half-way. Sampling labels this much off centre decides such
ties by side, so that opposite borders cancel; decided by class they would swell every structure."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides what a preprocessed scan looks like. Equal recipes give equal voxels.

    Attributes:
        spacing_mm: distance of voxel centres along (z, y, x) after reorientation; None leaves the
            scan's own.
        orientation: sides towards which the array axes x, y, z grow, e.g. "LPS".
        body_margin_mm: what is left around the body's bounding box.
        body_threshold_hu: what is brighter belongs to the body.
        version: raised when the code gives other voxels for the same settings.
    """

    spacing_mm: Vec3 | None
    orientation: str = "LPS"
    body_margin_mm: float = 8.0
    body_threshold_hu: int = -350
    version: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be a grid, and make equal settings compare equal (1 and 1.0)."""
        if self.spacing_mm is not None:
            object.__setattr__(self, "spacing_mm", vec3(self.spacing_mm))
        object.__setattr__(self, "body_margin_mm", float(self.body_margin_mm))
        if not all(np.isfinite(s) and s > 0 for s in self.spacing_mm or ()):
            raise UserError(f"Spacing {self.spacing_mm} mm is no grid.", "Give three above 0.")
        if self.body_margin_mm < 0:
            raise UserError(f"Body margin {self.body_margin_mm} mm is negative.", "Give 0 or more.")
        try:
            axes_to("LPS", self.orientation)
        except ValueError as error:
            raise UserError(f"Orientation: {error}.", "Give three sides, one per axis.") from error

    def key(self) -> str:
        """Twelve hexadecimal digits that stand for all settings, the same on every machine."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def preprocess(volume: Volume, recipe: Recipe) -> Volume:
    """Bring a scan to the recipe's grid: cropped to the body, reoriented, resampled linearly.

    Args:
        volume: HU, int16, any orientation.
        recipe: the wanted grid.

    Returns:
        int16 HU at exactly `recipe.spacing_mm` (at the scan's own, if that is None). The first
        outer corner of the kept box stays where it was; the opposite faces move by at most half a
        voxel.
    """
    oriented = _oriented_view(volume, recipe.orientation)
    start, size = body_box(
        oriented, margin_mm=recipe.body_margin_mm, threshold_hu=recipe.body_threshold_hu
    )
    return _resampled_hu(_cropped_view(oriented, start, size), recipe.spacing_mm)


def preprocess_pair(image: Volume, label: Volume, recipe: Recipe) -> tuple[Volume, Volume]:
    """Bring a scan and its label map to one grid.

    The box is that of the body, widened where a label reaches outside it, so that no labelled
    voxel is cut off. Every label value is resampled linearly as a mask of its own and the largest
    share wins: volumes stay unbiased and borders smooth, where nearest neighbour gives stairs and
    drops thin parts between its sampling points. A structure too small to win anywhere keeps the
    voxel that holds most of it. No value appears that the source does not hold.

    Args:
        image: HU, int16.
        label: whole numbers >= 0 on the same grid; its axes may be stored in another order.
        recipe: the wanted grid.

    Returns:
        Image (int16) and label (uint8, or int16 where a value exceeds 255) with one geometry.

    Raises:
        ScanError: if the grids differ or the label holds values that are no labels.
    """
    oriented = _oriented_view(image, recipe.orientation)
    marks = _oriented_view(label, recipe.orientation)
    require_same_grid(oriented.geometry, marks.geometry)
    voxels = label_array(marks.voxels)
    boxes = [
        body_box(oriented, margin_mm=recipe.body_margin_mm, threshold_hu=recipe.body_threshold_hu)
    ]
    if (labelled := _bounding_box(voxels > 0)) is not None:
        boxes.append(labelled)
    start, size = _union(boxes)
    cropped = _cropped_view(oriented, start, size)
    result = _resampled_hu(cropped, recipe.spacing_mm)
    kept = np.ascontiguousarray(voxels[_slices(start, size)])
    scale = _scale(cropped.geometry, result.geometry)
    return result, Volume(_resampled_label(kept, scale, result.geometry.size), result.geometry)


def require_same_grid(image: Geometry, label: Geometry) -> None:
    """Refuse a label that does not lie on its image's grid; axis order and sense may differ.

    Raises:
        ScanError: with sizes, spacings and origins of both.
    """
    brought = reoriented(label, image.orientation)
    tolerance_mm = _GRID_TOLERANCE_VOXELS * min(image.spacing_mm)
    if image.matches(brought, tolerance_mm=tolerance_mm):
        return
    raise ScanError(
        f"Image and label lie on different grids: {_told(image)} against {_told(brought)}.",
        "Export the label on the grid of its image.",
    )


def label_array(voxels: NDArray[np.generic]) -> NDArray[np.integer[Any]]:
    """Label values as uint8, or as int16 where one exceeds 255.

    Raises:
        ScanError: if a value is negative, fractional or above 32767.
    """
    low, high = float(np.min(voxels)), float(np.max(voxels))
    if low < 0 or high > np.iinfo(np.int16).max:
        raise ScanError(
            f"Label values run from {low:g} to {high:g}.",
            "Labels are whole numbers from 0 to 32767.",
        )
    kind = np.uint8 if high <= np.iinfo(np.uint8).max else np.int16
    whole: NDArray[np.integer[Any]] = voxels.astype(kind, copy=False)
    if not np.issubdtype(voxels.dtype, np.integer) and not np.array_equal(whole, voxels):
        raise ScanError("Label values are not whole numbers.", "Export the label as a label map.")
    return whole


def body_box(
    volume: Volume, *, margin_mm: float = 8.0, threshold_hu: int = -350
) -> tuple[Index3, Index3]:
    """Where the patient is: the bounding box of the largest connected part above the threshold.

    Sought on a copy with about 4 mm voxels. A side is cut only if what falls away is air in the
    median: a scan of the inside of a lung has no outside to be cut off.

    Args:
        volume: HU, any orientation.
        margin_mm: added on every side, as far as the volume reaches.
        threshold_hu: what is brighter belongs to the body.

    Returns:
        `(start, size)` along (z, y, x) in voxels; the whole volume if there is no body.
    """
    steps = [max(1, int(_COARSE_MM / s)) for s in volume.geometry.spacing_mm]
    coarse = np.asarray(volume.voxels[tuple(slice(None, None, n) for n in steps)], dtype=np.int16)
    box = _largest_part(coarse > threshold_hu)
    if box is None:
        return (0, 0, 0), volume.geometry.size
    starts, stops = [], []
    for axis, (first, length) in enumerate(zip(*box, strict=True)):
        step, count = steps[axis], volume.geometry.size[axis]
        # The body may begin anywhere after the last coarse voxel found outside it.
        margin = step - 1 + int(np.ceil(margin_mm / volume.geometry.spacing_mm[axis]))
        below, above = _air_sides(coarse, axis, first, first + length)
        starts.append(max(0, first * step - margin) if below else 0)
        stop = (first + length - 1) * step + 1 + margin
        stops.append(min(count, stop) if above else count)
    size = index3([stop - start for start, stop in zip(starts, stops, strict=True)])
    return index3(starts), size


def _air_sides(coarse: NDArray[np.int16], axis: int, start: int, stop: int) -> tuple[bool, bool]:
    """Whether what lies before `start` and behind `stop` along an axis is outside air."""
    slabs = np.split(coarse, [start, stop], axis=axis)
    below, above = (
        slab.size > 0 and bool(np.median(slab) < _OUTSIDE_AIR_HU) for slab in (slabs[0], slabs[2])
    )
    return below, above


def _largest_part(mask: NDArray[np.bool_]) -> tuple[Index3, Index3] | None:
    """Start and size (z, y, x) of the largest face-connected part, or None if the mask is empty."""
    parts = SimpleITK.ConnectedComponent(SimpleITK.GetImageFromArray(mask.astype(np.uint8)))
    shape = SimpleITK.LabelShapeStatisticsImageFilter()
    shape.ComputeOrientedBoundingBoxOff()
    shape.ComputePerimeterOff()
    shape.Execute(parts)
    if not shape.GetLabels():
        return None
    largest = max(shape.GetLabels(), key=shape.GetNumberOfPixels)
    x, y, z, width, height, depth = shape.GetBoundingBox(largest)
    return (z, y, x), (depth, height, width)


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[Index3, Index3] | None:
    """Start and size (z, y, x) of all that is set, or None if nothing is."""
    planes = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if planes[0].size == 0:
        return None
    size = index3([int(p[-1] - p[0]) + 1 for p in planes])
    return index3([int(p[0]) for p in planes]), size


def _union(boxes: Sequence[tuple[Index3, Index3]]) -> tuple[Index3, Index3]:
    """The smallest box that holds all of them; each is (start, size) along (z, y, x)."""
    starts = np.array([start for start, _ in boxes])
    stops = starts + np.array([size for _, size in boxes])
    low = starts.min(axis=0)
    return index3(low), index3(stops.max(axis=0) - low)


def _oriented_view(volume: Volume, target: str) -> Volume:
    """As `geometry.reorient`, but without a copy: most of it may be cropped away."""
    axes, flips = axes_to(volume.geometry.orientation, target)
    flipped = tuple(slice(None, None, -1 if flip else None) for flip in flips)
    return Volume(volume.voxels.transpose(axes)[flipped], reoriented(volume.geometry, target))


def _cropped_view(volume: Volume, start: Index3, size: Index3) -> Volume:
    """The voxels from `start` on, without a copy; the box lies inside the volume."""
    return Volume(volume.voxels[_slices(start, size)], volume.geometry.cropped(start, size))


def _slices(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))


def _resampled_geometry(geometry: Geometry, spacing_mm: Vec3) -> Geometry:
    """The grid over the same box at another spacing, at least one voxel along every axis."""
    pairs = zip(geometry.extent_mm, spacing_mm, strict=True)
    # Halves are rounded down, which leaves the last centre inside the box.
    size = index3([max(1, math.ceil(e / s - 0.5 - 1e-6)) for e, s in pairs])
    return geometry.resized(size, spacing_mm)


def _resampled_hu(volume: Volume, spacing_mm: Vec3 | None) -> Volume:
    if spacing_mm is None or np.allclose(volume.geometry.spacing_mm, spacing_mm, rtol=1e-6, atol=0):
        return Volume(np.ascontiguousarray(volume.voxels, dtype=np.int16), volume.geometry)
    geometry = _resampled_geometry(volume.geometry, spacing_mm)
    scale = _scale(volume.geometry, geometry)
    values = _linear(volume.voxels, scale, first=(0, 0, 0), size=geometry.size, offset=(0, 0, 0))
    return Volume(np.rint(values).astype(np.int16), geometry)


def _scale(source: Geometry, target: Geometry) -> Vec3:
    """Source voxels per target voxel along (z, y, x)."""
    return vec3([t / s for t, s in zip(target.spacing_mm, source.spacing_mm, strict=True)])


def _linear(
    voxels: NDArray[np.generic], scale: Vec3, *, first: Index3, size: Index3, offset: Vec3
) -> NDArray[np.float32]:
    """Linear interpolation along the array axes; beyond the last centres the edge continues.

    Args:
        voxels: part of the source, beginning at source voxel `offset` (z, y, x).
        scale: source voxels per target voxel; first outer faces of both whole grids coincide.
        first: the target voxel to begin with.
        size: how many target voxels to compute.
        offset: see `voxels`.

    Returns:
        float32 of shape `size`.
    """
    # In units of source voxels the world axes play no part, so that oblique and even sheared
    # grids are resampled exactly like straight ones.
    centres = [(f + 0.5) * s - 0.5 - o for f, s, o in zip(first, scale, offset, strict=True)]
    lasts = [c + (n - 1) * s for c, n, s in zip(centres, size, scale, strict=True)]
    # The filter's own way beyond the edge is nearest neighbour along all three axes.
    beyond = [max(0, math.ceil(e) - n + 1) for e, n in zip(lasts, voxels.shape, strict=True)]
    if any(beyond):
        voxels = np.pad(voxels, [(0, n) for n in beyond], mode="edge")
    resample = SimpleITK.ResampleImageFilter()
    resample.SetInterpolator(SimpleITK.sitkLinear)
    resample.SetUseNearestNeighborExtrapolator(True)
    resample.SetOutputPixelType(SimpleITK.sitkFloat32)
    resample.SetSize(size[::-1])
    resample.SetOutputSpacing(scale[::-1])
    resample.SetOutputOrigin(centres[::-1])
    values = resample.Execute(SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels)))
    result: NDArray[np.float32] = SimpleITK.GetArrayFromImage(values)
    return result


def _resampled_label(
    voxels: NDArray[np.integer[Any]], scale: Vec3, size: Index3
) -> NDArray[np.integer[Any]]:
    """The label map on another grid over the same box; the largest share of a voxel wins."""
    if voxels.shape == size and np.allclose(scale, 1.0, rtol=1e-6):
        return voxels
    winner = np.zeros(size, dtype=voxels.dtype)
    best = np.zeros(size, dtype=np.float32)
    background = np.ones(size, dtype=np.float32)
    found: list[int] = []
    for value, where, share in _shares(voxels, scale, size):
        wins = share > best[where]
        winner[where][wins] = value
        best[where][wins] = share[wins]
        background[where] -= share
        found.append(value)
    winner[background > best] = 0
    for value in sorted(set(found) - set(np.unique(winner).tolist())):
        winner[_fullest_voxel(voxels == value, scale, size)] = value
    return winner


def _fullest_voxel(mask: NDArray[np.bool_], scale: Vec3, size: Index3) -> Index3:
    """The target voxel that holds most of the mask's voxels."""
    inside = np.minimum((np.argwhere(mask) + 0.5) / scale, np.array(size) - 1).astype(int)
    voxels, counts = np.unique(inside, axis=0, return_counts=True)
    return index3(voxels[int(np.argmax(counts))])


def _shares(
    voxels: NDArray[np.integer[Any]], scale: Vec3, size: Index3
) -> Iterator[tuple[int, tuple[slice, ...], NDArray[np.float32]]]:
    """For every label above 0 its value, a target box and the share of it in each voxel there."""
    for value in np.unique(voxels[voxels > 0]).tolist():
        box = _bounding_box(voxels == value)
        assert box is not None
        # One voxel more on each side lets the share fall to 0 inside the box.
        low = index3([max(0, a - 1) for a in box[0]])
        high = index3([min(m, a + n + 1) for a, n, m in zip(*box, voxels.shape, strict=True)])
        axes = zip(low, high, voxels.shape, scale, size, strict=True)
        ranges = [_target_range((a, b), count=m, scale=s, target=n) for a, b, m, s, n in axes]
        begin = index3([a for a, _ in ranges])
        length = index3([b - a for a, b in ranges])
        part = voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] == value
        offset = vec3([a + _TIE_SHIFT_VOXELS for a in low])
        share = _linear(part.astype(np.uint8), scale, first=begin, size=length, offset=offset)
        yield value, _slices(begin, length), share


def _target_range(
    source: tuple[int, int], *, count: int, scale: float, target: int
) -> tuple[int, int]:
    """Target voxels (begin, stop) whose centres a range of source voxels reaches, on one axis.

    A range that touches an end of the source's `count` voxels holds for all that lies beyond it.
    """
    begin = 0 if source[0] == 0 else int((source[0] + 0.5) / scale - 0.5)
    stop = target if source[1] == count else int((source[1] + 0.5) / scale - 0.5) + 1
    begin = min(begin, target - 1)
    return begin, min(target, max(stop, begin + 1))


def _told(geometry: Geometry) -> str:
    """Size, spacing and origin of a grid, in x, y, z order as viewers show them."""
    size = "x".join(str(n) for n in geometry.size[::-1])
    spacing = "x".join(f"{s:.4g}" for s in geometry.spacing_mm[::-1])
    origin = ", ".join(f"{o:.2f}" for o in geometry.origin_mm)
    return f"{size} voxels of {spacing} mm from ({origin})"
