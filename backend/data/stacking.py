"""From the positions of single slices to one regular grid, or the reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backend.geometry import Geometry, Index3, Vec3, direction9, vec3

SAME_POSITION_MM = 0.01
"""Slices nearer than this along the normal lie at the same place."""
SPACING_TOLERANCE = 0.1
"""Share of the spacing by which a slice may lie off the regular grid."""
SPACING_ROUNDING_MM = 0.101
"""How far it may always lie off: positions, the ends too, are often written with one decimal."""
SIDEWAYS_TOLERANCE_MM = 0.5
"""How far a slice may lie off the line along the normal, in plane: less than a voxel."""
TILT_TOLERANCE_DEGREES = 0.1
"""A gantry tilt up to this is a rounding of zero."""
LEAST_SPACING_MM, LARGEST_SPACING_MM = 0.05, 50.0
"""No CT of a patient is finer or coarser; beyond it a unit or a header is wrong."""
ORTHOGONALITY_TOLERANCE = 2e-3
"""Largest cosine between two axes of a grid; 1 mm over half a metre."""

_STRAIGHT_COSINE = 0.9999


def stack_order(positions_mm: Sequence[Vec3], orientation: Sequence[float]) -> list[int]:
    """Indices of the slices sorted along cross(row, column)."""
    return [int(i) for i in np.argsort(_along_normal(positions_mm, orientation), kind="stable")]


def stack_problems(
    positions_mm: Sequence[Vec3], orientation: Sequence[float], *, tilt_degrees: float = 0.0
) -> list[str]:
    """Every reason why slices do not form a regular, rectangular grid.

    Args:
        positions_mm: world position (x, y, z) of the first voxel of each slice, in any order.
        orientation: row and column cosines, six numbers.
        tilt_degrees: GantryDetectorTilt as the scanner wrote it.

    Returns:
        Texts of the form "kind: details"; empty if all is well.
    """
    skew = axes_problem(_axes(orientation))
    if skew:
        return [skew]
    places = np.sort(_along_normal(positions_mm, orientation))
    steps = np.diff(places)
    repeated = int(np.sum(steps < SAME_POSITION_MM))
    if repeated:
        return [f"duplicate slices: {repeated} of {len(places)} lie where another one lies"]
    found = [_tilt_problem(positions_mm, orientation, tilt_degrees), _step_problem(places, steps)]
    return [text for text in found if text]


def stack_geometry(
    positions_mm: Sequence[Vec3],
    orientation: Sequence[float],
    *,
    pixel_spacing_mm: Sequence[float],
    plane: tuple[int, int],
    slice_mm: float = 0.0,
) -> Geometry:
    """The grid of sorted slices; z grows along cross(row, column).

    Args:
        positions_mm: positions (x, y, z) of the slices, in any order.
        orientation: row and column cosines, six numbers.
        pixel_spacing_mm: distance of rows and distance of columns, as in DICOM's PixelSpacing.
        plane: rows and columns.
        slice_mm: spacing along z of a single slice, which has no neighbour to tell it.
    """
    order = stack_order(positions_mm, orientation)
    places = np.sort(_along_normal(positions_mm, orientation))
    count = len(places)
    # The mean step puts both ends where they are; the usual one is truer where slices miss.
    steps = np.diff(places)
    step = float(np.median(steps)) if count > 1 else slice_mm
    if count > 1 and not _step_problem(places, steps):
        step = float(places[-1] - places[0]) / (count - 1)
    size: Index3 = (count, plane[0], plane[1])
    return Geometry(
        size=size,
        spacing_mm=(step, float(pixel_spacing_mm[0]), float(pixel_spacing_mm[1])),
        origin_mm=vec3(positions_mm[order[0]]),
        direction=direction9([float(v) for v in orthonormal(_axes(orientation)).ravel()]),
    )


def spacing_problem(spacing_mm: Sequence[float], *, what: str = "spacing") -> str:
    """Why these distances of voxel centres cannot be those of a CT, "" if they can.

    Args:
        spacing_mm: in any order; each must lie in `LEAST_SPACING_MM` to `LARGEST_SPACING_MM`.
        what: how the text calls them.
    """
    shown = "x".join(f"{v:.4g}" for v in spacing_mm)
    if not all(math.isfinite(v) and v > 0 for v in spacing_mm):
        return f"no geometry: {what} {shown} mm is not positive and finite"
    if not all(LEAST_SPACING_MM <= v <= LARGEST_SPACING_MM for v in spacing_mm):
        return (
            f"no geometry: {what} {shown} mm is not within {LEAST_SPACING_MM:g} to "
            f"{LARGEST_SPACING_MM:g} mm"
        )
    return ""


def axes_problem(axes: NDArray[np.float64]) -> str:
    """Why the three columns span no rectangular grid, "" if they do. Shape (3, 3)."""
    lengths = np.linalg.norm(axes, axis=0)
    if not np.all(np.isfinite(axes)) or np.any(np.abs(lengths - 1) > 0.05):
        return "no geometry: the direction cosines are no unit vectors"
    unit = axes / lengths
    cosine = float(np.max(np.abs(unit.T @ unit - np.eye(3))))
    if cosine > ORTHOGONALITY_TOLERANCE:
        angle = float(np.degrees(np.arccos(min(cosine, 1.0))))
        return f"sheared: two axes of the grid meet at {angle:.1f} instead of 90 degrees"
    return ""


def orthonormal(axes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest matrix whose columns are perpendicular unit vectors. Shape (3, 3).

    What is so up to single precision comes back untouched, as the file states it.
    """
    if np.allclose(axes.T @ axes, np.eye(3), atol=1e-6, rtol=0):
        return axes
    left, _, right = np.linalg.svd(axes)
    return np.asarray(left @ right, dtype=np.float64)


