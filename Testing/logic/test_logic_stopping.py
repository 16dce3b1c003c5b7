"""Runs that were started by hand are stopped too; real run folders, the smallest processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backend.engine.record import RunFolder
from SSLPretrainLogic import stopping as stopping_module
from SSLPretrainLogic.jobs import Command, look, start
from SSLPretrainLogic.project import create_project
from SSLPretrainLogic.run_folder import read_status
from SSLPretrainLogic.stopping import Stopping

REPOSITORY = Path(__file__).parents[2]
RUN = """
import signal, sys, time
from pathlib import Path
from backend.engine.record import RunFolder
from backend.errors import Cancelled
# Whoever is started in the background of a script is deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with RunFolder(Path(sys.argv[1]), kind="pretrain", argv=[], resume=False) as run, run.outcome():
    # Before, nobody would turn a signal into a state.
    (Path(sys.argv[1]) / "listening").touch()
    while sys.argv[2] == "deaf" or not run.stop_file.exists():
        time.sleep(0.02)
    raise Cancelled("Stopped on request.")
"""


@contextmanager
def a_run(folder: Path, kind: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run that a person started in a shell; it obeys its stop file, or is deaf to all."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), kind],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
    ) as process:
        until((folder / "listening").exists)
        assert read_status(folder).is_active
        yield process
        process.kill()


def until(there: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not there():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)


def test_a_run_started_by_hand_obeys_its_stop_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with a_run(run, "polite") as process:
        stopping = Stopping(run=run, grace_s=30)
        until(lambda: stopping.poll().is_over)
        assert process.wait() == 1
    end = stopping.poll()
    assert (end.phase, end.seen, end.left) == ("stopped", 1, 0)
    assert read_status(run).state == "cancelled"
    assert not (run / "stop").exists()


def test_a_run_whose_stop_file_cannot_be_written_is_asked_by_a_signal(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with a_run(run, "polite") as process:
        (run / "stop").symlink_to(tmp_path / "no such folder" / "stop")
        stopping = Stopping(run=run, grace_s=30)
        until(lambda: stopping.poll().is_over)
        assert process.wait() == 1
    assert read_status(run).state == "cancelled"


def test_a_deaf_run_is_killed_and_reads_as_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping_module, "_TERMINATE_S", 0.2)
    run = tmp_path / "run"
    with a_run(run, "deaf") as process:
        stopping = Stopping(run=run, grace_s=0.2)
        until(lambda: stopping.poll().is_over)
        assert process.wait() == -signal.SIGKILL
    assert stopping.poll().phase == "stopped"
    assert read_status(run).state == "interrupted"
    # It never saw the file; a run that is resumed must not.
    assert not (run / "stop").exists()


def test_a_run_on_another_machine_is_asked_and_then_given_up(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunFolder(run, kind="pretrain", argv=[], resume=False) as folder:
        folder.update(host="server7")
        stopping = Stopping(run=run, grace_s=0.5)
        assert (run / "stop").exists()
        assert stopping.poll().phase == "asked"
        until(lambda: stopping.poll().is_over)
    assert stopping.poll().phase == "unreachable"
    assert (run / "stop").exists()


def test_what_has_ended_long_ago_is_stopped_at_once(tmp_path: Path) -> None:
    assert Stopping(run=tmp_path / "nothing").poll().phase == "stopped"
    assert not (tmp_path / "nothing").exists()


def test_a_job_that_runs_through_a_launcher_still_tells_how_it_ended(tmp_path: Path) -> None:
    project = create_project(tmp_path / "p")
    # As Slicer's own does: it starts Python beside itself and waits.
    launcher = tmp_path / "PythonSlicer"
    launcher.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nexit $?\n')
    launcher.chmod(0o755)
    # Deaf to what Ctrl+C sends: it must come to the next signal.
    code = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "open('up', 'w').close(); time.sleep(100)"
    )
    command = Command(
        argv=(str(launcher), "-c", code),
        environment=dict(os.environ),
        what="scan",
        title="Scan",
    )
    job = start(command, project=project)
    until((project.folder / "up").exists)
    stopping = Stopping(job=job, grace_s=0.3)
    until(lambda: stopping.poll().is_over)
    assert stopping.poll().seen == 4
    assert (job.folder / "result.json").exists()
    assert look(job).state == "cancelled"
