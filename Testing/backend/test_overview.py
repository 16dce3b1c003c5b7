"""What the program tells of itself: its help at any width, and what was wrong without a command."""

from __future__ import annotations

import pytest
from cli_runner import backend_here

from backend.cli.commands import COMMANDS


def flowing(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("columns", [45, 80, 200])
def test_the_help_keeps_to_the_width_of_the_terminal_and_leaves_nothing_out(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = backend_here("--help")
    assert (shown.code, shown.err) == (0, "")
    assert max(map(len, shown.out.splitlines())) <= columns
    table = " ".join(f"{name} {summary}" for name, (_, summary) in COMMANDS.items())
    assert f"commands: {table} options: -h, --help" in flowing(shown.out)


def test_the_help_is_plain_even_where_colours_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = backend_here("-h").out
    assert shown.isascii()
    assert shown.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "No command was given. Known: demo, scan, "),
        (("scna",), "'scna' is no command. Did you mean 'scan'?"),
        (("Finetune", "--help"), "'Finetune' is no command. Did you mean 'finetune'?"),
        (("--device", "cpu", "segment"), "'--device' is no command. Known: demo, scan, "),
        (("-",), "'-' is no command. Known: "),
        (("",), "'' is no command. Known: "),
    ],
)
def test_without_a_command_it_is_told_which_there_are(words: tuple[str, ...], told: str) -> None:
    done = backend_here(*words)
    assert (done.code, done.out) == (2, "")
    assert done.told.startswith(told)
    assert all(name in done.told for name in COMMANDS) or "Did you mean" in done.told


def test_what_a_command_does_not_know_is_told_with_the_way_to_its_help() -> None:
    done = backend_here("methods", "--nosuch")
    assert done.code == 2
    assert "--nosuch" in done.err
    assert "backend methods --help" in done.err
