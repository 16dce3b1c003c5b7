"""Run folders that grow, are cut, vanish or are damaged while they are read."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from backend.engine.record import RunFolder
from SSLPretrainLogic.run_folder import (
    Follower,
    Tail,
    find_checkpoints,
    find_previews,
    read_config,
    read_status,
)


def status(folder: Path, **changes: Any) -> Path:
    """A status.json as the backend of this very process would write it, with changes."""
    with RunFolder(folder, kind="pretrain", argv=["backend"], resume=False) as run:
        run.update(total_steps=10, step=3, eta_s=12.5)
    path = folder / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")
    return folder


def test_a_run_of_this_process_is_running(tmp_path: Path) -> None:
    seen = read_status(status(tmp_path / "run"))
    assert (seen.state, seen.kind, seen.step, seen.total_steps) == ("running", "pretrain", 3, 10)
    assert (seen.eta_s, seen.best, seen.error) == (12.5, {}, None)
    assert seen.is_active
    assert seen.process is not None
    assert seen.process.pid == os.getpid()
    assert seen.silent_s is not None
    assert seen.silent_s < 60


@pytest.mark.parametrize(
    "changes",
    [
        {"process_started": psutil.Process().create_time() - 10},
        {"boot_id": "another boot"},
        {"pid": 2**22 + 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_run_whose_process_is_gone_is_interrupted(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    seen = read_status(status(tmp_path / "run", **changes))
    assert (seen.state, seen.process) == ("interrupted", None)
    assert seen.is_here
    assert not seen.can_resume
    (tmp_path / "run" / "config.json").write_text("{}")
    assert read_status(tmp_path / "run").can_resume


@pytest.mark.parametrize(("age_s", "state"), [(5, "running"), (300, "interrupted")])
def test_on_another_machine_the_heartbeat_tells(tmp_path: Path, age_s: int, state: str) -> None:
    then = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    seen = read_status(status(tmp_path / "run", host="elsewhere", updated=then))
    assert seen.state == state
    assert not seen.is_here
    assert seen.silent_s == pytest.approx(age_s, abs=5)


def test_an_error_is_told_as_the_backend_told_it(tmp_path: Path) -> None:
    error = {"type": "UserError", "message": "No scans.", "hint": "Add some."}
    seen = read_status(status(tmp_path / "run", state="failed", error=error))
    assert seen.error is not None
    assert vars(seen.error) == error


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "schema"),
        ('{"schema": 2}', "version 2"),
        ('{"schema": 1, "state": "flying"}', "flying"),
        ('{"schema": 1, "state": "done"}', "host"),
        ('{"schema": 1, "state": "done", "host": "h", "updated": 5}', "TypeError"),
        ('{"schema": 1, "state": "done", "host": "h", "updated": "2026-01-01"}', "TypeError"),
        ("[" * 100000, "is damaged"),
    ],
)
def test_a_damaged_status_is_told_in_a_value(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "status.json").write_text(text)
    seen = read_status(tmp_path)
    assert seen.state == "damaged"
    assert told in seen.message
    assert not seen.is_active


def test_lines_come_once_and_a_torn_one_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read().lines == ()
    path.write_bytes("a\nü".encode()[:-1])
    assert tail.read().lines == ("a",)
    assert tail.read().lines == ()
    with path.open("ab") as stream:
        stream.write("ü".encode()[-1:] + b"\nb\n")
    piece = tail.read()
    assert (piece.lines, piece.restarted) == (("ü", "b"), False)


@pytest.mark.parametrize("after", ["1\n", "1\n2\nother\n4\n5\n", ""])
def test_a_file_that_was_cut_is_read_again_also_if_it_has_grown_since(
    tmp_path: Path, after: str
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("1\n2\n3\n")
    tail = Tail(path)
    assert tail.read().lines == ("1", "2", "3")
    path.write_text(after)
    piece = tail.read()
    assert piece.restarted
    assert piece.lines == tuple(after.split())
    assert not tail.read().restarted


def test_a_large_file_comes_in_pieces_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    lines = [f"{n:099d}" for n in range(25000)]
    path.write_text("\n".join(lines) + "\n")
    tail, found = Tail(path), []
    while piece := tail.read().lines:
        found.append(piece)
    assert len(found) == 3
    assert [line for piece in found for line in piece] == lines
    assert Tail(path, last_bytes=250).read().lines[-2:] == tuple(lines[-2:])


def test_a_line_longer_than_a_piece_is_passed_on_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("x" * (1 << 20) + "yz\nnext\n")
    tail = Tail(path)
    found = [*tail.read().lines, *tail.read().lines, *tail.read().lines]
    assert "".join(found) == "x" * (1 << 20) + "yz" + "next"


def test_a_run_that_vanishes_while_watched_is_told_in_a_value(tmp_path: Path) -> None:
    run = status(tmp_path / "run")
    with (run / "metrics.jsonl").open("w") as stream:
        stream.write('{"step": 1, "loss/total": 2.5}\nrubbish\n{"step": 2}\n{"st')
    (run / "previews" / "step_000002.png").write_bytes(b"")
    (run / "checkpoints" / "last.pt").write_bytes(b"12345")
    follower = Follower(run)
    update = follower.look()
    assert [record["step"] for record in update.records] == [1, 2]
    assert update.damaged_lines == 1
    assert [preview.step for preview in update.previews] == [2]
    assert update.checkpoints["last.pt"].size == 5

    shutil.rmtree(run)
    update = follower.look()
    assert update.status.state == "absent"
    assert "there is no run" in update.status.message
    assert (update.records, update.previews, update.checkpoints) == ((), (), {})
    assert update.metrics_restarted
    assert not follower.look().metrics_restarted


def test_previews_have_their_volumes_and_unfinished_files_are_passed_over(tmp_path: Path) -> None:
    for name in (
        *("step_000010.png", "step_000010_input.nrrd", "step_000010_masked.nrrd"),
        *("step_000002.png", ".part-1-ab-step_000003.png", "step_000004_input.nrrd", "notes.txt"),
    ):
        (tmp_path / "previews").mkdir(exist_ok=True)
        (tmp_path / "previews" / name).touch()
    first, second = find_previews(tmp_path)
    assert (first.step, dict(first.volumes)) == (2, {})
    assert (second.step, sorted(second.volumes)) == (10, ["input", "masked"])
    assert second.volumes["input"].name == "step_000010_input.nrrd"
    assert find_checkpoints(tmp_path) == {}
    assert read_config(tmp_path) == {}
