"""What scores of cases and seeds allow to be said, and no more.

A difference between two starts is one for cases and seeds that were not drawn, so both count as
drawn at random. Of n cases and m seeds, each score already the mean over the organs of a case, the
squared standard error of a mean is taken as

    var(mean of each case) / n + var(mean of each seed) / m,

which holds what varies between case and seed together twice and so errs on the careful side. Its
degrees of freedom are Welch's and Satterthwaite's. Cases alone would not do: a network that turned
out well by chance is better on all of them.

Three seeds tell little of the second part. For a difference it is therefore estimated from all
starts of one network: what is left of their means by seed, once start and seed are taken off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Scores = Mapping[tuple[str, int], float]
"""Mean over the organs of a case, by case and seed."""

LEVEL = 0.05
"""A difference is shown where chance alone would bring it up less often."""

SEEDS_TO_FIND = 5
"""With fewer, a gain of 0.05 Dice is often missed (docs/benchmark.md, from real fine-tunings)."""

_EXACT_CASES = 16
_DRAWN_FLIPS = 1 << _EXACT_CASES


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval; no interval where a single case or seed tells of no other.

    Attributes:
        mean: over all cases and seeds.
        low: lower end of the interval.
        high: upper end.
        cases: how many.
        seeds: how many.
    """

    mean: float
    low: float | None
    high: float | None
    cases: int
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """One start minus another, on the same cases and seeds.

    Attributes:
        p: how often chance alone brings up as much (t-test, cases and seeds drawn at random).
        p_cases: the same over these networks' cases alone (exact sign-flip test of case means).
        better: cases in which the first is better.
    """

    p: float | None
    p_cases: float
    better: int


def estimate(scores: Scores) -> Estimate:
    """Mean and interval of one start."""
    table = _table(scores)
    cases, seeds = table.shape
    by_seed = _Part(_variance(table.mean(axis=0)) / seeds, seeds - 1)
    error = _error(_cases_part(table), by_seed)
    mean = float(table.mean())
    low, high = _interval(mean, error)
    return Estimate(mean=mean, low=low, high=high, cases=cases, seeds=seeds)


def difference(first: Scores, second: Scores, beside: Sequence[Scores] = ()) -> Difference:
    """First minus second, case by case and seed by seed.

    Args:
        first: scores of a start.
        second: of another.
        beside: of further starts of the same network, which tell how much seeds differ.

    Raises:
        ValueError: if they were not scored on the same cases with the same seeds.
    """
    if any(other.keys() != first.keys() for other in (second, *beside)):
        raise ValueError("paired scores are of the same cases and seeds")
    tables = [_table(scores) for scores in (first, second, *beside)]
    table = tables[0] - tables[1]
    error = _error(_cases_part(table), _seeds_part(tables))
    mean = float(table.mean())
    low, high = _interval(mean, error)
    of_cases = table.mean(axis=1)
    return Difference(
        mean=mean,
        low=low,
        high=high,
        cases=table.shape[0],
        seeds=table.shape[1],
        p=_two_sided(mean, error),
        p_cases=sign_flip(of_cases),
        better=int((of_cases > 0).sum()),
    )


class _Part(NamedTuple):
    """A part of a squared standard error, and its degrees of freedom."""

    squared: float
    freedom: float


def _table(scores: Scores) -> Floats:
    """Scores as (cases, seeds); every case has every seed."""
    cases = sorted({case for case, _ in scores})
    seeds = sorted({seed for _, seed in scores})
    return np.array([[scores[case, seed] for seed in seeds] for case in cases], dtype=np.float64)


def _variance(values: Floats) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _cases_part(table: Floats) -> _Part:
    cases = table.shape[0]
    return _Part(_variance(table.mean(axis=1)) / cases, cases - 1)


def _seeds_part(tables: Sequence[Floats]) -> _Part:
    """Of the difference of two starts: twice the mean square of start and seed together."""
    means = np.array([table.mean(axis=0) for table in tables])
    starts, seeds = means.shape
    freedom = (starts - 1) * (seeds - 1)
    left = means - means.mean(axis=0) - means.mean(axis=1, keepdims=True) + means.mean()
    return _Part(2 * float((left**2).sum()) / max(freedom, 1) / seeds, freedom)


def _error(*parts: _Part) -> _Part | None:
    """Squared standard error of a mean; None where a single case or seed tells of no other."""
    if any(part.freedom < 1 for part in parts):
        return None
    squared = sum(part.squared for part in parts)
    spread = sum(part.squared**2 / part.freedom for part in parts)
    return _Part(squared, squared**2 / spread if spread > 0 else min(p.freedom for p in parts))


def _interval(mean: float, error: _Part | None) -> tuple[float, float] | tuple[None, None]:
    if error is None:
        return None, None
    reach = float(stats.t.ppf(1 - LEVEL / 2, error.freedom)) * math.sqrt(error.squared)
    return mean - reach, mean + reach


def _two_sided(mean: float, error: _Part | None) -> float | None:
    if error is None:
        return None
    if error.squared == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / math.sqrt(error.squared), error.freedom))


def sign_flip(differences: Floats) -> float:
    """How often as large a sum comes up where every difference might as well have the other sign.

    Exact up to 16 differences; of more, as many flips are drawn, always the same ones.

    Args:
        differences: (n), one for each case.
    """
    sums = np.abs(_signs(len(differences)) @ differences)
    # Sums of the same numbers in another order differ in their last digits.
    return float((sums >= sums[0] * (1 - 1e-9)).mean())


def cases_at_least() -> int:
    """With fewer cases chance alone often brings up signs that are all alike."""
    return next(n for n in range(1, _EXACT_CASES) if sign_flip(np.ones(n)) < LEVEL)


@cache
def _signs(count: int) -> Floats:
    """1 or -1 for each of `count` differences, one row for each flip; the first flips none."""
    if count <= _EXACT_CASES:
        bits = np.arange(1 << count)[:, None] >> np.arange(count) & 1
    else:
        bits = np.random.default_rng(0).integers(2, size=(_DRAWN_FLIPS, count))
        # What was found is one of the possible flips, so that no p is 0.
        bits[0] = 0
    return 1.0 - 2.0 * bits.astype(np.float64)


def holm(values: Sequence[float]) -> list[float]:
    """p-values after Holm's correction for as many comparisons (Scand. J. Statist. 6, 1979)."""
    order = sorted(range(len(values)), key=values.__getitem__)
    steps = (values[k] * (len(values) - place) for place, k in enumerate(order))
    corrected = dict(zip(order, accumulate(steps, max), strict=True))
    return [min(1.0, corrected[k]) for k in range(len(values))]


def is_shown(found: Difference, corrected: float | None) -> bool:
    """Whether a difference is shown: beyond chance in cases and seeds, and by the cases alone.

    Args:
        found: the comparison.
        corrected: its p after correction for all that were made; None where there is none.
    """
    return corrected is not None and corrected < LEVEL and found.p_cases < LEVEL
