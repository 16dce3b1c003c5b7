"""What is told of the program itself: its commands, and what was wrong where none was named."""

from __future__ import annotations

from collections.abc import Mapping
from shutil import get_terminal_size
from textwrap import fill

from backend.cli.commands import COMMANDS
from backend.errors import UserError

_OPTIONS = {
    "-h, --help": "Show this help.",
    "--version": "Show the version.",
}
_COLUMN = 14
"""Where the descriptions begin, in characters."""


def overview() -> str:
    """The help, as wide as the terminal; plain text, in a terminal and in a file."""
    width = get_terminal_size().columns
    parts = (
        "usage: backend [-h] [--version] COMMAND ...",
        fill("From a folder of CT and a handful of labels to a segmentation model.", width),
        _listed("commands:", {name: what for name, (_, what) in COMMANDS.items()}, width=width),
        _listed("options:", _OPTIONS, width=width),
        fill("`backend COMMAND --help` tells the options of a command.", width),
    )
    return "\n\n".join(parts) + "\n"


def no_command(words: list[str]) -> UserError:
    """What is wrong with words that begin with no command.

    Args:
        words: the command line behind `backend`.
    """
    known = f"Known: {', '.join(COMMANDS)}. `backend --help` tells what they do."
    if not words:
        return UserError("No command was given.", known)
    from difflib import get_close_matches

    near = get_close_matches(words[0].lower(), COMMANDS, n=1)
    return UserError(
        f"{words[0]!r} is no command.", f"Did you mean {near[0]!r}?" if near else known
    )


def _listed(title: str, rows: Mapping[str, str], *, width: int) -> str:
    """A title with names below it and, beside them, what they are."""
    lines = (
        fill(
            text,
            width,
            initial_indent=f"  {name}".ljust(_COLUMN),
            subsequent_indent=" " * _COLUMN,
            break_long_words=False,
        )
        for name, text in rows.items()
    )
    return "\n".join((title, *lines))
