"""Metrics against known answers and a slow reference."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from backend import metrics

Mask = NDArray[np.bool_]


def _cube(start: tuple[int, int, int], edge: int, size: int = 16) -> Mask:
    mask = np.zeros((size, size, size), dtype=bool)
    mask[tuple(slice(s, s + edge) for s in start)] = True
    return mask


def _ball(centre: tuple[float, float, float], radius: float, size: int = 16) -> Mask:
    grid = np.indices((size, size, size)).astype(float)
    gap = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
    return np.asarray(gap <= radius**2)


def _surface_points(mask: Mask) -> NDArray[np.float64]:
    """Voxels with a face neighbour outside, voxel by voxel."""
    points = []
    for index in zip(*np.nonzero(mask), strict=True):
        for axis, step in itertools.product(range(3), (-1, 1)):
            near = list(index)
            near[axis] += step
            inside = all(0 <= n < s for n, s in zip(near, mask.shape, strict=True))
            if not inside or not mask[tuple(near)]:
                points.append(index)
                break
    return np.array(points, dtype=float)


def _slow_distances(
    pred: Mask, ref: Mask, spacing: tuple[float, float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = (_surface_points(m) * np.array(spacing) for m in (pred, ref))
    table = np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=2))
    return table.min(axis=1), table.min(axis=0)


def test_overlap_of_shifted_cubes_is_known() -> None:
    shares = metrics.overlap(_cube((4, 4, 4), 4), _cube((4, 4, 6), 4))
    assert shares.dice == pytest.approx(0.5)
    assert shares.iou == pytest.approx(1 / 3)


def test_cube_shifted_along_each_axis_has_the_shift_in_mm_as_hausdorff_distance() -> None:
    spacing = (5.0, 0.8, 1.5)
    for axis, mm in enumerate(spacing):
        shifted = tuple(4 + 2 * (a == axis) for a in range(3))
        found = metrics.surface_metrics(
            _cube((4, 4, 4), 5),
            _cube(shifted, 5),  # type: ignore[arg-type]
            spacing_mm=spacing,
            tolerance_mm=1.0,
        )
        assert found.hd_mm == pytest.approx(2 * mm, rel=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.8, 0.8), (2.5, 1.1, 0.7)])
@pytest.mark.parametrize(
    ("pred", "ref"),
    [
        (_ball((7, 7, 7), 4.2), _ball((8, 7, 6), 5.1)),
        (_cube((0, 0, 0), 6), _cube((2, 1, 0), 6)),
        (_cube((4, 4, 4), 3) | _cube((12, 12, 12), 2), _cube((4, 4, 4), 4)),
        (_cube((3, 3, 3), 1), _ball((7, 7, 7), 5)),
    ],
)
def test_distances_equal_those_of_a_slow_reference(
    pred: Mask, ref: Mask, spacing: tuple[float, float, float]
) -> None:
    to_ref, to_pred = _slow_distances(pred, ref, spacing)
    both = np.concatenate([to_ref, to_pred])
    found = metrics.surface_metrics(pred, ref, spacing_mm=spacing, tolerance_mm=2.0)
    assert found.hd_mm == pytest.approx(both.max(), rel=1e-6)
    assert found.hd95_mm == pytest.approx(
        max(np.percentile(to_ref, 95), np.percentile(to_pred, 95)), rel=1e-6
    )
    assert found.asd_mm == pytest.approx(both.mean(), rel=1e-6)
    assert found.surface_dice == pytest.approx((both <= 2.0 + 1e-9).mean(), rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_distances_equal_the_public_functions_of_monai() -> None:
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    pred, ref, spacing = _ball((7, 7, 7), 4.2), _ball((9, 7, 6), 5.1), (3.0, 0.9, 0.9)
    a, b = (m[None, None].astype(np.float32) for m in (pred, ref))
    shared = {"include_background": True, "spacing": spacing}
    found = metrics.surface_metrics(pred, ref, spacing_mm=spacing, tolerance_mm=1.5)
    assert found.hd_mm == pytest.approx(float(compute_hausdorff_distance(a, b, **shared)))
    assert found.hd95_mm == pytest.approx(
        float(compute_hausdorff_distance(a, b, percentile=95, **shared))
    )
    assert found.asd_mm == pytest.approx(
        float(compute_average_surface_distance(a, b, symmetric=True, **shared))
    )
    import torch

    dice = compute_surface_dice(
        torch.from_numpy(a), torch.from_numpy(b), class_thresholds=[1.5], **shared
    )
    assert found.surface_dice == pytest.approx(float(dice))


def test_concentric_balls_are_their_difference_of_radii_apart() -> None:
    inner, outer = _ball((20, 20, 20), 10, 41), _ball((20, 20, 20), 16, 41)
    found = metrics.surface_metrics(inner, outer, spacing_mm=(0.5, 0.5, 0.5), tolerance_mm=1.0)
    assert found.asd_mm == pytest.approx(3.0, abs=0.25)
    assert found.hd_mm == pytest.approx(3.0, abs=0.5)
    assert found.surface_dice == 0.0


def test_distances_do_not_depend_on_who_is_the_reference() -> None:
    pred, ref = _ball((7, 7, 7), 4), _cube((2, 4, 4), 6)
    one, other = (
        metrics.surface_metrics(a, b, spacing_mm=(2.0, 1.0, 1.0), tolerance_mm=1.0)
        for a, b in ((pred, ref), (ref, pred))
    )
    assert (one.hd_mm, one.hd95_mm, one.surface_dice) == (
        other.hd_mm,
        other.hd95_mm,
        other.surface_dice,
    )
    assert one.asd_mm == pytest.approx(other.asd_mm)


def test_equal_masks_are_perfect() -> None:
    ball = _ball((7, 7, 7), 4)
    found = metrics.score(ball, ball, spacing_mm=(1.0, 2.0, 5.0), tolerance_mm=0.0)
    assert (found.dice, found.iou, found.surface_dice) == (1.0, 1.0, 1.0)
    assert (found.hd_mm, found.hd95_mm, found.asd_mm) == (0.0, 0.0, 0.0)
    assert found.volume_pred_ml == pytest.approx(ball.sum() * 10 / 1000)


def test_distance_equal_to_the_tolerance_counts_as_within() -> None:
    one, other = _cube((4, 4, 4), 1), _cube((4, 4, 7), 1)
    spacing = (0.7, 0.7, 0.7)
    near = metrics.surface_metrics(one, other, spacing_mm=spacing, tolerance_mm=2.1)
    far = metrics.surface_metrics(one, other, spacing_mm=spacing, tolerance_mm=2.09)
    assert (near.surface_dice, far.surface_dice) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("in_pred", "in_ref", "status", "dice"),
    [(0, 0, "absent", None), (1, 0, "false_positive", 0.0), (0, 1, "missed", 0.0)],
)
def test_missing_organs_follow_the_rule(
    in_pred: int, in_ref: int, status: str, dice: float | None
) -> None:
    cube, empty = _cube((4, 4, 4), 3), np.zeros((16, 16, 16), dtype=bool)
    found = metrics.score(
        cube if in_pred else empty,
        cube if in_ref else empty,
        spacing_mm=(1.0, 1.0, 1.0),
        tolerance_mm=1.0,
    )
    assert found.status == status
    assert (found.dice, found.iou, found.surface_dice) == (dice, dice, dice)
    assert (found.hd_mm, found.hd95_mm, found.asd_mm) == (None, None, None)
    assert found.volume_ref_ml == pytest.approx(in_ref * 0.027)


def test_empty_and_unequal_masks_are_refused() -> None:
    cube = _cube((4, 4, 4), 3)
    with pytest.raises(ValueError, match="voxel in both"):
        metrics.surface_metrics(
            cube, np.zeros_like(cube), spacing_mm=(1.0, 1.0, 1.0), tolerance_mm=1.0
        )
    with pytest.raises(ValueError, match="one shape"):
        metrics.overlap(cube, cube[1:])
    with pytest.raises(ValueError, match="boolean"):
        metrics.overlap(cube, cube.astype(np.uint8))  # type: ignore[arg-type]


def test_summary_leaves_out_what_is_not_defined_and_says_how_many_counted() -> None:
    found = metrics.summary([1.0, None, 3.0])
    assert (found.mean, found.count) == (2.0, 2)
    assert found.sd == pytest.approx(2**0.5)
    assert metrics.summary([None]) == metrics.Summary(mean=None, sd=None, count=0)
    assert metrics.summary([4.0]) == metrics.Summary(mean=4.0, sd=None, count=1)


def test_importing_the_metrics_needs_no_torch() -> None:
    code = "import sys, backend.metrics; sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
