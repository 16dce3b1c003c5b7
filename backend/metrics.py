"""How well a segmentation agrees with a reference: overlap, distances in mm, volumes.

Overlap is counted in voxels: Dice = 2 |P and R| / (|P| + |R|), IoU = |P and R| / |P or R|.

Distances are those of MONAI. The surface of a mask are its voxels that have one of their six face
neighbours outside the mask; beyond the edge of the image is outside. Each surface voxel of one
mask has the Euclidean distance in mm, centre to centre, to the nearest surface voxel of the other.
From these distances, of prediction to reference and of reference to prediction, follow

- HD: the largest of all,
- HD95: the larger of both directions' 95th percentiles (linear interpolation),
- average surface distance: the mean over all surface voxels of both masks (symmetric),
- surface Dice: the share of all surface voxels of both masks within the tolerance.

Organs that are missing follow one rule, `MISSING_RULE`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.geometry import Vec3

Mask = NDArray[np.bool_]
Status = Literal["ok", "absent", "missed", "false_positive"]

MISSING_RULE = (
    "absent (in neither): counts in no mean. missed (in the reference only) and false_positive "
    "(in the prediction only): Dice, IoU and surface Dice are 0 and count; distances are not "
    "defined and count in no mean. Each mean states its number of cases."
)
"""What happens where an organ is missing, for tables and files."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Shares of common voxels, 0 to 1; None where both masks are empty."""

    dice: float | None
    iou: float | None


@dataclass(frozen=True, kw_only=True)
class SurfaceMetrics:
    """Distances between two surfaces in mm and the share of surface within the tolerance."""

    hd_mm: float
    hd95_mm: float
    asd_mm: float
    surface_dice: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """Everything about one structure in one case; None where it is not defined."""

    status: Status
    dice: float | None
    iou: float | None
    hd_mm: float | None
    hd95_mm: float | None
    asd_mm: float | None
    surface_dice: float | None
    volume_pred_ml: float
    volume_ref_ml: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Mean and standard deviation over `count` values; None where there are too few.

    The standard deviation is that of the sample (n - 1), so it takes two values.
    """

    mean: float | None
    sd: float | None
    count: int


def overlap(pred: Mask, ref: Mask) -> Overlap:
    """Dice and IoU of two boolean masks of the same shape.

    Raises:
        ValueError: if the shapes differ or a mask is not boolean.
    """
    _check(pred, ref)
    common = int(np.count_nonzero(pred & ref))
    total = int(np.count_nonzero(pred)) + int(np.count_nonzero(ref))
    if total == 0:
        return Overlap(dice=None, iou=None)
    return Overlap(dice=2 * common / total, iou=common / (total - common))


def surface_metrics(
    pred: Mask, ref: Mask, *, spacing_mm: Vec3, tolerance_mm: float
) -> SurfaceMetrics:
    """Distances between the surfaces of two masks (z, y, x); see the module's text.

    Args:
        pred: boolean, with at least one voxel set.
        ref: boolean, of the same shape, with at least one voxel set.
        spacing_mm: along (z, y, x).
        tolerance_mm: for the surface Dice; a distance equal to it is within.

    Raises:
        ValueError: if the shapes differ, or a mask is empty or not boolean.
    """
    _check(pred, ref)
    if not (pred.any() and ref.any()):
        raise ValueError("surface distances need a voxel in both masks")
    box = _bounding_box(pred | ref)
    to_ref, to_pred = _surface_distances(pred[box], ref[box], spacing_mm)
    both = np.concatenate([to_ref, to_pred])
    # MONAI gives single precision: what equals the tolerance must not fall out by rounding.
    within = both <= tolerance_mm + 1e-5 * max(1.0, tolerance_mm)
    return SurfaceMetrics(
        hd_mm=float(both.max()),
        hd95_mm=float(max(np.percentile(to_ref, 95), np.percentile(to_pred, 95))),
        asd_mm=float(both.mean()),
        surface_dice=float(within.mean()),
    )


def score(pred: Mask, ref: Mask, *, spacing_mm: Vec3, tolerance_mm: float) -> Score:
    """All measures of one structure, under `MISSING_RULE` where it is missing.

    Args:
        pred: boolean (z, y, x); may be empty.
        ref: boolean of the same shape; may be empty.
        spacing_mm: along (z, y, x).
        tolerance_mm: for the surface Dice.
    """
    shares = overlap(pred, ref)
    status = _status(in_pred=bool(pred.any()), in_ref=bool(ref.any()))
    surfaces = (
        surface_metrics(pred, ref, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
        if status == "ok"
        else None
    )
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    return Score(
        status=status,
        dice=shares.dice,
        iou=shares.iou,
        hd_mm=surfaces.hd_mm if surfaces else None,
        hd95_mm=surfaces.hd95_mm if surfaces else None,
        asd_mm=surfaces.asd_mm if surfaces else None,
        surface_dice=surfaces.surface_dice if surfaces else shares.dice,
        volume_pred_ml=float(np.count_nonzero(pred)) * voxel_ml,
        volume_ref_ml=float(np.count_nonzero(ref)) * voxel_ml,
    )


def summary(values: Iterable[float | None]) -> Summary:
    """Mean, standard deviation and number of the values that are defined."""
    known = [value for value in values if value is not None]
    return Summary(
        mean=float(np.mean(known)) if known else None,
        sd=float(np.std(known, ddof=1)) if len(known) > 1 else None,
        count=len(known),
    )


def _status(*, in_pred: bool, in_ref: bool) -> Status:
    match in_pred, in_ref:
        case True, True:
            return "ok"
        case True, False:
            return "false_positive"
        case False, True:
            return "missed"
        case _:
            return "absent"


def _check(pred: Mask, ref: Mask) -> None:
    if pred.dtype != np.bool_ or ref.dtype != np.bool_:
        raise ValueError(f"masks must be boolean, got {pred.dtype} and {ref.dtype}")
    if pred.shape != ref.shape:
        raise ValueError(f"masks must have one shape, got {pred.shape} and {ref.shape}")


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box round the mask."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)


def _surface_distances(
    pred: Mask, ref: Mask, spacing_mm: Vec3
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances in mm of each mask's surface voxels to the other's surface, by MONAI."""
    get_mask_edges, get_surface_distance = _library()
    # One voxel of margin, so that a mask at the box's face has its surface there.
    edges = get_mask_edges(np.pad(pred, 1), np.pad(ref, 1), crop=False)
    to_ref, to_pred = (
        np.asarray(get_surface_distance(a, b, spacing=spacing_mm), dtype=np.float64)
        for a, b in (edges, edges[::-1])
    )
    return to_ref, to_pred


def _library() -> tuple[Any, Any]:
    """MONAI's distances, imported when first needed: overlap does without."""
    with warnings.catch_warnings():
        # Deprecations inside these libraries are not the user's business.
        warnings.simplefilter("ignore")
        from monai.metrics import get_mask_edges, get_surface_distance
    return get_mask_edges, get_surface_distance
