"""A process that has everything imported and forks into one command after the other.

Importing takes longer than the small runs themselves. Each line on standard input is a request
(`commands.Request`); a command's exit code is written to the file that its request names.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import select
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import injection

import backend

_LOOK_S = 0.01
_LATE = ("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "torch._dynamo")


def main() -> dict[str, Any] | None:
    """Fork for every request; returns the request in a child, None in the end."""
    for module in pkgutil.walk_packages(backend.__path__, "backend."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in _LATE:
        importlib.import_module(name)
    # Children share what is there as long as nobody counts references to it anew.
    gc.freeze()
    running: dict[int, str] = {}
    while True:
        _note_ended(running)
        if not select.select([sys.stdin], [], [], _LOOK_S)[0]:
            continue
        # Not buffered: a child must not find what is meant for its parent.
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(0, 1)
            if not byte:
                return None
            line += byte
        request: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return request
        running[pid] = request["code"]


def _note_ended(running: dict[int, str]) -> None:
    for pid, file in list(running.items()):
        with suppress(ChildProcessError):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                draft = Path(f"{file}.draft")
                draft.write_text(str(os.waitstatus_to_exitcode(status)))
                draft.replace(file)
                del running[pid]


def become(request: dict[str, Any]) -> None:
    """Be the command: in a session of its own, so that none of its processes can hide."""
    os.setsid()
    for number, file in enumerate((os.devnull, request["out"], request["err"])):
        opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.update(request["environment"])
    Path(request["pid"]).write_text(str(os.getpid()))
    sys.argv = ["backend", *request["words"]]
    injection.install()
    backend.cli.main()


if __name__ == "__main__" and (asked := main()) is not None:
    become(asked)
