"""Progress of anything long: how far, how fast and how much time is left, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Self, TypeVar

from tqdm import tqdm

T = TypeVar("T")

_SOONEST_S, _LATEST_S = 5.0, 60.0

_silent = False


def say_nothing() -> None:
    """Show no bars from now on: another process shows how far both are."""
    global _silent
    _silent = True


def progress(
    items: Iterable[T], *, total: int | None = None, what: str, unit: str = "it"
) -> Iterator[T]:
    """Yield `items` while a bar shows count, rate and time left.

    Args:
        items: what to go through.
        total: how many there are, if `items` cannot tell.
        what: what is being done, in a word or two, e.g. "Reading headers".
        unit: what is counted, e.g. "file".
    """
    bar = progress_bar(total=_length(items) if total is None else total, what=what, unit=unit)
    with bar:
        for item in items:
            yield item
            bar.update()


def progress_bar(
    *, total: int | None, what: str, unit: str = "it", first: int = 0
) -> tqdm[None] | Lines:
    """The same bar for work that is not a loop over items; call `update` and `close`.

    Where standard error is no terminal (a log file, the GUI) it is a few `Lines` instead.
    """
    if _silent:
        return tqdm(total=total, initial=first, disable=True)
    if not sys.stderr.isatty():
        return Lines(total=total, what=what, unit=unit, first=first)
    return tqdm(total=total, initial=first, desc=what, unit=f" {unit}", file=sys.stderr)


class Lines:
    """Progress as plain lines: at the start, after each further tenth of the time, at the end.

    Between two lines are five seconds at least and a minute at most. The words are those of a bar,
    so that whoever reads one reads the other.

    Attributes:
        n: how many are done.
        total: how many there are, if that is known.
        leave: whether start and end are told; work inside other work is told only while it lasts.
    """

    def __init__(self, *, total: int | None, what: str, unit: str, first: int) -> None:
        self.n, self.total, self.leave = first, total, True
        self._what, self._unit, self._first = what, unit, first
        self._postfix = ""
        self._began = self._told_at = time.monotonic()
        self._told: int | None = None

    def __enter__(self) -> Self:
        """Tell the start, if it is known how much there is to do."""
        if self.leave and self.total is not None:
            self._tell()
        return self

    def __exit__(self, *_: object) -> None:
        """Tell the end."""
        self.close()

    def update(self, count: int = 1) -> None:
        """Count so many more."""
        self.n += count
        now = time.monotonic()
        wait = min(max((now - self._began) / 10, _SOONEST_S), _LATEST_S)
        if now - self._told_at >= wait:
            self._tell()

    def set_postfix_str(self, text: str, *, refresh: bool = False) -> None:
        """Add something to the next line; `refresh` tells it at once."""
        self._postfix = text
        if refresh:
            self._tell()

    def close(self) -> None:
        """Tell how far it came, unless that was told already."""
        if self.leave and self._told != self.n:
            self._tell()

    def _tell(self) -> None:
        self._told, self._told_at = self.n, time.monotonic()
        line = tqdm.format_meter(
            self.n,
            self.total,
            elapsed=self._told_at - self._began,
            ascii=True,
            prefix=self._what,
            unit=f" {self._unit}",
            postfix=self._postfix or None,
            initial=self._first,
        )
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _length(items: Iterable[T]) -> int | None:
    return len(items) if isinstance(items, Sized) else None


def told_time(seconds: float) -> str:
    """A time as people say it: "8.2 s", else in its two largest units, such as "3 min 5 s"."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    left = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    first = next(i for i, (_, size) in enumerate(units) if left >= size)
    parts = []
    for name, size in units[first : first + 2]:
        count, left = divmod(left, size)
        parts += [f"{count} {name}"] if count else []
    return " ".join(parts)
