"""Whether verdicts on real fine-tunings hold: of a start against itself, with a gain or without."""

from __future__ import annotations

from pathlib import Path

import pytest
from calibration import COMPARISONS, TABLE, compared, flagged
from published_results import RESULTS, read_rows

from backend.benchmark.plan import read_plan

GAIN = 0.05

committed = pytest.mark.parametrize(
    "table", [TABLE] if TABLE.exists() else [], ids=lambda p: p.name
)
"""Nothing can be said before the fine-tunings were run."""


def _shipped_seeds() -> int:
    plans = (RESULTS.parent / f"{name}.yaml" for name in ("phantom", "hn"))
    return min(len(read_plan(plan).seeds) for plan in plans)


@committed
def test_of_twenty_comparisons_of_a_start_with_itself_at_most_two_are_flagged(table: Path) -> None:
    found = flagged(read_rows(table), seeds=_shipped_seeds(), gain=0.0)
    assert len(found) <= 2, found


@committed
def test_five_points_of_dice_are_found_at_least_eighteen_times_in_twenty(table: Path) -> None:
    assert len(flagged(read_rows(table), seeds=_shipped_seeds(), gain=GAIN)) >= 18


@committed
def test_each_comparison_is_paired_over_cases_and_not_over_structures(table: Path) -> None:
    rows = read_rows(table)
    made = [difference for difference, _ in compared(rows, seeds=_shipped_seeds(), gain=GAIN)]
    assert len(made) == COMPARISONS
    assert {found.cases for found in made} == {len({row["case"] for row in rows})}
    assert len({found.mean for found in made}) == COMPARISONS
