"""How processes share one output folder: nothing in it is half made, or made twice at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


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


def made_once(folder: Path, make: Callable[[Path], None]) -> None:
    """Make a folder that is whole or not there, in whichever process comes first."""
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            part = folder.with_name(f".part-{folder.name}")
            if part.exists():
                shutil.rmtree(part)
            make(part)
            part.replace(folder)
