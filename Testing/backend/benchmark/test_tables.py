"""Tables that somebody has changed: refused with line, column and value, or made whole again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmark_plans import result_row

from backend.benchmark.tables import CURVES, RESULTS, RUNS, Layout, Table
from backend.errors import UserError

KEY = "0123456789ab"
CURVE = "SMIT,swin,end to end,1,0,3,0.5"
RUN = "smit,arm,5.0,cpu,EPYC,1,0.1.0,2.13.0,abc"

Change = Callable[[str], str]


def _to(column: str, cell: str) -> Change:
    """Another cell in the last line of results."""
    place = RESULTS.columns.index(column)

    def change(text: str) -> str:
        *before, last = text.splitlines()
        cells = last.split(",")
        return "\n".join([*before, ",".join([*cells[:place], cell, *cells[place + 1 :]]), ""])

    return change


def _twice(text: str) -> str:
    return text + text.splitlines()[-1].replace("0.5", "0.6") + "\n"


def _written(path: Path, layout: Layout = RESULTS) -> str:
    table = Table(path, layout)
    columns = layout.columns
    rows = {
        RESULTS: [result_row(), result_row(case="b", organ="bone", value="2")],
        CURVES: [dict(zip(columns, CURVE.split(","), strict=False))],
        RUNS: [dict(zip(columns, RUN.split(","), strict=False))],
    }
    table.put(KEY, rows[layout])
    return path.read_text()


CHANGED: dict[str, tuple[Change, str]] = {
    "cut in the middle of a line": (lambda text: text[: -len(KEY) - 9], "3: does not end"),
    "cut, and its end mended": (lambda text: text[: -len(KEY) - 9] + "\n", "3: has 15 of 19 cells"),
    "last key cut short": (lambda text: text[:-4] + "\n", "3: key = '012345678' is not a key"),
    "a row twice": (_twice, f"4: key {KEY}, case b, value 2 stands in line 3 already"),
    "empty": (lambda _: "", "1: the file is empty"),
    "another table": (lambda _: "case,dice\na,0.5\n", "1: column 'start' is missing"),
    "dice above 1": (_to("dice", "7"), "3: dice = '7' is not a number from 0 to 1"),
    "dice nan": (_to("dice", "nan"), "3: dice = 'nan' is not"),
    "dice missing": (_to("dice", ""), "3: dice is empty, and the status is ok"),
    "distance endless": (_to("hd_mm", "1e999"), "3: hd_mm = '1e999' is not"),
    "decimal comma": (_to("dice", '"0,5"'), "3: dice = '0,5' is not"),
    "unknown status": (_to("status", "good"), "3: status = 'good' is not one of ok, absent"),
    "unknown mode": (_to("mode", "linear"), "3: mode = 'linear' is not one of end to end, frozen"),
    "text for a seed": (_to("seed", "zero"), "3: seed = 'zero' is not a whole number"),
    "no case": (_to("case", ""), "3: case = '' is not a text"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_table_that_cannot_be_what_was_written_is_refused_with_its_line(
    kind: str, tmp_path: Path
) -> None:
    change, told = CHANGED[kind]
    path = tmp_path / "results.csv"
    path.write_text(change(_written(path)))
    with pytest.raises(UserError, match=re.escape(f"results.csv, line {told}")) as caught:
        Table(path, RESULTS).rows()
    assert "Restore the file, or remove it" in caught.value.hint


@pytest.mark.parametrize(
    ("layout", "old", "new", "told"),
    [
        (CURVES, ",0.5,", ",high,", "dice = 'high' is not a number from 0 to 1"),
        (CURVES, ",3,", ",3.5,", "step = '3.5' is not a whole number"),
        (RUNS, ",5.0,", ",long,", "seconds = 'long' is not a number from 0 on"),
        (RUNS, ",arm,", ",leg,", "kind = 'leg' is not one of arm, pretraining"),
    ],
)
def test_the_other_tables_are_held_to_their_columns_as_well(
    layout: Layout, old: str, new: str, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    path.write_text(_written(path, layout).replace(old, new))
    with pytest.raises(UserError, match=re.escape(f"line 2: {told}")):
        Table(path, layout).rows()


def test_a_byte_that_is_no_text_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(_written(path).encode().replace(b"bone", b"b\xffne"))
    with pytest.raises(UserError, match="line 3: byte 0xff is no text in UTF-8"):
        Table(path, RESULTS).rows()


def test_a_table_that_a_spreadsheet_has_saved_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    text = _written(path)
    before = Table(path, RESULTS).rows()
    path.write_text(text.replace("\n", "\r\n").replace(",", ";"), encoding="utf-8-sig", newline="")
    assert Table(path, RESULTS).rows() == before
    assert [row["case"] for row in before] == ["a", "b"]
