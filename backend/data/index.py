"""The index of a project: one line per series, for people in a spreadsheet and for every command.

Beside `index.csv` lies `index.files.jsonl` with what does not fit into a cell: the files of each
series and its exact spacing.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, TypeVar

from backend.data.memory import replacing
from backend.data.scan import MIN_SLICES, scan
from backend.data.series import SeriesRow
from backend.data.tables import table_lines
from backend.errors import UserError
from backend.geometry import Index3, Vec3, index3, vec3

__all__ = ["SeriesRow", "files_path", "read_index", "usable_series", "write_index"]

COLUMNS = (
    "id", "path", "files", "patient", "modality", "format", "size", "spacing_mm", "orientation",
    "hu_min", "hu_max", "slices", "verdict", "reason",
)  # fmt: skip
"""Sizes and spacings read x, y, z as in image viewers."""

_Cell = TypeVar("_Cell")

_AGAIN = "Make it anew with: backend scan FOLDER --output index.csv"
_NEVER_EMPTY = ("id", "path", "files", "slices", "verdict")
_USABLE_HAS = ("format", "size", "spacing_mm", "orientation")
_LARGEST_COUNT = 1 << 31
_LARGEST_HU = 1 << 15


def files_path(index: Path) -> Path:
    """Where the file lists of an index lie."""
    return index.with_name(f"{index.stem}.files.jsonl")


def write_index(path: Path, rows: Sequence[SeriesRow]) -> None:
    """Write an index and its file lists, each whole or not at all.

    Paths inside the index's folder are written relative to it, so that the folder can be moved.
    """
    folder = path.resolve().parent
    with replacing(files_path(path)) as stream:
        for row in rows:
            item = {
                "id": row.id,
                "spacing_mm": row.spacing_mm,
                "files": [_shown(f, folder) for f in row.files],
            }
            stream.write(json.dumps(item) + "\n")
    with replacing(path) as stream:
        stream.write(_table([COLUMNS, *(_cells(row, folder) for row in rows)]))


def read_index(path: Path) -> list[SeriesRow]:
    """The rows of an index.

    Rows that were deleted from it, in a spreadsheet say, stay deleted.

    Raises:
        UserError: if it is no index; names line and column.
    """
    try:
        # Spreadsheets put a byte-order mark in front.
        text = path.read_bytes().decode("utf-8-sig")
        lists = _file_lists(files_path(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as an index: {error}.", _AGAIN) from error
    table = table_lines(str(path), text, columns=COLUMNS, what="an index", cure=_AGAIN)
    rows = [_Line(path, number, cells).row(lists) for number, cells in table]
    repeated = [row for row, n in Counter(r.id for r in rows).items() if n > 1]
    if repeated:
        raise UserError(f"{path}: id {repeated[0]!r} stands in several lines.", _AGAIN)
    return rows


def _table(rows: Iterable[Sequence[object]]) -> str:
    """Lines of CSV; a line break of any kind inside a cell comes back as it was."""
    text = io.StringIO(newline="")
    plain, quoted = (
        csv.writer(text, lineterminator="\n"),
        csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL),
    )
    for row in rows:
        # The plain writer leaves a lone carriage return bare.
        (quoted if any("\r" in str(cell) for cell in row) else plain).writerow(row)
    return text.getvalue()


def usable_series(
    paths: Sequence[Path], *, min_slices: int = MIN_SLICES, workers: int | None = None
) -> list[SeriesRow]:
    """The usable ones of `found_series`."""
    return usable(found_series(paths, min_slices=min_slices, workers=workers))


def usable(rows: Sequence[SeriesRow]) -> list[SeriesRow]:
    """The rows that can be used."""
    return [row for row in rows if row.verdict == "usable"]


def found_series(
    paths: Sequence[Path], *, min_slices: int = MIN_SLICES, workers: int | None = None
) -> list[SeriesRow]:
    """All series, usable or not, of indices or of folders and files scanned on the spot.

    Args:
        paths: each an index (.csv), a folder or a file.
        min_slices: for what is scanned on the spot; an index is taken as it stands.
        workers: processes for scanning; None takes one per core.

    Raises:
        UserError: if there is no usable CT, with how many were refused for which reason; if a
            path or a file of a usable series does not exist.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist.", "Check the spelling of the path.")
    indices = [p for p in paths if p.is_file() and p.suffix.lower() == ".csv"]
    folders = [p for p in paths if p not in indices]
    rows = [row for index in indices for row in read_index(index)]
    if folders:
        rows += scan(folders, min_slices=min_slices, workers=workers).rows
    rows = list({row.id: row for row in rows}.values())
    if not usable(rows):
        where = ", ".join(str(p) for p in paths)
        raise UserError(f"{where}: no usable CT series.", refusals(rows))
    for row in usable(rows):
        _check_present(row)
    return rows


def refusals(rows: Iterable[SeriesRow]) -> str:
    """How many rows were refused for which reason, in one sentence."""
    kinds = Counter(row.reason_kind for row in rows if row.verdict == "refused")
    if not kinds:
        return "No DICOM, NIfTI, NRRD or MetaImage file was found."
    counted = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    return f"Refused: {counted}."


def _check_present(row: SeriesRow) -> None:
    if not row.files[0].is_file():
        raise UserError(
            f"{row.files[0]} of series {row.id} does not exist.",
            "It was moved since the scan: scan again.",
        )


