"""What a run folder holds, read tolerantly: files may be missing, the last record torn."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backend.charts import Curve
from backend.engine.record import as_it_is
from backend.errors import UserError

_NO_CURVE = frozenset({"step", "epoch", "time_s"})


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run folder holds, as far as it is there."""

    path: Path
    config: Mapping[str, Any]
    status: Mapping[str, Any]
    curves: Mapping[str, Curve]
    seconds: float | None
    broken_lines: int

    def find(self, *names: str) -> Any:
        """The first value under one of these keys, at any depth, status before configuration."""
        return _find([self.status, self.config], names)


def read_run(run: Path) -> RunFiles:
    """Read status, configuration and metrics of a run folder; each of them may be missing.

    Raises:
        UserError: if the folder is not there or holds neither status.json nor config.json.
    """
    config, status = _read_json(run / "config.json"), as_it_is(_read_json(run / "status.json"))
    if not config and not status:
        raise UserError(
            f"{run} is no run folder: it has neither status.json nor config.json.",
            "Give the --output folder of a pretraining or fine-tuning.",
        )
    records, broken = read_metrics(run / "metrics.jsonl")
    times = [r["time_s"] for r in records if _is_number(r.get("time_s"))]
    return RunFiles(
        path=run, config=config, status=status, curves=curves_of(records),
        seconds=float(max(times)) if times else None, broken_lines=broken,
    )  # fmt: skip


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON ({error}).", "Restore the file.") from None
    return values if isinstance(values, dict) else {}


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a metrics.jsonl, and how many lines before the last could not be read.

    A last line that is torn is a write in progress and is not counted.
    """
    if not path.is_file():
        return [], 0
    records: list[dict[str, Any]] = []
    broken = 0
    lines = [line for line in path.read_text("utf-8", errors="replace").splitlines() if line]
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            broken += number < len(lines)
            continue
        if isinstance(record, dict) and _is_number(record.get("step")):
            records.append(record)
        else:
            broken += 1
    return records, broken


def curves_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Every recorded number over the steps, by its key, in the order of first appearance.

    A null stands for a number that was not finite: JSON has no word for it.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for key, value in record.items():
            if key not in _NO_CURVE and (value is None or _is_number(value)):
                number = math.nan if value is None else float(value)
                points.setdefault(key, []).append((float(record["step"]), number))
    result = {}
    for key, pairs in points.items():
        steps, values = np.array(sorted(pairs, key=lambda pair: pair[0])).T
        result[key] = Curve(name=key, steps=steps, values=values)
    return result


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _find(trees: Sequence[Any], names: Sequence[str]) -> Any:
    level = [tree for tree in trees if isinstance(tree, Mapping)]
    while level:
        for name in names:
            for tree in level:
                if tree.get(name) not in (None, ""):
                    return tree[name]
        level = [v for tree in level for v in tree.values() if isinstance(v, Mapping)]
    return None
