"""Jobs as real processes, polite and stubborn ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from SSLPretrainLogic import stopping as stopping_module
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.jobs import (
    Command,
    Job,
    command_process,
    find_jobs,
    forget,
    look,
    mark_of,
    minder,
    start,
)
from SSLPretrainLogic.processes import MARK
from SSLPretrainLogic.project import Project, create_project, open_project
from SSLPretrainLogic.stopping import Stopping

POLITE = "import time; open('up', 'w').close(); time.sleep(100)"
# Deaf to all that can be ignored, and its child is in a session of its own and deaf too.
DEAF = "import os, signal, sys, time; [signal.signal(s, signal.SIG_IGN) for s in (2, 15)]; "
STUBBORN = (
    "import subprocess; "
    + DEAF
    + f"subprocess.Popen([sys.executable, '-c', {DEAF + POLITE!r}], start_new_session=True); "
    + "time.sleep(100)"
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return create_project(tmp_path / "Große Studie & more")


def program(text: str, *, run: Path | None = None, python: str = sys.executable) -> Command:
    return Command(
        argv=(python, "-c", text),
        environment=dict(os.environ),
        what="segment",
        title="Segment a scan",
        run=run,
    )


def until(there: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not there():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)


def ended(job: Job) -> None:
    until(lambda: not look(job).is_active)


def marked(job: Job) -> set[int]:
    found = set()
    for process in psutil.process_iter():
        try:
            lives = process.status() != psutil.STATUS_ZOMBIE
            if lives and process.environ().get(MARK) == mark_of(job):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def test_a_job_keeps_what_it_said_and_how_it_ended(project: Project) -> None:
    job = start(program("import sys; print('ö'); sys.stderr.write('warned\\n')"), project=project)
    ended(job)
    assert (look(job).state, look(job).code, look(job).message) == ("done", 0, "")
    assert job.output.read_text("utf-8").strip() == "ö"
    assert job.log.read_text("utf-8") == "warned\n"
    assert find_jobs(open_project(project.folder)).jobs == (job,)
    forget([job])
    assert find_jobs(project).jobs == ()


@pytest.mark.parametrize(
    ("text", "state", "code", "told"),
    [
        (
            "import sys; sys.stderr.write('x\\n\\nbackend: a: is no CT. Add one.\\n'"
            "'backend: details in f\\n'); sys.exit(2)",
            *("failed", 2, "a: is no CT. Add one."),
        ),
        ("raise ValueError('seven')", "failed", 1, "It ended with code 1: ValueError: seven."),
        ("import os; os.kill(os.getpid(), 9)", "failed", -9, "memory ran out"),
        ("import sys; sys.exit(3)", "cancelled", 3, ""),
        ("import sys; sys.exit(5)", "interrupted", 5, ""),
    ],
)
def test_every_way_to_end_is_told(
    project: Project, text: str, state: str, code: int, told: str
) -> None:
    job = start(program(text), project=project)
    ended(job)
    status = look(job)
    assert (status.state, status.code) == (state, code)
    assert told in status.message
    assert bool(told) == bool(status.message)


def test_a_job_that_is_asked_to_stop_is_interrupted_like_with_ctrl_c(project: Project) -> None:
    job = start(program(POLITE), project=project)
    until((project.folder / "up").exists)
    assert look(job).state == "running"
    with pytest.raises(LogicError, match="goes on"):
        forget([job])
    stopping = Stopping(job=job, grace_s=30)
    until(lambda: stopping.poll().is_over)
    end = stopping.poll()
    assert (end.phase, end.left) == ("stopped", 0)
    assert end.seen >= 2
    assert (look(job).state, look(job).message) == ("cancelled", "")
    assert look(job).code == -signal.SIGINT or look(job).code == 128 + signal.SIGINT
    assert marked(job) == set()


def test_deaf_processes_are_ended_by_force_with_their_grandchildren(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping_module, "_TERMINATE_S", 0.2)
    job = start(program(STUBBORN), project=project)
    until((project.folder / "up").exists)
    tree = marked(job)
    assert len(tree) == 3
    phases = []
    stopping = Stopping(job=job, grace_s=0.2)

    def is_over() -> bool:
        progress = stopping.poll()
        phases.append(progress.phase)
        return progress.is_over

    until(is_over)
    assert list(dict.fromkeys(phases))[-3:] == ["terminating", "killing", "stopped"]
    end = stopping.poll()
    assert (end.seen, end.left) == (3, 0)
    assert marked(job) == set()
    assert (look(job).state, look(job).code) == ("cancelled", -signal.SIGKILL)


def test_children_that_were_left_behind_are_ended_although_their_parents_have_died(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping_module, "_TERMINATE_S", 0.2)
    job = start(program(STUBBORN), project=project)
    until((project.folder / "up").exists)
    minding, command = minder(job), command_process(job)
    assert minding is not None
    assert command is not None
    for process in (minding, command):
        os.kill(process.pid, signal.SIGKILL)
    ended(job)
    assert look(job).state == "interrupted"
    assert "killed or the machine went down" in look(job).message
    # The dead need a moment to go.
    until(lambda: len(marked(job)) == 1)
    stopping = Stopping(job=job, grace_s=1000)
    until(lambda: stopping.poll().is_over)
    assert stopping.poll().seen == 1
    assert marked(job) == set()


def test_a_program_that_is_not_there_is_told_at_once_and_later(project: Project) -> None:
    with pytest.raises(LogicError, match=r"no/python: cannot be started"):
        start(program("", python="/no/python"), project=project)
    (job,) = find_jobs(project).jobs
    assert look(job).state == "failed"
    assert "/no/python" in look(job).message


def test_a_python_that_dies_before_it_begins_is_not_awaited(project: Project) -> None:
    broken = Command(
        argv=(sys.executable, "-c", ""),
        environment={**os.environ, "PYTHONHOME": "/nowhere"},
        what="scan",
        title="Scan",
    )
    job = start(broken, project=project)
    ended(job)
    assert look(job).state == "interrupted"
    assert "killed or the machine went down: " in look(job).message


def test_a_run_folder_takes_one_job_at_a_time(project: Project) -> None:
    run = project.runs / "one"
    first = start(program("import time; time.sleep(100)", run=run), project=project)
    with pytest.raises(LogicError, match="'Segment a scan' is working in it"):
        start(program("", run=run), project=project)
    stopping = Stopping(job=first, grace_s=30)
    until(lambda: stopping.poll().is_over)
    second = start(program("", run=run), project=project)
    ended(second)
    assert look(second).state == "done"
    assert json.loads((second.folder / "job.json").read_text("utf-8"))["run"] == "runs/one"


def test_jobs_of_another_machine_and_damaged_ones_are_told(project: Project) -> None:
    job = start(program(""), project=project)
    ended(job)
    copied = project.jobs / "copied"
    shutil.copytree(job.folder, copied)
    told = json.loads((copied / "job.json").read_text("utf-8"))
    (copied / "job.json").write_text(json.dumps({**told, "host": "server7"}), "utf-8")
    damaged = project.jobs / "damaged"
    damaged.mkdir()
    (damaged / "job.json").write_text("{}")
    found = find_jobs(project)
    assert found.damaged.keys() == {damaged}
    elsewhere = next(job for job in found.jobs if job.folder == copied)
    assert look(elsewhere).state == "done"
    (copied / "result.json").unlink()
    assert look(elsewhere).state == "elsewhere"
    assert "server7" in look(elsewhere).message
    assert Stopping(job=elsewhere).poll().phase == "stopped"


def test_a_job_whose_folder_vanishes_is_told_in_a_value(project: Project) -> None:
    job = start(program(""), project=project)
    ended(job)
    shutil.rmtree(job.folder)
    assert look(job).state == "interrupted"
    assert "is not there any more" in look(job).message
    assert find_jobs(project).jobs == ()
