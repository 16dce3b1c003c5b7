"""Files that are either whole or not there; JSON is checked when it is read."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from SSLPretrainLogic.errors import LogicError, told_plainly


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to, which becomes `path` when the block ends well.

    What was at `path` stays until then, and stays for good if the block fails.

    Raises:
        LogicError: if the disk is full or the folder cannot be written.
    """
    # The ending stays last: writers choose the format by it.
    part = path.with_name(f".part-{os.getpid()}-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        raise told_plainly(error, path) from error
    finally:
        # What cannot be removed must not hide why it could not be written.
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON whole.

    Raises:
        LogicError: see `written_whole`.
    """
    with written_whole(path) as part:
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, *, cure: str = "Make it anew.") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        cure: what to do if it is damaged.

    Raises:
        LogicError: if it is not there or no JSON object.
    """
    try:
        # Some editors begin a file with a mark of its order of bytes.
        value = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise told_plainly(error, path) from error
    except (ValueError, RecursionError):
        raise LogicError(f"{path}: is damaged.", cure) from None
    if not isinstance(value, dict):
        raise LogicError(f"{path}: is damaged.", cure)
    return value


def checked_moment(text: str, *, path: Path, cure: str) -> None:
    """Make sure that a file tells a moment with its time zone, as ISO 8601 writes it.

    Raises:
        LogicError: if it does not.
    """
    with suppress(ValueError):
        if datetime.fromisoformat(text).tzinfo is not None:
            return
    raise LogicError(f"{path}: {text[:40]!r} is no moment.", cure)


def surely(question: Callable[[], bool]) -> bool:
    """The answer to a question about a path; False where the system does not take the path at all.

    Args:
        question: as `path.exists`, which raises for names that are too long, or out of reach.
    """
    try:
        return question()
    except OSError:
        return False


def same_path(first: Path, second: Path) -> bool:
    """Whether two paths name one place, as far as that can be told without it being there."""
    return os.path.normcase(absolute(first)) == os.path.normcase(absolute(second))


def absolute(path: Path) -> Path:
    """An absolute path without `..`; links stay, as a virtual environment is made of them."""
    return Path(os.path.normpath(Path.cwd() / path))
