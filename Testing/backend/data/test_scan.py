from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from dicom_files import SECRET_ID, SECRET_NAME, enhanced_ct, hu_values, save, series_of
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.uid import MediaStorageDirectoryStorage, SecondaryCaptureImageStorage

from backend.data.headers import read_facts
from backend.data.index import files_path, read_index, usable_series, write_index
from backend.data.memory import memory_path, save_memory
from backend.data.readers import read_judged, read_label, read_volume
from backend.data.scan import ScanResult, scan
from backend.data.series import SeriesRow
from backend.errors import ScanError, UserError

SLICES = 16


def found(*paths: Path, quick: bool = False, previous: Path | None = None) -> ScanResult:
    return scan(paths, quick=quick, workers=1, previous=previous)


def only(result: ScanResult) -> SeriesRow:
    (row,) = result.rows
    return row


def nifti(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.T, np.diag([-0.5, -0.75, 2, 1])), path)
    return path


def test_a_usable_series_is_found_with_its_true_size_spacing_and_range(tmp_path: Path) -> None:
    hu = hu_values(SLICES)
    files = save(series_of(hu), tmp_path / "a" / "b", ending="")
    row = only(found(tmp_path))
    assert row.verdict == "usable"
    assert row.reason == ""
    assert row.path == tmp_path / "a" / "b"
    assert set(row.files) == set(files)
    assert (row.format, row.modality, row.orientation) == ("DICOM", "CT", "LPS")
    assert (row.size, row.spacing_mm, row.slices) == ((SLICES, 6, 5), (2.0, 0.75, 0.5), SLICES)
    assert (row.hu_min, row.hu_max) == (int(hu.min()), int(hu.max()))


def test_several_series_in_one_folder_and_one_series_in_several_folders(tmp_path: Path) -> None:
    one, two = series_of(hu_values(SLICES), series="1.1"), series_of(hu_values(20, 1), series="1.2")
    mixed = save(one + two[:9], tmp_path / "mixed")
    other = save(two[9:], tmp_path / "other")
    rows = {row.slices: row for row in found(tmp_path).rows}
    assert set(rows[SLICES].files) == set(mixed[:SLICES])
    assert set(rows[20].files) == {*mixed[SLICES:], *other}
    assert rows[20].path == tmp_path
    assert {row.verdict for row in rows.values()} == {"usable"}


def test_series_without_uids_are_told_apart_by_folder_and_recognised_as_copies(
    tmp_path: Path,
) -> None:
    for seed, name in enumerate(("a", "b")):
        slices = series_of(hu_values(SLICES, seed))
        for ds in slices:
            ds.SeriesInstanceUID = ds.StudyInstanceUID = ds.PatientID = ""
        save(slices, tmp_path / name)
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    a, b, c = found(tmp_path).rows
    assert (a.verdict, b.verdict, c.verdict) == ("usable", "usable", "refused")
    assert c.reason == f"duplicate: the same images as {a.id}"
    assert len({a.patient, b.patient}) == 2


Spoil = Callable[[list[Dataset]], list[Dataset]]


def every(change: Callable[[Dataset], object]) -> Spoil:
    def spoil(slices: list[Dataset]) -> list[Dataset]:
        for ds in slices:
            change(ds)
        return slices

    return spoil


def moved(step: Callable[[int], tuple[float, float, float]]) -> Spoil:
    def spoil(slices: list[Dataset]) -> list[Dataset]:
        for i, ds in enumerate(slices):
            ds.ImagePositionPatient = list(step(i))
        return slices

    return spoil


def tilted(ds: Dataset) -> None:
    ds.GantryDetectorTilt = 12.5


def value(**values: object) -> Callable[[Dataset], object]:
    return lambda ds: [setattr(ds, name, v) for name, v in values.items()]


def scaleless(slices: list[Dataset]) -> list[Dataset]:
    del slices[3].RescaleSlope
    return slices


