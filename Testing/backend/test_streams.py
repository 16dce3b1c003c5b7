"""Standard streams that are closed, full or left by their reader: the exit code stays true."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import REPOSITORY, environment


def in_shell(command: str, folder: Path) -> tuple[int, str, str]:
    """Exit code, output and errors of `backend` in a shell, with redirections behind its words."""
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m backend {command}"],
        cwd=folder,
        env=environment(PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("--help >&-", 0, ""),
        ("--help <&- >&- 2>&-", 0, ""),
        ("methods --help >&-", 0, ""),
        ("--help >/dev/full", 4, "Standard output: the disk is full."),
        ("methods --help >/dev/full", 4, "Standard output: the disk is full."),
        ("methods --json >/dev/full", 4, "Standard output: the disk is full."),
        ("methods --json | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("scam >&-", 2, "'scam' is no command."),
        ("scam 2>&-", 2, ""),
        ("scam 2>/dev/full", 2, ""),
        ("scam 2>&1 | true; exit ${PIPESTATUS[0]}", 2, ""),
    ],
)
def test_a_stream_that_takes_nothing_changes_no_exit_code_and_is_named(
    command: str, code: int, told: str, tmp_path: Path
) -> None:
    ended_with, out, err = in_shell(command, tmp_path)
    assert (ended_with, out) == (code, "")
    assert err.removeprefix("\nbackend: ").startswith(told)
    assert bool(err) == bool(told)


OPENED = """
import os
from backend.cli import main
try:
    main()
finally:
    print(os.open(os.devnull, os.O_RDONLY))
"""


def test_no_file_takes_the_number_of_a_closed_stream() -> None:
    done = subprocess.run(
        ["bash", "-c", '"$@" <&- 2>&-', "bash", sys.executable, "-c", OPENED, "--version"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    version, number = done.stdout.splitlines()
    assert version.startswith("backend ")
    assert int(number) > 2
