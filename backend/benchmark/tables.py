"""The tables that a benchmark fills arm by arm, continues from and reports.

They are written whole, and a row's place follows from what it says: whoever finishes first, and
after however many stops, the table is the same. What somebody has changed in them since, so that
it cannot be what was written, is refused: a number that is not ours must not pass for one.
"""

from __future__ import annotations

import csv
import io
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import get_args

from filelock import FileLock

from backend.data.tables import table_lines
from backend.errors import UserError
from backend.files import write_text
from backend.metrics import Status

Row = Mapping[str, str]

COUNTED: tuple[Status, ...] = ("ok", "missed")
"""Of an organ that the reference has: which those are does not depend on the arm."""

END_TO_END, FROZEN = "end to end", "frozen"
"""Modes of an arm: all of its network learns, or the encoder stays as it is."""


@dataclass(frozen=True)
class Kind:
    """What the cells of a column may say.

    Attributes:
        told: in words, behind "is not".
        form: what fits as a whole.
        most: the largest number; None where cells are words. An empty cell is none.
    """

    told: str
    form: re.Pattern[str]
    most: float | None = None

    def fits(self, cell: str) -> bool:
        """Whether a column of this kind may hold a cell."""
        if not self.form.fullmatch(cell):
            return False
        return self.most is None or not cell or float(cell) <= self.most


_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?"
_TEXT = Kind("a text", re.compile(".+", re.DOTALL))
_ANY = Kind("a text", re.compile(".*", re.DOTALL))
_WHOLE = Kind("a whole number", re.compile("0|[1-9][0-9]*"), most=2**31)
_WHOLE_OR_NONE = Kind("a whole number or nothing", re.compile("|0|[1-9][0-9]*"), most=2**31)
_AMOUNT = Kind("a number from 0 on", re.compile(_NUMBER), most=sys.float_info.max)
_AMOUNT_OR_NONE = Kind("a number from 0 on or nothing", re.compile(f"|{_NUMBER}"), _AMOUNT.most)
_SHARE = Kind("a number from 0 to 1", re.compile(_NUMBER), most=1)
_SHARE_OR_NONE = Kind("a number from 0 to 1 or nothing", re.compile(f"|{_NUMBER}"), most=1)
_KEY = Kind("a key of twelve digits and letters a to f", re.compile("[0-9a-f]{12}"))


def _one_of(*words: str) -> Kind:
    return Kind(f"one of {', '.join(words)}", re.compile("|".join(map(re.escape, words))))


def _nothing(_: Row) -> str:
    return ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """What a table holds.

    Attributes:
        kinds: of each column; the last is `key`, the same for all rows of one arm.
        once: columns in which no two rows are alike.
        cure: of a table that is not what was written.
        younger: columns that older tables lack; there they are empty.
        lacking: the column that is empty in a row although its other cells call for it, or "".
    """

    kinds: Mapping[str, Kind]
    once: tuple[str, ...]
    cure: str
    younger: tuple[str, ...] = ()
    lacking: Callable[[Row], str] = _nothing

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(self.kinds)

    def problem(self, row: Row) -> str:
        """What in a row nobody here has written, or ""."""
        if "key" not in row:
            return f"has {len(row)} of {len(self.kinds)} cells, so it is cut off"
        for column, kind in self.kinds.items():
            cell = row.get(column, "")
            if column in row and not kind.fits(cell):
                return f"{column} = {reprlib.repr(cell)} is not {kind.told}"
        column = self.lacking(row)
        return f"{column} is empty, and the status is {row['status']}" if column else ""


def _unmeasured(row: Row) -> str:
    """The overlap that an organ of the reference lacks; background has none of its surface."""
    if row["status"] not in COUNTED or row["value"] == "0":
        return ""
    return next((column for column in ("dice", "iou", "surface_dice") if not row[column]), "")


_ARM: Mapping[str, Kind] = {
    "start": _TEXT,
    "network": _TEXT,
    "mode": _one_of(END_TO_END, FROZEN),
    "labels": _WHOLE,
    "seed": _WHOLE,
}
"""What tells arms apart: name of the start, its network, mode, number of labelled scans, seed."""

