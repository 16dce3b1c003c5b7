"""The command line: what may be asked, and the exit code of how it ended.

Only what a start needs is loaded: the help of the program and a word that is no command take a few
modules of the standard library, a command its own options besides, and torch only those that
compute with it.
"""

from __future__ import annotations

import sys

import backend
from backend.cli.commands import COMMANDS


def main() -> None:
    """Run the command that was asked for and exit as `backend.errors` says."""
    try:
        _answer(sys.argv[1:])
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as caught:
        from backend.cli.ending import told

        sys.exit(told(caught))


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
        case ["--version", *_]:
            sys.stdout.write(f"backend {backend.__version__}\n")
        case _:
            from backend.cli.overview import no_command

            raise no_command(words)