def _shown(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _cells(row: SeriesRow, folder: Path) -> list[object]:
    size = "x".join(str(n) for n in reversed(row.size)) if row.size else ""
    spacing = "x".join(_rounded(v) for v in reversed(row.spacing_mm)) if row.spacing_mm else ""
    head = [row.id, _shown(row.path, folder), len(row.files), row.patient, row.modality, row.format]
    return [
        *head, size, spacing, row.orientation, "" if row.hu_min is None else row.hu_min,
        "" if row.hu_max is None else row.hu_max, row.slices, row.verdict, row.reason,
    ]  # fmt: skip


def _rounded(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if value >= 0.001 else f"{value:.3g}"


@dataclass(frozen=True)
class _FileList:
    """One line of the file lists, checked."""

    id: str
    spacing_mm: Vec3 | None
    files: tuple[str, ...]

    @classmethod
    def parsed(cls, line: str) -> _FileList:
        """Raises ValueError with the field that is wrong."""
        item = json.loads(line)
        if not isinstance(item, dict):
            raise ValueError("it is no JSON object")
        spacing, files, name = item.get("spacing_mm"), item.get("files"), item.get("id")
        if not isinstance(name, str) or not name:
            raise ValueError(f"id is {_told(name)}")
        if not (isinstance(files, list) and files and all(_is_name(f) for f in files)):
            raise ValueError(f"files is {_told(files)}, not a list of paths")
        if spacing is not None and not _is_spacing(spacing):
            raise ValueError(f"spacing_mm is {_told(spacing)}, not three numbers above 0")
        return cls(name, None if spacing is None else vec3(spacing), tuple(files))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _is_spacing(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(v) in (int, float) and 0 < v < math.inf for v in value)
    )


def _told(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _file_lists(path: Path) -> dict[str, _FileList] | None:
    """The file lists by the id of their series, None if there is no such file."""
    if not path.is_file():
        return None
    lists: dict[str, _FileList] = {}
    # Not splitlines: it takes other characters for line ends as well.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = _FileList.parsed(line)
            if item.id in lists:
                raise ValueError(f"id {item.id!r} stands in several lines")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: no file list, {error}.", _AGAIN) from error
        lists[item.id] = item
    return lists


class _Line:
    """One line of an index, which knows how to complain about itself."""

    def __init__(self, path: Path, number: int, cells: Mapping[str, str]) -> None:
        self.path = path
        self.number = number
        # A file's name may begin or end with a blank.
        self.cells = {
            name: cells.get(name, "") if name == "path" else cells.get(name, "").strip()
            for name in COLUMNS
        }
        self.folder = path.resolve().parent

    def row(self, lists: Mapping[str, _FileList] | None) -> SeriesRow:
        """The row that the cells tell."""
        cells = self.cells
        verdict = cells["verdict"]
        if verdict not in ("usable", "refused"):
            self.complain("verdict")
        for column in (*_NEVER_EMPTY, *(_USABLE_HAS if verdict == "usable" else ())):
            if not cells[column]:
                self.complain(column)
        row = SeriesRow(
            id=cells["id"],
            path=self.folder / cells["path"],
            files=(),
            patient=cells["patient"],
            modality=cells["modality"],
            format=cells["format"],
            size=self.read("size", _size),
            spacing_mm=self.read("spacing_mm", _spacing),
            orientation=cells["orientation"],
            hu_min=self.read("hu_min", _hu),
            hu_max=self.read("hu_max", _hu),
            # Of what could not be read not even that is known.
            slices=0 if cells["slices"] == "0" and verdict == "refused" else self.slices(),
            verdict="usable" if verdict == "usable" else "refused",
            reason=cells["reason"],
        )
        return self.with_files(row, lists)

    def slices(self) -> int:
        """The number of slices."""
        return self.read("slices", _count) or 0

    def with_files(self, row: SeriesRow, lists: Mapping[str, _FileList] | None) -> SeriesRow:
        """The row with its files, and the spacing in full where the cell only rounds it."""
        item = (lists or {}).get(row.id)
        if item is not None:
            if len(item.files) != self.read("files", _count):
                self.complain("files")
            files = tuple(self.folder / name for name in item.files)
            exact = item.spacing_mm
            same = exact and [_rounded(v) for v in exact] == [
                _rounded(v) for v in row.spacing_mm or ()
            ]
            return replace(row, files=files, spacing_mm=exact if same else row.spacing_mm)
        if lists is not None or (row.verdict == "usable" and not _stands_alone(row)):
            raise UserError(
                f"{self.path}, line {self.number}: the file list of series {row.id} is missing.",
                f"Keep {files_path(self.path).name} of the same scan beside it, or scan again.",
            )
        return replace(row, files=(row.path,))

    def read(self, column: str, parse: Callable[[str], _Cell]) -> _Cell | None:
        """The value of a cell, None if it is empty."""
        if not self.cells[column]:
            return None
        try:
            return parse(self.cells[column])
        except ValueError:
            self.complain(column)

    def complain(self, column: str) -> NoReturn:
        """Raise about one cell."""
        raise UserError(
            f"{self.path}, line {self.number}, column {column!r}: "
            f"{_told(self.cells[column])} cannot be understood.",
            "Scan again, or mend the line.",
        )


def _stands_alone(row: SeriesRow) -> bool:
    """Whether the path alone tells all files of a series."""
    return row.format != "DICOM" or row.path.is_file()


def _size(text: str) -> Index3:
    x, y, z = (_count(part) for part in text.split("x"))
    return index3((z, y, x))


def _count(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if not 0 < value <= _LARGEST_COUNT:
        raise ValueError(text)
    return value


def _hu(text: str) -> int:
    """A value of int16."""
    value = int(text)
    if abs(value) > _LARGEST_HU:
        raise ValueError(text)
    return value


def _spacing(text: str) -> Vec3:
    x, y, z = (float(part) for part in text.split("x"))
    if not all(0 < v < math.inf for v in (x, y, z)):
        raise ValueError(text)
    return vec3((z, y, x))
