"""Work in Slicer's own process that takes a while: a little of it at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

import qt

from SSLPretrainLogic.errors import LogicError, told_plainly

Steps = Generator[bool, None, Any]
"""Gives True where events come first, so that what it has shown is seen; returns its result."""

_PIECE_S = 0.02


class Stepwise:
    """Goes through a generator between other events; the first piece at once.

    Args:
        failed: is given what a person can mend, when the work ends with it.
    """

    def __init__(self, failed: Callable[[LogicError], None]) -> None:
        self._failed = failed
        self._steps: Steps | None = None
        self._done: Callable[[Any], None] | None = None
        self._timer = qt.QTimer()
        self._timer.interval = 1
        self._timer.connect("timeout()", self._go_on)

    @property
    def is_busy(self) -> bool:
        """Whether there is something left to do."""
        return self._steps is not None

    def start(self, steps: Steps, done: Callable[[Any], None]) -> None:
        """Begin with some work; what was left of other work is left undone.

        Args:
            steps: the work.
            done: is given its result.
        """
        self.stop()
        self._steps, self._done = steps, done
        self._timer.start()
        self._go_on()

    def stop(self) -> None:
        """Leave the rest undone; the work may tidy up."""
        self._timer.stop()
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()

    def _go_on(self) -> None:
        try:
            self._go_a_piece()
        except LogicError as error:
            self.stop()
            self._failed(error)
        except OSError as error:
            self.stop()
            self._failed(told_plainly(error, error.filename or ""))

    def _go_a_piece(self) -> None:
        until = time.monotonic() + _PIECE_S
        try:
            while self._steps is not None and time.monotonic() < until:
                if next(self._steps):
                    return
            return
        except StopIteration as end:
            done, result = self._done, end.value
        self.stop()
        if done is not None:
            done(result)
