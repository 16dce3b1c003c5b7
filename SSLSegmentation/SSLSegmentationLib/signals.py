"""Signals in plain Python, because those of Qt are unreliable on classes made in PythonQt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Signal:
    """Calls the functions that are connected, in their order."""

    def __init__(self) -> None:
        self._receivers: list[Callable[..., Any]] = []

    def connect(self, receiver: Callable[..., Any]) -> None:
        """Call a function when the signal is emitted; one that is connected stays so once."""
        if receiver not in self._receivers:
            self._receivers.append(receiver)

    def disconnect(self, receiver: Callable[..., Any]) -> None:
        """Call it no more."""
        if receiver in self._receivers:
            self._receivers.remove(receiver)

    def emit(self, *values: Any) -> None:
        """Call all receivers, also if one of them disconnects meanwhile."""
        for receiver in tuple(self._receivers):
            receiver(*values)
