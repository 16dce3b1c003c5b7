"""Whether verdicts on real fine-tunings hold: of a start against itself, and with a gain planted.

The fine-tunings are those of `Testing/benchmarks/calibration.yaml`, all from random weights and
from the same scans, so that nothing but chance tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from published_results import RESULTS, Row, read_rows

from backend.benchmark.grid import control_name
from backend.benchmark.plan import read_plan
from backend.benchmark.summary import Finding, findings

PLANS = RESULTS.parent
COMPARISONS, GAIN = 20, 0.05
AGAIN = "the same again"

committed = pytest.mark.parametrize(
    "tables", [path.parent for path in RESULTS.glob("calibration/results.csv")]
)
"""Nothing can be said before the fine-tunings were run."""


def _groups(seeds: list[str], size: int) -> Iterator[list[str]]:
    """So many seeds at a time; once all were had, they are drawn anew in another order."""
    rng = np.random.default_rng(0)
    order = seeds
    while True:
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]
        order = [str(seed) for seed in rng.permutation(seeds)]


def _as_start(rows: list[Row], name: str, seeds: list[str], *, gain: float) -> list[Row]:
    """The fine-tunings of some seeds as those of a start, every organ better by a gain."""
    return [
        {
            **row,
            "start": name,
            "seed": str(seeds.index(row["seed"])),
            "dice": str(np.clip(float(row["dice"]) + gain, 0, 1)) if row["dice"] else "",
        }
        for row in rows
        if row["seed"] in seeds
    ]


def _compared(rows: list[Row], *, seeds: int, gain: float) -> list[Finding]:
    """Twenty comparisons of a start with itself, half of the seeds each, one side with a gain."""
    control = control_name(rows[0]["network"])
    found = []
    have = sorted({row["seed"] for row in rows}, key=int)
    for group in islice(_groups(have, 2 * seeds), COMPARISONS):
        given = _as_start(rows, control, group[:seeds], gain=0.0)
        given += _as_start(rows, AGAIN, group[seeds:], gain=gain)
        found += [f for f in findings(given, metric="dice", order=[control, AGAIN]) if f.against]
    return found


def _shipped_seeds() -> int:
    return min(len(read_plan(PLANS / f"{name}.yaml").seeds) for name in ("phantom", "hn"))


@committed
def test_of_twenty_comparisons_of_a_start_with_itself_at_most_two_are_flagged(tables: Path) -> None:
    found = _compared(read_rows(tables / "results.csv"), seeds=_shipped_seeds(), gain=0.0)
    assert len(found) == COMPARISONS
    assert sum(f.shown for f in found) <= 2, [f.against for f in found if f.shown]


@committed
def test_five_points_of_dice_planted_are_found_in_at_least_eighteen_of_twenty(tables: Path) -> None:
    found = _compared(read_rows(tables / "results.csv"), seeds=_shipped_seeds(), gain=GAIN)
    assert len(found) == COMPARISONS
    missed = [f.against for f in found if not (f.shown and f.against and f.against.mean > 0)]
    assert len(missed) <= 2, missed


@committed
def test_the_unit_is_the_case(tables: Path) -> None:
    rows = read_rows(tables / "results.csv")
    (first, *_) = _compared(rows, seeds=_shipped_seeds(), gain=0.0)
    assert first.against is not None
    assert first.against.cases == len({row["case"] for row in rows})
