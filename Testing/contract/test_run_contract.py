"""The logic starts, follows, stops, finds again and resumes real runs of the real backend."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from real_runs import HERE, command, ended, marked, stopped, until, write_scans

from SSLPretrainLogic.commands import MethodsRequest, PretrainRequest, ScanRequest, resume_request
from SSLPretrainLogic.environments import backend_root
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.jobs import Job, find_jobs, look, read_answer, start
from SSLPretrainLogic.project import Project, create_project, find_runs, open_project, outside
from SSLPretrainLogic.run_folder import Follower, read_config, read_status
from SSLPretrainLogic.stopping import Stopping


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("contract") / "Müller's projéct 100%"
    project = create_project(folder)
    write_scans(folder / "scans")
    yield project
    # A test that failed leaves its run behind.
    for job in find_jobs(project).jobs:
        stopped(Stopping(job=job, grace_s=0))


def start_and_die(project: Project, run: Path) -> None:
    """Start a run from another process, which is then killed with its whole group."""
    starter = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        sys.path[:0] = {[str(Path(__file__).parent), str(backend_root())]!r}
        from real_runs import command, tiny
        from SSLPretrainLogic.jobs import start
        from SSLPretrainLogic.project import open_project
        project = open_project(Path(sys.argv[1]))
        start(command(tiny(project.folder / "scans", Path(sys.argv[2]))), project=project)
        sys.stdout.write("started\\n")
        sys.stdout.flush()
        time.sleep(1000)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", starter, str(project.folder), str(run)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as gui:
        assert gui.stdout is not None
        assert gui.stdout.readline() == b"started\n"
        os.killpg(gui.pid, signal.SIGKILL)
    assert gui.returncode == -signal.SIGKILL


def test_a_run_outlives_its_starter_and_is_followed_stopped_resumed_and_killed(
    project: Project,
) -> None:
    run = project.runs / "smit"
    start_and_die(project, run)

    again = open_project(project.folder)
    job = next(job for job in find_jobs(again).jobs if job.run == run)
    assert look(job).is_active
    follower, seen = Follower(run), []

    def has_learned() -> bool:
        update = follower.look()
        assert not update.metrics_restarted
        assert update.damaged_lines == 0
        seen.extend(record["step"] for record in update.records)
        return len(seen) >= 3 and bool(update.previews)

    until(has_learned, job=job)
    assert seen == list(range(1, len(seen) + 1))
    status = read_status(run)
    assert (status.state, status.kind, status.is_here) == ("running", "pretrain", True)
    assert status.total_steps == 100000
    tree = {process.pid for process in marked(job)}
    assert len(tree) >= 2
    assert status.process is not None
    assert status.process.pid in tree
    with pytest.raises(LogicError, match="'Pretrain' is working in it"):
        start(command(resume_request(run, kind="pretrain")), project=project)

    assert_all_stopped(job, at_least=len(tree))
    assert (look(job).state, look(job).code) == ("cancelled", 3)
    status = read_status(run)
    assert (status.state, status.can_resume) == ("cancelled", True)
    assert not (run / "stop").exists()

    resumed = assert_resumed(run, project, follower, after=status.step)
    assert_killed(run, resumed)
    assert [found.folder for found in find_runs(project)] == [run]
    assert [found.what for found in find_jobs(project).jobs] == ["pretrain", "pretrain"]


def assert_all_stopped(job: Job, *, at_least: int) -> None:
    end = stopped(Stopping(job=job, grace_s=60))
    assert (end.phase, end.left) == ("stopped", 0)
    assert end.seen >= at_least
    assert marked(job) == []


def assert_resumed(run: Path, project: Project, follower: Follower, *, after: int) -> Job:
    resumed = start(command(resume_request(run, kind="pretrain", device="cpu")), project=project)
    until(lambda: read_status(run).is_active and read_status(run).step > after, job=resumed)
    update = follower.look()
    steps = [record["step"] for record in update.records]
    assert steps == sorted(set(steps))
    assert steps[-1] > after
    assert "last.pt" in update.checkpoints
    assert {"input", "masked", "reconstruction"} <= update.previews[-1].volumes.keys()
    assert update.log
    assert read_config(run)["config"]["train"]["batch_size"] == 2
    return resumed


def assert_killed(run: Path, job: Job) -> None:
    process = read_status(run).process
    assert process is not None
    psutil.Process(process.pid).kill()
    killed = ended(job)
    assert (killed.state, killed.code) == ("failed", -9)
    assert "memory" in killed.message
    assert read_status(run).state == "interrupted"
    assert stopped(Stopping(job=job)).left == 0
    assert marked(job) == []


def test_a_refused_command_tells_the_backends_own_words(project: Project) -> None:
    request = PretrainRequest(
        method="smitt", data=(project.folder / "scans",), output=project.runs / "typo"
    )
    status = ended(start(command(request), project=project))
    assert (status.state, status.code) == ("failed", 2)
    assert "smitt" in status.message
    assert "Traceback" not in status.message
    assert read_status(project.runs / "typo").state == "absent"


def test_an_answer_for_programs_is_read_apart_from_what_is_told_to_people(
    project: Project,
) -> None:
    job = start(command(MethodsRequest()), project=project)
    assert ended(job).state == "done"
    assert '"smit"' in json.dumps(read_answer(job))
    job.output.write_text("no JSON", "utf-8")
    with pytest.raises(LogicError, match="is no answer"):
        read_answer(job)


def test_a_scan_is_a_job_and_its_index_can_move(project: Project) -> None:
    request = ScanRequest(paths=(project.folder / "scans",), output=project.index, workers=1)
    job = start(command(request), project=project)
    assert ended(job).state == "done"
    assert "2" in job.output.read_text("utf-8") + job.log.read_text("utf-8")
    assert outside(project) == ()
    assert job.argv[0] == str(HERE.path)
