"""Thousands of changed files through everything that reads files: none crashes, hangs or deceives.

A few hundred here; `pytest -m slow Testing/backend/faults` takes ten thousand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cli_runner import REPOSITORY, environment

HERE = Path(__file__).parent
HANGS_S = 120
"""Even where a machine is busy, no small file takes so long."""


def told(first: int, count: int) -> list[dict[str, Any]]:
    """What became of the files of these numbers; a crash or a hang fails and names its file."""
    folders = (REPOSITORY, HERE, HERE.parent, HERE.parent / "data")
    done = subprocess.run(
        [sys.executable, HERE / "fuzzing.py", f"--first={first}", f"--count={count}"],
        env=environment(PYTHONPATH=os.pathsep.join(map(str, folders))),
        capture_output=True,
        text=True,
        timeout=HANGS_S + count,
        check=False,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"number {first + len(found)}: {done.stderr[-2000:]}"
    return found


def assert_none_wrong(found: list[dict[str, Any]]) -> None:
    """Every kind of file was tried, most were refused, and nothing was taken for what it is not."""
    assert [one for one in found if one["became"] == "wrong"] == []
    kinds = Counter(one["kind"] for one in found)
    refused = Counter(one["kind"] for one in found if one["became"] == "refused")
    # A torn line of the record is passed over, as a crash leaves it.
    assert {kind for kind in kinds if not refused[kind]} <= {"metrics.jsonl"}


def test_changed_files_are_refused_by_name_or_read_for_what_they_are() -> None:
    assert_none_wrong(told(0, 300))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 10_000, 500))
def test_ten_thousand_changed_files_are_refused_by_name_or_read_for_what_they_are(
    first: int,
) -> None:
    assert_none_wrong(told(first, 500))
