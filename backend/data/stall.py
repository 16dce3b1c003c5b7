"""Says which scan a run is waiting for, when a disk does not answer and no batch comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from backend.data.stream import Position
from backend.errors import ResourceError

T = TypeVar("T")

_END_AFTER = 12
"""Times the patience after which a run is ended: at the default of 5 minutes, after an hour."""


class _Read(NamedTuple):
    """What a thread is reading, and since when."""

    position: Position
    thread: str
    began: float


class StallWatch:
    """Knows what is being read by which thread, and tells when a batch is waited for too long.

    Args:
        name: of the scan at a position, as it may stand in a log.
        tell: gets a warning when a batch is late, and again each time it is twice as late; None
            when it has come.
        patience_s: seconds after which a batch is late.
    """

    def __init__(
        self,
        *,
        name: Callable[[Position], str],
        tell: Callable[[str | None], None],
        patience_s: float,
    ) -> None:
        self._name = name
        self._tell = tell
        self._patience_s = patience_s
        self._asked = time.monotonic()
        self._next_s = patience_s
        self._reads: dict[int, _Read] = {}

    def noting(self, read: Callable[[Position], T]) -> Callable[[Position], T]:
        """The same as `read`, which threads call, but watched."""

        def noted(position: Position) -> T:
            thread = threading.current_thread()
            key = thread.ident or 0
            self._reads[key] = _Read(position, thread.name, time.monotonic())
            try:
                return read(position)
            finally:
                del self._reads[key]

        return noted

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For the time that a batch is waited for."""
        self._asked, self._next_s = time.monotonic(), self._patience_s
        yield
        if self._next_s > self._patience_s:
            self._tell(None)

    def look(self) -> None:
        """Tell if the batch is late. Called while it is waited for.

        Raises:
            ResourceError: if it is so late that it will not come any more.
        """
        waited = time.monotonic() - self._asked
        if waited < self._next_s:
            return
        told = f"No batch has come for {waited:.0f} s: {self._what_is_read()}."
        if waited >= _END_AFTER * self._patience_s:
            raise ResourceError(
                told,
                "See whether the disk of the cache answers, then continue with --resume; "
                f"data.patience_s={self._patience_s:g} sets how long is waited.",
            )
        self._next_s *= 2
        self._tell(told)

    def _what_is_read(self) -> str:
        read = min(self._reads.copy().values(), key=lambda r: r.began, default=None)
        if read is None:
            return "nothing is being read"
        seconds = time.monotonic() - read.began
        return f"{self._name(read.position)} is being read by {read.thread} for {seconds:.0f} s"
