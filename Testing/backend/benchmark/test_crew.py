"""Several processes at one task: their devices, their errors, their end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from backend.benchmark.crew import places, work_together
from backend.engine.signals import StopRequest
from backend.errors import BackendError, Cancelled, UserError

LIMIT_S = 60.0


@pytest.mark.parametrize(
    ("device", "processes", "threads", "gpus", "found"),
    [
        ("auto", None, None, 0, ["auto"]),
        ("auto", None, 1, 0, ["auto"] * 8),
        ("cpu", None, 3, 4, ["cpu"] * 2),
        ("cpu", None, 16, 0, ["cpu"]),
        ("cpu", 3, None, 0, ["cpu"] * 3),
        ("auto", None, 1, 1, ["auto"]),
        ("cuda", 2, None, 1, ["cuda"] * 2),
        ("auto", None, 1, 2, ["cuda:0", "cuda:1"]),
        ("cuda", 3, None, 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda:1", None, 1, 2, ["cuda:1"]),
    ],
)
def test_as_many_processes_work_as_there_are_gpus_or_cores_for_their_threads(
    device: str, processes: int | None, threads: int | None, gpus: int, found: list[str]
) -> None:
    assert places(device, processes=processes, threads=threads, cores=8, gpus=gpus) == found


def _note(place: Path) -> None:
    place.write_text(os.environ["OMP_NUM_THREADS"])


def _fail(place: Path) -> None:
    if place.name == "bad":
        raise UserError("The scan is upside down.", "Turn it.")
    _wait(place)


def _die(place: Path) -> None:
    place.touch()
    os.kill(os.getpid(), signal.SIGKILL)


def _wait(place: Path) -> None:
    """Until it is asked to stop, which it notes."""
    stop = StopRequest()
    with stop.listening():
        place.touch()
        deadline = time.monotonic() + LIMIT_S
        while stop.pending() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    place.with_suffix(".stopped").touch()
    stop.check()


def _nothing() -> None:
    """Of a watch that sees no reason to end."""


def test_each_process_gets_its_share_and_its_threads(tmp_path: Path) -> None:
    shares = [tmp_path / "a", tmp_path / "b"]
    work_together(_note, shares, threads=3, logs=tmp_path / "logs", watch=_nothing)
    assert [share.read_text() for share in shares] == ["3", "3"]
    assert len(list((tmp_path / "logs").iterdir())) == 2
    assert os.environ.get("OMP_NUM_THREADS") != "3"


def test_the_error_of_one_is_told_and_ends_the_others(tmp_path: Path) -> None:
    shares = [tmp_path / "good", tmp_path / "bad"]
    with pytest.raises(UserError, match="upside down") as caught:
        work_together(_fail, shares, threads=1, logs=tmp_path / "logs", watch=_nothing)
    assert caught.value.hint == "Turn it."
    assert "upside down" in (tmp_path / "logs" / "process_2.log").read_text()
    assert not multiprocessing.active_children()


def test_one_that_is_killed_is_told_by_its_signal(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="SIGKILL"):
        work_together(_die, [tmp_path / "a"], threads=1, logs=tmp_path / "logs", watch=_nothing)


def test_a_watch_that_raises_lets_all_end_their_step(tmp_path: Path) -> None:
    shares = [tmp_path / "a", tmp_path / "b"]

    def watch() -> None:
        if all(share.exists() for share in shares):
            raise Cancelled("Stopped by the keyboard.")

    with pytest.raises(Cancelled):
        work_together(_wait, shares, threads=1, logs=tmp_path / "logs", watch=watch)
    assert all(share.with_suffix(".stopped").exists() for share in shares)
