"""How a command ends that has failed: its last words, and the exit code."""

from __future__ import annotations

import os
import re
import select
import sys
from contextlib import suppress
from io import UnsupportedOperation
from typing import TextIO

from backend.errors import BackendError, Cancelled, Interrupted, told_plainly

_LONG = re.compile(r"\S{401,}")
"""Longer than the paths of people, but not than what a damaged file may hold."""
_END = 100
"""Letters that are told of either end."""


def told(caught: BaseException) -> int:
    """Say in one or two lines on standard error what has ended a command.

    Returns:
        The exit code: that of the error, or 0 where nothing is left to be said.
    """
    mute = _mute(sys.stdout)
    # Whoever reads the output has seen enough, as `| head` has.
    if (mute and isinstance(caught, BrokenPipeError)) or _stopped_with_leader(caught):
        return 0
    unnamed = isinstance(caught, OSError) and caught.filename is None
    error = told_plainly(caught, "Standard output" if mute and unnamed else None)
    with suppress(OSError):
        sys.stderr.write(f"\nbackend: {_LONG.sub(_shortened, str(error))}\n")
        if type(error) is BackendError:
            _keep_details(caught)
    _mute(sys.stderr)
    return error.exit_code


def _mute(stream: TextIO) -> bool:
    """Whether a stream takes nothing more; it then leads nowhere, as Python flushes at its end."""
    try:
        stream.flush()
        # Of more than fits its buffer a stream keeps nothing that it could fail to flush.
        os.write(stream.fileno(), b"")
        mute = _has_no_reader(stream)
    except UnsupportedOperation:
        # It is kept in memory.
        return False
    except OSError:
        mute = True
    if mute:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return mute


def _shortened(word: re.Match[str]) -> str:
    """A word of which nobody would read the middle."""
    return f"{word[0][:_END]}...{word[0][-_END:]}"


def _has_no_reader(stream: TextIO) -> bool:
    if not hasattr(select, "poll"):
        return False
    pipe = select.poll()
    pipe.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in pipe.poll(0))


def _stopped_with_leader(caught: BaseException) -> bool:
    """Whether this process has stopped on request beside the one that tells of it.

    As a failure it would let a launcher end that one before its report is written.
    """
    if not isinstance(caught, Cancelled | Interrupted):
        return False
    from backend.engine.distributed import place

    return not place().leads


def _keep_details(caught: BaseException) -> None:
    """Write the traceback to a new file; one of a fixed name may belong to somebody else."""
    import tempfile
    import traceback

    with suppress(OSError):
        number, name = tempfile.mkstemp(prefix="backend-", suffix=".txt")
        with os.fdopen(number, "w", encoding="utf-8") as stream:
            stream.write("".join(traceback.format_exception(caught)))
        sys.stderr.write(f"backend: details in {name}\n")
