"""Files that are either whole or not there, and the error told to a person."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


class SceneError(Exception):
    """Something in the scene or in a file cannot be used; told in one or two lines.

    Args:
        message: names the thing and its value.
        hint: the cure, as a full sentence.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Message and cure in one text."""
        return f"{self.message} {self.hint}".strip()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to, which becomes `path` when the block ends well.

    What was at `path` stays until then, and stays for good if the block fails.

    Raises:
        SceneError: if the folder cannot be written or the disk is full.
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
        raise SceneError(
            f"{path}: cannot be written ({error.strerror or error}).",
            "Free some disk space or choose a folder that you may write to.",
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write JSON whole.

    Raises:
        SceneError: see `written_whole`.
    """
    with written_whole(path) as part:
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, object]:
    """A JSON file whose outermost value is an object.

    Raises:
        SceneError: if it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise SceneError(f"{path} cannot be read as JSON: {error}.", "Write it again.") from error
    if not isinstance(content, dict):
        raise SceneError(f"{path} holds no JSON object.", "Write it again.")
    return content