def pixelless(slices: list[Dataset]) -> list[Dataset]:
    del slices[3].PixelData
    return slices


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda s: s[:15], "too few slices: 15 of at least 16"),
        (lambda s: s[:1], "too few slices: 1 of at least 16"),
        (
            lambda s: s[:7] + s[8:],
            "missing slices: hole of 4 mm between slices 7 and 8 (2 mm elsewhere)",
        ),
        (
            lambda s: s[:3] + s[5:9] + s[10:],
            "missing slices: hole of 6 mm between slices 3 and 4, "
            "hole of 4 mm between slices 7 and 8 (2 mm elsewhere)",
        ),
        (moved(lambda i: (0, 0, i if i < 9 else 1.4 * i)), "uneven spacing: 1 to 4.6 mm"),
        (moved(lambda i: (0, 0, i * (1 + 0.003 * i))), "uneven spacing: 1 to 1.11 mm"),
        (moved(lambda i: (0, i * 0.5, i)), "gantry tilt: 26.6 degrees, the slices lie on a slant"),
        (moved(lambda i: (0, 3 * (i % 2), i)), "shifted slices: up to 3 mm sideways"),
        (every(tilted), "gantry tilt: 12.5 degrees that the positions do not show"),
        (
            lambda s: s + series_of(hu_values(4)),
            "duplicate slices: 4 of 24 lie where another one lies",
        ),
        (every(value(Modality="MR")), "other modality: MR"),
        (every(value(Modality="RTSTRUCT")), "other modality: RTSTRUCT"),
        (every(value(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])), "localizer: "),
        (every(value(SOPClassUID=SecondaryCaptureImageStorage)), "secondary capture: "),
        (every(value(RescaleType="ED")), "not HU: RescaleType is ED"),
        (every(value(RescaleIntercept=0)), "not HU: no value below 0 (24 to 20"),
        (every(value(RescaleSlope=0.001)), "not HU: values from -1023.98 to -1021.98 only"),
        (every(value(PixelSpacing=[0, 0.5])), "no geometry: pixel spacing 0x0.5 mm"),
        (every(value(ImagePositionPatient=None)), "no geometry: position not stated"),
        (scaleless, "not HU: no RescaleSlope and RescaleIntercept (003.dcm; 1 of 20 files)"),
        (pixelless, "no pixel data: the file holds no image (003.dcm; 1 of 20 files)"),
    ],
)
def test_a_series_that_is_no_usable_ct_is_refused_with_the_reason(
    tmp_path: Path, spoil: Spoil, reason: str
) -> None:
    save(spoil(series_of(hu_values(20))), tmp_path)
    row = only(found(tmp_path))
    assert row.verdict == "refused"
    assert row.reason.startswith(reason)


def test_positions_rounded_to_one_decimal_are_no_uneven_spacing(tmp_path: Path) -> None:
    save(moved(lambda i: (0, 0, round(0.625 * i, 1)))(series_of(hu_values(40))), tmp_path)
    row = only(found(tmp_path))
    assert row.verdict == "usable", row.reason
    assert row.spacing_mm is not None
    assert row.spacing_mm[0] == pytest.approx(0.625, abs=2e-3)


def test_orientations_under_one_uid_become_rows_of_their_own(tmp_path: Path) -> None:
    slices = series_of(hu_values(SLICES + 3))
    for i, ds in enumerate(slices[SLICES:]):
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [i, 0, 0]
    save(slices, tmp_path)
    rows = {row.orientation: row for row in found(tmp_path).rows}
    assert rows["LPS"].verdict == "usable"
    assert rows["PIR"].reason == "too few slices: 3 of at least 16"
    assert rows["LPS"].id != rows["PIR"].id


