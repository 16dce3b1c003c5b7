"""The tables that a benchmark fills arm by arm, continues from and reports.

They are written whole, and a row's place follows from what it says: whoever finishes first, and
after however many stops, the table is the same.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from backend.data.tables import table_lines
from backend.evaluate import COLUMNS as SCORED
from backend.files import write_text

Row = Mapping[str, str]

ARM = ("start", "network", "mode", "labels", "seed")
"""What tells arms apart: name of the start, its network, mode, number of labelled scans, seed."""

RESULTS = (*ARM, *SCORED, "key")
CURVES = (*ARM, "step", "dice", "key")
RUNS = (
    *("run", "kind", "seconds", "device", "processor", "threads", "backend", "torch", "commit"),
    "key",
)
YOUNGER = ("processor", "threads", "commit")
"""Of the columns of runs, those that older tables lack."""


@dataclass(frozen=True)
class Table:
    """A CSV file with columns and a key for all rows of one arm.

    Attributes:
        path: of the file; need not exist.
        columns: the last is `key`.
        younger: those of them that older tables lack; there they are empty.
    """

    path: Path
    columns: tuple[str, ...]
    younger: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, str]]:
        """All rows; none if there is no file yet.

        Raises:
            UserError: naming line and column, if it is another table.
        """
        if not self.path.exists():
            return []
        lines = table_lines(
            str(self.path),
            self.path.read_text("utf-8"),
            columns=[column for column in self.columns if column not in self.younger],
            optional=self.younger,
            what="a table of this benchmark",
            cure="Restore it, or remove it: what it holds is then made again.",
        )
        return [{column: row.get(column, "") for column in self.columns} for _, row in lines]

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
