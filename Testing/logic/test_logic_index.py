"""What the backend's scan writes, read again without the backend."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import pytest

from backend.data.cache import Cache
from backend.data.index import write_index
from backend.data.preprocess import Recipe
from backend.data.series import SeriesRow
from backend.progress import progress
from SSLPretrainLogic.commands import ScanRequest, words
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.index import (
    USUAL_SPACING_MM,
    Range,
    changed_sources,
    files_of,
    new_sources,
    read_index,
    scan_progress,
    scanned_sources,
    summarise,
    told_bytes,
)
from SSLPretrainLogic.project import Project, create_project, with_sources


def row(folder: Path, number: int, *, reason: str = "") -> SeriesRow:
    """A line of an index; sizes and spacings (z, y, x) differ with the number."""
    path = folder / f"ct {number}, ä.nii.gz"
    path.touch()
    return SeriesRow(
        id=f"s{number}",
        path=path,
        files=(path,),
        patient=f"p{number % 2}",
        modality="",
        format="NIfTI",
        size=(30 + number, 20, 10),
        spacing_mm=(2.5, 1.0, 0.5 + number),
        orientation="LPS",
        hu_min=-1000,
        hu_max=1000,
        slices=30 + number,
        verdict="refused" if reason else "usable",
        reason=reason,
    )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with an index of two usable series and a refused one."""
    made = create_project(tmp_path / "project")
    scans = made.folder / "scans"
    scans.mkdir()
    rows = [row(scans, 1), row(scans, 2), row(scans, 3, reason="label map: 8-bit, none below 0")]
    write_index(made.index, rows)
    return made


def test_an_index_is_read_as_it_was_written(project: Project) -> None:
    first, second, third = read_index(project.index)
    assert (first.id, first.title, first.usable) == ("s1", "scans/ct 1, ä.nii.gz", True)
    assert first.path == project.folder / "scans" / "ct 1, ä.nii.gz"
    assert second.size == (10, 20, 32)
    assert second.spacing_mm == (2.5, 1.0, 2.5)
    assert (third.usable, third.kind) == (False, "label map")
    assert files_of(first, project.index) == (first.path,)


def test_a_spreadsheet_may_have_saved_it(project: Project) -> None:
    before = list(read_index(project.index))
    with project.index.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    with project.index.open("w", encoding="utf-8-sig", newline="") as stream:
        csv.writer(stream, delimiter=";").writerows(rows)
    assert list(read_index(project.index)) == before


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("10x20x31", "10x20", "line 2: size is '10x20'"),
        ("1.5x1x2.5", "1.5x0x2.5", "line 2: spacing_mm is '1.5x0x2.5'"),
        ("usable", "perhaps", "line 2: verdict is 'perhaps'"),
        ("s1", "", "line 2: id is ''"),
        ("verdict", "opinion", "column 'verdict' is missing"),
    ],
)
def test_a_damaged_index_is_refused_with_line_and_column(
    project: Project, before: str, after: str, told: str
) -> None:
    text = project.index.read_text("utf-8")
    assert before in text
    project.index.write_text(text.replace(before, after, 1), "utf-8")
    with pytest.raises(LogicError, match=told.replace("'", ".")):
        list(read_index(project.index))


def test_no_text_and_no_file_are_refused(project: Project) -> None:
    project.index.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LogicError, match="is no index"):
        list(read_index(project.index))
    project.index.unlink()
    with pytest.raises(LogicError, match=r"index\.csv"):
        list(read_index(project.index))


def test_files_that_are_gone_are_named(project: Project) -> None:
    first = next(read_index(project.index))
    first.path.unlink()
    with pytest.raises(LogicError, match="is not there any more"):
        files_of(first, project.index)


