"""Evaluation of files: pairing, refusals, means and what is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from backend import evaluate, metrics
from backend.data.label_files import write_labels_file
from backend.data.labels import Label
from backend.errors import UserError
from backend.geometry import Geometry, Volume, reorient

SPACING_MM = (3.0, 1.0, 2.0)
NAMES = {"labels": {"1": "liver", "2": "spleen", "3": "aorta"}}


def _map(*boxes: tuple[int, int]) -> NDArray[np.uint8]:
    """A map with one box per (value, first x), 4 voxels long in x, y and z."""
    voxels = np.zeros((8, 10, 16), dtype=np.uint8)
    for value, start in boxes:
        voxels[2:6, 3:7, start : start + 4] = value
    return voxels


def _volume(voxels: NDArray[np.uint8]) -> Volume:
    return Volume(voxels, Geometry(size=voxels.shape, spacing_mm=SPACING_MM))


def _write(path: Path, volume: Volume) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(volume.voxels)
    image.SetSpacing(volume.geometry.spacing_mm[::-1])
    image.SetOrigin(volume.geometry.origin_mm)
    image.SetDirection(volume.geometry.direction)
    SimpleITK.WriteImage(image, str(path))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases: liver shifted by 2 mm in one, perfect in the other; spleen missed in one."""
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    _write(ref / "a.nii.gz", _volume(_map((1, 2), (2, 9))))
    _write(pred / "a.nii.gz", _volume(_map((1, 3))))
    _write(ref / "b.nii.gz", _volume(_map((1, 2), (2, 9))))
    _write(pred / "b.nii.gz", _volume(_map((1, 2), (2, 9))))
    (ref / "labels.json").write_text(json.dumps(NAMES))
    return pred, ref


def test_means_follow_by_hand_from_two_cases(folders: tuple[Path, Path]) -> None:
    result = evaluate.evaluate(*folders)
    liver, spleen, aorta = result.organs
    # Shifting 4 voxels by one keeps three: Dice 2 * 3 / (4 + 4).
    assert liver.measures["dice"].mean == pytest.approx((0.75 + 1) / 2)
    assert liver.measures["hd_mm"].mean == pytest.approx((2.0 + 0.0) / 2)
    assert spleen.measures["dice"] == metrics.summary([0.0, 1.0])
    assert spleen.measures["hd_mm"] == metrics.Summary(mean=0.0, sd=None, count=1)
    assert spleen.statuses == {"ok": 1, "missed": 1, "false_positive": 0, "absent": 0}
    assert aorta.measures["dice"].count == 0
    assert aorta.statuses["absent"] == 2
    assert result.mean_dice == pytest.approx((0.875 + 0.5) / 2)
    assert result.without_background["dice"].count == 2
    background = result.background.measures["dice"].mean
    assert background is not None
    # 1280 voxels: background has 1152 in the reference, 1216 in the prediction, 1136 in common.
    assert background == pytest.approx((2 * 1136 / (1152 + 1216) + 1) / 2)
    assert result.with_background["dice"].mean == pytest.approx((0.875 + 0.5 + background) / 3)


