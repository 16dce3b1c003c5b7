"""The kinds of options that commands have, and what a command line means by them.

tyro makes a parser from the class that a command's options are, with the words below each field as
its help. That takes time, and is done for the one command that was asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Annotated, Protocol

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, UseAppendAction, arg

from backend.cli.commands import COMMANDS
from backend.cli.overview import columns
from backend.errors import UserError

# What happens where an option is left out stands in its own words, not as "(default: None)".
Switch = Annotated[bool, arg(help_behavior_hint="")]
OptionalPath = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]
OptionalName = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
OptionalCount = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Names = Annotated[tuple[str, ...] | None, arg(metavar="NAME ...", help_behavior_hint="")]
Device = Annotated[str, arg(metavar="auto|cpu|cuda[:i]|mps")]
Processes = Annotated[int, arg(metavar="N")]
Settings = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(name="set", metavar="KEY=VALUE", help_behavior_hint=""),
]

_HELP = {"-h", "--help"}
_UNBROKEN = 10_000
"""So many columns break no line of what is wrong."""
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_FRAME = "─-╭╮╰╯│ "
"""What tyro draws around its words."""
_MARGIN, _SIDE_NOTE = 2, " " * 8
"""Its lines begin behind so many characters, and the help of an option so much further in."""


class Command(Protocol):
    """What is known of every command: it can be run."""

    def run(self) -> None:
        """Run it to its end."""


def understood(name: str, words: Sequence[str]) -> Command:
    """The command that some words ask for, with its options.

    Args:
        name: of the command.
        words: what stands behind it.

    Raises:
        SystemExit: once the help was shown (code 0).
        UserError: for words that the command does not understand.
    """
    room, summary = COMMANDS[name]
    kind: type[Command] = getattr(import_module(f"backend.cli.{room}"), name.capitalize())
    _refuse_empty(name, words)
    said = StringIO()
    try:
        with (
            _as_wide_as(_UNBROKEN if _HELP.isdisjoint(words) else columns()),
            redirect_stderr(said),
        ):
            return tyro.cli(
                kind,
                prog=f"backend {name}",
                description=summary,
                args=words,
                config=(OmitArgPrefixes, FlagCreatePairsOff),
            )
    except SystemExit as ended:
        if not ended.code:
            raise
        raise _in_a_line(name, said.getvalue()) from None


def _refuse_empty(name: str, words: Sequence[str]) -> None:
    """Raise for a word that is none: as a path it would stand for the current folder."""
    for before, word in zip((name, *words), words, strict=False):
        option, is_given, value = word.partition("=")
        if not word or (option.startswith("--") and is_given and not value):
            raise UserError(
                f"{name}: nothing is in the quotes behind {(option or before)!r}.",
                "Is a variable without a value? Give one, or leave the option out.",
            )


@contextmanager
def _as_wide_as(number: int) -> Iterator[None]:
    """Let tyro take the terminal to have so many columns."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(number)
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _in_a_line(name: str, box: str) -> UserError:
    """What a box of tyro's tells, without its title and the help of single options."""
    _, *lines = _COLOUR.sub("", box).splitlines()
    parts: list[list[str]] = [[]]
    for line in lines:
        if not line.strip(_FRAME):
            parts.append([])
        elif not line[_MARGIN:].startswith(_SIDE_NOTE):
            parts[-1].append(line.strip("│ "))
    told = [", ".join(part).replace(":, ", ": ").removesuffix(".") for part in parts if part]
    return UserError(f"{name}: {told[0]}.", " ".join(f"{part}." for part in told[1:]))
