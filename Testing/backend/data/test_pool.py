from __future__ import annotations

import os

import pytest

from backend.data.pool import map_in_processes

CULPRIT = 7


def square_or_die(number: int) -> int:
    if number == CULPRIT:
        os._exit(1)
    return number * number


def crashed(number: int) -> int:
    return -number


@pytest.mark.slow
def test_an_item_that_kills_its_process_costs_nothing_but_its_own_result() -> None:
    results = map_in_processes(square_or_die, range(12), on_crash=crashed, workers=2)
    assert list(results) == [-n if n == CULPRIT else n * n for n in range(12)]


@pytest.mark.slow
def test_what_must_be_apart_never_works_in_the_callers_process() -> None:
    results = map_in_processes(square_or_die, [CULPRIT], on_crash=crashed, workers=1, apart=True)
    assert list(results) == [-CULPRIT]


def test_results_come_in_order_and_one_worker_needs_no_process() -> None:
    here = map_in_processes(lambda n: (n, os.getpid()), range(9), on_crash=lambda n: n, workers=1)
    assert list(here) == [(n, os.getpid()) for n in range(9)]
