"""Requests to stop: from the keyboard, from the system, from a file in the run folder."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from backend.errors import BackendError, Cancelled, Interrupted

_CANCELLING = ("SIGINT",)
_INTERRUPTING = ("SIGTERM", "SIGUSR1")
"""SIGUSR1 is what SLURM sends before it takes the machine away; Windows does not know it."""


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
        if self._signal in _CANCELLING:
            return Cancelled("Stopped by the keyboard.", "Continue with --resume.")
        if self._signal is not None:
            return Interrupted(f"Stopped by {self._signal}.", "Continue with --resume.")
        if self._stop_file is not None and self._stop_file.exists():
            return Cancelled("Stopped on request.", "Continue with --resume.")
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
        names = [n for n in (*_CANCELLING, *_INTERRUPTING) if hasattr(signal, n)]
        before = {n: signal.signal(getattr(signal, n), self._on_signal) for n in names}
        try:
            yield self
        finally:
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._signal == name:
            self.check()
        self._signal = name
