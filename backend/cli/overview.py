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

_NARROWEST = 45
"""In fewer columns words no longer fit beside the names."""


def columns() -> int:
    """How wide the terminal is, in characters, as far as a help can follow it."""
    return max(_NARROWEST, get_terminal_size().columns)


def overview() -> str:
    """The help, as wide as the terminal; plain text, in a terminal and in a file."""
    width = columns()
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
    match words:
        case []:
            return UserError("No command was given.", known)
        case ["--version", further, *_]:
            return UserError(f"--version stands alone, not before {further!r}.", "Leave that out.")
        case [option, *rest] if option.startswith("--"):
            command = next((word for word in rest if word in COMMANDS), "COMMAND")
            cure = f"Options stand behind the command: `backend {command} {option} ...`."
        case [word, *_]:
            near = _near(word.lower())
            cure = f"Did you mean {' or '.join(map(repr, near))}?" if near else known
    return UserError(f"{words[0]!r} is no command.", cure)


def _near(word: str) -> list[str]:
    """The commands that a word begins, or else the one that it resembles."""
    from difflib import get_close_matches

    begun = [name for name in COMMANDS if word and name.startswith(word)]
    return begun or get_close_matches(word, COMMANDS, n=1)


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
