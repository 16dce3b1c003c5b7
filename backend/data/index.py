"""The index of a project: one line per series, for people in a spreadsheet and for every command.

Beside `index.csv` lies `index.files.jsonl` with what does not fit into a cell: the files of each
series and its exact spacing.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from backend.data.memory import replacing
from backend.data.scan import MIN_SLICES, scan
from backend.data.series import SeriesRow
from backend.errors import UserError
from backend.geometry import Index3, Vec3, index3, vec3

__all__ = ["SeriesRow", "files_path", "read_index", "usable_series", "write_index"]

COLUMNS = (
    "id", "path", "files", "patient", "modality", "format", "size", "spacing_mm", "orientation",
    "hu_min", "hu_max", "slices", "verdict", "reason",
)  # fmt: skip
"""Sizes and spacings read x, y, z as in image viewers."""

_Cell = TypeVar("_Cell")


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
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(_cells(row, folder) for row in rows)


def read_index(path: Path) -> list[SeriesRow]:
    """The rows of an index.

    Rows that were deleted from it, in a spreadsheet say, stay deleted.

    Raises:
        UserError: if it is no index; names line and column.
    """
    try:
        # Spreadsheets put a byte-order mark in front and, in half of Europe, semicolons between.
        text = path.read_text(encoding="utf-8-sig")
        lists = _file_lists(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as an index: {error}.") from error
    header = text.split("\n", maxsplit=1)[0]
    delimiter = ";" if header.count(";") > header.count(",") else ","
    table = csv.DictReader(text.splitlines(), delimiter=delimiter)
    missing = [name for name in COLUMNS if name not in (table.fieldnames or [])]
    if missing:
        raise UserError(
            f"{path}, line 1: column {missing[0]!r} is missing, so this is no index.",
            "Make one with: backend scan FOLDER --output index.csv",
        )
    rows = [_Line(path, table.line_num, cells).row(lists) for cells in table]
    repeated = [row for row, n in Counter(r.id for r in rows).items() if n > 1]
    if repeated:
        raise UserError(f"{path}: id {repeated[0]!r} stands in several lines.", "Scan again.")
    return rows


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


def _file_lists(index: Path) -> dict[str, dict[str, Any]]:
    path = files_path(index)
    if not path.is_file():
        return {}
    lists: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            item = json.loads(line)
            lists[item["id"]] = {"files": list(item["files"]), "spacing_mm": item["spacing_mm"]}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: no file list.", "Scan again.") from error
    return lists


class _Line:
    """One line of an index, which knows how to complain about itself."""

    def __init__(self, path: Path, number: int, cells: Mapping[str | None, Any]) -> None:
        self.path = path
        self.number = number
        self.cells = {name: str(cells.get(name) or "").strip() for name in COLUMNS}
        self.folder = path.resolve().parent

    def row(self, lists: Mapping[str, Mapping[str, Any]]) -> SeriesRow:
        """The row that the cells tell."""
        cells = self.cells
        if not cells["id"]:
            self.complain("id")
        verdict = cells["verdict"]
        if verdict not in ("usable", "refused"):
            self.complain("verdict")
        row = SeriesRow(
            id=cells["id"],
            path=self.folder / (cells["path"] or self.complain("path")),
            files=(),
            patient=cells["patient"],
            modality=cells["modality"],
            format=cells["format"],
            size=self.read("size", _size),
            spacing_mm=self.read("spacing_mm", _spacing),
            orientation=cells["orientation"],
            hu_min=self.read("hu_min", int),
            hu_max=self.read("hu_max", int),
            slices=self.read("slices", int) or 0,
            verdict="usable" if verdict == "usable" else "refused",
            reason=cells["reason"],
        )
        return self.with_files(row, lists.get(row.id))

    def with_files(self, row: SeriesRow, item: Mapping[str, Any] | None) -> SeriesRow:
        """The row with its files, and the spacing in full where the cell only rounds it."""
        if item is not None:
            files = tuple(self.folder / str(name) for name in item["files"])
            exact = vec3(item["spacing_mm"]) if item["spacing_mm"] else None
            same = exact and [_rounded(v) for v in exact] == [
                _rounded(v) for v in row.spacing_mm or ()
            ]
            return replace(row, files=files, spacing_mm=exact if same else row.spacing_mm)
        if row.format == "DICOM" and row.verdict == "usable" and not row.path.is_file():
            raise UserError(
                f"{self.path}, line {self.number}: the file list of series {row.id} is missing.",
                f"Keep {files_path(self.path).name} beside the index, or scan again.",
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
            f"{self.cells[column]!r} cannot be understood.",
            "Scan again, or mend the line.",
        )


def _size(text: str) -> Index3:
    x, y, z = text.split("x")
    return index3((int(z), int(y), int(x)))


def _spacing(text: str) -> Vec3:
    x, y, z = text.split("x")
    return vec3((float(z), float(y), float(x)))
