from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

import backend.engine.record as record
from backend.engine.record import RunFolder, boot_id, read_json, read_metrics, read_status
from backend.errors import BackendError, Cancelled, Interrupted, UserError
from backend.files import write_json

_HOLDER = """
import sys, time
from pathlib import Path
from backend.engine.record import RunFolder
with RunFolder(Path(sys.argv[1]), kind="pretrain", argv=["other"], resume=False) as run:
    run.write_config({})
    print("ready", flush=True)
    time.sleep(60)
"""


def _run(path: Path, *, kind: Any = "pretrain", resume: bool = False) -> RunFolder:
    return RunFolder(path, kind=kind, argv=["pretrain", "--output", str(path)], resume=resume)


def _finished(path: Path) -> None:
    with _run(path) as run, run.outcome():
        run.write_config({"a": 1})


@contextmanager
def _other_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def _age(status: dict[str, Any]) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(status["updated"])).total_seconds()


def test_status_tells_who_runs_what_since_when(tmp_path: Path) -> None:
    with _run(tmp_path / "run"):
        status = read_json(tmp_path / "run" / "status.json")
    assert status["schema"] == 1
    assert (status["kind"], status["state"]) == ("pretrain", "running")
    assert status["argv"] == ["pretrain", "--output", str(tmp_path / "run")]
    assert status["pid"] == os.getpid()
    assert status["boot_id"] == boot_id()
    assert abs(status["process_started"] - psutil.Process().create_time()) < 0.1
    contract = {"host", "started", "updated", "step", "total_steps", "epoch", "eta_s", "best"}
    assert contract | {"message", "error"} <= set(status)
    assert _age(status) < 5


def test_heartbeat_renews_the_status_and_notes_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert record.HEARTBEAT_S <= 5
    monkeypatch.setattr(record, "HEARTBEAT_S", 0.05)
    with _run(tmp_path / "run") as run:
        run.note(step=7)
        deadline = time.monotonic() + 5
        while read_status(tmp_path / "run")["step"] != 7:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        written = (tmp_path / "run" / "status.json").stat().st_mtime_ns
        while (tmp_path / "run" / "status.json").stat().st_mtime_ns == written:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_folder_that_is_not_empty_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"not empty.*--resume") as caught:
        _run(tmp_path)
    assert caught.value.exit_code == 2
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="is a file"):
        _run(tmp_path / "mine.txt")
    with _run(tmp_path / "new" / "run"):
        pass


def test_an_existing_run_is_refused_unless_it_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    _finished(path)
    with pytest.raises(UserError, match="--resume"):
        _run(path)
    with _run(path, resume=True):
        assert read_status(path)["state"] == "running"


def test_resuming_needs_a_run_of_the_same_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to resume"):
        _run(tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
    _finished(tmp_path / "run")
    with pytest.raises(UserError, match="is a pretrain run, not a finetune run"):
        _run(tmp_path / "run", kind="finetune", resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_process_on_a_run_is_refused(tmp_path: Path, resume: bool) -> None:
    path = tmp_path / "run"
    with _other_process(path) as other:
        with pytest.raises(UserError, match="another process is working on this run"):
            _run(path, resume=resume)
        status = read_status(path)
        assert (status["pid"], status["argv"]) == (other.pid, ["other"])
        assert status["state"] == "running"


def test_a_run_whose_process_was_killed_reads_interrupted_and_can_be_resumed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run"
    with _other_process(path) as other:
        os.kill(other.pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
        # Nobody has waited for it yet: the number is still taken, the process is dead.
        assert read_status(path)["state"] == "interrupted"
    assert read_status(path)["state"] == "interrupted"
    assert read_json(path / "status.json")["state"] == "running"
    with _run(path, resume=True):
        assert read_status(path)["state"] == "running"


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "running"),
        ({"state": "queued"}, "queued"),
        ({"process_started": 12345.0}, "interrupted"),  # the number went to another process
        ({"boot_id": "another"}, "interrupted"),
        ({"pid": 2**22 + 1}, "interrupted"),  # above the largest number there is
        ({"host": "elsewhere"}, "running"),
        ({"host": "elsewhere", "updated": 300}, "interrupted"),
        ({"pid": "many"}, "interrupted"),
        ({"host": "elsewhere", "updated": None}, "interrupted"),
        ({"state": "done", "pid": 2**22 + 1}, "done"),
        ({"state": "failed", "boot_id": "another"}, "failed"),
    ],
)
def test_a_status_is_believed_only_while_its_process_lives(
    tmp_path: Path, changes: dict[str, Any], state: str
) -> None:
    with _run(tmp_path / "run"):
        status = read_json(tmp_path / "run" / "status.json")
    if changes.get("updated"):
        before = datetime.now(UTC) - timedelta(seconds=changes["updated"])
        changes = {**changes, "updated": before.isoformat()}
    write_json(tmp_path / "run" / "status.json", {**status, **changes})
    assert read_status(tmp_path / "run")["state"] == state


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "done"),
        (Cancelled("Stopped."), "cancelled"),
        (KeyboardInterrupt(), "cancelled"),
        (Interrupted("Stopped by SIGTERM."), "interrupted"),
        (UserError("It is so.", "Do this."), "failed"),
        (ValueError("odd"), "failed"),
    ],
)
def test_outcome_is_written_and_raised_plainly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException | None, state: str
) -> None:
    path = tmp_path / "run"
    caplog.set_level(logging.INFO, logger="backend")
    if error is None:
        _finished(path)
    else:
        with pytest.raises(BackendError), _run(path) as run, run.outcome():
            raise error
    status = read_status(path)
    assert status["state"] == state
    assert status["eta_s"] is None
    if state == "failed":
        assert set(status["error"]) == {"type", "message", "hint"}
    else:
        assert status["error"] is None
    log = (path / "log.txt").read_text()
    assert f" {state.capitalize()} at step 0" in log.splitlines()[-1]
    assert ("Traceback" in log) is isinstance(error, ValueError | KeyboardInterrupt)
    if isinstance(error, UserError):
        assert status["error"] == {
            "type": "UserError",
            "message": "It is so.",
            "hint": "Do this.",
        }