def _axes(orientation: Sequence[float]) -> NDArray[np.float64]:
    """Row, column and normal as columns. Shape (3, 3)."""
    row = np.asarray(orientation[:3], dtype=np.float64)
    column = np.asarray(orientation[3:], dtype=np.float64)
    normal = np.cross(row, column)
    length = float(np.linalg.norm(normal))
    return np.stack([row, column, normal / length if length > 0 else normal], axis=1)


def _along_normal(
    positions_mm: Sequence[Vec3], orientation: Sequence[float]
) -> NDArray[np.float64]:
    places = np.asarray(positions_mm, dtype=np.float64) @ _axes(orientation)[:, 2]
    return np.asarray(places, dtype=np.float64)


def _tilt_problem(
    positions_mm: Sequence[Vec3], orientation: Sequence[float], tilt_degrees: float
) -> str:
    axes = _axes(orientation)
    places = np.asarray(positions_mm, dtype=np.float64) @ axes
    places = places[np.argsort(places[:, 2], kind="stable")] - places[np.argmin(places[:, 2])]
    sideways = np.linalg.norm(places[:, :2], axis=1)
    if float(sideways.max()) > SIDEWAYS_TOLERANCE_MM:
        slope = places[-1, :2] / places[-1, 2]
        bent = np.linalg.norm(places[:, :2] - places[:, 2:] * slope, axis=1)
        if float(bent.max()) > SIDEWAYS_TOLERANCE_MM:
            return f"shifted slices: up to {float(sideways.max()):.3g} mm sideways"
        angle = float(np.degrees(np.arctan(np.linalg.norm(slope))))
        return f"gantry tilt: {angle:.1f} degrees, the slices lie on a slant"
    straight = float(np.max(np.abs(axes[:, 2]))) > _STRAIGHT_COSINE
    if straight and abs(tilt_degrees) > TILT_TOLERANCE_DEGREES:
        return f"gantry tilt: {abs(tilt_degrees):.1f} degrees that the positions do not show"
    return ""


def _step_problem(places: NDArray[np.float64], steps: NDArray[np.float64]) -> str:
    """Missing slices or uneven spacing among sorted places."""
    if len(steps) == 0:
        return ""
    regular = np.linspace(places[0], places[-1], len(places))
    mean = float(places[-1] - places[0]) / len(steps)
    if np.max(np.abs(places - regular)) <= max(SPACING_TOLERANCE * mean, SPACING_ROUNDING_MM):
        return ""
    usual = float(np.median(steps))
    allowed = 2 * max(SPACING_TOLERANCE * usual, SPACING_ROUNDING_MM)
    odd = np.flatnonzero(np.abs(steps - usual) > allowed)
    multiple = np.round(steps[odd] / usual)
    whole = (multiple >= 2) & (np.abs(steps[odd] - multiple * usual) <= allowed)
    if len(odd) == 0 or not np.all(whole):
        return f"uneven spacing: {steps.min():.3g} to {steps.max():.3g} mm"
    holes = [f"hole of {steps[i]:.4g} mm between slices {i + 1} and {i + 2}" for i in odd[:3]]
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    return f"missing slices: {', '.join(holes)}{more} ({usual:.4g} mm elsewhere)"