def test_copies_are_refused_as_duplicates_and_a_sound_copy_wins(tmp_path: Path) -> None:
    files = save(series_of(hu_values(SLICES)), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copy(files[3], tmp_path / "a" / "003 copy.dcm")
    files[5].write_bytes(files[5].read_bytes()[:-10])
    rows = found(tmp_path).rows
    (good,) = [row for row in rows if row.verdict == "usable"]
    assert files[5] not in good.files
    assert len(good.files) == SLICES
    others = [row for row in rows if row is not good]
    assert {row.reason for row in others} == {f"duplicate: the same images as {good.id}"}
    assert sum(len(row.files) for row in rows) == 2 * SLICES + 1
    assert len({row.id for row in rows}) == len(rows)


def test_the_same_volume_twice_is_used_once_in_whatever_format(tmp_path: Path) -> None:
    first = nifti(tmp_path / "a" / "ct.nii.gz", hu_values(SLICES))
    shutil.copy(first, tmp_path / "b.nii.gz")
    nifti(tmp_path / "c.nii", hu_values(SLICES))
    nifti(tmp_path / "d.nii", hu_values(SLICES, 1))
    a, b, c, d = found(tmp_path).rows
    assert (a.verdict, d.verdict) == ("usable", "usable")
    assert b.reason == f"duplicate: the same images as {a.id}"
    assert c.reason == f"duplicate: the same voxels as {a.id}"


def test_an_enhanced_multiframe_file_is_one_series(tmp_path: Path) -> None:
    hu = hu_values(SLICES)
    save([enhanced_ct(hu, order=range(SLICES))], tmp_path)
    row = only(found(tmp_path))
    assert (row.verdict, row.size) == ("usable", (SLICES, 6, 5))
    assert row.path == tmp_path / "000.dcm"
    assert (row.hu_min, row.hu_max) == (int(hu.min()), int(hu.max()))


def test_multiframe_without_positions_is_refused(tmp_path: Path) -> None:
    ds = enhanced_ct(hu_values(SLICES), order=range(SLICES))
    del ds.PerFrameFunctionalGroupsSequence, ds.SharedFunctionalGroupsSequence
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    save([ds], tmp_path)
    assert only(found(tmp_path)).reason.startswith("no geometry: position")


def test_label_maps_are_refused_whatever_type_they_are_stored_in(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 256, (SLICES, 30, 30))
    label[0, 0, :2] = 0, 255
    for kind in (np.uint8, np.int16, np.float32):
        nifti(tmp_path / f"{np.dtype(kind).name}.nii.gz", label.astype(kind))
    rows = {row.path.name: row for row in found(tmp_path).rows}
    assert {row.reason_kind for row in rows.values()} == {"label map"}
    told = "label map: 256 whole values from 0 to 255; if it is a CT it was rescaled, as air is"
    assert rows["int16.nii.gz"].reason == f"{told} negative in HU"
    nifti(
        tmp_path / "more" / "ct.nii.gz",
        (2 * label + np.indices(label.shape)[2] % 2).astype(np.int16),
    )
    assert only(found(tmp_path / "more")).reason_kind == "not HU"
    # Eight bits cannot hold HU, so that a label map of this type needs no decoding to be known.
    quick = {row.path.name: row.verdict for row in found(tmp_path, quick=True).rows}
    assert quick["uint8.nii.gz"] == "refused"
    assert quick["int16.nii.gz"] == "usable"


def test_broken_files_have_rows_and_files_of_other_kinds_are_counted(tmp_path: Path) -> None:
    (tmp_path / "text.nii.gz").write_text("hello")
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "other.dcm").write_bytes(b"\x08\x00\x05\x00" + bytes(range(256)))
    (tmp_path / "other.bin").write_bytes(b"\x08\x00\x05\x00" + bytes(range(256)))
    (tmp_path / "lost.mhd").write_text("ObjectType = Image\nElementDataFile = lost.raw\n")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / ".hidden.nii").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("x")
    sample = series_of(hu_values(1))[0]
    sample.SOPClassUID = sample.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    (save([sample], tmp_path)[0]).rename(tmp_path / "DICOMDIR")
    result = found(tmp_path)
    assert {row.path.name: row.reason_kind for row in result.rows} == {
        "text.nii.gz": "unreadable",
        "empty.dcm": "unreadable",
        "other.dcm": "unreadable",
        "lost.mhd": "unreadable",
    }
    assert (result.files, result.ignored_files) == (10, 6)
    assert result.ignored_endings == {"hidden": 1, ".md": 1, ".csv": 1, ".bin": 1, "no ending": 2}


def test_truncated_and_corrupt_slices_refuse_their_series(tmp_path: Path) -> None:
    files = save(series_of(hu_values(SLICES + 1)), tmp_path)
    files[4].write_bytes(files[4].read_bytes()[:-1])
    reason = only(found(tmp_path)).reason
    assert reason.startswith("unreadable: cut short, 59 of 60 bytes of pixel data (004.dcm")
    for length in (100, 140, 300):
        files[4].write_bytes(files[3].read_bytes()[:length])
        reasons = {row.files[0].name: row.reason_kind for row in found(tmp_path).rows}
        assert reasons == {"000.dcm": "missing slices", "004.dcm": "unreadable"}


