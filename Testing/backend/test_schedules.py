from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest

from backend.schedules import cosine, halving, linear_warmup, polynomial, warmed_up

FALLS: dict[str, Callable[[float], float]] = {
    "cosine": partial(cosine, 1.0, 0.0),
    "polynomial": polynomial,
    "halving": partial(halving, every=0.3),
}


def test_cosine_meets_its_ends_exactly_and_its_middle() -> None:
    assert cosine(0.996, 1.0, 0.0) == pytest.approx(0.996, abs=1e-15)
    assert cosine(0.996, 1.0, 1.0) == 1.0
    assert cosine(0.996, 1.0, 0.5) == pytest.approx(0.998)
    for step in range(11):
        wanted = 1 - (1 - 0.996) * (math.cos(math.pi * step / 10) + 1) / 2
        assert cosine(0.996, 1.0, step / 10) == pytest.approx(wanted)


def test_cosine_stays_at_its_ends_beyond_them() -> None:
    assert cosine(2.0, 5.0, -0.1) == 2.0
    assert cosine(2.0, 5.0, 1.1) == 5.0


def test_linear_warmup_rises_over_its_share_and_is_constant_around_it() -> None:
    values = [linear_warmup(0.04, 0.07, p / 20, share=0.25, delay=0.5) for p in range(21)]
    assert values[:11] == [0.04] * 11
    assert values[10:16] == pytest.approx([0.04 + 0.03 * i / 5 for i in range(6)])
    assert values[15:] == pytest.approx([0.07] * 6)


def test_linear_warmup_without_length_is_a_step() -> None:
    assert linear_warmup(1.0, 2.0, 0.49, share=0.0, delay=0.5) == 1.0
    assert linear_warmup(1.0, 2.0, 0.5, share=0.0, delay=0.5) == 2.0
    assert linear_warmup(1.0, 2.0, 0.0, share=0.0) == 2.0


def test_learning_rate_rises_linearly_then_falls_along_half_a_cosine() -> None:
    total, warmup, peak = 50, 0.2, 3e-4
    for step in range(total):
        if step < 10:
            wanted = peak * (step + 1) / 10
        else:
            wanted = peak * (1 + math.cos(math.pi * (step - 10) / 40)) / 2
        rate = warmed_up(peak, step, total=total, warmup=warmup, fall=FALLS["cosine"])
        assert rate == pytest.approx(wanted)


@pytest.mark.parametrize("fall", FALLS)
@pytest.mark.parametrize("warmup", [0.0, 0.013, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_learning_rate_is_never_0_nor_above_its_peak_and_reaches_it(
    total: int, warmup: float, fall: str
) -> None:
    rates = [
        warmed_up(1.0, step, total=total, warmup=warmup, fall=FALLS[fall]) for step in range(total)
    ]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == pytest.approx(1.0)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_halving_halves_when_another_span_has_passed_also_where_thirds_round() -> None:
    assert [halving(n / 10, every=0.1) for n in range(5)] == [1, 0.5, 0.25, 0.125, 0.0625]
    assert [halving(n / 3, every=1 / 3) for n in range(4)] == [1, 0.5, 0.25, 0.125]
    assert halving(0.0999, every=0.1) == 1
    assert halving(0.5, every=2.0) == 1


def test_polynomial_falls_from_1_to_0_as_in_nnu_net() -> None:
    for step in range(11):
        assert polynomial(step / 10) == pytest.approx((1 - step / 10) ** 0.9)
    assert (polynomial(-0.1), polynomial(1.1)) == (1.0, 0.0)
