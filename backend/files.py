"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from backend.errors import ResourceError, told_plainly

# What new files are denied. It can only be read by setting it, so once, before there are threads.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


@contextmanager
def written_whole(path: Path, *, failures: tuple[type[Exception], ...] = ()) -> Iterator[Path]:
    """Give a name beside `path` to write to, which becomes `path` when the block ends well.

    What was at `path` stays until then, and stays for good if the block fails.

    Args:
        path: the file to write.
        failures: errors by which the writing library says that the disk did not take it.

    Raises:
        ResourceError: if the disk is full, or the library says so.
        UserError: if the folder cannot be written.
    """
    # The ending stays last: writers choose the format by it.
    part = path.with_name(f".part-{os.getpid()}-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        # Some libraries write for the owner alone; a group's server has others to read it.
        part.chmod(0o666 & ~_UMASK)
        part.replace(path)
    except OSError as error:
        raise told_plainly(error, path) from error
    except failures as error:
        raise ResourceError(
            f"{path}: cannot be written ({str(error).strip().splitlines()[-1]}).",
            "Free some disk space or choose a folder that you may write to.",
        ) from error
    finally:
        # What cannot be removed must not hide why it could not be written.
        with suppress(OSError):
            part.unlink(missing_ok=True)


def require_file_place(path: Path) -> None:
    """Refuse, before the work, where no file can be written: a folder, or links in a circle.

    Raises:
        UserError: naming the path.
    """
    try:
        path.resolve()
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    except (OSError, RuntimeError) as error:
        raise told_plainly(error, path) from error


def remove_parts(folder: Path) -> None:
    """Remove what writers that were killed have left; a writer that lives keeps its own.

    Process numbers are used again: then a part stays until the next time.
    """
    import psutil

    for part in folder.glob(".part-*"):
        number = part.name.split("-")[1]
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            with suppress(OSError):
                part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON whole."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
