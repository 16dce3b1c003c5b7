"""A real run with two worker processes is stopped whole, after what started it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from real_runs import marked, stopped, until

from backend.data.phantom import make_phantom
from backend.data.phantom.cohort import write_image
from backend.data.pool import usable_cores
from SSLPretrainLogic.environments import backend_root
from SSLPretrainLogic.jobs import find_jobs, look
from SSLPretrainLogic.project import create_project, open_project
from SSLPretrainLogic.run_folder import read_status
from SSLPretrainLogic.stopping import Stopping

SCANS = 8
"""So many that their preparation is shared by processes; data is read in threads later."""
SLOW = ("data.workers=2", "preprocess.spacing_mm=[0.8, 0.8, 0.8]")
"""Scans so fine that preparing each of them takes seconds."""
PROCESSES = 4
"""The one that minds the job, the command, and its two workers."""


def start_and_be_killed(project: Path, run: Path) -> None:
    """A process as that of a window starts a run; then it is killed with its whole group."""
    window = textwrap.dedent(f"""
        import sys, time
        from dataclasses import replace
        from pathlib import Path
        sys.path[:0] = {[str(Path(__file__).parent), str(backend_root())]!r}
        from real_runs import command, tiny
        from SSLPretrainLogic.jobs import start
        from SSLPretrainLogic.project import open_project
        project = open_project(Path(sys.argv[1]))
        request = tiny(project.folder / "scans", Path(sys.argv[2]))
        request = replace(request, overrides=(*request.overrides, *{SLOW!r}))
        start(command(request), project=project)
        sys.stdout.write("started\\n")
        sys.stdout.flush()
        time.sleep(1000)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", window, str(project), str(run)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(usable_cores() < 2, reason="one processor: scans are prepared by one process")
def test_both_workers_of_a_run_end_with_it_though_the_window_was_killed(tmp_path: Path) -> None:
    project = create_project(tmp_path / "Projekt 'ü' 100%")
    for seed in range(SCANS):
        image, _ = make_phantom(seed, size=(36, 60, 60), spacing_mm=(6.0, 6.0, 6.0))
        write_image(project.folder / "scans" / f"{seed}.nii.gz", image)
    run = project.runs / "smit"
    start_and_be_killed(project.folder, run)
    (job,) = find_jobs(open_project(project.folder)).jobs
    try:
        until(lambda: len(marked(job)) >= PROCESSES, job=job)
    finally:
        end = stopped(Stopping(job=job, grace_s=60))
    assert (end.phase, end.left) == ("stopped", 0)
    assert end.seen >= PROCESSES
    assert marked(job) == []
    assert look(job).state == "cancelled"
    assert not read_status(run).is_active