def test_files_without_preamble_and_without_meta_information_are_found(tmp_path: Path) -> None:
    for i, ds in enumerate(series_of(hu_values(SLICES))):
        del ds.file_meta
        ds.save_as(tmp_path / f"IM{i}", implicit_vr=True, little_endian=True)
    row = only(found(tmp_path))
    assert (row.verdict, row.reason, row.slices) == ("usable", "", SLICES)


def test_paths_given_twice_and_linked_folders_are_searched_once(tmp_path: Path) -> None:
    save(series_of(hu_values(SLICES)), tmp_path / "a")
    (tmp_path / "a" / "round").symlink_to(tmp_path, target_is_directory=True)
    result = found(tmp_path, tmp_path / "a", tmp_path)
    assert result.files == SLICES
    assert only(result).verdict == "usable"


def test_scanning_again_reads_only_what_changed(tmp_path: Path) -> None:
    index = tmp_path / "index.csv"
    data = tmp_path / "data"
    files = save(series_of(hu_values(SLICES)), data / "a")
    volume = nifti(data / "b.nii.gz", hu_values(SLICES, 1))
    (data / "notes.txt").write_text("x")
    first = found(data)
    save_memory(index, first.memory)
    second = found(data, previous=index)
    assert second.reused_files == second.files == SLICES + 2
    assert second.rows == first.rows
    nifti(volume, hu_values(SLICES, 2))
    files[0].unlink()
    third = found(data, previous=index)
    assert third.reused_files == SLICES
    assert third.rows == found(data).rows
    assert third.rows != first.rows
    memory_path(index).write_text("no longer JSON")
    assert found(data, previous=index).rows == third.rows


def test_worker_processes_give_the_same_rows_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.data.scan._LITTLE_BYTES", 0)
    for i in range(9):
        save(series_of(hu_values(SLICES, i), series=f"1.9.{i}"), tmp_path / str(i))
    alone, together = scan([tmp_path], workers=1), scan([tmp_path], workers=2)
    assert together.rows == alone.rows
    assert len(together.usable) == 9


def test_ids_do_not_depend_on_where_the_files_lie(tmp_path: Path) -> None:
    save(series_of(hu_values(SLICES)), tmp_path / "a" / "dicom")
    nifti(tmp_path / "a" / "ct.nii.gz", hu_values(SLICES, 1))
    before = {row.id for row in found(tmp_path / "a").rows}
    shutil.move(tmp_path / "a", tmp_path / "elsewhere")
    assert {row.id for row in found(tmp_path / "elsewhere").rows} == before


def test_an_index_comes_back_as_it_was_written_and_can_be_moved(tmp_path: Path) -> None:
    project = tmp_path / "project"
    save(series_of(hu_values(SLICES)), project / "data" / "a")
    nifti(project / "data" / "b.nii.gz", hu_values(3))
    nifti(tmp_path / "outside" / "c.nii.gz", hu_values(SLICES, 1))
    (project / "data" / "x.nii.gz").write_text("broken")
    rows = found(project, tmp_path / "outside").rows
    write_index(project / "index.csv", rows)
    assert read_index(project / "index.csv") == rows
    text = (project / "index.csv").read_text()
    assert "5x6x16,0.5x0.75x2" in text
    assert "data/b.nii.gz" in text
    assert str(project) not in text
    shutil.move(project, tmp_path / "moved")
    usable = usable_series([tmp_path / "moved" / "index.csv"])
    assert len(usable) == 2
    assert all(f.is_file() for row in usable for f in row.files)