def test_a_folder_of_files_needs_its_list(project: Project) -> None:
    scans = project.folder / "scans"
    slices = tuple(scans / f"{name}.dcm" for name in ("b", "a"))
    for file in slices:
        file.touch()
    original = row(scans, 1)
    series = SeriesRow(**{**vars(original), "path": scans, "files": slices, "format": "DICOM"})
    write_index(project.index, [series])
    (found,) = read_index(project.index)
    assert found.files == 2
    assert files_of(found, project.index) == slices
    project.index.with_name("index.files.jsonl").unlink()
    with pytest.raises(LogicError, match="does not tell the files of s1"):
        files_of(found, project.index)


def test_the_summary_counts_what_is_usable_and_estimates_as_the_cache_does(
    project: Project,
) -> None:
    found = summarise(read_index(project.index))
    assert (found.usable, found.refused, found.patients) == (2, 1, 2)
    assert found.size == Range(low=(10, 20, 31), high=(10, 20, 32))
    assert found.spacing_mm == Range(low=(1.5, 1.0, 2.5), high=(2.5, 1.0, 2.5))
    x, y, z = USUAL_SPACING_MM
    cache = Cache(project.cache, Recipe(spacing_mm=(z, y, x)))
    usable = [row(project.folder / "scans", number) for number in (1, 2)]
    assert found.cache_bytes == cache.estimate_bytes(usable)
    assert summarise([]).spacing_mm is None


def test_the_progress_of_a_scan_is_read_from_its_own_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log.txt"
    assert scan_progress(log) is None
    with log.open("w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        list(progress(range(3), what="Reading headers", unit="files"))
        bar = progress(range(4000), what="Decoding", unit="series")
        next(bar)
        stream.flush()
        told = scan_progress(log)
        assert told is not None
        assert (told.what, told.done, told.total, told.left) == ("Decoding", 0, 4000, "")
        list(bar)
    told = scan_progress(log)
    assert told is not None
    assert (told.what, told.done, told.total, told.left) == ("Decoding", 4000, 4000, "00:00")


def test_it_is_told_what_has_changed_since_the_scan(project: Project, tmp_path: Path) -> None:
    inside, outside = project.folder / "scans", tmp_path / "archive"
    outside.mkdir()
    project = with_sources(project, (inside,))
    argv = ("python", "-m", "backend", *words(ScanRequest(paths=(inside,), output=project.index)))
    scanned = scanned_sources(argv)
    assert scanned == project.sources
    os.utime(inside, (1, 1))
    os.utime(outside, (1, 1))
    assert changed_sources(project, scanned=scanned) == ()
    both = with_sources(project, (inside, outside))
    assert changed_sources(both, scanned=scanned) == (outside,)
    # What was asked is not known, but a folder has a newer file.
    later = project.index.stat().st_mtime + 10
    os.utime(inside, (later, later))
    assert changed_sources(both, scanned=()) == (inside,)
    assert scanned_sources(("python", "-m", "backend", "pretrain")) == ()


def test_a_project_that_moved_after_its_scan_has_not_changed() -> None:
    before = Project(folder=Path.cwd() / "elsewhere", name="", created="")
    request = ScanRequest(paths=(before.folder / "scans",), output=before.index)
    assert scanned_sources(words(request)) == ("scans",)


def test_only_folders_that_are_new_and_apart_from_the_project_are_added(
    project: Project, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    (archive / "2024").mkdir(parents=True)
    assert new_sources(project, (archive, archive / "2024")) == (archive,)
    project = with_sources(project, (archive,))
    assert new_sources(project, (archive / "2024",)) == ()
    with pytest.raises(LogicError, match="holds the project itself"):
        new_sources(project, (tmp_path,))
    with pytest.raises(LogicError, match="is not there"):
        new_sources(project, (tmp_path / "nowhere",))


@pytest.mark.parametrize(
    ("count", "told"), [(12, "12 bytes"), (48_200_000, "48.2 MB"), (3.1e12, "3.1 TB")]
)
def test_bytes_are_told_for_people(count: float, told: str) -> None:
    assert told_bytes(count) == told
