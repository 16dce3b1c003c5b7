"""Commands with faults in them: started, waited for, and looked at with all their processes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from cli_runner import LIMIT_S, REPOSITORY, Ended, environment
from injection import Fault
from injection import environment as faulty

HERE = Path(__file__).parent
_POLL_S = 0.01
_OWNER = "SSL_TEST_COMMAND"
"""Tells processes that a command has started which one that was."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A started command, by the files that tell of it."""

    folder: Path

    @property
    def pid(self) -> int:
        """Number of its process, and of the session that all of its processes are in."""
        wait_for(lambda: self._text("pid"), what="a process")
        return int(self._text("pid"))

    @property
    def code(self) -> int | None:
        """Exit code (negative: the signal that killed it), None while it runs."""
        text = self._text("code")
        return int(text) if text else None

    def ended(self) -> Ended:
        """Wait for its end."""
        wait_for(lambda: self.code is not None, what=f"the end of {self.folder}")
        return Ended(code=self.code or 0, out=self._text("out"), err=self._text("err"))

    def family(self) -> list[psutil.Process]:
        """Its processes that still do anything, in whatever session."""
        return [p for p in psutil.process_iter() if self._belongs(p)]

    def _belongs(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error, ProcessLookupError):
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            # One that was forked shows the environment of what it was forked from.
            own = os.getsid(process.pid) == self.pid
            return own or process.environ().get(_OWNER) == str(self.folder)
        return False

    def _text(self, name: str) -> str:
        file = self.folder / name
        return file.read_text("utf-8", errors="replace") if file.exists() else ""


class Commands:
    """Starts commands, with everything they need imported already.

    Args:
        folder: for what they say.

    Attributes:
        clock: the library through which they see the wall clock, None without a compiler.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self.clock = _clock(folder)
        preload = {"LD_PRELOAD": str(self.clock)} if self.clock else {}
        self._nursery = subprocess.Popen(
            [sys.executable, str(HERE / "nursery.py")],
            cwd=REPOSITORY,
            env=environment(PYTHONPATH=os.pathsep.join([str(HERE), str(REPOSITORY)]), **preload),
            stdin=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """Let the process end."""
        self._nursery.communicate()

    def start(self, *words: object, faults: Sequence[Fault] = (), **more: str) -> Command:
        """Start `backend` with these words, and `more` in its environment."""
        folder = self._folder / str(next(self._numbers))
        folder.mkdir(parents=True)
        request = {
            "words": [str(word) for word in words],
            "environment": {**faulty(faults), _OWNER: str(folder), **more},
            **{name: str(folder / name) for name in ("pid", "code", "out", "err")},
        }
        assert self._nursery.stdin is not None
        self._nursery.stdin.write(json.dumps(request) + "\n")
        self._nursery.stdin.flush()
        return Command(folder=folder)

    def run(self, *words: object, faults: Sequence[Fault] = (), **more: str) -> Ended:
        """Run `backend` with these words to its end."""
        return self.start(*words, faults=faults, **more).ended()


def _clock(folder: Path) -> Path | None:
    """Compile the library that makes the wall clock jump."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    library = folder / "clock.so"
    folder.mkdir(parents=True, exist_ok=True)
    source = HERE / "clock.c"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def wait_for(there: Callable[[], object], *, what: str) -> None:
    """Wait for something that another process brings about."""
    deadline = time.monotonic() + LIMIT_S
    while not there():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {LIMIT_S:.0f} s")
        time.sleep(_POLL_S)