def test_no_patient_stands_in_anything_that_is_written(tmp_path: Path) -> None:
    save(series_of(hu_values(SLICES)), tmp_path / "a")
    result = found(tmp_path)
    write_index(tmp_path / "index.csv", result.rows)
    save_memory(tmp_path / "index.csv", result.memory)
    written = "".join(p.read_text() for p in tmp_path.glob("index.*"))
    assert len(list(tmp_path.glob("index.*"))) == 3
    assert SECRET_ID not in written
    assert SECRET_NAME.split("^")[0] not in written


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def test_a_file_that_is_no_index_is_refused_with_line_and_column(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz", hu_values(SLICES))
    rows = found(tmp_path).rows

    def fresh() -> Path:
        write_index(tmp_path / "index.csv", rows)
        return tmp_path / "index.csv"

    for old, new, message in (
        ("5x6x16", "5x6", "line 2, column 'size': '5x6'"),
        ("usable", "maybe", "line 2, column 'verdict': 'maybe'"),
        ("-1000", "-1000 HU", "line 2, column 'hu_min'"),
        ("verdict", "judgement", "line 1: column 'verdict' is missing"),
    ):
        with pytest.raises(UserError, match="index") as caught:
            read_index(edited(fresh(), old, new))
        assert message in str(caught.value)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as an index"):
        read_index(tmp_path / "binary.csv")


def test_an_index_saved_by_a_spreadsheet_is_still_read(tmp_path: Path) -> None:
    save(series_of(hu_values(SLICES)), tmp_path / "a")
    rows = found(tmp_path).rows
    index = tmp_path / "index.csv"
    write_index(index, rows)
    text = index.read_text().replace(",", ";").replace("\n", "\r\n")
    index.write_text(text, encoding="utf-8-sig")
    assert read_index(index) == rows


def test_an_index_without_its_file_lists_says_what_is_missing(tmp_path: Path) -> None:
    save(series_of(hu_values(SLICES)), tmp_path / "a")
    index = tmp_path / "index.csv"
    write_index(index, found(tmp_path).rows)
    assert len([json.loads(line) for line in files_path(index).read_text().splitlines()]) == 1
    files_path(index).unlink()
    with pytest.raises(UserError, match=r"index\.files\.jsonl"):
        read_index(index)


def test_usable_series_come_from_indices_and_folders_alike(tmp_path: Path) -> None:
    save(series_of(hu_values(SLICES)), tmp_path / "a")
    nifti(tmp_path / "b" / "ct.nii.gz", hu_values(SLICES, 1))
    index = tmp_path / "index.csv"
    write_index(index, found(tmp_path / "a").rows)
    rows = usable_series([index, tmp_path / "b", tmp_path / "a"], workers=1)
    assert sorted(row.format for row in rows) == ["DICOM", "NIfTI"]


def test_without_usable_ct_the_reasons_are_counted(tmp_path: Path) -> None:
    for i in range(3):
        nifti(tmp_path / f"label{i}.nii.gz", np.full((SLICES, 4, 4), i, np.uint8))
    nifti(tmp_path / "few.nii.gz", hu_values(2))
    with pytest.raises(UserError) as caught:
        usable_series([tmp_path], workers=1)
    assert caught.value.hint == "Refused: 3 label map, 1 too few slices."
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="No DICOM, NIfTI, NRRD or MetaImage file was found"):
        usable_series([tmp_path / "empty"], workers=1)
    with pytest.raises(UserError, match="does not exist"):
        usable_series([tmp_path / "nowhere"])


def test_a_link_to_itself_and_a_pipe_do_not_hide_the_rest_of_their_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = SimpleITK.GetImageFromArray(rng.normal(0, 300, (20, 24, 24)).astype(np.int16))
    for number in range(30):
        SimpleITK.WriteImage(image + number, str(tmp_path / f"ct_{number:02d}.nii.gz"))
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe.dcm").symlink_to("pipe")
    found = scan([tmp_path], quick=True)
    assert sum(row.verdict == "usable" for row in found.rows) == 30


def spoilt_bytes(name: str) -> str:
    """A file name of which one byte is no UTF-8."""
    return os.fsdecode(name.encode() + b"\xff.nii.gz")


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_are_no_utf8_are_refused_rows_with_a_path_that_can_be_shown(
    tmp_path: Path,
) -> None:
    ct = nifti(tmp_path / "data" / "good.nii.gz", hu_values(SLICES))
    (tmp_path / "data" / os.fsdecode(b"folder\xfe")).mkdir()
    bad = tmp_path / "data" / spoilt_bytes("bad")
    ct.rename(tmp_path / "elsewhere.nii.gz").rename(bad)
    result = found(tmp_path / "data")
    assert [(r.path.name, r.verdict, r.reason_kind) for r in result.rows] == [
        (r"bad\xff.nii.gz", "refused", "unreadable"),
        (r"folder\xfe", "refused", "unreadable"),
    ]
    assert all(r.reason.endswith("rename it") for r in result.rows)
    index = tmp_path / "index.csv"
    write_index(index, result.rows)
    save_memory(index, result.memory)
    assert read_index(index) == result.rows
    for read in (lambda: read_volume([bad]), lambda: read_label(bad), lambda: found(bad)):
        with pytest.raises(UserError, match=r"bad\\xff.*valid UTF-8.*[Rr]ename") as caught:
            read()
        str(caught.value).encode()


