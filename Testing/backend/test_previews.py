"""Pictures show the right voxels at the right place, in the patient's proportions."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from backend.geometry import Geometry
from backend.previews import (
    clearly_coloured,
    columns_png,
    contours_png,
    covering_slices,
    plane_slice,
    plane_spacing,
    richest_slice,
    triptych_png,
    write_preview_volumes,
)

GUTTER, HEAD, PANEL = 30, 66, 270


class Structure(NamedTuple):
    value: int
    name: str
    color: tuple[int, int, int]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def write_triptych(
    path: Path, inputs: np.ndarray, reconstruction: np.ndarray, **options: object
) -> np.ndarray:
    triptych_png(
        path, inputs=inputs.astype(np.float32), reconstruction=reconstruction.astype(np.float32),
        title="Step 7",
        **{"hidden": inputs < -1, "spacing_mm": (1.0, 1.0, 1.0), **options},
    )  # fmt: skip
    return pixels(path)


def test_slices_are_shown_as_in_the_reading_room() -> None:
    volume = np.zeros((4, 5, 6))
    volume[3, 0, 5] = 1.0  # head end, anterior, patient's left
    axial, coronal, sagittal = (
        plane_slice(volume, plane, at)
        for plane, at in (("Axial", 3), ("Coronal", 0), ("Sagittal", 5))
    )
    assert np.argwhere(axial).tolist() == [[0, 5]]  # anterior up, left on the viewer's right
    assert np.argwhere(coronal).tolist() == [[0, 5]]  # head up
    assert np.argwhere(sagittal).tolist() == [[0, 0]]  # head up, anterior on the viewer's left


def test_slice_spacing_leaves_out_the_axis_that_is_cut() -> None:
    spacing = (3.0, 2.0, 1.0)
    assert [plane_spacing(spacing, p) for p in ("Axial", "Coronal", "Sagittal")] == [
        (2.0, 1.0), (3.0, 1.0), (3.0, 2.0),
    ]  # fmt: skip


def test_richest_slice_prefers_the_body_over_air_and_the_middle_among_equals() -> None:
    volume = np.zeros((12, 8, 8), dtype=np.float32)
    assert richest_slice(volume, 0) in (5, 6)
    volume[8, 2:5] = 1.0
    assert richest_slice(volume, 0) == 8


def test_composite_shows_prediction_where_hidden_and_input_elsewhere(tmp_path: Path) -> None:
    inputs = np.full((16, 16, 16), 0.2)
    hidden = np.zeros(inputs.shape, dtype=bool)
    hidden[:, :, :8] = True  # the patient's right half, on the viewer's left
    image = write_triptych(tmp_path / "t.png", inputs, np.full(inputs.shape, 0.8), hidden=hidden)
    column = (image.shape[1] - GUTTER) / 4
    row = HEAD + PANEL // 4

    def grey(k: int, fraction: float) -> int:
        return int(image[row, round(GUTTER + k * column + fraction * PANEL), 1])

    assert (grey(0, 0.25), grey(0, 0.75)) == (51, 51)
    assert grey(1, 0.75) == 51
    assert (grey(2, 0.25), grey(2, 0.75)) == (204, 204)
    assert (grey(3, 0.25), grey(3, 0.75)) == (204, 51)


def test_spoilt_voxels_are_shown_as_the_network_saw_them(tmp_path: Path) -> None:
    inputs, spoilt = np.full((16, 16, 16), 0.2), np.full((16, 16, 16), 0.6)
    image = write_triptych(
        tmp_path / "t.png", inputs, inputs, hidden=inputs > 0, spoilt=spoilt.astype(np.float32)
    )
    column = (image.shape[1] - GUTTER) / 3  # no fourth one: nothing was hidden
    shown = [image[HEAD + PANEL // 4, round(GUTTER + (k + 0.25) * column), 1] for k in range(3)]
    assert shown == [51, 153, 51]


def test_columns_stand_beside_each_other_in_their_order(tmp_path: Path) -> None:
    columns = {f"View {k}": np.full((16, 16, 16), k / 5, dtype=np.float32) for k in range(1, 4)}
    columns_png(
        tmp_path / "c.png", columns, spacing_mm=(1.0, 1.0, 1.0), title="Step 7", note="A note."
    )
    image = pixels(tmp_path / "c.png")
    column = (image.shape[1] - GUTTER) / 3
    row = HEAD + PANEL // 4
    shown = [int(image[row, round(GUTTER + k * column + PANEL / 4), 0]) for k in range(3)]
    assert shown == [51, 102, 153]
    with pytest.raises(ValueError, match="one shape"):
        columns_png(
            tmp_path / "d.png",
            {"a": np.ones((4, 4, 4)), "b": np.ones((4, 4, 5))},
            spacing_mm=(1.0, 1.0, 1.0),
            title="",
            note="",
        )
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]


def test_hidden_voxels_are_tinted_even_where_the_fill_value_equals_air(tmp_path: Path) -> None:
    air = np.zeros((16, 16, 16))
    hidden = np.ones(air.shape, dtype=bool)
    image = write_triptych(tmp_path / "t.png", air, air, hidden=hidden)
    column = (image.shape[1] - GUTTER) / 4
    tint = image[HEAD + PANEL // 4, round(GUTTER + column + PANEL / 4)]
    assert tint[2] > tint[0] > 0  # bluish, not black


def test_panels_have_physical_proportions(tmp_path: Path) -> None:
    white = np.ones((10, 30, 30))
    image = write_triptych(tmp_path / "t.png", white, white, spacing_mm=(2.0, 1.0, 1.0))
    at = GUTTER + PANEL // 4  # beside the letters in the middle of the panel
    lit = np.flatnonzero(image[HEAD:, at].min(axis=1) == 255)
    runs = np.split(lit, np.flatnonzero(np.diff(lit) > 1) + 1)
    assert [len(run) for run in runs] == [PANEL, PANEL * 20 // 30, PANEL * 20 // 30]


def test_triptych_refuses_volumes_of_different_shape(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one shape"):
        write_triptych(tmp_path / "t.png", np.ones((4, 4, 4)), np.ones(4))
    assert list(tmp_path.iterdir()) == []


def test_voxels_that_are_not_finite_do_not_break_the_picture(tmp_path: Path) -> None:
    bad = np.ones((8, 8, 8))
    bad[0, 0, 0] = np.nan
    good = np.ones((8, 8, 8))
    with_nan = write_triptych(tmp_path / "nan.png", good, bad)
    without = write_triptych(tmp_path / "good.png", good, good)
    foot = slice(-30, None)
    assert (with_nan[foot] != without[foot]).any()  # the line below the panels says so


def test_preview_volumes_keep_their_place_in_the_patient(tmp_path: Path) -> None:
    turn = np.deg2rad(20.0)
    c, s = float(np.cos(turn)), float(np.sin(turn))
    geometry = Geometry(
        size=(4, 5, 6), spacing_mm=(3.0, 2.0, 1.0), origin_mm=(10.0, -20.0, 30.0),
        direction=(c, -s, 0.0, s, c, 0.0, 0.0, 0.0, 1.0),
    )  # fmt: skip
    inputs = np.linspace(0, 1, 120, dtype=np.float32).reshape(4, 5, 6)
    paths = write_preview_volumes(
        tmp_path, 100, {"input": inputs, "masked": inputs * 0, "reconstruction": 1 - inputs},
        geometry=geometry, hu_window=(-175.0, 250.0),
    )  # fmt: skip
    assert [p.name for p in paths] == [
        "step_000100_input.nrrd", "step_000100_masked.nrrd", "step_000100_reconstruction.nrrd",
    ]  # fmt: skip
    image = SimpleITK.ReadImage(str(paths[0]))
    np.testing.assert_allclose(image.GetSpacing(), (1.0, 2.0, 3.0))
    np.testing.assert_allclose(image.GetOrigin(), geometry.origin_mm)
    np.testing.assert_allclose(image.GetDirection(), geometry.direction, atol=1e-12)
    array = SimpleITK.GetArrayFromImage(image)
    assert array.dtype == np.int16
    np.testing.assert_array_equal(array, np.rint(-175 + 425 * inputs.astype(float)))
    reconstruction = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(paths[2])))
    assert reconstruction[0, 0, 0] == 250
    assert len(list(tmp_path.iterdir())) == 3


def test_preview_volumes_without_window_hold_the_values_themselves(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    geometry = Geometry(size=(3, 4, 5), spacing_mm=(1.0, 1.0, 1.0))
    paths = write_preview_volumes(tmp_path, 1, {"features": inputs}, geometry=geometry)
    assert [p.name for p in paths] == ["step_000001_features.nrrd"]
    array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(paths[0])))
    np.testing.assert_array_equal(array, inputs)


def test_slices_are_chosen_to_show_every_structure() -> None:
    areas = np.array([
        [9, 8, 0, 0, 0, 0],
        [0, 7, 9, 0, 0, 0],
        [0, 0, 0, 0, 4, 1],
    ])  # fmt: skip
    assert covering_slices(areas, 1) == [1]  # two structures at once
    assert covering_slices(areas, 2) == [1, 4]  # then the one not shown yet
    assert covering_slices(np.zeros((2, 7), dtype=int), 3) == [3]


def test_slices_that_would_show_the_same_again_are_passed_over() -> None:
    profile = np.array([[40 - abs(k - 20) for k in range(41)]])
    chosen = covering_slices(profile, 3)
    assert 20 in chosen
    assert len(chosen) == 3
    assert np.diff(chosen).min() >= 4


@pytest.fixture
def scan() -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(3).integers(-150, 200, (20, 40, 40)).astype(np.int16)
    label = np.zeros(image.shape, dtype=np.uint8)
    label[5:15, 10:22, 12:24] = 3
    return image, label


STRUCTURE = Structure(3, "liver", (255, 0, 0))


def draw(path: Path, scan: tuple[np.ndarray, np.ndarray], **maps: np.ndarray | None) -> np.ndarray:
    contours_png(
        path, image=scan[0], labels=[STRUCTURE], spacing_mm=(2.0, 1.5, 1.5), title="Case 1", **maps
    )
    return pixels(path)


def saturated(image: np.ndarray) -> int:
    """Pixels in the pure colour of the label."""
    return int(((image[..., 0] > 230) & (image[..., 1:].max(axis=-1) < 25)).sum())


def test_prediction_is_solid_and_reference_dashed(
    tmp_path: Path, scan: tuple[np.ndarray, np.ndarray]
) -> None:
    solid = draw(tmp_path / "p.png", scan, reference=None, prediction=scan[1])
    dashed = draw(tmp_path / "r.png", scan, reference=scan[1], prediction=None)
    pink = (np.abs(dashed - [255, 102, 102]).max(axis=-1) < 12).sum()
    assert saturated(solid) > 1.5 * pink > 100
    legend_only = saturated(dashed)
    assert legend_only < 0.3 * saturated(solid)


def test_structures_of_like_colours_are_drawn_in_colours_that_can_be_told_apart() -> None:
    kidney, tissue = (185, 102, 83), (221, 130, 101)
    own = [tissue, kidney, kidney, (128, 174, 128), *[tissue] * 6]
    labels = [Structure(k, f"organ {k}", color) for k, color in enumerate(own, start=1)]
    drawn = clearly_coloured(labels)
    assert [(one.value, one.name) for one in drawn] == [label[:2] for label in labels]
    assert drawn[0].color == tissue
    assert drawn[3].color == own[3]
    colors = np.array([one.color for one in drawn], dtype=float)
    apart = np.linalg.norm(colors[:, None] - colors, axis=-1)
    assert apart[~np.eye(len(own), dtype=bool)].min() > 60


def test_the_legend_has_room_for_every_structure(tmp_path: Path) -> None:
    label = np.zeros((30, 20, 60), dtype=np.uint8)
    for value in range(1, 15):
        label[10:20, 5:15, 3 * value : 3 * value + 2] = value
    contours_png(
        tmp_path / "l.png", image=np.zeros(label.shape, dtype=np.int16), reference=None,
        prediction=label, labels=[Structure(v, "organ", (255, 0, 0)) for v in range(1, 15)],
        spacing_mm=(2.0, 2.0, 4.0), title="",
    )  # fmt: skip
    # The axial slices lie above, the others to the left.
    legend = pixels(tmp_path / "l.png")[125:, 465:]
    # The text is grey, and so are the slices.
    rows = np.flatnonzero(np.ptp(legend, axis=-1) > 50) // legend.shape[1]
    swatches = np.split(np.unique(rows), np.flatnonzero(np.diff(np.unique(rows)) > 1) + 1)
    assert len(swatches) == 14
    assert {len(swatch) for swatch in swatches} <= set(range(4, 9))


def test_label_values_that_are_not_listed_are_not_drawn(
    tmp_path: Path, scan: tuple[np.ndarray, np.ndarray]
) -> None:
    other = np.where(scan[1] == 3, 4, 0).astype(np.uint8)
    image = draw(tmp_path / "o.png", scan, reference=None, prediction=other)
    assert saturated(image) == 0


def test_pictures_of_two_models_show_the_same_slices(
    tmp_path: Path, scan: tuple[np.ndarray, np.ndarray]
) -> None:
    pictures = [
        draw(tmp_path / f"{k}.png", scan, reference=scan[1], prediction=np.roll(scan[1], k, axis=0))
        for k in (0, 4)
    ]
    assert pictures[0].shape == pictures[1].shape
    # The scan is noise: another slice would change nearly every pixel.
    changed = (np.abs(pictures[0] - pictures[1]).max(axis=-1) > 8).mean()
    assert 0 < changed < 0.15


def test_contours_refuse_a_label_map_of_another_grid(
    tmp_path: Path, scan: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(ValueError, match="differ"):
        draw(tmp_path / "c.png", scan, reference=None, prediction=scan[1][:-1])
    assert list(tmp_path.iterdir()) == []


def test_a_scan_of_air_without_any_structure_still_gives_a_picture(tmp_path: Path) -> None:
    air = np.full((6, 8, 8), -1000, dtype=np.int16)
    nothing = np.zeros(air.shape, dtype=np.uint8)
    image = draw(tmp_path / "air.png", (air, nothing), reference=None, prediction=nothing)
    assert saturated(image) == 0
