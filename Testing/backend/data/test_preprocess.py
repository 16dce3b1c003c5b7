"""Preprocessing keeps every voxel where it lies in the patient."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.data.preprocess import Recipe, body_box, preprocess, preprocess_pair
from backend.errors import ScanError, UserError
from backend.geometry import Geometry, Index3, Volume, direction9, reorient

AIR, TISSUE = -1000, 40
ORDERS = [
    "".join(letters) for axes in permutations(("RL", "AP", "IS")) for letters in product(*axes)
]


def grid(size: Index3, spacing: tuple[float, float, float], *, degrees: float = 0.0) -> Geometry:
    """A grid turned about two world axes, away from the world's origin."""
    a, b = np.deg2rad(degrees), np.deg2rad(-degrees / 2)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    direction = direction9((about_z @ about_x).ravel())
    return Geometry(
        size=size, spacing_mm=spacing, origin_mm=(-31.0, 17.5, 803.25), direction=direction
    )


def positions(geometry: Geometry) -> NDArray[np.float64]:
    """World x, y, z of every voxel, shape (*size, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.size), indexing="ij"), axis=-1)
    return index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]


def ramp(geometry: Geometry, axis: int, *, hu_per_mm: float, centre: float) -> Volume:
    values = (positions(geometry)[..., axis] - centre) * hu_per_mm + 15000
    return Volume(np.rint(values).astype(np.int16), geometry)


@pytest.mark.parametrize("degrees", [0.0, 17.0])
@pytest.mark.parametrize("order", ORDERS)
def test_a_ramp_in_world_space_stays_the_same_ramp(order: str, degrees: float) -> None:
    base = grid((9, 10, 12), (3.1, 1.3, 0.7), degrees=degrees)
    recipe = Recipe(spacing_mm=(2.0, 0.9, 1.1))
    for axis in range(3):
        centre = positions(base)[..., axis].mean()
        source = reorient(ramp(base, axis, hu_per_mm=500, centre=centre), order)
        assert source.geometry.orientation == order
        result = preprocess(source, recipe)
        assert result.voxels.dtype == np.int16
        assert result.geometry.orientation == "LPS"
        assert result.geometry.spacing_mm == recipe.spacing_mm
        wanted = (positions(result.geometry)[..., axis] - centre) * 500 + 15000
        inside = (slice(2, -2),) * 3
        error_mm = np.abs(result.voxels - wanted)[inside].max() / 500
        assert error_mm / min(recipe.spacing_mm) < 1e-2


def test_the_stored_axis_order_makes_no_difference() -> None:
    rng = np.random.default_rng(1)
    voxels = rng.integers(-200, 300, (14, 11, 13), dtype=np.int16)
    source = Volume(voxels, grid((14, 11, 13), (2.5, 1.0, 1.4), degrees=9))
    wanted = preprocess(source, Recipe(spacing_mm=(2, 2, 2)))
    for order in ORDERS:
        result = preprocess(reorient(source, order), Recipe(spacing_mm=(2, 2, 2)))
        assert result.geometry.matches(wanted.geometry, tolerance_mm=1e-6)
        # A half between two whole numbers may round either way.
        assert np.abs(result.voxels.astype(int) - wanted.voxels).max() <= 1


@pytest.mark.parametrize(
    ("spacing", "size"),
    [((1.9, 1.6, 0.8), (6, 3, 7)), ((30, 0.7, 2), (1, 7, 3)), ((1.6, 1, 4), (7, 5, 1))],
)
def test_linear_values_agree_with_a_loop_over_voxels(
    spacing: tuple[float, float, float], size: Index3
) -> None:
    rng = np.random.default_rng(2)
    voxels = rng.integers(-100, 3000, (4, 5, 3), dtype=np.int16)
    source = Volume(voxels, Geometry(size=(4, 5, 3), spacing_mm=(3.0, 1.0, 2.0)))
    result = preprocess(source, Recipe(spacing_mm=spacing))
    assert result.geometry.size == size
    wanted = np.zeros(result.geometry.size)
    for index in np.ndindex(*result.geometry.size):
        at = [
            np.clip((i + 0.5) * t / s - 0.5, 0, n - 1)
            for i, t, s, n in zip(index, spacing, (3.0, 1.0, 2.0), (4, 5, 3), strict=True)
        ]
        for corner in product((0, 1), repeat=3):
            low = np.floor(at).astype(int)
            near = np.minimum(low + corner, np.array(voxels.shape) - 1)
            share = np.prod(np.where(corner, at - low, 1 - (at - low)))
            wanted[index] += share * voxels[tuple(near)]
    assert np.abs(result.voxels - wanted).max() <= 0.51


def test_the_first_outer_corner_of_the_box_stays_in_place() -> None:
    source = Volume(np.full((10, 12, 14), TISSUE, np.int16), grid((10, 12, 14), (5, 0.7, 0.9)))
    result = preprocess(source, Recipe(spacing_mm=(2, 2, 2)))
    assert result.geometry.world((-0.5,) * 3) == pytest.approx(source.geometry.world((-0.5,) * 3))
    far = [n - 0.5 for n in result.geometry.size]
    source_far = source.geometry.world([n - 0.5 for n in source.geometry.size])
    assert np.abs(np.subtract(result.geometry.world(far), source_far)).max() <= 1.0


def test_a_scan_already_on_the_grid_keeps_every_voxel() -> None:
    voxels = np.random.default_rng(3).integers(0, 900, (5, 6, 7), dtype=np.int16)
    source = Volume(voxels, grid((5, 6, 7), (2.0, 1.5, 1.5), degrees=4))
    result = preprocess(source, Recipe(spacing_mm=(2.0, 1.5, 1.5)))
    assert result.geometry == source.geometry
    np.testing.assert_array_equal(result.voxels, voxels)


def test_a_thin_scan_keeps_at_least_one_voxel_along_every_axis() -> None:
    geometry = Geometry(size=(1, 4, 4), spacing_mm=(1, 1, 1))
    source = Volume(np.full((1, 4, 4), TISSUE, np.int16), geometry)
    result = preprocess(source, Recipe(spacing_mm=(10, 1, 1)))
    assert result.geometry.size == (1, 4, 4)
    assert (result.voxels == TISSUE).all()


def body_in_air(size: Index3, start: Index3, length: Index3) -> NDArray[np.int16]:
    voxels = np.full(size, AIR, np.int16)
    voxels[tuple(slice(a, a + n) for a, n in zip(start, length, strict=True))] = TISSUE
    return voxels


def test_the_body_is_cropped_with_its_margin_and_the_table_is_left_out() -> None:
    voxels = body_in_air((30, 80, 80), (0, 20, 24), (30, 30, 32))
    voxels[:, 72:74, 10:70] = 200
    volume = Volume(voxels, Geometry(size=voxels.shape, spacing_mm=(3.0, 2.0, 2.0)))
    start, size = body_box(volume, margin_mm=8.0)
    # Every second voxel is looked at in plane: up to one voxel more than the margin of four.
    assert start[0] == 0
    assert size[0] == 30
    for axis, (first, length) in enumerate(((0, 30), (20, 30), (24, 32))):
        if axis:
            assert first - 5 <= start[axis] <= first - 4
            assert first + length + 4 <= start[axis] + size[axis] <= first + length + 6
    wide_start, wide_size = body_box(volume, margin_mm=1000)
    assert (wide_start, wide_size) == ((0, 0, 0), (30, 80, 80))


@pytest.mark.parametrize("spacing", [0.5, 0.98, 1.3, 4.6])
def test_no_body_voxel_is_ever_cut_off(spacing: float) -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        start = rng.integers(0, 20, 3)
        length = rng.integers(16, 40, 3)
        voxels = body_in_air((64, 64, 64), tuple(start), tuple(length))
        box = body_box(
            Volume(voxels, Geometry(size=(64, 64, 64), spacing_mm=(spacing,) * 3)), margin_mm=0
        )
        kept = voxels[tuple(slice(a, a + n) for a, n in zip(*box, strict=True))]
        assert (kept == TISSUE).sum() == (voxels == TISSUE).sum()


@pytest.mark.parametrize("value", [AIR, TISSUE])
def test_a_volume_without_or_wholly_inside_a_body_stays_whole(value: int) -> None:
    volume = Volume(
        np.full((9, 8, 7), value, np.int16), Geometry(size=(9, 8, 7), spacing_mm=(1, 1, 1))
    )
    assert body_box(volume) == ((0, 0, 0), (9, 8, 7))


def test_the_inside_of_a_lung_is_not_taken_for_outside_air() -> None:
    voxels = np.full((40, 40, 40), -830, np.int16)
    voxels[15:25, 15:25, 15:25] = TISSUE
    volume = Volume(voxels, Geometry(size=(40, 40, 40), spacing_mm=(1.5, 1.5, 1.5)))
    assert body_box(volume) == ((0, 0, 0), (40, 40, 40))


def ball(size: Index3, spacing: tuple[float, float, float], radius_mm: float) -> NDArray[np.bool_]:
    centre = [(n - 1) / 2 + 0.13 for n in size]
    axes = [(np.arange(n) - c) * s for n, c, s in zip(size, centre, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return np.sqrt(x**2 + y**2 + z**2) < radius_mm


@pytest.mark.parametrize("spacing", [(0.7, 0.7, 0.7), (1.5, 1.5, 1.5), (2.9, 1.1, 1.7)])
def test_label_volumes_survive_resampling(spacing: tuple[float, float, float]) -> None:
    size = (30, 40, 44)
    geometry = Geometry(size=size, spacing_mm=(1.5, 1.0, 1.0))
    outer, inner = ball(size, (1.5, 1, 1), 15), ball(size, (1.5, 1, 1), 8)
    label = Volume((outer * 2 + inner * 5).astype(np.uint8), geometry)
    image = Volume(np.full(size, TISSUE, np.int16), geometry)
    result, marks = preprocess_pair(image, label, Recipe(spacing_mm=spacing))
    assert marks.geometry == result.geometry
    assert set(np.unique(marks.voxels)) == {0, 2, 7}
    for value in (2, 7):
        before = (label.voxels == value).sum() * geometry.voxel_ml
        after = (marks.voxels == value).sum() * marks.geometry.voxel_ml
        assert after == pytest.approx(before, rel=0.03)


def test_halving_the_grid_neither_swells_nor_shrinks_structures() -> None:
    geometry = Geometry(size=(40, 40, 40), spacing_mm=(1, 1, 1))
    image = Volume(np.full((40, 40, 40), TISSUE, np.int16), geometry)
    before, after = 0, 0
    for start in range(8, 12):
        for stop in range(28, 32):
            label = np.zeros((40, 40, 40), np.uint8)
            label[start:stop, start:stop, start:stop] = 3
            _, marks = preprocess_pair(image, Volume(label, geometry), Recipe(spacing_mm=(2, 2, 2)))
            before += int((label == 3).sum())
            after += int((marks.voxels == 3).sum()) * 8
    assert after == pytest.approx(before, rel=0.01)


def test_labels_lie_where_they_lay_in_the_world() -> None:
    size = (20, 24, 28)
    geometry = grid(size, (2.0, 1.0, 1.2), degrees=12)
    label = np.zeros(size, np.uint8)
    label[4:9, 6:11, 15:24] = 9
    image = Volume(np.full(size, TISSUE, np.int16), geometry)
    _, marks = preprocess_pair(image, Volume(label, geometry), Recipe(spacing_mm=(1, 1, 1)))
    before = positions(geometry)[label == 9].mean(axis=0)
    after = positions(marks.geometry)[marks.voxels == 9].mean(axis=0)
    assert np.abs(before - after).max() < 0.15


def test_a_single_labelled_voxel_survives_a_coarse_grid() -> None:
    size = (24, 24, 24)
    geometry = Geometry(size=size, spacing_mm=(1, 1, 1))
    label = np.zeros(size, np.uint8)
    label[3, 17, 8] = 4
    image = Volume(np.full(size, TISSUE, np.int16), geometry)
    _, marks = preprocess_pair(image, Volume(label, geometry), Recipe(spacing_mm=(4, 4, 4)))
    assert np.argwhere(marks.voxels == 4).tolist() == [[0, 4, 2]]


def test_a_label_outside_the_body_is_not_cut_off() -> None:
    voxels = body_in_air((20, 60, 60), (0, 20, 20), (20, 20, 20))
    label = np.zeros(voxels.shape, np.uint8)
    label[10, 2, 57] = 1
    geometry = Geometry(size=voxels.shape, spacing_mm=(2, 2, 2))
    _, marks = preprocess_pair(
        Volume(voxels, geometry), Volume(label, geometry), Recipe(spacing_mm=(2, 2, 2))
    )
    assert int((marks.voxels == 1).sum()) == 1


def test_a_label_stored_in_another_axis_order_is_brought_to_its_image() -> None:
    size = (6, 7, 8)
    geometry = grid(size, (2, 1, 1), degrees=5)
    label = np.random.default_rng(5).integers(0, 3, size).astype(np.uint8)
    image = Volume(np.full(size, TISSUE, np.int16), geometry)
    recipe = Recipe(spacing_mm=(2, 1, 1))
    wanted = preprocess_pair(image, Volume(label, geometry), recipe)[1]
    for order in ORDERS:
        turned = reorient(Volume(label, geometry), order)
        np.testing.assert_array_equal(
            preprocess_pair(image, turned, recipe)[1].voxels, wanted.voxels
        )


def test_a_label_on_another_grid_is_refused_with_both_grids() -> None:
    geometry = Geometry(size=(4, 5, 6), spacing_mm=(2, 1, 1))
    image = Volume(np.zeros((4, 5, 6), np.int16), geometry)
    moved = Volume(np.zeros((4, 5, 6), np.uint8), replace(geometry, origin_mm=(0, 3, 0)))
    with pytest.raises(ScanError, match=r"6x5x4 voxels of 1x1x2 mm.*\(0.00, 3.00, 0.00\)"):
        preprocess_pair(image, moved, Recipe(spacing_mm=(1, 1, 1)))


@pytest.mark.parametrize("voxels", [np.full((2, 2, 2), -1, np.int16), np.full((2, 2, 2), 0.5)])
def test_values_that_are_no_labels_are_refused(voxels: NDArray[np.generic]) -> None:
    geometry = Geometry(size=(2, 2, 2), spacing_mm=(1, 1, 1))
    image = Volume(np.zeros((2, 2, 2), np.int16), geometry)
    with pytest.raises(ScanError, match="Label values"):
        preprocess_pair(image, Volume(voxels, geometry), Recipe(spacing_mm=(1, 1, 1)))


def test_the_key_depends_on_every_setting_and_on_nothing_else() -> None:
    base = Recipe(spacing_mm=(2.0, 1.5, 1.5))
    others = [
        replace(base, spacing_mm=(1.5, 1.5, 2.0)),
        replace(base, orientation="RAS"),
        replace(base, body_margin_mm=9),
        replace(base, body_threshold_hu=-400),
        replace(base, version=base.version + 1),
    ]
    assert len({recipe.key() for recipe in (base, *others)}) == 6
    assert Recipe(spacing_mm=(2, 1.5, 1.5), body_margin_mm=8).key() == base.key()


@pytest.mark.parametrize(
    "wrong",
    [
        {"spacing_mm": (0, 1, 1)},
        {"spacing_mm": (1, float("nan"), 1)},
        {"spacing_mm": (1, 1, 1), "orientation": "LPP"},
        {"spacing_mm": (1, 1, 1), "body_margin_mm": -1},
    ],
)
def test_a_recipe_that_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        Recipe(**wrong)


def test_preprocessing_never_imports_torch() -> None:
    code = "import sys, backend.data.preprocess; sys.exit('torch' in sys.modules)"
    repository = Path(__file__).parents[3]
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, check=False)
    assert run.returncode == 0
