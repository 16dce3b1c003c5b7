from __future__ import annotations

import pytest

from backend.preparation import spaced


@pytest.mark.parametrize(
    ("total", "looks"),
    [
        (1, [1]),
        (4, [4]),
        (20, [10, 20]),
        (25, [10, 20, 25]),
        (150, list(range(15, 151, 15))),
        (405, [41, 82, 123, 164, 205, 246, 287, 328, 369, 405]),
    ],
)
def test_looks_are_spread_over_a_run_and_never_crowd_a_short_one(
    total: int, looks: list[int]
) -> None:
    every = spaced(total, times=10)
    # The rule of the loop: every so many steps, and at the last.
    assert [s for s in range(1, total + 1) if s % every == 0 or s == total] == looks
