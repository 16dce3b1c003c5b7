"""The kinds of options that commands have, and what a command line means by them.

tyro makes a parser from the class that a command's options are, with the words below each field as
its help. That takes time, and is done for the one command that was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Protocol

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, UseAppendAction, arg

from backend.cli.commands import COMMANDS

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
        SystemExit: once the help was shown (code 0), or what is wrong with the words (code 2).
    """
    room, summary = COMMANDS[name]
    kind: type[Command] = getattr(import_module(f"backend.cli.{room}"), name.capitalize())
    return tyro.cli(
        kind,
        prog=f"backend {name}",
        description=summary,
        args=words,
        config=(OmitArgPrefixes, FlagCreatePairsOff),
    )
