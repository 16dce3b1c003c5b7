"""The command line: what may be asked, and the exit code of how it ended.

Only what a start needs is loaded: the help of the program and a word that is no command take a few
modules of the standard library, a command its own options besides, and torch only those that
compute with it.
"""

from __future__ import annotations

import os
import sys

import backend
from backend.cli.commands import COMMANDS


def main() -> None:
    """Run the command that was asked for and exit as `backend.errors` says."""
    _open_closed_streams()
    code: str | int | None = 0
    try:
        try:
            _answer(sys.argv[1:])
        except SystemExit as ended:
            # Its help was shown, or other processes have done what was asked.
            code = ended.code
        sys.stdout.flush()
    # What a second signal raises is no Exception, and may come where nobody listens any more.
    except BaseException as caught:
        from backend.cli.ending import told

        code = told(caught)
    sys.exit(code)


def _open_closed_streams() -> None:
    """Let standard streams lead nowhere that whoever started this has closed.

    Else the next file that is opened takes the number of one, and what is written to standard
    error by native code lands in it.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w"))


def _answer(words: list[str]) -> None:
    match words:
        case [name, *rest] if name in COMMANDS:
            from backend.cli.options import understood

            command = understood(name, rest)
            # Only now, as what has asked for help has ended here.
            from backend.cli.running import run

            run(command)
        case ["-h" | "--help", *_]:
            from backend.cli.overview import overview

            sys.stdout.write(overview())
        case ["--version"]:
            sys.stdout.write(f"backend {backend.__version__}\n")
        case _:
            from backend.cli.overview import no_command

            raise no_command(words)
