from __future__ import annotations

import subprocess
import sys
import threading
import time
from itertools import islice

import pytest

from backend.data.stall import StallWatch
from backend.data.stream import Batches, Position, position, stream
from backend.errors import ResourceError


def _whole(position: Position) -> Position:
    return position


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(("batch_size", "first_step"), [(1, 0), (2, 3), (100, 1)])
def test_batches_follow_from_the_seed_alone_however_they_are_read(
    workers: int, batch_size: int, first_step: int
) -> None:
    batches = stream(
        *(_whole, Batches(samples=5, size=batch_size, seed=3)),
        first_step=first_step,
        workers=workers,
    )
    first = first_step * batch_size
    expected = [position(p, samples=5, seed=3) for p in range(first, first + 4 * batch_size)]
    read = list(islice(batches, 4))
    assert [len(batch) for batch in read] == [batch_size] * 4
    assert [place for batch in read for place in batch] == expected


def test_processes_divide_each_part_of_a_batch_in_their_order() -> None:
    whole = Batches(samples=9, size=12, seed=0, parts=2)
    shares = [list(whole._replace(processes=3, number=n).share()) for n in range(3)]
    assert shares == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert list(whole.share()) == list(range(12))
    third = stream(_whole, whole._replace(processes=3, number=2), first_step=1, workers=0)
    assert next(third) == [position(12 + p, samples=9, seed=0) for p in shares[2]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_request_to_stop_ends_a_batch_that_would_take_for_ever(workers: int) -> None:
    stop = threading.Event()
    seen: list[Position] = []

    def read(position: Position) -> int:
        seen.append(position)
        if len(seen) == 3:
            stop.set()
        return 0

    def between() -> None:
        if stop.is_set():
            raise InterruptedError("asked to stop")

    batches = stream(read, Batches(samples=7, size=10**9, seed=0), workers=workers, between=between)
    with pytest.raises(InterruptedError, match="asked to stop"):
        next(batches)


def test_a_request_to_stop_is_heard_while_a_single_sample_is_waited_for() -> None:
    disk = threading.Event()

    def read(position: Position) -> Position:
        disk.wait(60)
        return position

    looks = 0

    def between() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise InterruptedError("asked to stop")

    batches = stream(read, Batches(samples=2, size=1, seed=0), workers=1, between=between)
    try:
        with pytest.raises(InterruptedError):
            next(batches)
    finally:
        disk.set()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_sample_comes_with_the_batch_it_belongs_to(workers: int) -> None:
    wrong = position(3, samples=4, seed=0)

    def read(place: Position) -> Position:
        if place == wrong:
            raise ValueError("unreadable")
        return place

    batches = stream(read, Batches(samples=4, size=2, seed=0), workers=workers)
    assert len(next(batches)) == 2
    with pytest.raises(ValueError, match="unreadable"):
        next(batches)


def test_threads_read_ahead_of_what_was_asked_for_but_not_without_end() -> None:
    read: set[Position] = set()
    eight = threading.Event()

    def note(place: Position) -> None:
        read.add(place)
        if len(read) >= 8:
            eight.set()

    batches = stream(note, Batches(samples=1000, size=2, seed=0), workers=1)
    next(batches)
    # Four batches, one of which has been taken.
    assert eight.wait(60)
    next(batches)
    batches.close()
    assert len(read) <= 12


def test_a_reader_that_is_stuck_keeps_no_process_from_ending() -> None:
    program = (
        "import threading\n"
        "from backend.data.stream import Batches, stream\n"
        "never, begun = threading.Event(), threading.Event()\n"
        "read = lambda place: (begun.set(), never.wait())\n"
        "def between():\n"
        "    if begun.is_set(): raise SystemExit(7)\n"
        "next(stream(read, Batches(1, size=1, seed=0), workers=1, between=between))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=100, check=False)
    assert done.returncode == 7


class Watched:
    """A watch with what it told."""

    def __init__(self, patience_s: float) -> None:
        self.told: list[str | None] = []
        self.watch = StallWatch(
            name=lambda place: f"scan {place.sample}", tell=self.told.append, patience_s=patience_s
        )


def test_a_batch_that_is_late_is_told_with_scan_and_thread_and_again_when_it_came() -> None:
    watched, disk = Watched(0.05), threading.Event()

    def read(place: Position) -> Position:
        disk.wait(60)
        return place

    def between() -> None:
        watched.watch.look()
        if watched.told:
            disk.set()

    one = Batches(samples=1, size=1, seed=0)
    batches = stream(watched.watch.noting(read), one, workers=1, between=between)
    with watched.watch.waiting():
        next(batches)
    batches.close()
    late, *_, came = watched.told
    assert late is not None
    assert "scan 0 is being read by reader 1 for" in late
    assert came is None


def test_a_batch_that_does_not_come_at_all_ends_the_run() -> None:
    watched = Watched(1e-6)
    time.sleep(1e-3)
    with pytest.raises(ResourceError, match="nothing is being read") as caught:
        watched.watch.look()
    assert "--resume" in caught.value.hint
    assert watched.told == []
