"""Progress of anything long: how far, how fast and how much time is left, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T], *, total: int | None = None, what: str, unit: str = "it"
) -> Iterator[T]:
    """Yield `items` while a bar shows count, rate and time left.

    Where standard error is no terminal (a log file, the GUI) the bar is written at most every five
    seconds, so that logs stay short.

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


def progress_bar(*, total: int | None, what: str, unit: str = "it", first: int = 0) -> tqdm[None]:
    """The same bar for work that is not a loop over items; call `update` and `close`."""
    interval = 0.1 if sys.stderr.isatty() else 5.0
    return tqdm(
        total=total,
        initial=first,
        desc=what,
        unit=f" {unit}",
        mininterval=interval,
        file=sys.stderr,
    )


def _length(items: Iterable[T]) -> int | None:
    return len(items) if isinstance(items, Sized) else None