@pytest.mark.skipif(os.name == "nt", reason="such names are not allowed there")
def test_line_breaks_and_blanks_in_names_come_back_from_the_index(tmp_path: Path) -> None:
    names = ("a\nb", "c\rd", "e\r\nf", " g ", "h\u2028i", "k\x85l", 'm"n', "o;p,q")
    for seed, name in enumerate(names):
        nifti(tmp_path / f"{name}.nii", hu_values(SLICES, seed))
    rows = found(tmp_path).rows
    assert {row.path.stem for row in rows if row.verdict == "usable"} == set(names)
    write_index(tmp_path / "index.csv", rows)
    assert read_index(tmp_path / "index.csv") == rows


def spoilt_index(
    folder: Path, *, cell: tuple[str, str] | None, item: str | dict[str, object] | None
) -> Path:
    """The index of one volume, with a changed cell or another line of file lists."""
    nifti(folder / "a.nii.gz", hu_values(SLICES))
    index = folder / "index.csv"
    write_index(index, found(folder).rows)
    if cell is not None:
        edited(index, *cell)
    if item is not None:
        line = json.loads(files_path(index).read_text())
        text = item if isinstance(item, str) else json.dumps({**line, **item})
        files_path(index).write_text(text)
    return index


@pytest.mark.parametrize(
    ("cell", "item", "said"),
    [
        (("5x6x16", "0x0x0"), None, "line 2, column 'size': '0x0x0'"),
        (("5x6x16", "-5x6x16"), None, "line 2, column 'size'"),
        (("5x6x16", ""), None, "line 2, column 'size': ''"),
        (("0.5x0.75x2", "0.5x0.75"), None, "line 2, column 'spacing_mm'"),
        (("0.5x0.75x2", "0.5x0.75xnan"), None, "line 2, column 'spacing_mm'"),
        (("0.5x0.75x2", "0.5x-1x2"), None, "line 2, column 'spacing_mm'"),
        (("-1000", "9" * 5000), None, "line 2, column 'hu_min'"),
        (("usable", ""), None, "line 2, column 'verdict': ''"),
        (("usable", "usable,,,more"), None, "line 2: 17 cells for 14 columns"),
        (("reason", "reason,notes"), None, "line 1: column 'notes' is none of an index"),
        (("reason", "reason,reason"), None, "line 1: column 'reason' stands there twice"),
        (("usable", "u" * 2_000_000), None, "line 2: field larger than field limit"),
        (None, {"files": []}, "index.files.jsonl, line 1: no file list, files is []"),
        (None, {"files": [3]}, "line 1: no file list, files is [3]"),
        (None, {"files": ["a", "b"]}, "line 2, column 'files': '1'"),
        (None, {"spacing_mm": [1, 2]}, "spacing_mm is [1, 2], not three numbers"),
        (None, {"spacing_mm": "1x2x3"}, "spacing_mm is '1x2x3'"),
        (None, {"spacing_mm": [1, 2, float("nan")]}, "spacing_mm is [1, 2, nan]"),
        (None, {"spacing_mm": [1, 2, 0]}, "spacing_mm is [1, 2, 0]"),
        (None, {"id": "other"}, "line 2: the file list of series"),
        (None, {"id": 7}, "line 1: no file list, id is 7"),
        (None, "[" * 100_000, "line 1: no file list"),
        (None, "[]", "line 1: no file list, it is no JSON object"),
    ],
)
def test_a_damaged_index_is_refused_by_line_and_field(
    tmp_path: Path, cell: tuple[str, str] | None, item: str | dict[str, object] | None, said: str
) -> None:
    index = spoilt_index(tmp_path, cell=cell, item=item)
    with pytest.raises(UserError) as caught:
        read_index(index)
    assert said in str(caught.value)
    assert "can again" in str(caught.value) or "backend scan" in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (every(value(PixelSpacing=[60, 60])), "no geometry: pixel spacing 60x60 mm is not within"),
        (every(value(PixelSpacing=[0.01, 0.5])), "no geometry: pixel spacing 0.01x0.5 mm"),
        (moved(lambda i: (0, 0, 70 * i)), "no geometry: spacing 70x0.75x0.5 mm is not within"),
        (every(value(RescaleIntercept="1e300")), "not HU: RescaleSlope 1, RescaleIntercept 1e+300"),
    ],
)
def test_numbers_that_no_scanner_writes_are_told(tmp_path: Path, spoil: Spoil, reason: str) -> None:
    files = save(spoil(series_of(hu_values(20))), tmp_path)
    row = only(found(tmp_path))
    assert row.reason.startswith(reason)
    with pytest.raises(ScanError, match=re.escape(reason)):
        read_volume(files)


