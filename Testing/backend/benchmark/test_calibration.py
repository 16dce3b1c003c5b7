"""Whether verdicts on real fine-tunings hold: of a start against itself, with a gain or without."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from calibration import COMPARISONS, SEEDS, STARTS, TABLE, compared, flagged
from published_results import Row, read_rows

from backend.benchmark.statistics import SEEDS_TO_FIND

GAIN = 0.05


@pytest.fixture(scope="module")
def rows() -> Sequence[Row]:
    """Of the committed fine-tunings."""
    return read_rows(TABLE)


@pytest.mark.parametrize("starts", STARTS)
@pytest.mark.parametrize("seeds", SEEDS)
def test_of_twenty_comparisons_of_a_start_with_itself_at_most_two_are_flagged(
    seeds: int, starts: int, rows: Sequence[Row]
) -> None:
    found = flagged(rows, seeds=seeds, starts=starts, gain=0.0)
    assert len(found) <= 2, found


@pytest.mark.parametrize("starts", STARTS)
def test_five_points_of_dice_are_found_at_least_eighteen_times_in_twenty(
    starts: int, rows: Sequence[Row]
) -> None:
    found = flagged(rows, seeds=SEEDS_TO_FIND, starts=starts, gain=GAIN)
    assert len(found) >= 18


def test_each_comparison_is_paired_over_cases_and_not_over_structures(
    rows: Sequence[Row],
) -> None:
    made = [difference for difference, _ in compared(rows, seeds=SEEDS_TO_FIND, gain=GAIN)]
    assert len(made) == COMPARISONS
    assert {found.cases for found in made} == {len({row["case"] for row in rows})}
    assert len({found.mean for found in made}) == COMPARISONS
