"""What went wrong where Slicer would only print it: slots, observers, overridden events."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from types import TracebackType


class Faults:
    """Exceptions that nobody caught. Qt and VTK call into Python and cannot pass them on.

    Attributes:
        listener: is told of each one as well, None if nobody is.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.listener: Callable[[BaseException], None] | None = None
        self._hook = sys.excepthook

    def install(self) -> None:
        """Hear of exceptions that reach C++."""
        sys.excepthook = self._hear

    def uninstall(self) -> None:
        """Let the interpreter print them again."""
        sys.excepthook = self._hook
        self.listener = None

    def add(self, error: BaseException) -> None:
        """Remember an exception and print it, as Slicer does."""
        self.texts.append("".join(traceback.format_exception(error)))
        sys.stderr.write(self.texts[-1])
        if self.listener is not None:
            self.listener(error)

    def take(self) -> list[str]:
        """What was remembered since the last call."""
        texts, self.texts = self.texts, []
        return texts

    def _hear(
        self,
        kind: type[BaseException],
        error: BaseException,
        trace: TracebackType | None,
    ) -> None:
        self.add(error.with_traceback(trace) if isinstance(error, BaseException) else kind())


FAULTS = Faults()
