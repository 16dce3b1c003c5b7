from __future__ import annotations

import io
import logging
import os
import signal
from pathlib import Path

import pytest

from backend.engine.signals import StopRequest, ending_at_once
from backend.errors import Cancelled, Interrupted


def test_nothing_is_pending_at_first(tmp_path: Path) -> None:
    request = StopRequest(tmp_path / "stop")
    assert request.pending() is None
    request.check()
    assert StopRequest().pending() is None


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [("SIGINT", Cancelled, 3), ("SIGTERM", Interrupted, 5), ("SIGUSR1", Interrupted, 5)],
)
def test_a_signal_is_kept_until_asked_for(name: str, kind: type[Exception], code: int) -> None:
    request = StopRequest()
    with request.listening():
        os.kill(os.getpid(), getattr(signal, name))
        error = request.pending()
    assert type(error) is kind
    assert error.exit_code == code
    with pytest.raises(kind, match="--resume"):
        request.check()


def test_the_same_signal_twice_acts_at_once_but_another_one_does_not() -> None:
    request = StopRequest()
    reached = []

    def work() -> None:
        with request.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert isinstance(request.pending(), Interrupted)
            reached.append("a second signal of another kind")
            os.kill(os.getpid(), signal.SIGUSR1)
            reached.append("never")

    with pytest.raises(Interrupted, match="--resume"):
        work()
    assert reached == ["a second signal of another kind"]


def test_work_around_one_that_ended_in_time_stops_as_well() -> None:
    around, inner, later = StopRequest(), StopRequest(), StopRequest()
    with around.listening():
        with inner.listening():
            os.kill(os.getpid(), signal.SIGTERM)
        with later.listening():
            later.check()
        with pytest.raises(Interrupted):
            around.check()


def test_handlers_are_given_back_even_after_an_error() -> None:
    names = ("SIGINT", "SIGTERM", "SIGUSR1")
    before = [signal.getsignal(getattr(signal, name)) for name in names]
    with pytest.raises(RuntimeError, match="of the block"), StopRequest().listening():
        raise RuntimeError("of the block")
    assert [signal.getsignal(getattr(signal, name)) for name in names] == before


@pytest.mark.parametrize(
    ("name", "kind"), [("SIGINT", Cancelled), ("SIGTERM", Interrupted), ("SIGUSR1", Interrupted)]
)
def test_before_there_is_a_run_a_signal_ends_the_work_at_once(
    name: str, kind: type[Exception]
) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    reached = []

    @ending_at_once()
    def work() -> None:
        with StopRequest().listening():
            os.kill(os.getpid(), number)
        reached.append("what a run listens to is kept for it")
        os.kill(os.getpid(), number)
        reached.append("never")

    with pytest.raises(kind, match="Stopped by"):
        work()
    assert reached == ["what a run listens to is kept for it"]
    assert signal.getsignal(number) is before


def test_nobody_on_the_way_takes_a_signal_for_an_error_of_their_own() -> None:
    """`logging` tells what a stream raises and goes on; readers of damaged files do alike."""

    class Signalling(io.StringIO):
        def write(self, text: str) -> int:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().write(text)

    log = logging.Logger("of this test")
    log.addHandler(logging.StreamHandler(Signalling()))
    reached = []

    @ending_at_once()
    def work() -> None:
        try:
            log.warning("words")
        except Exception:
            reached.append("taken for an error")
        reached.append("gone on")

    with pytest.raises(Interrupted, match="SIGTERM"):
        work()
    assert reached == []


def test_a_stop_file_cancels(tmp_path: Path) -> None:
    request = StopRequest(tmp_path / "stop")
    (tmp_path / "stop").touch()
    assert isinstance(request.pending(), Cancelled)
