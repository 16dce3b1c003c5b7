"""Real runs of the real backend, as small as they get, started through the logic."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from backend.data.phantom import make_phantom
from backend.data.phantom.cohort import write_image
from SSLPretrainLogic.commands import PretrainRequest, Request
from SSLPretrainLogic.environments import Interpreter, child_environment
from SSLPretrainLogic.jobs import Command, Job, JobStatus, backend_command, look, mark_of
from SSLPretrainLogic.processes import MARK
from SSLPretrainLogic.stopping import Stopping, StopProgress

LIMIT_S = 300.0
"""What takes longer hangs."""
HERE = Interpreter(path=Path(sys.executable), kind="external")
TINY = (
    *("method.encoder.embed_dim=4", "method.encoder.heads=[1, 1, 2]"),
    *("method.head.hidden=16", "method.head.bottleneck=8", "method.head.prototypes=32"),
    *("preprocess.spacing_mm=[6, 6, 6]", "views.region=40", "views.main.size=32"),
    *("data.workers=1", "train.batch_size=2", "train.preview_every_steps=2"),
)


def write_scans(folder: Path) -> None:
    """Two coarse phantoms."""
    for seed in (1, 2):
        image, _ = make_phantom(seed, size=(36, 60, 60), spacing_mm=(6.0, 6.0, 6.0))
        write_image(folder / f"scan_{seed}.nii.gz", image)


def command(request: Request) -> Command:
    """The command of a request, run by this Python."""
    variables = {
        **child_environment(HERE),
        "OMP_NUM_THREADS": "1",
        "GOMP_SPINCOUNT": "1000",
    }
    return backend_command(
        request,
        interpreter=HERE,
        environment=variables,
        title=request.command.capitalize(),
    )


def tiny(data: Path, run: Path) -> PretrainRequest:
    """The smallest pretraining; it does not end by itself."""
    return PretrainRequest(
        method="smit",
        preset="tiny",
        data=(data,),
        output=run,
        cache=run.parents[1] / "cache",
        device="cpu",
        max_steps=100000,
        overrides=TINY,
    )


def until(there: Callable[[], object], *, job: Job | None = None) -> None:
    """Wait for something that a job brings about; fail if the job ends before."""
    deadline = time.monotonic() + LIMIT_S
    while not there():
        if job is not None and not look(job).is_active and not there():
            raise AssertionError(f"ended too early: {look(job)} {job.log.read_text('utf-8')}")
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.05)


def ended(job: Job) -> JobStatus:
    """How a job ended."""
    until(lambda: not look(job).is_active)
    return look(job)


def stopped(stopping: Stopping) -> StopProgress:
    """The end of stopping."""
    until(lambda: stopping.poll().is_over)
    return stopping.poll()


def marked(job: Job) -> list[psutil.Process]:
    """All living processes of a job, found without the logic's help."""
    found = []
    for process in psutil.process_iter():
        try:
            lives = process.status() != psutil.STATUS_ZOMBIE
            if lives and process.environ().get(MARK) == mark_of(job):
                found.append(process)
        except psutil.Error:
            continue
    return found