RESULTS = Layout(
    kinds={
        **_ARM,
        **{"case": _TEXT, "organ": _TEXT, "value": _WHOLE},
        **{"dice": _SHARE_OR_NONE, "iou": _SHARE_OR_NONE},
        **dict.fromkeys(("hd_mm", "hd95_mm", "asd_mm"), _AMOUNT_OR_NONE),
        **{"surface_dice": _SHARE_OR_NONE, "tolerance": _AMOUNT},
        **dict.fromkeys(("volume_pred_ml", "volume_ref_ml"), _AMOUNT),
        **{"status": _one_of(*get_args(Status)), "key": _KEY},
    },
    once=("key", "case", "value"),
    cure="Restore the file, or remove it: what runs/ still holds is then only judged again.",
    lacking=_unmeasured,
)
CURVES = Layout(
    kinds={**_ARM, "step": _WHOLE, "dice": _SHARE, "key": _KEY},
    once=("key", "step"),
    cure="Restore the file, or remove it: the report then lacks the curves it held.",
)
RUNS = Layout(
    kinds={
        **{"run": _TEXT, "kind": _one_of("arm", "pretraining"), "seconds": _AMOUNT},
        **{"device": _TEXT, "processor": _ANY, "threads": _WHOLE_OR_NONE},
        **{"backend": _TEXT, "torch": _TEXT, "commit": _ANY, "key": _KEY},
    },
    once=("key",),
    cure="Restore the file, or remove it: the report then lacks the times it held.",
    younger=("processor", "threads", "commit"),
)


@dataclass(frozen=True)
class Table:
    """A CSV file.

    Attributes:
        path: of the file; need not exist.
        layout: what it holds.
    """

    path: Path
    layout: Layout

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names, in order."""
        return self.layout.columns

    def lines(self) -> Sequence[tuple[int, Row]]:
        """Number in the file and cells of all rows; none if there is no file yet.

        Raises:
            UserError: naming line, column and value, if it is another table, or is not as it was
                written.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return ()
        return _understood(self, content)

    def rows(self) -> list[Row]:
        """All rows.

        Raises:
            UserError: see `lines`.
        """
        return [row for _, row in self.lines()]

    def refused(self, line: int, problem: str) -> UserError:
        """The error of a line that is not as it was written."""
        return UserError(f"{self.path}, line {line}: {problem}.", self.layout.cure)

    def put(self, key: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Add the rows of an arm, in place of those it had; other processes may add theirs.

        Raises:
            ResourceError: if the disk does not take it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            kept = [row for row in self.rows() if row["key"] != key]
            added = [{c: str(row.get(c, "")) for c in self.columns} | {"key": key} for row in rows]
            ordered = sorted([*kept, *added], key=self._place)
            write_text(self.path, csv_text(self.columns, ordered))

    def _place(self, row: Row) -> tuple[tuple[float, str], ...]:
        return tuple(_order(row[column]) for column in self.columns)


# Whoever watches over a benchmark looks every second, and next to never has anything changed.
@lru_cache(maxsize=8)
def _understood(table: Table, content: bytes) -> Sequence[tuple[int, Row]]:
    """The rows that the bytes of a table say, each checked."""
    layout = table.layout
    lines = table_lines(
        str(table.path),
        _text(table, content),
        columns=[column for column in layout.columns if column not in layout.younger],
        optional=layout.younger,
        what="a table of this benchmark",
        cure=layout.cure,
    )
    seen: dict[tuple[str, ...], int] = {}
    for number, row in lines:
        if problem := layout.problem(row):
            raise table.refused(number, problem)
        before = seen.setdefault(tuple(row[column] for column in layout.once), number)
        if before != number:
            told = ", ".join(f"{column} {row[column]}" for column in layout.once)
            raise table.refused(number, f"{told} stands in line {before} already")
    return [(n, {column: row.get(column, "") for column in layout.columns}) for n, row in lines]


def _text(table: Table, content: bytes) -> str:
    """The text of a table that is there as a whole; spreadsheets put a byte-order mark in front."""
    last = content.count(b"\n") + 1
    if not content:
        raise table.refused(last, "the file is empty")
    if not content.endswith(b"\n"):
        raise table.refused(last, "does not end, so the file is cut off")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = f"0x{content[error.start]:02x}"
        raise table.refused(line, f"byte {byte} is no text in UTF-8") from None


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as the text of a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _order(cell: str) -> tuple[float, str]:
    """Numbers by their size, before words."""
    return (float(cell), "") if cell.isdecimal() else (float("inf"), cell)
