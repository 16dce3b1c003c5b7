"""Reads what `backend scan` writes: the index, the file lists beside it, and its progress."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import NoReturn, TypeVar

from SSLPretrainLogic.errors import LogicError, told_plainly
from SSLPretrainLogic.files import same_path
from SSLPretrainLogic.project import Project, from_text, source_paths, to_text

Triple = tuple[float, float, float]

USUAL_SPACING_MM: Triple = (1.5, 1.5, 2.0)
"""(x, y, z) that most presets bring scans to; the cache is estimated with it."""

_CACHE_BYTES_PER_VOXEL = 1.5
_CACHE_BYTES_PER_SCAN = 1 << 16
_COLUMNS = {
    "id", "path", "files", "patient", "modality", "format", "size", "spacing_mm", "slices",
    "verdict", "reason",
}  # fmt: skip
_AGAIN = "Scan the folders again."
_LOG_BYTES = 1 << 12
_MOST = 1 << 30
_LONGEST_MM = 1e6
_BAR = re.compile(
    r"(?P<what>[A-Z][\w ]*): +\d+%\|[^|]*\| *(?P<done>\d+)/(?P<total>\d+) "
    r"\[[\d:?]+<(?P<left>[\d:?]+)"
)
_Cell = TypeVar("_Cell")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of an index.

    Attributes:
        id: short, the same wherever the files lie.
        path: the file, or the folder that holds its files; absolute.
        files: how many there are.
        patient: a hash; no name.
        modality: as DICOM writes it, "" where the format does not say.
        format: "DICOM", "NIfTI", "NRRD" or "MetaImage", "" if it could not be read.
        size: voxels along (x, y, z), None if unknown.
        spacing_mm: along (x, y, z), None if unknown.
        slices: how many.
        usable: whether it can be learnt from.
        reason: why not, "kind: details"; "" if it is usable.
    """

    id: str
    path: Path
    files: int
    patient: str
    modality: str
    format: str
    size: tuple[int, int, int] | None
    spacing_mm: Triple | None
    slices: int
    usable: bool
    reason: str

    @property
    def title(self) -> str:
        """The end of its path, which is where series differ."""
        return "/".join(self.path.parts[-2:])

    @property
    def kind(self) -> str:
        """The reason in a word or two."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True, kw_only=True)
class Range:
    """The lowest and the highest value along each axis."""

    low: Triple
    high: Triple


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What an index holds; ranges and bytes are those of the usable series.

    Attributes:
        usable: how many can be learnt from.
        refused: how many cannot.
        patients: of the usable ones.
        spacing_mm: None if none is usable.
        size: voxels; None if none is usable.
        cache_bytes: disk for the preprocessed scans at `USUAL_SPACING_MM`, on the safe side.
    """

    usable: int
    refused: int
    patients: int
    spacing_mm: Range | None
    size: Range | None
    cache_bytes: int


@dataclass(frozen=True, kw_only=True)
class ScanProgress:
    """How far a scan is.

    Attributes:
        what: what is being done, e.g. "Reading headers".
        done: files or series done.
        total: of so many.
        left: time left of this part, as "01:30"; "" while it is unknown.
    """

    what: str
    done: int
    total: int
    left: str


def read_index(index: Path) -> Iterator[Series]:
    """The lines of an index, one at a time, as a table of many takes a while to show.

    Raises:
        LogicError: if it cannot be read or is none; names line and column.
    """
    try:
        text = index.read_text("utf-8-sig")
    except OSError as error:
        raise told_plainly(error, index) from error
    except UnicodeDecodeError:
        raise LogicError(f"{index}: is no index.", _AGAIN) from None
    # Spreadsheets put semicolons between in half of Europe.
    header = text.partition("\n")[0]
    delimiter = ";" if header.count(";") > header.count(",") else ","
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")
    try:
        if missing := _COLUMNS - set(rows.fieldnames or ()):
            column = min(missing)
            raise LogicError(f"{index}: is no index, column {column!r} is missing.", _AGAIN)
        for cells in rows:
            yield _Line(index, rows.line_num, cells).series()
    except csv.Error as error:
        raise LogicError(f"{index}, line {rows.line_num}: {error}.", _AGAIN) from error


class _Line:
    def __init__(self, index: Path, number: int, cells: dict[str, str]) -> None:
        self._index, self._number, self._cells = index, number, cells

    def series(self) -> Series:
        cells = self._cells
        if cells["verdict"] not in ("usable", "refused"):
            self._complain("verdict")
        return Series(
            id=cells["id"] or self._complain("id"),
            path=self._index.parent / (cells["path"] or self._complain("path")),
            files=self._read("files", _count) or 0,
            patient=cells["patient"],
            modality=cells["modality"],
            format=cells["format"],
            size=self._read("size", _size),
            spacing_mm=self._read("spacing_mm", _spacing),
            slices=self._read("slices", _count) or 0,
            usable=cells["verdict"] == "usable",
            reason=cells["reason"],
        )

    def _read(self, column: str, parse: Callable[[str], _Cell]) -> _Cell | None:
        try:
            return parse(self._cells[column]) if self._cells[column] else None
        except ValueError:
            self._complain(column)

    def _complain(self, column: str) -> NoReturn:
        told = self._cells[column][:40]
        raise LogicError(f"{self._index}, line {self._number}: {column} is {told!r}.", _AGAIN)


