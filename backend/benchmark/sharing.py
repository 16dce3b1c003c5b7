"""How processes share one output folder: nothing in it is half made, or made twice at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_PATIENCE_S = 0.5


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether the block has a lock to itself; another process may have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def waited_for(path: Path, between: Callable[[], None]) -> Iterator[None]:
    """A lock that the block has to itself, sooner or later.

    Args:
        path: the file of the lock.
        between: called before every try; may raise to end the waiting.
    """
    lock = FileLock(path, timeout=_PATIENCE_S)
    while not lock.is_locked:
        between()
        with suppress(Timeout):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def made_once(folder: Path, make: Callable[[Path], None], *, between: Callable[[], None]) -> None:
    """Make a folder that is whole or not there, in whichever process comes first.

    Args:
        folder: is there afterwards.
        make: fills a folder of another name, which it makes.
        between: called before, and while another process is waited for; may raise to end.
    """
    with waited_for(folder.with_name(f".{folder.name}.lock"), between):
        if not folder.exists():
            part = folder.with_name(f".part-{folder.name}")
            if part.exists():
                shutil.rmtree(part)
            make(part)
            part.replace(folder)
