"""Progress in a log: a few plain lines, however long the work."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from backend.progress import progress, progress_bar


class Clock:
    """A time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.mark.parametrize(
    ("seconds_each", "gaps"),
    [(0.01, (0, 2)), (1.0, (5, 20)), (600.0, (600, 600))],
    ids=["quick", "minutes", "days"],
)
def test_a_log_gets_the_start_the_end_and_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds_each: float,
    gaps: tuple[float, float],
) -> None:
    clock, told = Clock(monkeypatch), []
    for number in progress(range(200), what="Reading", unit="file"):
        clock.now += seconds_each
        told += [number] * capsys.readouterr().err.count("\n")
    last = capsys.readouterr().err
    assert told[0] == 0
    assert last.startswith("Reading: 100%|##########| 200/200 [")
    between = [seconds_each * (b - a) for a, b in pairwise(told)]
    assert all(gaps[0] <= gap <= gaps[1] for gap in between)
    assert bool(between) is (seconds_each >= 1)


def test_a_day_of_quick_steps_is_told_once_a_minute_in_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with progress_bar(total=86_400, what="Pretraining", unit="step") as bar:
        for _ in range(7200):
            clock.now += 1
            bar.update()
        hours = capsys.readouterr().err.splitlines()
        for _ in range(600):
            clock.now += 1
            bar.update()
        assert len(capsys.readouterr().err.splitlines()) == 10
    assert 60 < len(hours) < 160
    assert not any(set("\r\x1b") & set(line) for line in hours)


def test_work_inside_other_work_is_told_only_if_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    for seconds_each, lines in ((0.1, 0), (3.0, 2)):
        bar = progress_bar(total=4, what="Validating", unit="scan")
        bar.leave = False
        with bar:
            for _ in range(4):
                clock.now += seconds_each
                bar.update()
        assert capsys.readouterr().err.count("\n") == lines
