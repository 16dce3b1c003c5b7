"""Labelled sets in every layout, and everything that must be refused by the name of its case."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from backend.data.labelled import (
    LabelledCase,
    LabelledSet,
    check_case,
    check_set,
    fold_cases,
    load_labelled_set,
    split_cases,
    take_fraction,
)
from backend.data.labels import Label, default_color, read_labels, write_labels
from backend.errors import ScanError, UserError

REPOSITORY = Path(__file__).parents[3]
SIZE = (8, 10, 12)
NAMES = {"1": "liver", "2": "spleen"}


def write(path: Path, voxels: NDArray[np.generic], *, spacing: float = 1.0) -> Path:
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing((spacing, 1.0, 2.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))
    return path


def write_image(path: Path) -> Path:
    voxels = np.random.default_rng(0).normal(0, 300, SIZE).astype(np.int16)
    voxels[0] = -1000
    return write(path, voxels)


def label_voxels(*values: int) -> NDArray[np.uint8]:
    """A map with ten voxels of each value."""
    voxels = np.zeros(SIZE, np.uint8)
    for row, value in enumerate(values):
        voxels[3, row, :10] = value
    return voxels


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def nnunet(root: Path) -> Path:
    for name in ("b", "a"):
        write_image(root / "imagesTr" / f"{name}_0000.nii.gz")
        write(root / "labelsTr" / f"{name}.nii.gz", label_voxels(1, 2))
    write_json(
        root / "dataset.json",
        {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "liver": 1, "spleen": 2},
            "numTraining": 2,
            "file_ending": ".nii.gz",
        },
    )
    return root


def decathlon(root: Path) -> Path:
    pairs = []
    for name in ("b", "a"):
        write_image(root / "imagesTr" / f"{name}.nii.gz")
        write(root / "labelsTr" / f"{name}.nii.gz", label_voxels(1, 2))
        (root / "imagesTr" / f"._{name}.nii.gz").write_bytes(b"left by a Mac")
        folders = ("image", "imagesTr"), ("label", "labelsTr")
        pairs.append({key: f"./{folder}/{name}.nii.gz" for key, folder in folders})
    labels = {"0": "background", "1": "liver", "2": "spleen"}
    write_json(root / "dataset.json", {"labels": labels, "training": pairs})
    return root


def images_and_labels(root: Path) -> Path:
    for name in ("b", "a"):
        write_image(root / "images" / f"{name}.nrrd")
        write(root / "labels" / f"{name}.nii.gz", label_voxels(1, 2))
    write_json(root / "labels.json", {"labels": NAMES})
    return root


def case_folders(root: Path) -> Path:
    for name in ("b", "a"):
        write_image(root / name / "ct.nii.gz")
        write(root / name / "label.nii.gz", label_voxels(1, 2))
        write_json(root / name / "labels.json", {"labels": NAMES, "present": {"1": 10}})
    write_image(root / "c_unlabelled" / "ct.nii.gz")
    return root


def table(root: Path, splits: tuple[str, str] = ("", "")) -> Path:
    lines = ["case,image,label,split"]
    for name, split in zip(("b", "a"), splits, strict=True):
        write_image(root / "scans" / f"{name}.mha")
        write(root / "maps" / f"{name}.nrrd", label_voxels(1, 2))
        lines.append(f"{name},scans/{name}.mha,maps/{name}.nrrd,{split}")
    write_json(root / "labels.json", {"labels": NAMES})
    path = root / "set.csv"
    # Excel begins its CSV files with a byte order mark.
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


LAYOUTS = {
    "nnU-Net": nnunet,
    "MSD": decathlon,
    "images and labels": images_and_labels,
    "case folders": case_folders,
    "CSV": table,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_cases_and_labels(tmp_path: Path, layout: str) -> None:
    loaded = load_labelled_set(LAYOUTS[layout](tmp_path))
    assert loaded.layout == layout
    assert [case.id for case in loaded.cases] == ["a", "b"]
    assert [(label.value, label.name) for label in loaded.labels] == [(1, "liver"), (2, "spleen")]
    for case in loaded.cases:
        assert case.split is None
        assert case.image[0].name.split(".")[0].removesuffix("_0000") in (case.id, "ct")
        assert case.label.is_file()
    assert check_set(loaded) == {"a": {1: 10, 2: 10}, "b": {1: 10, 2: 10}}


def test_case_folders_without_a_label_are_listed_as_ignored(tmp_path: Path) -> None:
    assert load_labelled_set(case_folders(tmp_path)).ignored == ("c_unlabelled",)


def test_one_case_folder_alone_is_a_set(tmp_path: Path) -> None:
    loaded = load_labelled_set(case_folders(tmp_path) / "a")
    assert [case.id for case in loaded.cases] == ["a"]


def test_names_may_stand_beside_the_case_folders(tmp_path: Path) -> None:
    root = case_folders(tmp_path)
    for name in ("a", "b"):
        (root / name / "labels.json").unlink()
    with pytest.raises(UserError, match=r"Case a has no labels.json"):
        load_labelled_set(root)
    write_json(root / "labels.json", {"labels": NAMES})
    assert len(load_labelled_set(root).labels) == 2


def test_a_folder_in_an_images_place_is_a_dicom_series(tmp_path: Path) -> None:
    root = images_and_labels(tmp_path)
    (root / "images" / "a.nrrd").unlink()
    for name in ("2.dcm", "1.dcm", "DICOMDIR", ".hidden"):
        (root / "images" / "a").mkdir(exist_ok=True)
        (root / "images" / "a" / name).write_bytes(b"slice")
    case = load_labelled_set(root).cases[0]
    assert [file.name for file in case.image] == ["1.dcm", "2.dcm"]


def test_the_files_of_nnunet_version_1_are_found_from_its_list(tmp_path: Path) -> None:
    root = decathlon(tmp_path)
    for name in ("a", "b"):
        image = root / "imagesTr" / f"{name}.nii.gz"
        image.rename(image.with_name(f"{name}_0000.nii.gz"))
    assert [c.image[0].name for c in load_labelled_set(root).cases] == [
        "a_0000.nii.gz",
        "b_0000.nii.gz",
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cases_are_selected_by_name_or_pattern(tmp_path: Path, layout: str) -> None:
    path = LAYOUTS[layout](tmp_path)
    assert [case.id for case in load_labelled_set(path, ["b"]).cases] == ["b"]
    assert [case.id for case in load_labelled_set(path, ["[ab]"]).cases] == ["a", "b"]
    with pytest.raises(UserError, match=r"no case 'bb'. Near: b"):
        load_labelled_set(path, ["a", "bb"])


@pytest.mark.parametrize("layout", ["nnU-Net", "MSD", "images and labels", "CSV"])
def test_a_missing_label_map_is_refused_with_the_cases_name(tmp_path: Path, layout: str) -> None:
    path = LAYOUTS[layout](tmp_path)
    case = load_labelled_set(path).cases[0]
    case.label.unlink()
    with pytest.raises(UserError, match=r"(label map for a|Case a: its label map)"):
        load_labelled_set(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_image_is_refused_with_the_cases_name(tmp_path: Path, layout: str) -> None:
    path = LAYOUTS[layout](tmp_path)
    load_labelled_set(path).cases[0].image[0].unlink()
    with pytest.raises(UserError, match=r"(image for a\b|Case a\b)"):
        load_labelled_set(path)


def test_several_channels_are_refused(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    write_image(root / "imagesTr" / "a_0001.nii.gz")
    with pytest.raises(UserError, match="more than one channel: a_0001"):
        load_labelled_set(root)


def test_a_name_or_value_that_two_cases_use_differently_is_refused(tmp_path: Path) -> None:
    root = case_folders(tmp_path)
    write_json(root / "b" / "labels.json", {"labels": {"1": "liver", "2": "kidney"}})
    with pytest.raises(UserError, match="Value 2 is 'spleen' in case a but 'kidney' in case b"):
        load_labelled_set(root)
    write_json(root / "b" / "labels.json", {"labels": {"1": "liver", "3": "spleen"}})
    with pytest.raises(UserError, match="'spleen' has the value 2 in case a but 3 in case b"):
        load_labelled_set(root)
    assert len(load_labelled_set(root, ["a"]).labels) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("case,image\na,x.nii\n", "column 'label' is missing"),
        ("case,image,label\na,,y.nii\n", "line 2: a field is empty"),
        (
            "case,image,label,split\na,scans/a.mha,maps/a.nrrd,maybe\n",
            "case a has the split 'maybe'",
        ),
        ("case,image,label\na,scans/a.mha,maps/a.nrrd\na,scans/b.mha,maps/b.nrrd\n", "has a twice"),
    ],
)
def test_a_table_with_a_mistake_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = table(tmp_path)
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        load_labelled_set(path)


def test_what_is_no_labelled_set_is_refused_with_the_layouts(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", write_image(tmp_path / "ct.nii.gz")):
        with pytest.raises(UserError, match=r"nnU-Net raw or MSD folder"):
            load_labelled_set(path)


LABELS = tuple(Label(value=int(v), name=n, color=(0, 0, 0)) for v, n in NAMES.items())


def one_case(folder: Path, voxels: NDArray[np.generic], *, spacing: float = 1.0) -> LabelledCase:
    image = write_image(folder / "ct.nii.gz")
    label = write(folder / "label.nii.gz", voxels, spacing=spacing)
    return LabelledCase(id="pat_7", image=(image,), label=label)


def test_a_sound_case_tells_its_voxels_per_label(tmp_path: Path) -> None:
    assert check_case(one_case(tmp_path, label_voxels(2)), LABELS) == {2: 10}


def test_a_label_on_another_grid_is_refused_with_both_grids(tmp_path: Path) -> None:
    case = one_case(tmp_path, label_voxels(1), spacing=1.5)
    with pytest.raises(
        ScanError, match=r"Case pat_7: .*12x10x8 voxels of 1x1x2 mm .* 12x10x8 voxels of 1.5x1x2 mm"
    ):
        check_case(case, LABELS)


def test_values_without_a_name_are_refused_with_their_voxels(tmp_path: Path) -> None:
    case = one_case(tmp_path, label_voxels(1, 5, 9))
    with pytest.raises(ScanError, match=r"Case pat_7: .* 5 \(10 voxels\), 9 \(10 voxels\)"):
        check_case(case, LABELS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v * np.float32(0.5), "no whole numbers"),
        (lambda v: np.stack([v, v]), "dimensions, e.g. time points"),
        (lambda v: v.astype(np.int16) - 1, "negative|below 0|-1"),
        (lambda v: v[:, :, :9], "different grids"),
    ],
)
def test_what_is_no_label_map_of_the_image_is_refused(
    tmp_path: Path, change: Callable[[NDArray[np.generic]], NDArray[np.generic]], said: str
) -> None:
    with pytest.raises(ScanError, match=f"Case pat_7: .*({said})"):
        check_case(one_case(tmp_path, change(label_voxels(1))), LABELS)


def test_a_label_map_of_whole_floats_stored_along_other_axes_is_taken(tmp_path: Path) -> None:
    case = one_case(tmp_path, label_voxels(1, 2).astype(np.float32))
    turned = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(case.label)), "RSP")
    SimpleITK.WriteImage(turned, str(case.label))
    assert turned.GetSize() != SIZE[::-1]
    assert check_case(case, LABELS) == {1: 10, 2: 10}


def test_an_empty_label_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="Case pat_7: nothing is labelled"):
        check_case(one_case(tmp_path, label_voxels()), LABELS)


def test_a_file_that_cannot_be_read_is_refused_with_the_cases_name(tmp_path: Path) -> None:
    case = one_case(tmp_path, label_voxels(1))
    case.label.write_bytes(b"no label map")
    with pytest.raises(ScanError, match="Case pat_7: "):
        check_case(case, LABELS)


def _segmentation(path: Path, *names: str) -> Path:
    """A file of 3D Slicer with ten voxels of each name, numbered from 1."""
    image = SimpleITK.GetImageFromArray(label_voxels(*range(1, len(names) + 1)))
    image.SetSpacing((1.0, 1.0, 2.0))
    for index, name in enumerate(names):
        image.SetMetaData(f"Segment{index}_LabelValue", str(index + 1))
        image.SetMetaData(f"Segment{index}_Name", name)
    SimpleITK.WriteImage(image, str(path))
    return path


def test_a_file_that_has_a_structure_at_another_value_is_refused(tmp_path: Path) -> None:
    case = one_case(tmp_path, label_voxels(1))
    exchanged = _segmentation(tmp_path / "x.seg.nrrd", "Spleen", "liver")
    told = r"Case pat_7: x\.seg\.nrrd itself has 'Spleen' as value 1, and the labels .* value 2"
    with pytest.raises(ScanError, match=told):
        check_case(replace(case, label=exchanged), LABELS)


def test_names_in_a_file_that_are_none_of_the_structures_are_no_contradiction(
    tmp_path: Path,
) -> None:
    case = one_case(tmp_path, label_voxels(1))
    own = _segmentation(tmp_path / "x.seg.nrrd", "Segment_1", "SPLEEN")
    assert check_case(replace(case, label=own), LABELS) == {1: 10, 2: 10}


def test_a_segment_without_a_voxel_is_no_contradiction(tmp_path: Path) -> None:
    case = one_case(tmp_path, label_voxels(1))
    image = SimpleITK.ReadImage(_segmentation(tmp_path / "x.seg.nrrd", "liver"))
    image.SetMetaData("Segment1_LabelValue", "7")
    image.SetMetaData("Segment1_Name", "spleen")
    SimpleITK.WriteImage(image, tmp_path / "y.seg.nrrd")
    assert check_case(replace(case, label=tmp_path / "y.seg.nrrd"), LABELS) == {1: 10}


def test_names_that_are_one_file_on_some_systems_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path)
    path.write_text(path.read_text("utf-8-sig").replace("\nb,", "\nA,"), encoding="utf-8")
    with pytest.raises(UserError, match="has A, a twice"):
        load_labelled_set(path)


def test_a_folder_without_a_label_map_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load_labelled_set(case_folders(tmp_path))
    assert "left out, for no label map is in c_unlabelled." in caplog.text


def test_a_name_is_found_even_if_it_reads_as_a_pattern(tmp_path: Path) -> None:
    root = case_folders(tmp_path)
    (root / "a").rename(root / "a[1]")
    assert [case.id for case in load_labelled_set(root, ["a[1]"]).cases] == ["a[1]"]


def test_a_set_is_refused_with_its_first_bad_case_and_the_log_names_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = case_folders(tmp_path)
    write(root / "a" / "label.nii.gz", label_voxels())
    write(root / "b" / "label.nii.gz", label_voxels(3))
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(UserError, match=r"Case a: nothing is labelled.*1 more case is refused"),
    ):
        check_set(load_labelled_set(root))
    assert "Case b: label values" in caplog.text


def test_a_structure_that_no_case_has_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = LabelledSet(cases=(one_case(tmp_path, label_voxels(1)),), labels=LABELS, layout="CSV")
    with caplog.at_level(logging.WARNING):
        check_set(loaded)
    assert "No case has a voxel of spleen" in caplog.text


def named(*names: str, split: str | None = None) -> list[LabelledCase]:
    return [LabelledCase(id=n, image=(Path(n),), label=Path(n), split=split) for n in names]


MANY = named(*(f"case_{i:02d}" for i in range(20)))


def ids(cases: tuple[LabelledCase, ...]) -> list[str]:
    return [case.id for case in cases]


def test_a_split_is_fixed_by_its_seed_and_the_names_alone() -> None:
    training, validation = split_cases(MANY, validation_fraction=0.25, seed=3)
    assert len(validation) == 5
    assert sorted(ids(training) + ids(validation)) == [case.id for case in MANY]
    again = split_cases(MANY[::-1], validation_fraction=0.25, seed=3)
    assert again == (training, validation)
    others = [split_cases(MANY, validation_fraction=0.25, seed=s)[1] for s in range(4, 9)]
    assert all(other != validation for other in others)


def test_a_case_that_is_added_moves_at_most_one_other() -> None:
    before = set(ids(split_cases(MANY, validation_fraction=0.25, seed=3)[1]))
    more = [*MANY, *named("case_new")]
    after = set(ids(split_cases(more, validation_fraction=0.25, seed=3)[1]))
    assert len(before - after) <= 1


def test_marked_cases_stay_where_they_are_marked() -> None:
    marked = [
        *named("t", split="train"),
        *named("v", split="validation"),
        *named("x", split="test"),
        *MANY[:4],
    ]
    training, validation = split_cases(marked, validation_fraction=0.5, seed=0)
    assert ids(validation) == ["v"]
    assert ids(training) == ["case_00", "case_01", "case_02", "case_03", "t"]
    training, validation = split_cases([*marked[:1], *MANY[:4]], validation_fraction=0.5, seed=0)
    assert len(validation) == 2
    assert "t" in ids(training)


def test_the_splits_of_a_table_are_read(tmp_path: Path) -> None:
    loaded = load_labelled_set(table(tmp_path, ("val", "Train")))
    assert [(case.id, case.split) for case in loaded.cases] == [("a", "train"), ("b", "validation")]


@pytest.mark.parametrize(("fraction", "sizes"), [(0.01, (1, 1)), (0.99, (1, 1)), (0.0, (2, 0))])
def test_both_parts_of_a_small_set_keep_a_case(fraction: float, sizes: tuple[int, int]) -> None:
    parts = split_cases(MANY[:2], validation_fraction=fraction, seed=0)
    assert tuple(len(part) for part in parts) == sizes


def test_one_case_alone_is_trained_on() -> None:
    assert split_cases(MANY[:1], validation_fraction=0.5, seed=0) == ((MANY[0],), ())


def test_splits_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="no share"):
        split_cases(MANY, validation_fraction=1.0, seed=0)
    with pytest.raises(UserError, match="No case is left"):
        split_cases(named("a", split="validation"), validation_fraction=0.2, seed=0)
    with pytest.raises(UserError, match="21 folds of 20 cases"):
        fold_cases(MANY, folds=21, seed=0)


def test_every_case_validates_in_exactly_one_fold() -> None:
    folds = fold_cases([*MANY, *named("x", split="test")], folds=3, seed=1)
    assert sorted(name for _, part in folds for name in ids(part)) == [c.id for c in MANY]
    for training, validation in folds:
        assert sorted(ids(training) + ids(validation)) == [c.id for c in MANY]
        assert len(validation) in (6, 7)


def test_smaller_fractions_are_part_of_larger_ones() -> None:
    parts = [set(ids(take_fraction(MANY, fraction=f, seed=2))) for f in (0.01, 0.1, 0.5, 1.0)]
    assert [len(part) for part in parts] == [1, 2, 10, 20]
    assert all(small <= large for small, large in pairwise(parts))


def test_colours_and_terminology_are_kept_by_the_labels_file(tmp_path: Path) -> None:
    labels = (
        Label(value=1, name="Leber µ", color=(1, 2, 3), terminology="SCT^10200004^Liver"),
        Label(value=300, name="spleen", color=default_color(300)),
    )
    write_labels(tmp_path / "labels.json", labels)
    assert read_labels(tmp_path / "labels.json") == labels
    assert [p.name for p in tmp_path.iterdir()] == ["labels.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"labels": {"1": "a", "1": "b"}}', "names '1' twice"),
        ('{"labels": {"1": "a", "01": "b"}}', "names 1 twice"),
        ('{"labels": {"1": "Liver", "2": "liver"}}', "names 'liver' twice"),
        ('{"labels": {"1": " "}}', "value 1 has no name"),
        ('{"labels": {"1": {"color": [1, 2, 3]}}}', "value 1 has no name"),
        ('{"labels": {"1": {"name": "a", "color": [1, 2, 300]}}}', "colour of 'a'"),
        ('{"labels": {"0": "liver"}}', "value 0, which is background"),
        ('{"labels": {"-1": "liver"}}', "has the value -1"),
        ('{"labels": {"liver": 1.5}}', "has the value 1.5"),
        ('{"labels": {"whole": [1, 2], "core": 2}}', "region of several values"),
        ('{"labels": {"liver": 1, "ignore": 2}}', "ignore label"),
        ('{"labels": {"0": "background"}}', "nothing but background"),
        ('{"names": {}}', 'has no "labels"'),
        ("[1]", "no JSON object"),
        ('{"labels": ', "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"a":' * 100_000, "cannot be read as JSON"),
        ('{"labels": {"liver": %s}}' % ("9" * 5000), "cannot be read as JSON"),
        ('{"labels": {"%s": "liver"}}' % ("9" * 5000), "no number of a label"),
        ('{"labels": {"99999": "liver"}}', "has the value 99999"),
        ('{"labels": {"1e5": "liver"}}', "no number of a label"),
        ('{"labels": {"1.0": "liver"}}', "no number of a label"),
        ('{"labels": {"liver": "1_0"}}', "no number of a label"),
        ('{"labels": {"liver": true}}', "no number of a label"),
        ('{"labels": {"liver": NaN}}', "no number of a label"),
        ('{"labels": {"\u0661": "liver"}}', "no number of a label"),
        ('{"labels": {"1": "li\\u0000ver"}}', r"'li\\x00ver' is no text for a name"),
        ('{"labels": {"1": "li\\nver"}}', "no text for a name"),
        ('{"labels": {"1": "\\u001b[31mliver"}}', "no text for a name"),
        ('{"labels": {"1": "\\u202eliver"}}', "no text for a name"),
        ('{"labels": {"1": "\\ud800"}}', "no text for a name"),
        ('{"labels": {"1": "%s"}}' % ("a" * 201), "no text for a name"),
        ('{"labels": {"1": {"name": "a", "terminology": "x\\ny"}}}', "no text for a termin"),
    ],
)
def test_a_labels_file_with_a_mistake_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        read_labels(path)
    assert len(str(caught.value)) < 400 + len(str(path))


# Linear RGB as full, red blind and green blind sight have it (Machado 2009), and to CIE XYZ.
SIGHTS = (
    np.eye(3),
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
)
XYZ = [[0.4339, 0.3762, 0.1899], [0.2127, 0.7152, 0.0722], [0.0178, 0.1095, 0.8727]]


def nearest(colors: list[tuple[int, int, int]], sight: int) -> float:
    """The smallest distance of two colours in CIELAB, as seen by one of the sights."""
    rgb = np.array(colors) / 255
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    f = np.cbrt((linear @ np.transpose(SIGHTS[sight])).clip(0.009, 1) @ np.transpose(XYZ))
    lab = np.stack([116 * f[:, 1], 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    return float(distances[np.triu_indices(len(colors), 1)].min())


@pytest.mark.parametrize(("sight", "apart_7", "apart_13"), [(0, 45, 22), (1, 20, 14), (2, 20, 14)])
def test_colours_are_far_apart_for_every_sight_and_from_the_greys_of_a_scan(
    sight: int, apart_7: float, apart_13: float
) -> None:
    greys = [(g, g, g) for g in (60, 110, 150, 190, 235)]
    colors = [default_color(value) for value in range(1, 25)]
    assert len(set(colors)) == 24
    assert nearest(colors[:7], sight) > apart_7
    assert nearest(colors[:13], sight) > apart_13
    assert all(nearest([grey, color], 0) > 30 for grey in greys for color in colors[:13])


def test_labels_are_read_without_torch() -> None:
    code = "import sys, backend.data.labels; sys.exit('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False)
    assert run.returncode == 0


@pytest.mark.parametrize("header", ["case,image,label,Split", " Case;image;LABEL; split "])
def test_case_and_blanks_of_column_names_and_semicolons_do_not_count(
    tmp_path: Path, header: str
) -> None:
    path = table(tmp_path, ("train", "test"))
    _, *lines = path.read_text(encoding="utf-8-sig").split("\n")
    text = "\n".join(lines).replace(",", ";") if ";" in header else "\n".join(lines)
    path.write_text(f"{header}\n{text}")
    assert [case.split for case in load_labelled_set(path).cases] == ["test", "train"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("label,split", "label,part", "line 1: column 'part' is none of a labelled set"),
        ("case,image", "name,image", "line 1: column 'case' is missing"),
        ("label,split", "label,", "line 2: 'test' stands under no column's name"),
        ("b.nrrd,test", "b.nrrd,test,more", "line 2: 5 cells for 4 columns"),
    ],
)
def test_cells_that_would_be_left_out_in_silence_are_refused(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    path = table(tmp_path, ("test", ""))
    text = path.read_text(encoding="utf-8-sig")
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=re.escape(told)):
        load_labelled_set(path)


def test_one_image_under_two_names_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path)
    with path.open("a") as stream:
        stream.write("c,maps/../scans/a.mha,maps/a.nrrd,\n")
    with pytest.raises(UserError, match=r"cases a and c are the same image .*a\.mha"):
        load_labelled_set(path)
