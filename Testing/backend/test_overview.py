"""What the program tells of itself: its help at any width, and what was wrong without a command."""

from __future__ import annotations

import pytest
from cli_runner import backend, backend_here

from backend.cli.commands import COMMANDS


def flowing(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("columns", [1, 45, 80, 200])
def test_the_help_keeps_to_the_width_of_the_terminal_and_leaves_nothing_out(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = backend_here("--help")
    assert (shown.code, shown.err) == (0, "")
    assert max(map(len, shown.out.splitlines())) <= max(columns, 45)
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
        (
            ("--device", "cpu", "segment"),
            "'--device' is no command. Options stand behind the command: `backend segment --device",
        ),
        (("pre",), "'pre' is no command. Did you mean 'pretrain'?"),
        (("BEN",), "'BEN' is no command. Did you mean 'benchmark' or 'bench'?"),
        (("--version", "--bogus"), "--version stands alone, not before '--bogus'."),
        (("-",), "'-' is no command. Known: "),
        (("",), "'' is no command. Known: "),
    ],
)
def test_without_a_command_it_is_told_which_there_are(words: tuple[str, ...], told: str) -> None:
    done = backend_here(*words)
    assert (done.code, done.out) == (2, "")
    assert done.told.startswith(told)
    assert ("Known: " in told) == all(name in done.told for name in COMMANDS)


def test_the_help_of_a_command_comes_in_a_terminal_of_a_single_column() -> None:
    shown = backend("pretrain", "--help", env={"COLUMNS": "1"})
    assert shown.code == 0
    assert "--probe-data" in shown.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("methods --nosuch", ("Unrecognized options: --nosuch.",)),
        ("scan a --outptu x --output y", ("Unrecognized options: --outptu, x.", "--output PATH")),
        ("scan a", ("--output PATH",)),
        ("scan a --output", ("--output",)),
        ("scan a --output x --min-slices few", ("--min-slices", "'few'")),
        ("convert a --from there --output x", ("'there'", "smit", "monai")),
    ],
)
def test_what_a_command_does_not_understand_is_told_in_a_line_with_the_way_to_its_help(
    words: str, told: tuple[str, ...]
) -> None:
    name = words.partition(" ")[0]
    done = backend_here(*words.split())
    assert (done.code, done.out) == (2, "")
    assert done.err == f"\nbackend: {done.told}\n"
    assert done.told.startswith(f"{name}: ")
    assert len(done.told.splitlines()) == 1
    assert all(part in done.told for part in (*told, f"backend {name} --help"))


@pytest.mark.parametrize(
    ("words", "behind"),
    [
        (("scan", ""), "scan"),
        (("scan", "--output", "x.csv", ""), "x.csv"),
        (("scan", "a", "--output="), "--output"),
        (("finetune", "--output", "x", "--init", ""), "--init"),
    ],
)
def test_an_empty_word_is_no_path_to_the_current_folder(
    words: tuple[str, ...], behind: str
) -> None:
    done = backend_here(*words)
    assert (done.code, done.out) == (2, "")
    assert done.told.startswith(f"{words[0]}: nothing is in the quotes behind {behind!r}. Is a ")