def _size(text: str) -> tuple[int, int, int]:
    x, y, z = (_count(part) for part in text.split("x"))
    return x, y, z


def _count(text: str) -> int:
    if not 0 <= int(text) <= _MOST:
        raise ValueError(text)
    return int(text)


def _spacing(text: str) -> Triple:
    x, y, z = (float(part) for part in text.split("x"))
    if not all(0 < value < _LONGEST_MM for value in (x, y, z)):
        raise ValueError(text)
    return x, y, z


def files_of(series: Series, index: Path) -> tuple[Path, ...]:
    """The files of a series, in the order in which the scan found them.

    Args:
        series: a line of the index.
        index: its path; the file lists lie beside it.

    Raises:
        LogicError: if they are not there any more.
    """
    files = _listed(series, index.with_name(f"{index.stem}.files.jsonl"))
    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None:
        raise LogicError(f"{missing}: is not there any more.", _AGAIN)
    return files


def _listed(series: Series, lists: Path) -> tuple[Path, ...]:
    # Lines are long: only the right one is parsed.
    begin = json.dumps({"id": series.id}).rstrip("}")
    try:
        with lists.open(encoding="utf-8") as stream:
            line = next((line for line in stream if line.startswith(begin)), "")
        if line:
            return tuple(lists.parent / str(name) for name in json.loads(line)["files"])
    except (OSError, ValueError, KeyError, TypeError):
        line = ""
    if series.path.is_dir():
        raise LogicError(f"{lists}: does not tell the files of {series.id}.", _AGAIN)
    return (series.path,)


def summarise(series: Iterable[Series]) -> Summary:
    """What an index holds."""
    every = list(series)
    usable = [one for one in every if one.usable]
    return Summary(
        usable=len(usable),
        refused=len(every) - len(usable),
        patients=len({one.patient for one in usable}),
        spacing_mm=_range([one.spacing_mm for one in usable if one.spacing_mm]),
        size=_range([one.size for one in usable if one.size]),
        cache_bytes=sum(_cache_bytes(one) for one in usable),
    )


def _range(values: Sequence[tuple[float, ...]]) -> Range | None:
    if not values:
        return None
    low, high = ([pick(axis) for axis in zip(*values, strict=True)] for pick in (min, max))
    return Range(low=(low[0], low[1], low[2]), high=(high[0], high[1], high[2]))


def _cache_bytes(series: Series) -> int:
    if series.size is None or series.spacing_mm is None:
        return 0
    voxels = math.prod(series.size) * math.prod(series.spacing_mm) / math.prod(USUAL_SPACING_MM)
    return int(voxels * _CACHE_BYTES_PER_VOXEL) + _CACHE_BYTES_PER_SCAN


def told_bytes(count: float) -> str:
    """A number of bytes for people, e.g. "3.1 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def scan_progress(log: Path) -> ScanProgress | None:
    """What a scan told last in its log, None if it told nothing yet."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - _LOG_BYTES))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return None
    # What was told last counts.
    found = list(_BAR.finditer(text))
    if not found:
        return None
    last = found[-1]
    return ScanProgress(
        what=last["what"],
        done=int(last["done"]),
        total=int(last["total"]),
        left="" if "?" in last["left"] else last["left"],
    )


def scanned_at(index: Path) -> datetime | None:
    """When an index was written, None if there is none."""
    try:
        return datetime.fromtimestamp(index.stat().st_mtime, UTC)
    except OSError:
        return None


def scanned_sources(argv: Sequence[str]) -> tuple[str, ...]:
    """What a scan was asked to search, as `Project.sources` has it.

    Args:
        argv: of its job; it may have run where the project lay elsewhere.
    """
    words = list(argv)
    if "scan" not in words or "--output" not in words:
        return ()
    paths = takewhile(lambda word: not word.startswith("--"), words[words.index("scan") + 1 :])
    folder = Path(words[words.index("--output") + 1]).parent
    then = Project(folder=folder, name="", created="")
    return tuple(to_text(then, Path(path)) for path in paths)


def changed_sources(project: Project, *, scanned: Sequence[str]) -> tuple[Path, ...]:
    """Folders that were added, removed or written to since the index was made.

    Only a folder itself is looked at, not those below it: that would take as long as a scan.

    Args:
        project: whose index it is.
        scanned: see `scanned_sources`; empty if that is not known.
    """
    moment = scanned_at(project.index)
    if moment is None:
        return ()
    differing = set(scanned) ^ set(project.sources) if scanned else set()
    changed = [from_text(project, text) for text in sorted(differing)]
    for path in source_paths(project):
        written = scanned_at(path)
        if written is not None and written > moment and path not in changed:
            changed.append(path)
    return tuple(changed)


def new_sources(project: Project, paths: Iterable[Path]) -> tuple[Path, ...]:
    """The paths that a project does not search yet.

    Raises:
        LogicError: if one is not there, or holds the project.
    """
    known = list(source_paths(project))
    fresh: list[Path] = []
    for path in paths:
        if not path.exists():
            raise LogicError(f"{path}: is not there.", "Choose a folder that exists.")
        if project.folder.is_relative_to(path):
            raise LogicError(
                f"{path}: holds the project itself, whose own pictures would count as scans.",
                "Choose the folders of the scans alone.",
            )
        if not any(path.is_relative_to(one) or same_path(path, one) for one in known + fresh):
            fresh.append(path)
    return tuple(fresh)
