"""Phantoms look like patients, repeat from their seed and lie on disk as promised."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from backend.data.phantom import LABELS, Cohort, Difficulty, make_cohort, make_phantom
from backend.data.phantom.cohort import write_image
from backend.data.phantom.dicom import Series, write_series
from backend.data.readers import read_label, read_volume
from backend.data.scan import scan
from backend.errors import BackendError, UserError
from backend.geometry import Volume, reorient

SIZE, SPACING_MM = (46, 84, 84), (5.0, 4.5, 4.5)
VALUES = {name: value for value, name in LABELS.items()}
# Adults as reported in the anatomical literature, generously.
VOLUMES_ML = {
    "liver": (800, 2200),
    "spleen": (60, 350),
    "kidney_right": (80, 280),
    "kidney_left": (80, 280),
    "stomach": (120, 600),
    "gallbladder": (8, 80),
}


def _small(seed: int, **options: object) -> tuple[Volume, Volume]:
    return make_phantom(seed, size=SIZE, spacing_mm=SPACING_MM, **options)  # type: ignore[arg-type]


def _centre(label: Volume, name: str) -> NDArray[np.float64]:
    index = np.argwhere(label.voxels == VALUES[name]).mean(axis=0)
    return np.asarray(label.geometry.world(index.tolist()))


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))


def test_same_seed_gives_the_same_patient_and_another_seed_another() -> None:
    (ct, label), (again, label_again), (other, _) = _small(5), _small(5), _small(6)
    assert np.array_equal(ct.voxels, again.voxels)
    assert np.array_equal(label.voxels, label_again.voxels)
    assert not np.array_equal(ct.voxels, other.voxels)


def test_ct_and_labels_have_the_promised_types_and_grid() -> None:
    ct, label = _small(1)
    assert (ct.voxels.dtype, label.voxels.dtype) == (np.int16, np.uint8)
    assert ct.geometry == label.geometry
    assert (ct.geometry.size, ct.geometry.spacing_mm) == (SIZE, SPACING_MM)
    assert ct.geometry.orientation == "LPS"
    assert set(np.unique(label.voxels)) == {0, *LABELS}
    assert ct.voxels.min() >= -1024


@pytest.mark.parametrize("seed", range(4))
def test_organs_have_adult_sizes_and_lie_on_their_sides(seed: int) -> None:
    _, label = _small(seed)
    for name, (low, high) in VOLUMES_ML.items():
        ml = np.count_nonzero(label.voxels == VALUES[name]) * label.geometry.voxel_ml
        assert low < ml < high, name
    centre = {name: _centre(label, name) for name in VALUES}
    # World x grows to the patient's left, y to the back, z upwards.
    assert centre["liver"][0] < 0 < centre["spleen"][0]
    assert centre["kidney_right"][0] < 0 < centre["kidney_left"][0]
    assert centre["gallbladder"][1] < centre["aorta"][1] < centre["vertebrae"][1]
    assert centre["spleen"][2] > centre["kidney_left"][2]


def test_tissues_have_their_hounsfield_units() -> None:
    ct, label = _small(3, phase="portal")
    hu = {name: float(np.median(ct.voxels[label.voxels == v])) for name, v in VALUES.items()}
    assert 60 < hu["liver"] < 130
    assert 80 < hu["spleen"] < 150
    assert 100 < hu["aorta"] < 200
    assert 120 < hu["kidney_left"] < 220
    assert hu["vertebrae"] > 120
    assert np.median(ct.voxels[:, :2]) == pytest.approx(-1000, abs=15)
    counts, edges = np.histogram(ct.voxels, bins=np.arange(-300, 0, 10))
    assert edges[np.argmax(counts)] == pytest.approx(-105, abs=15)  # the peak of fat


def test_arterial_phase_differs_from_the_native_one_in_the_same_anatomy() -> None:
    native, arterial = _small(4, phase="native"), _small(4, phase="arterial")
    assert np.array_equal(native[1].voxels, arterial[1].voxels)
    aorta = native[1].voxels == VALUES["aorta"]
    gain = np.median(arterial[0].voxels[aorta]) - np.median(native[0].voxels[aorta])
    assert gain > 150


@pytest.mark.parametrize("name", ["liver", "spleen", "kidney_left", "stomach"])
def test_no_window_of_hounsfield_units_finds_an_organ(name: str) -> None:
    ct, label = _small(2, phase="portal")
    organ = label.voxels == VALUES[name]
    inside = ct.voxels[organ]
    best = max(
        _dice((ct.voxels >= low) & (ct.voxels <= high), organ)
        for low in np.percentile(inside, (1, 5, 10, 20, 30))
        for high in np.percentile(inside, (70, 80, 90, 95, 99))
    )
    assert best < 0.75


def test_organs_are_textured_differently_and_noise_is_correlated() -> None:
    ct, label = _small(2, phase="arterial", difficulty=Difficulty(noise=0.0))
    noisy, _ = _small(2, phase="arterial")
    spread = {n: float(ct.voxels[label.voxels == VALUES[n]].std()) for n in ("liver", "spleen")}
    # The spleen fills unevenly while contrast arrives.
    assert spread["spleen"] > 1.3 * spread["liver"] > 0
    grain = noisy.voxels[:, 30:50, 30:50].astype(float) - ct.voxels[:, 30:50, 30:50]
    assert 5 < grain.std() < 30


def test_contrast_zero_hides_the_liver_in_muscle() -> None:
    hidden, label = _small(2, phase="portal", difficulty=Difficulty(contrast=0.0))
    liver, spleen = (
        # Inside, away from the fat that the edge voxels share.
        float(np.median(hidden.voxels[binary_erosion(label.voxels == VALUES[n], iterations=2)]))
        for n in ("liver", "spleen")
    )
    assert liver == pytest.approx(spleen, abs=2.5)


def test_smaller_organs_are_smaller() -> None:
    _, usual = _small(2)
    _, small = _small(2, difficulty=Difficulty(organ_size=0.6))
    for name in ("spleen", "kidney_left"):
        ratio = np.count_nonzero(small.voxels == VALUES[name]) / np.count_nonzero(
            usual.voxels == VALUES[name]
        )
        assert ratio < 0.5
    with pytest.raises(ValueError, match="organ_size"):
        Difficulty(organ_size=0.0)


def test_a_level_orders_phantoms_by_how_hard_they_are() -> None:
    assert Difficulty.of(0.0) == Difficulty()
    kidneys, contrasts = [], []
    for level in (0.0, 0.5, 1.0):
        ct, label = _small(2, phase="portal", difficulty=Difficulty.of(level))
        liver, kidney = (
            ct.voxels[binary_erosion(label.voxels == VALUES[name])]
            for name in ("liver", "kidney_left")
        )
        kidneys.append(len(kidney))
        contrasts.append((np.median(kidney) - np.median(liver)) / liver.std())
    assert kidneys == sorted(kidneys, reverse=True)
    assert contrasts == sorted(contrasts, reverse=True)
    # At the hardest level noise covers what tells one organ from the other.
    assert contrasts[0] > 2
    assert contrasts[-1] < 1
    with pytest.raises(ValueError, match="difficulty is 2"):
        Difficulty.of(2)


def test_patient_stays_the_same_on_other_grids() -> None:
    _, straight = _small(8)
    _, turned = _small(8, orientation="RAS")
    assert turned.geometry.orientation == "RAS"
    back = reorient(turned, "LPS").voxels
    _, oblique = _small(8, turn_deg=(8.0, -5.0, 12.0))
    for name, value in VALUES.items():
        assert _dice(back == value, straight.voxels == value) > 0.99
        if name not in ("aorta", "vertebrae"):  # these leave the grid above and below
            gap = np.linalg.norm(_centre(oblique, name) - _centre(straight, name))
            assert gap < 3.0, name


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("cohort") / "phantoms"
    return make_cohort(folder, seed=11, labelled=1, test=1)


def test_cohort_holds_what_it_lists(cohort: Cohort) -> None:
    listed = json.loads((cohort.folder / "cohort.json").read_text())["entries"]
    assert len(listed) == len(cohort.entries)
    assert all((cohort.folder / entry.path).exists() for entry in cohort.entries)
    parts = Counter(entry.part for entry in cohort.entries if entry.usable)
    assert parts == {"unlabelled": 8, "labelled": 1, "test": 1, "broken": 1}
    assert not list(cohort.folder.rglob(".*"))


def test_scan_takes_what_is_usable_and_refuses_what_is_broken(cohort: Cohort) -> None:
    rows = scan([cohort.folder], workers=1).rows
    found = Counter((_entry_path(cohort, row.path), row.verdict == "usable") for row in rows)
    wanted = Counter((entry.path, entry.usable) for entry in cohort.entries)
    assert found == wanted


def _entry_path(cohort: Cohort, path: Path) -> str:
    """Path of the entry that a row belongs to: series of one file may be told by that file."""
    known = {entry.path for entry in cohort.entries}
    inside = [path, *path.parents]
    return next(
        p.relative_to(cohort.folder).as_posix()
        for p in inside
        if p.relative_to(cohort.folder).as_posix() in known
    )


def test_every_scan_covers_a_patient_on_a_grid_of_its_own(cohort: Cohort) -> None:
    usable = [r for r in scan([cohort.unlabelled], workers=1).rows if r.verdict == "usable"]
    assert len({(row.spacing_mm, row.size) for row in usable}) >= 4
    assert {"LPS", "RAS", "PSL"} <= {row.orientation for row in usable}
    directions = [read_volume(row.files).geometry.direction_matrix for row in usable]
    oblique = [d for d in directions if not np.allclose(np.abs(d).max(axis=0), 1, atol=1e-3)]
    assert len(oblique) == 1


def test_labels_lie_on_their_images_grid(cohort: Cohort) -> None:
    case = cohort.labelled / "case_01"
    pairs = [(case / "ct.nii.gz", case / "label.nii.gz")]
    name = "test_01.nii.gz"
    pairs.append((cohort.test_images / name, cohort.test_labels / name))
    for image, label in pairs:
        assert read_volume([image]).geometry.matches(read_label(label).geometry)
    names = json.loads((case / "labels.json").read_text())["labels"]
    assert names == {str(value): name for value, name in LABELS.items()}


def test_dicom_reads_back_voxel_for_voxel_in_an_independent_reader(tmp_path: Path) -> None:
    ct, _ = make_phantom(2, size=(6, 40, 40), spacing_mm=(5.0, 9.0, 9.0))
    for intercept in (-1024, 0):
        folder = tmp_path / str(intercept)
        files = write_series(folder, ct, Series(patient="PHANTOM_X", intercept=intercept))
        image = SimpleITK.ReadImage([str(file) for file in files])
        assert np.array_equal(SimpleITK.GetArrayFromImage(image), ct.voxels)
        assert image.GetSpacing() == pytest.approx(ct.geometry.spacing_mm[::-1])
        assert image.GetOrigin() == pytest.approx(ct.geometry.origin_mm)
        assert image.GetDirection() == pytest.approx(ct.geometry.direction)


def test_dicom_names_no_person_and_gives_every_slice_its_own_uid(cohort: Cohort) -> None:
    datasets = [
        pydicom.dcmread(path, stop_before_pixels=True)
        for path in (cohort.unlabelled / "export").iterdir()
    ]
    assert {str(d.PatientName) for d in datasets} == {""}
    assert {d.PatientID for d in datasets} == {"PHANTOM_02", "PHANTOM_03"}
    assert len({d.SeriesInstanceUID for d in datasets}) == 2
    assert len({d.SOPInstanceUID for d in datasets}) == len(datasets)
    assert all(pydicom.uid.UID(d.SOPInstanceUID).is_valid for d in datasets)


def test_same_seed_writes_the_same_bytes_and_a_full_folder_is_refused(tmp_path: Path) -> None:
    def written(name: str, seed: int, **more: float) -> dict[str, str]:
        options = {"unlabelled": 1, "labelled": 0, "test": 0, **more}
        made = make_cohort(tmp_path / name, seed=seed, **options)  # type: ignore[arg-type]
        files = (path for path in made.folder.rglob("*") if path.is_file())
        return {
            path.relative_to(made.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }

    first = written("one", 3)
    assert first == written("two", 3)
    assert first.items() != written("three", 4).items()
    assert first.items() != written("hard", 3, difficulty=1.0).items()
    assert json.loads((tmp_path / "hard" / "cohort.json").read_text())["difficulty"] == 1.0
    with pytest.raises(UserError, match="not empty"):
        make_cohort(tmp_path / "one", seed=3)


def test_an_image_that_the_disk_took_in_part_is_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = SimpleITK.WriteImage

    def cut_off(image: SimpleITK.Image, path: str, **options: bool) -> None:
        write(image, path, **options)
        os.truncate(path, Path(path).stat().st_size // 2)

    monkeypatch.setattr(SimpleITK, "WriteImage", cut_off)
    volume, _ = _small(0)
    for name in ("ct.nii.gz", "ct.nii"):
        with pytest.raises(BackendError, match=r"reads back differently|cannot be written"):
            write_image(tmp_path / name, volume)
    assert list(tmp_path.iterdir()) == []


def test_uids_follow_from_the_patient_alone() -> None:
    series = Series(patient="PHANTOM_01")
    assert series.uid("series", 1) == Series(patient="PHANTOM_01").uid("series", 1)
    assert series.uid("series", 1) != replace(series, patient="PHANTOM_02").uid("series", 1)
