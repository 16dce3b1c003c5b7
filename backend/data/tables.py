"""Lines of the CSV files that people give, with every cell under a column that is known."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from backend.errors import UserError

_LARGEST_CELL = 1 << 20


def table_lines(
    source: str,
    text: str,
    *,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    what: str,
    cure: str,
) -> list[tuple[int, dict[str, str]]]:
    """Number and cells of every line below the header; blank lines are left out.

    Commas or, as spreadsheets in half of Europe write them, semicolons stand between the cells.
    Case and blanks round the name of a column do not count.

    Args:
        source: stands in messages.
        text: the content of the file.
        columns: those that must be there, in lower case.
        optional: those that may be.
        what: the table should be, with its article.
        cure: the hint of every error.

    Raises:
        UserError: naming line and column, if a column is missing, unknown or given twice, or a
            cell stands under none.
    """
    header = text.split("\n", maxsplit=1)[0]
    delimiter = ";" if header.count(";") > header.count(",") else ","
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    former = csv.field_size_limit(_LARGEST_CELL)
    try:
        names = [name.strip().casefold() for name in next(table, [])]
        if problem := _header_problem(names, columns, optional, what=what):
            raise UserError(f"{source}, line 1: {problem}.", cure)
        lines = []
        for cells in table:
            if problem := _line_problem(names, cells):
                raise UserError(f"{source}, line {table.line_num}: {problem}.", cure)
            if any(cells):
                lines.append((table.line_num, dict(zip(names, cells, strict=False))))
    except csv.Error as error:
        raise UserError(f"{source}, line {table.line_num}: {error}.", cure) from error
    finally:
        csv.field_size_limit(former)
    return lines


def _header_problem(
    names: Sequence[str], columns: Sequence[str], optional: Sequence[str], *, what: str
) -> str:
    """Why a header lacks a column, or has one of which nothing is known; "" if it is sound."""
    known = (*columns, *optional)
    for problem, odd in (
        (f"is missing, so this is not {what}", [n for n in columns if n not in names]),
        (f"is none of {what}", [n for n in names if n and n not in known]),
        ("stands there twice", [n for n in known if names.count(n) > 1]),
    ):
        if odd:
            return f"column {odd[0][:40]!r} {problem}"
    return ""


def _line_problem(names: Sequence[str], cells: Sequence[str]) -> str:
    """Why a line has a cell that no column names, "" if it has none."""
    if any(cells[len(names) :]):
        return f"{len(cells)} cells for {len(names)} columns"
    nameless = [c for name, c in zip(names, cells, strict=False) if c.strip() and not name]
    return f"{nameless[0][:40]!r} stands under no column's name" if nameless else ""
