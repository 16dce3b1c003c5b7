"""Which arms are done, and what is known of them, by the rows that tables have of their keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from backend.benchmark.cases import Cases
from backend.benchmark.grid import Arm
from backend.benchmark.tables import Row, Table
from backend.evaluate import BACKGROUND


def arm_cells(arm: Arm) -> dict[str, str]:
    """What every row of an arm says of it."""
    return {
        "start": arm.start.entry.name,
        "network": arm.start.network,
        "mode": arm.mode,
        "labels": str(len(arm.cases)),
        "seed": str(arm.seed),
    }


def own_rows(table: Table, grid: Sequence[Arm], cases: Cases) -> list[Row]:
    """Rows of the arms of a grid; those of other plans that share the table are left out.

    The names of start and network are those that the plan has by now: a key does not depend on
    them, so an entry may be renamed.

    Raises:
        UserError: naming line, column and value, if a row is not as it was written, or says of its
            arm what its key contradicts.
    """
    of_key = {arm.key: arm for arm in grid}
    judged = {
        "case": {case.id for case in cases.test},
        "organ": {label.name for label in (BACKGROUND, *cases.labels)},
    }
    names = {str(label.value): label.name for label in (BACKGROUND, *cases.labels)}
    rows: list[Row] = []
    for number, row in table.lines():
        if (arm := of_key.get(row["key"])) is None:
            continue
        cells = arm_cells(arm)
        known = {column: {cells[column]} for column in ("mode", "labels", "seed")} | judged
        if column := _contradicted(row, known) or _impossible(row, arm, names):
            told = f"{column} = {row[column]!r} does not belong to the key {arm.key}"
            raise table.refused(number, f"{told} ({arm})")
        rows.append({**row, **cells})
    return rows


def _contradicted(row: Row, known: Mapping[str, set[str]]) -> str:
    """The column whose cell is none of the known ones, or ""."""
    return next((c for c, cells in known.items() if c in row and row[c] not in cells), "")


def _impossible(row: Row, arm: Arm, names: Mapping[str, str]) -> str:
    """The column whose cell cannot stand beside the others of its row, or ""."""
    if "value" in row and names.get(row["value"]) != row["organ"]:
        return "value"
    if row.get("status") == "absent" and float(row["volume_ref_ml"] or 0) > 0:
        return "status"
    steps = arm.start.finetune.train.max_steps
    return "step" if "step" in row and steps is not None and int(row["step"]) > steps else ""


def finished(results: Iterable[Row], cases: Cases) -> set[str]:
    """Keys of the arms that have a row for every test case and organ."""
    values = [label.value for label in (BACKGROUND, *cases.labels)]
    wanted = {(case.id, str(value)) for case in cases.test for value in values}
    judged: dict[str, set[tuple[str, str]]] = {}
    for row in results:
        judged.setdefault(row["key"], set()).add((row["case"], row["value"]))
    return {key for key, places in judged.items() if places >= wanted}
