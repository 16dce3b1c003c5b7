"""The end of a log, which follows while it grows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from SSLPretrainLogic.run_folder import Tail

_LAST_BYTES = 1 << 14
_LINES = 500
_BAR = re.compile(r"(\d+)%\|.*?\|\s*(.*)")
_BAR_BYTES = 1 << 10


def last_words(log: Path) -> str:
    """The last line of a log, also one that is not finished, as those of bars are; "" if none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(log.stat().st_size - _BAR_BYTES, 0))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in re.split(r"[\r\n]", text)]
    return next((line for line in reversed(lines) if line), "")


def percent_told(words: str) -> int | None:
    """How much is done if a line is a bar, else None."""
    found = _BAR.search(words)
    return int(found[1]) if found else None


def without_bar(words: str) -> str:
    """A line without the drawing of its bar."""
    return _BAR.sub(r"\1 %, \2", words)


class LogView:
    """Shows one log in a QPlainTextEdit.

    Args:
        edit: read-only.
    """

    def __init__(self, edit: Any) -> None:
        self._edit = edit
        self._path: Path | None = None
        self._tail: Tail | None = None
        edit.setMaximumBlockCount(_LINES)

    def show_file(self, path: Path | None) -> None:
        """Show another log, None for none; the same goes on."""
        if path == self._path:
            return
        self._path = path
        self._tail = None if path is None else Tail(path, last_bytes=_LAST_BYTES)
        self._edit.clear()
        self.look()

    def look(self) -> None:
        """Take in what is new; who reads the end sees it."""
        if self._tail is None:
            return
        piece = self._tail.read()
        if piece.restarted:
            self._edit.clear()
        if piece.lines:
            self._edit.appendPlainText("\n".join(piece.lines))