def test_every_line_of_a_message_can_be_found_by_its_time_and_level(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run"
    caplog.set_level(logging.WARNING, logger="backend")
    _finished(path)
    with pytest.raises(BackendError), _run(path, resume=True) as run, run.outcome():
        raise UserError("It is\nso.", "Do this.")
    with pytest.raises(BackendError), _run(path, resume=True) as run, run.outcome():
        raise ValueError("odd")
    log = (path / "log.txt").read_text().splitlines()
    heads = [
        re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (WARNING|ERROR) ", line) for line in log
    ]
    assert len(log) > 4
    assert all(heads)
    told = [line[head.end() :] for line, head in zip(log, heads, strict=True) if head]
    assert told[:3] == [
        *("Failed at step 0: It is", "  so. Do this.", "Traceback (most recent call last):"),
    ]


def test_what_interrupts_the_steps_tells_how_far_it_is_and_how_long_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    with _run(tmp_path / "run") as run:
        for item in run.through(["a", "b", "c"], doing="Validating"):
            time.sleep(0.02)
            told.append((item, read_status(run.path)["message"]))
    assert told[0] == ("a", "Validating 1/3 scans")
    assert [item for item, _ in told] == ["a", "b", "c"]
    assert all(re.fullmatch(rf"Validating {k}/3 scans, \d+ s left", told[k - 1][1]) for k in (2, 3))
    # Quick work inside other work is no line of a log.
    assert capsys.readouterr().err == ""


def test_a_left_over_stop_file_does_not_stop_the_resumed_run(tmp_path: Path) -> None:
    _finished(tmp_path / "run")
    (tmp_path / "run" / "stop").touch()
    with _run(tmp_path / "run", resume=True) as run:
        assert not run.stop_file.exists()


def test_records_are_lines_of_json_without_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    with _run(tmp_path / "run") as run:
        run.append({"step": 1, "loss/total": 0.5, "a": float("nan"), "b": float("-inf")})
        run.append({"step": 2, "loss/total": 1e-30})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0], parse_constant=pytest.fail)["a"] is None
    assert read_metrics(tmp_path / "run") == [
        {"step": 1, "loss/total": 0.5, "a": None, "b": None},
        {"step": 2, "loss/total": 1e-30},
    ]


def test_a_torn_last_line_is_passed_over_and_gone_after_the_cut(tmp_path: Path) -> None:
    with _run(tmp_path / "run") as run:
        for step in range(1, 6):
            run.append({"step": step, "loss/total": float(step)})
        path = tmp_path / "run" / "metrics.jsonl"
        path.write_text(path.read_text()[:-9])
        assert [r["step"] for r in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
        run.cut_metrics(3)
        run.append({"step": 4, "loss/total": 40.0})
    assert [(r["step"], r["loss/total"]) for r in read_metrics(tmp_path / "run")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]


def test_cutting_where_nothing_was_recorded_makes_nothing(tmp_path: Path) -> None:
    with _run(tmp_path / "run") as run:
        run.cut_metrics(0)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert read_metrics(tmp_path / "run") == []


@pytest.mark.parametrize("content", ["", "{", "[1]", "3"])
def test_a_damaged_status_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        read_status(tmp_path)
    with pytest.raises(UserError, match="Is this a run folder"):
        read_status(tmp_path / "no")