def test_files_and_table_tell_what_was_computed(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate.run(*folders, output=tmp_path / "out" / "deep", tolerance_mm=1.5)
    with (tmp_path / "out" / "deep" / "evaluation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == evaluate.COLUMNS
    liver = next(row for row in rows if (row["case"], row["organ"]) == ("a", "liver"))
    assert liver["value"] == "1"
    assert liver["status"] == "ok"
    assert float(liver["dice"]) == pytest.approx(0.75)
    assert float(liver["volume_ref_ml"]) == pytest.approx(64 * 6 / 1000)
    missed = next(row for row in rows if (row["case"], row["organ"]) == ("a", "spleen"))
    assert (missed["dice"], missed["hd_mm"], missed["status"]) == ("0", "", "missed")
    content = json.loads((tmp_path / "out" / "deep" / "evaluation.json").read_text())
    assert content["mean_without_background"]["dice"]["mean"] == result.mean_dice
    assert [organ["name"] for organ in content["organs"]] == ["liver", "spleen", "aorta"]
    assert content["rules"]["missing"] == metrics.MISSING_RULE
    assert sorted(p.name for p in (tmp_path / "out" / "deep").iterdir()) == [
        "evaluation.csv",
        "evaluation.json",
    ]
    text = capsys.readouterr().out
    assert "0.875 ± 0.177 (2)" in text
    assert "sDice 1.5 mm" in text
    assert metrics.MISSING_RULE in " ".join(text.split())


def test_case_without_partner_is_refused_by_name_or_listed(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    (pred / "b.nii.gz").rename(pred / "c.nii.gz")
    with pytest.raises(UserError, match=r"no reference for c; no prediction for b"):
        evaluate.evaluate(pred, ref)
    result = evaluate.evaluate(pred, ref, allow_unmatched=True)
    assert (result.cases, result.unmatched) == (("a",), ("b", "c"))


def test_another_grid_is_refused_by_case_name(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    moved = Geometry(size=(8, 10, 16), spacing_mm=SPACING_MM, origin_mm=(0.0, 0.0, 3.0))
    _write(pred / "b.nii.gz", Volume(_map((1, 2)), moved))
    with pytest.raises(UserError, match=r"Case b: .*different grids: .*\(0.0, 0.0, 3.0\)"):
        evaluate.evaluate(pred, ref)


def test_other_order_of_axes_on_the_same_grid_is_understood(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    for case in ("a", "b"):
        volume = _volume(
            np.asarray(
                SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(pred / f"{case}.nii.gz")))
            )
        )
        _write(pred / f"{case}.nii.gz", reorient(volume, "PIR"))
    assert evaluate.evaluate(pred, ref).mean_dice == pytest.approx((0.875 + 0.5) / 2)


def test_prediction_that_names_its_own_values_is_matched_by_name(tmp_path: Path) -> None:
    ref, pred = tmp_path / "ref.nii.gz", tmp_path / "pred.seg.nrrd"
    _write(ref, _volume(_map((1, 2), (2, 9))))
    (tmp_path / "labels.json").write_text(json.dumps(NAMES))
    swapped = [
        Label(value=1, name="Spleen", color=(1, 2, 3)),
        Label(value=2, name="Liver", color=(4, 5, 6)),
    ]
    write_labels_file(pred, _volume(_map((2, 2), (1, 9))), swapped)
    assert evaluate.evaluate(pred, ref).mean_dice == 1.0
    stranger = [Label(value=1, name="pancreas", color=(1, 2, 3))]
    write_labels_file(pred, _volume(_map((1, 2))), stranger)
    with pytest.raises(UserError, match=r"does not name: pancreas \(1\)"):
        evaluate.evaluate(pred, ref)


def test_value_without_a_name_is_refused_unless_the_names_are_given(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    pred, ref = folders
    (ref / "labels.json").write_text('{"labels": {"1": "liver"}}')
    with pytest.raises(UserError, match=r"Case a: the reference has label values without .*: 2"):
        evaluate.evaluate(pred, ref)
    chosen = tmp_path / "chosen.json"
    chosen.write_text('{"labels": {"1": "liver"}}')
    result = evaluate.evaluate(pred, ref, labels=chosen)
    assert [organ.label.name for organ in result.organs] == ["liver"]
    assert result.ignored_values == (2,)
    assert "not named in the labels given: 2" in evaluate.table(result)


def test_reference_that_names_nothing_is_refused(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    (ref / "labels.json").unlink()
    with pytest.raises(UserError, match="does not say what its label values mean"):
        evaluate.evaluate(pred, ref)


def test_layouts_of_references_and_predictions_are_found(tmp_path: Path) -> None:
    truth, guess = _volume(_map((1, 2))), _volume(_map((1, 3)))
    for case in ("p1", "p2"):
        _write(tmp_path / "cases" / case / "label.nii.gz", truth)
        _write(tmp_path / "cases" / case / "ct.nii.gz", truth)
        (tmp_path / "cases" / case / "labels.json").write_text(json.dumps(NAMES))
        _write(tmp_path / "nnunet" / "labelsTr" / f"{case}.nii.gz", truth)
        _write(tmp_path / "pair" / "labels" / f"{case}.nrrd", truth)
        _write(tmp_path / "pred" / f"{case}.nii.gz", guess)
        _write(tmp_path / "numbered" / f"{case}_0000.nii.gz", guess)
    dataset = {"labels": {"background": 0, "liver": 1}}
    (tmp_path / "nnunet" / "dataset.json").write_text(json.dumps(dataset))
    (tmp_path / "pair" / "labels.json").write_text(json.dumps(NAMES))
    for reference in ("cases", "nnunet", "pair"):
        for prediction in ("pred", "numbered"):
            result = evaluate.evaluate(tmp_path / prediction, tmp_path / reference)
            assert result.cases == ("p1", "p2")
            assert result.mean_dice == pytest.approx(0.75)
    alone = evaluate.evaluate(tmp_path / "pred" / "p1.nii.gz", tmp_path / "cases/p1/label.nii.gz")
    assert (alone.cases, alone.mean_dice) == (("p1",), pytest.approx(0.75))
    one_of_many = evaluate.evaluate(
        tmp_path / "pred" / "p2.nii.gz", tmp_path / "cases", allow_unmatched=True
    )
    assert one_of_many.cases == ("p2",)


def test_cases_that_disagree_on_a_name_are_refused(tmp_path: Path) -> None:
    for case, name in (("a", "liver"), ("b", "spleen")):
        _write(tmp_path / "ref" / case / "label.nii.gz", _volume(_map((1, 2))))
        names = json.dumps({"labels": {"1": name}})
        (tmp_path / "ref" / case / "labels.json").write_text(names)
        _write(tmp_path / "pred" / f"{case}.nii.gz", _volume(_map((1, 2))))
    with pytest.raises(UserError, match="Value 1 is 'liver' in case a but 'spleen' in case b"):
        evaluate.evaluate(tmp_path / "pred", tmp_path / "ref")


def test_rows_equal_scores_of_whole_arrays(folders: tuple[Path, Path]) -> None:
    rng = np.random.default_rng(3)
    pred, ref = (rng.integers(0, 4, size=(8, 10, 16)).astype(np.uint8) for _ in range(2))
    for folder, voxels in zip(folders, (pred, ref), strict=True):
        for case in ("a", "b"):
            _write(folder / f"{case}.nii.gz", _volume(voxels))
    result = evaluate.evaluate(*folders, workers=2)
    for row in result.rows:
        if row.label.value:
            whole = metrics.score(
                pred == row.label.value,
                ref == row.label.value,
                spacing_mm=SPACING_MM,
                tolerance_mm=2.0,
            )
            assert row.score == whole


def test_broken_file_and_wrong_tolerance_are_told_in_one_line(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="no distance"):
        evaluate.evaluate(*folders, tolerance_mm=-1.0)
    (folders[0] / "a.nii.gz").write_text("a letter")
    with pytest.raises(UserError, match=r"Case a: .*a\.nii\.gz") as caught:
        evaluate.evaluate(*folders)
    assert "\n" not in str(caught.value)


def test_two_files_of_one_case_are_refused(folders: tuple[Path, Path]) -> None:
    _write(folders[0] / "a.nrrd", _volume(_map((1, 2))))
    with pytest.raises(UserError, match="two files of case a"):
        evaluate.evaluate(*folders)


def test_a_file_is_not_compared_with_itself(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    for same in ((ref, ref), (ref / "a.nii.gz", ref / "a.nii.gz")):
        with pytest.raises(UserError, match=r"Case a: .*same file .*a\.nii\.gz"):
            evaluate.evaluate(*same)
    (pred / "a.nii.gz").unlink()
    (pred / "a.nii.gz").symlink_to(ref / "a.nii.gz")
    with pytest.raises(UserError, match="same file"):
        evaluate.evaluate(pred, ref)


def test_maps_without_any_organ_are_told_as_nothing_to_compare(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        for case in ("a", "b"):
            _write(folder / f"{case}.nii.gz", _volume(_map()))
    result = evaluate.evaluate(*folders)
    assert result.mean_dice is None
    assert "nothing to compare" in evaluate.table(result)


def _with_image(path: Path, voxels: NDArray[np.generic]) -> None:
    image = SimpleITK.GetImageFromArray(voxels)
    if image.GetDimension() == 3:
        image.SetSpacing(SPACING_MM[::-1])
    SimpleITK.WriteImage(image, str(path))


def _not_a_number() -> NDArray[np.float32]:
    voxels = _map((1, 2)).astype(np.float32)
    voxels[0, 0, 0] = np.nan
    return voxels


@pytest.mark.parametrize(
    ("voxels", "said"),
    [
        (np.stack([_map((1, 2))] * 2), "dimensions"),
        (_map((1, 2))[3], "single slice"),
        (_map((1, 2)) * np.float32(0.5), "no whole numbers"),
        (_not_a_number(), "no whole numbers"),
        (np.where(_map((1, 2)), np.inf, 0).astype(np.float32), "label map"),
        (_map((1, 2)) * np.int32(40000), "do not fit into int16"),
        (_map((1, 2)).astype(np.int16) - 1, "the value -1"),
        (_map((7, 2)), "without a name: 7"),
        (_map((1, 2))[:-1], "different grids"),
    ],
)
def test_a_prediction_that_is_no_label_map_of_the_scan_is_refused_by_case_name(
    folders: tuple[Path, Path], voxels: NDArray[np.generic], said: str
) -> None:
    pred, ref = folders
    _with_image(pred / "b.nii.gz", voxels)
    with pytest.raises(UserError, match=f"Case b: .*{said}") as caught:
        evaluate.evaluate(pred, ref)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_float_voxels_of_whole_numbers_are_labels(folders: tuple[Path, Path]) -> None:
    _with_image(folders[0] / "b.nii.gz", _map((1, 2), (2, 9)).astype(np.float32))
    assert evaluate.evaluate(*folders).mean_dice == pytest.approx((0.875 + 0.5) / 2)


@pytest.mark.parametrize("tolerance_mm", [-0.1, float("nan"), float("inf")])
def test_what_is_no_tolerance_is_refused(folders: tuple[Path, Path], tolerance_mm: float) -> None:
    with pytest.raises(UserError, match=f"Tolerance {tolerance_mm} mm"):
        evaluate.evaluate(*folders, tolerance_mm=tolerance_mm)


def test_a_segment_value_that_is_no_number_is_told_with_its_field(tmp_path: Path) -> None:
    ref, pred = tmp_path / "ref.nii.gz", tmp_path / "pred.seg.nrrd"
    _write(ref, _volume(_map((1, 2))))
    (tmp_path / "labels.json").write_text(json.dumps(NAMES))
    liver = Label(value=1, name="liver", color=(1, 2, 3))
    write_labels_file(pred, _volume(_map((1, 2))), [liver])
    data = pred.read_bytes()
    assert data.count(b"Segment0_LabelValue:=1\n") == 1
    pred.write_bytes(data.replace(b"Segment0_LabelValue:=1\n", b"Segment0_LabelValue:=x\n"))
    with pytest.raises(UserError, match="Segment0_LabelValue is 'x'"):
        evaluate.evaluate(pred, ref)


def test_one_name_at_two_values_is_refused_with_both_cases(folders: tuple[Path, Path]) -> None:
    _, ref = folders
    (ref / "a.labels.json").write_text('{"labels": {"1": "liver", "2": "spleen"}}')
    (ref / "b.labels.json").write_text('{"labels": {"2": "spleen", "3": "Liver"}}')
    with pytest.raises(UserError, match="'Liver' has the value 1 in case a but 3 in case b"):
        evaluate.evaluate(*folders)


def test_two_predictions_of_one_case_are_refused(folders: tuple[Path, Path]) -> None:
    pred, _ = folders
    _write(pred / "a_0000.nii.gz", _volume(_map((1, 3))))
    with pytest.raises(UserError, match=r"two files of case a: a.nii.gz and a_0000.nii.gz"):
        evaluate.evaluate(*folders)


def test_files_beside_case_folders_are_not_left_out_in_silence(folders: tuple[Path, Path]) -> None:
    pred, _ = folders
    _write(pred / "c1" / "label.nii.gz", _volume(_map((1, 3))))
    with pytest.raises(UserError, match=r"case folders such as c1 .* files such as a.nii.gz"):
        evaluate.evaluate(*folders)


@pytest.mark.parametrize("name", ["label", "x.seg", "a_0000"])
def test_named_pairs_are_compared_whatever_their_files_are_called(
    name: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    pred, ref = tmp_path / "p" / f"{name}.nii.gz", tmp_path / "r" / f"{name}.nrrd"
    _write(pred, _volume(_map((1, 3))))
    _write(ref, _volume(_map((1, 2), (2, 9))))
    labels = [Label(value=v, name=n, color=(9, 9, 9)) for v, n in ((1, "liver"), (2, "spleen"))]
    found = evaluate.evaluate_pairs({name: (pred, ref)}, labels)
    assert found.cases == (name,)
    known = {
        row.label.name: row.score for row in evaluate.evaluate(*folders).rows if row.case == "a"
    }
    assert {row.label.name: row.score for row in found.rows} == {
        organ: known[organ] for organ in ("background", "liver", "spleen")
    }
