"""Whether the verdict claims what is not there, or misses what is: simulated with known truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from backend.benchmark.statistics import (
    Difference,
    Scores,
    difference,
    estimate,
    holm,
    is_shown,
    sign_flip,
)

CASES_SD, RUN_SD, REST_SD = 0.08, 0.01, 0.02
"""Of Dice: between cases; between fine-tunings, the same in all cases; of each case in each."""
COMPARISONS = 100


def _start(
    rng: np.random.Generator, *, cases: np.ndarray, seeds: int, shift: float, run_sd: float = RUN_SD
) -> Scores:
    """Dice of a start: each case's own difficulty, each fine-tuning's luck, and the rest."""
    luck = rng.normal(0, run_sd, seeds)
    rest = rng.normal(0, REST_SD, (len(cases), seeds))
    dice = np.clip(0.65 + shift + cases[:, None] + luck + rest, 0, 1)
    return {(f"case_{c:02}", s): float(d) for (c, s), d in np.ndenumerate(dice)}


def _compared(*, cases: int, seeds: int, shift: float, run_sd: float = RUN_SD) -> list[Difference]:
    """So many comparisons of two starts of a network, a third beside them."""
    rng = np.random.default_rng([cases, seeds])
    found = []
    for _ in range(COMPARISONS):
        own = rng.normal(0, CASES_SD, cases)
        first, second, third = (
            _start(rng, cases=own, seeds=seeds, shift=by, run_sd=run_sd) for by in (shift, 0, 0)
        )
        found.append(difference(first, second, [third]))
    return found


@pytest.mark.parametrize("run_sd", [0.0, RUN_SD, 0.03])
@pytest.mark.parametrize(("cases", "seeds"), [(8, 3), (8, 5), (12, 3), (15, 3)])
def test_comparisons_of_a_start_with_itself_are_flagged_less_often_than_two_in_twenty(
    cases: int, seeds: int, run_sd: float
) -> None:
    found = _compared(cases=cases, seeds=seeds, shift=0.0, run_sd=run_sd)
    assert np.mean([is_shown(d, d.p) for d in found]) < 2 / 20


@pytest.mark.parametrize("shift", [0.05, -0.05])
@pytest.mark.parametrize(("cases", "seeds"), [(8, 5), (12, 3), (15, 3)])
def test_five_points_of_dice_are_found_at_least_eighteen_times_in_twenty(
    cases: int, seeds: int, shift: float
) -> None:
    found = _compared(cases=cases, seeds=seeds, shift=shift)
    assert np.mean([is_shown(d, d.p) and d.mean * shift > 0 for d in found]) >= 18 / 20


def test_cases_alone_would_take_a_lucky_fine_tuning_for_a_better_start() -> None:
    found = _compared(cases=15, seeds=3, shift=0.0, run_sd=0.03)
    assert np.mean([d.p_cases < 0.05 for d in found]) > 4 / 20


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    found = [d for n in (8, 12) for d in _compared(cases=n, seeds=3, shift=0.05)]
    held = [d.low <= 0.05 <= d.high for d in found if d.low is not None and d.high is not None]
    assert len(held) == 2 * COMPARISONS
    assert np.mean(held) > 0.9


def test_sign_flips_agree_with_a_count_by_hand() -> None:
    values = np.array([0.03, -0.01, 0.02, 0.05, 0.04])
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=5)
    ]
    assert sign_flip(values) == np.mean([total >= 0.13 - 1e-9 for total in sums])
    # Seven that agree come up by chance in two of 128 ways.
    assert sign_flip(np.full(7, 0.1)) == 2 / 128
    assert sign_flip(np.zeros(4)) == 1.0
    assert 0 < sign_flip(np.full(40, 0.1)) < 1e-4


def test_without_differences_between_seeds_only_cases_count() -> None:
    cases = np.array([0.02, 0.05, -0.01, 0.04, 0.03])
    first = {(f"c{k}", s): 0.5 + float(d) for k, d in enumerate(cases) for s in (0, 1, 2)}
    second = dict.fromkeys(first, 0.5)
    found = difference(first, second)
    assert found.mean == pytest.approx(cases.mean())
    assert found.p == pytest.approx(stats.ttest_1samp(cases, 0).pvalue)
    assert (found.cases, found.seeds, found.better) == (5, 3, 4)


def test_a_single_seed_or_case_tells_of_no_other() -> None:
    for places in ([("a", 0), ("b", 0), ("c", 0)], [("a", 0), ("a", 1)]):
        high, low = dict.fromkeys(places, 0.9), dict.fromkeys(places, 0.1)
        found = difference(high, low)
        assert (found.low, found.high, found.p) == (None, None, None)
        assert not is_shown(found, found.p)
        assert estimate(high).low is None


def test_a_unanimous_difference_of_few_cases_is_not_shown() -> None:
    first = {(f"c{k}", s): 0.9 for k in range(5) for s in range(3)}
    found = difference(first, dict.fromkeys(first, 0.1))
    assert found.p is not None
    assert found.p < 1e-20
    # Five that agree come up by chance in 2 of 32 ways.
    assert not is_shown(found, found.p)


def test_other_cases_or_seeds_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="the same cases and seeds"):
        difference({("a", 0): 0.5}, {("a", 1): 0.5})


def test_holm_follows_by_hand() -> None:
    # In order 0.01, 0.02, 0.04, times 3, 2, 1; a larger one is never less than one before it.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
