"""A command while it runs: its log, and its silence beside the one that leads."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from backend.cli.options import Command
from backend.engine.distributed import place
from backend.errors import TOLD_AT_THE_END, Cancelled, Interrupted, NotMet
from backend.tuning import tune_process

_LEADER_SPEAKS_S = 10.0
"""How long the others leave the one that leads to tell of an error; it ends them when it has."""


def run(command: Command) -> None:
    """Run a command to its end."""
    tune_process()
    with nullcontext() if place().leads else _silence(), _log_on_screen():
        command.run()


@contextmanager
def _silence() -> Iterator[None]:
    """Of processes that train together one speaks; it also tells the errors of the others.

    Only that it has not been met each of them tells by itself.
    """
    from backend.progress import say_nothing

    say_nothing()
    nowhere, voice = os.open(os.devnull, os.O_WRONLY), os.dup(sys.stderr.fileno())
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    try:
        yield
    except NotMet:
        os.dup2(voice, sys.stderr.fileno())
        raise
    except (Cancelled, Interrupted):
        raise
    except Exception:
        # A launcher ends all others as soon as one has ended, and who leads is to tell of this.
        time.sleep(_LEADER_SPEAKS_S)
        raise


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
