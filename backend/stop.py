"""`backend stop`: ask a run to stop, and see to it."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from backend.engine.record import STOP_FILE, read_status
from backend.errors import UserError
from backend.files import write_json

_POLL_S = 0.2
_KILL_AFTER_TERM_S = 5.0
_LAST_WORDS_S = 30.0
"""A run that has told how it ended still writes its report."""


def run(folder: Path, *, grace_s: float) -> None:
    """Ask the run to finish its step and save; after the grace time end its whole process tree.

    Args:
        folder: the run.
        grace_s: how long the run may take to stop by itself.

    Raises:
        UserError: if this is no run folder, or the run works on another machine and does not
            answer.
    """
    status = read_status(folder)
    if status["state"] not in {"running", "queued"}:
        _say(f"{folder} is not running: {status['state']}.")
        return
    tree = _process_tree(int(status["pid"])) if _is_here(status) else []
    (folder / STOP_FILE).touch()
    _say(f"Asked {folder} to stop after its step (step {status['step']}).")
    if _ended(folder, within_s=grace_s):
        _wait(tree, within_s=_LAST_WORDS_S)
        _end_processes(tree)
        _say(f"{folder} is {read_status(folder)['state']}; continue with --resume.")
        return
    if not tree:
        raise UserError(
            f"{folder}: runs on {status['host']} and has not stopped within {grace_s:.0f} s.",
            "Stop it there, or wait.",
        )
    _end_processes(tree)
    # The run's own process can no longer say what became of it.
    write_json(folder / "status.json", read_status(folder))
    saved = (folder / "checkpoints" / "last.pt").exists()
    _say(
        f"{folder} did not stop within {grace_s:.0f} s; its processes were ended. "
        + ("--resume goes on from its last checkpoint." if saved else "It had no checkpoint yet.")
    )


def _is_here(status: Mapping[str, object]) -> bool:
    # Its process lives, or `read_status` would not call it running.
    return status["host"] == socket.gethostname()


def _ended(folder: Path, *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if read_status(folder)["state"] not in {"running", "queued"}:
            return True
        time.sleep(_POLL_S)
    return False


def _process_tree(pid: int) -> list[psutil.Process]:
    """The process and all it started, noted while the family is still together."""
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _end_processes(tree: list[psutil.Process]) -> None:
    """Terminate what is left of a tree, then kill it. psutil tells reused numbers apart."""
    for signal in (psutil.Process.terminate, psutil.Process.kill):
        for process in filter(_works, tree):
            with suppress(psutil.NoSuchProcess):
                signal(process)
        _wait(tree, within_s=_KILL_AFTER_TERM_S)


def _wait(tree: list[psutil.Process], *, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while any(map(_works, tree)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _works(process: psutil.Process) -> bool:
    """Whether a process still does anything; a dead one may wait for its parent to take note."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
