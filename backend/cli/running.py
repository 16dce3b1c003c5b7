"""A command while it runs: its log, and its silence beside the one that leads."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from backend.cli.options import Command
from backend.engine.distributed import place
from backend.errors import TOLD_AT_THE_END
from backend.tuning import tune_process


def run(command: Command) -> None:
    """Run a command to its end."""
    tune_process()
    if not place().leads:
        _fall_silent()
    with _log_on_screen():
        command.run()


def _fall_silent() -> None:
    """Of processes that train together one speaks; it also tells the errors of the others."""
    from backend.progress import say_nothing

    say_nothing()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


@contextmanager
def _log_on_screen() -> Iterator[None]:
    """Errors are told once, at the end; all else as it happens."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(
        lambda r: r.levelno < logging.ERROR and not getattr(r, TOLD_AT_THE_END, False)
    )
    log = logging.getLogger("backend")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