@pytest.mark.parametrize(
    ("old", "new", "tag"),
    [
        (rb"0.75\0.5", rb"abcd\0.5", "PixelSpacing"),
        (b"\x53\x10DS\x04\x001.0 ", b"\x53\x10DS\x04\x001..0", "RescaleSlope"),
        (b"\x50\x00DS\x04\x002.0 ", b"\x50\x00DS\x04\x00\xb3mm ", "SliceThickness"),
        (rb"\-20.0\110", rb"\-20,0\110", "ImagePositionPatient"),
        (b"\x10\x00US\x02\x00\x06\x00", b"\x10\x00LO\x02\x00xy", "Rows"),
    ],
)
def test_text_in_place_of_a_number_is_told_by_tag_and_refuses_the_whole_series(
    tmp_path: Path, old: bytes, new: bytes, tag: str
) -> None:
    files = save(series_of(hu_values(20)), tmp_path)
    content = files[5].read_bytes()
    assert content.count(old) == 1
    files[5].write_bytes(content.replace(old, new))
    row = only(found(tmp_path))
    assert row.reason.startswith(f"unreadable: {tag} is no number")
    assert row.reason.endswith("(005.dcm; 1 of 20 files)")
    with pytest.raises(ScanError, match=f"{tag} is no number"):
        read_volume(files)


def test_one_slice_with_a_broken_position_refuses_the_whole_series(tmp_path: Path) -> None:
    slices = series_of(hu_values(20))
    with disable_value_validation():
        slices[19].ImagePositionPatient = ["-10", "-20", "1e999"]
        save(slices, tmp_path)
    row = only(found(tmp_path))
    assert len(row.files) == 20
    assert row.reason.startswith("unreadable: ImagePositionPatient is no finite number")
    assert row.reason.endswith("(019.dcm; 1 of 20 files)")


def test_two_patients_under_one_series_uid_are_never_merged(tmp_path: Path) -> None:
    slices = series_of(hu_values(20))
    for ds in slices[10:]:
        ds.PatientID = "SECRET-8"
    files = save(slices, tmp_path)
    row = only(found(tmp_path))
    assert row.verdict == "refused"
    assert row.reason.startswith("several patients: ")
    assert "SECRET" not in row.reason
    with pytest.raises(ScanError, match="several patients"):
        read_volume(files)


def test_a_file_that_brings_about_an_unexpected_error_is_one_refused_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import backend.data.scan as module

    for name in ("bad", "good"):
        nifti(tmp_path / f"{name}.nii.gz", hu_values(SLICES, seed=len(name)))

    def judged(files: tuple[Path, ...]) -> object:
        if files[0].name == "bad.nii.gz":
            raise AttributeError("no attribute 'X'\nand more")
        return read_judged(files)

    def facts(path: Path) -> object:
        if path.name == "worse.nii.gz":
            raise KeyError("Y")
        return read_facts(path)

    monkeypatch.setattr(module, "read_judged", judged)
    monkeypatch.setattr(module, "read_facts", facts)
    nifti(tmp_path / "worse.nii.gz", hu_values(SLICES))
    rows = {row.path.name: row for row in scan([tmp_path], workers=1).rows}
    assert rows["good.nii.gz"].verdict == "usable"
    assert rows["bad.nii.gz"].reason == "unreadable: unexpected AttributeError, no attribute 'X'"
    assert rows["worse.nii.gz"].reason == "unreadable: unexpected KeyError, 'Y'"
