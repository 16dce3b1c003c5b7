"""Requests to stop: from the keyboard, from the system, from a file in the run folder."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from backend.errors import AtOnce, BackendError, Cancelled, Interrupted

_CANCELLING = ("SIGINT",)
_INTERRUPTING = ("SIGTERM", "SIGUSR1")
"""SIGUSR1 is what SLURM sends before it takes the machine away; Windows does not know it."""
_RESUME = "Continue with --resume."


_listening: list[StopRequest] = []
"""Those that listen, each inside the one before it."""


class StopRequest:
    """Collects requests to stop; the loop asks between steps, so that a step is never torn.

    Args:
        stop_file: a file whose appearance asks to cancel.
    """

    def __init__(self, stop_file: Path | None = None) -> None:
        self._stop_file = stop_file
        self._signal: str | None = None

    def pending(self) -> BackendError | None:
        """What to raise once the step is done and saved, or None."""
        if self._signal is not None:
            return _told(self._signal, _RESUME)
        if self._stop_file is not None and self._stop_file.exists():
            return Cancelled("Stopped on request.", _RESUME)
        return None

    def check(self) -> None:
        """Raise what is pending."""
        error = self.pending()
        if error is not None:
            raise error

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take signals over for the time of the block.

        A second signal of the same kind acts at once, for a user who does not want to wait.
        """
        with _handled_by(self._on_signal):
            _listening.append(self)
            try:
                yield self
            finally:
                _listening.remove(self)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._signal == name:
            raise AtOnce(_told(name, _RESUME))
        # Work around this one stops as well, even if this one is done before it looks again.
        for request in _listening:
            request._signal = name


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let signals end the block where it stands, as Ctrl-C does: for work that only reads.

    Also a decorator. `StopRequest.listening` inside it takes over as soon as there is something
    that must not be torn.

    Raises:
        Cancelled: on SIGINT.
        Interrupted: on SIGTERM or SIGUSR1.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        raise AtOnce(_told(signal.Signals(number).name))

    with _handled_by(end):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    names = [n for n in (*_CANCELLING, *_INTERRUPTING) if hasattr(signal, n)]
    before = {n: signal.signal(getattr(signal, n), handler) for n in names}
    try:
        yield
    except AtOnce as ended:
        raise ended.reason from None
    finally:
        for name, former in before.items():
            signal.signal(getattr(signal, name), former)


def _told(name: str, hint: str = "") -> Cancelled | Interrupted:
    if name in _CANCELLING:
        return Cancelled("Stopped by the keyboard.", hint)
    return Interrupted(f"Stopped by {name}.", hint)
