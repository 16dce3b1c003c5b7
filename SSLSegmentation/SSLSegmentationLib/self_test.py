"""The whole story in small, inside a running Slicer: from phantoms to a segmentation in the scene.

It uses what the panels use, the session, the monitor and the logic, on the smallest model there is.
It leaves the user's settings as they were.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import slicer

from SSLPretrainLogic import environments
from SSLPretrainLogic.commands import (
    FinetuneRequest,
    PretrainRequest,
    Request,
    ScanRequest,
    SegmentRequest,
)
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.jobs import Command, Job
from SSLPretrainLogic.project import create_project
from SSLPretrainLogic.stopping import Stopping
from SSLSegmentationLib.job_monitor import JobMonitor, Watched
from SSLSegmentationLib.phantoms import phantom_argv
from SSLSegmentationLib.session import Session

PYTHON = "SSLSEGMENTATION_PYTHON"
"""Names a Python that can run the backend; without it Slicer's own must be able to."""

LIMIT_S = 600.0
"""A job that takes longer hangs."""

_STEPS = 4
_SMALL = (
    "method.encoder.embed_dim=4",
    "method.encoder.heads=[1, 1, 2]",
    "preprocess.spacing_mm=[6, 6, 6]",
    "data.workers=1",
)
_SMALL_PRETRAIN = (
    *_SMALL,
    "train.batch_size=2",
    "views.region=40",
    "views.main.size=32",
    "method.head.hidden=16",
    "method.head.bottleneck=8",
    "method.head.prototypes=32",
)
_SMALL_FINETUNE = (*_SMALL, "decoder.width=4", "crop=32", "crops_per_scan=1")


class Story:
    """One project from its beginning to its first result.

    Args:
        folder: an empty one, for the project and the phantoms.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.session = Session()
        self.monitor = JobMonitor(self.session)
        self._ended: list[Watched] = []
        self.monitor.ended.connect(self._ended.append)

    def close(self) -> None:
        """Look after the jobs no more."""
        self.monitor.cleanup()

    def set_up(self) -> environments.Report:
        """Make a project and choose the Python that computes."""
        self.session.use_project(create_project(self.folder / "project", name="Self test"))
        python = environments.chosen_interpreter(Path(_python()))
        self.session.use_interpreter(python)
        report = environments.examine(python, environment=self.session.variables())
        self.session.use_report(report)
        return report

    def make_phantoms(self) -> Path:
        """Write two scans without labels, two with them and one to try the model on."""
        python, cohort = self.session.needs_interpreter(), self.folder / "phantoms"
        argv = phantom_argv(python, cohort, seed=3, unlabelled=2, labelled=2, test=1)
        command = Command(
            argv=tuple(argv),
            environment=self.session.variables(),
            what="phantoms",
            title="Make phantoms",
        )
        self.wait_for(self.session.start_command(command))
        return cohort

    def scan(self, cohort: Path) -> Path:
        """Find the series to learn from."""
        index = self.session.needs_project().index
        self._do(ScanRequest(paths=(cohort / "unlabelled",), output=index))
        return index

    def pretrain(self, index: Path) -> Path:
        """Learn a few steps without labels."""
        run = self.session.needs_project().runs / "pretrain"
        request = PretrainRequest(
            output=run,
            data=(index,),
            method="smit",
            preset="tiny",
            max_steps=_STEPS,
            device="cpu",
            overrides=_SMALL_PRETRAIN,
        )
        self._do(request)
        return run

    def finetune(self, cohort: Path, *, pretrained: Path) -> Path:
        """Learn a few steps with labels."""
        run = self.session.needs_project().runs / "finetune"
        request = FinetuneRequest(
            output=run,
            data=cohort / "labelled",
            init=pretrained,
            preset="tiny",
            max_steps=_STEPS,
            device="cpu",
            overrides=_SMALL_FINETUNE,
        )
        self._do(request)
        return run

    def structures(self, cohort: Path) -> list[str]:
        """The names that the model has learnt from the phantoms, in the order of their values."""
        from SSLPretrainLogic.scene import structures

        file = cohort / "labelled" / "case_01" / "labels.json"
        return [structure.name for structure in structures.read_labels(file)]

    def segment(self, volume: Any, *, model: Path) -> Any:
        """Segment a volume of the scene and bring the result into it; answers the node."""
        from SSLPretrainLogic.scene import results, volumes

        given = volumes.export_volume(volume, self.folder / "input.nrrd").path
        output = self.folder / "result.seg.nrrd"
        self._do(SegmentRequest(model=model, input=given, output=output, device="cpu"))
        return results.import_labels(output, volume).node

    def wait_for(self, job: Job) -> None:
        """Let Slicer go on until a job has ended well.

        Raises:
            LogicError: if it ends otherwise, or does not end.
        """
        deadline = time.monotonic() + LIMIT_S
        while not (ended := [w for w in self._ended if w.job.folder == job.folder]):
            if time.monotonic() > deadline:
                _stop(job)
                raise LogicError(f"{job.title}: does not end.", f"See {job.log}.")
            slicer.app.processEvents()
            time.sleep(0.02)
        status = ended[0].status
        if status.state != "done":
            raise LogicError(f"{job.title}: {status.state}. {status.message}", f"See {job.log}.")

    def _do(self, request: Request) -> None:
        self.wait_for(self.session.start(request, title=f"Self test: {request.command}"))


@contextmanager
def begun() -> Iterator[Story]:
    """A story in a folder that is gone afterwards, as is all that it did to the settings."""
    settings = Session()
    kept = {name: settings.setting(name) for name in ("project", "interpreter")}
    with tempfile.TemporaryDirectory(prefix="SSLSegmentation ä ") as folder:
        story = Story(Path(folder))
        try:
            yield story
        finally:
            story.close()
            for name, value in kept.items():
                settings.remember(name, value)


def _stop(job: Job) -> None:
    stopping = Stopping(job=job, grace_s=0)
    while not stopping.poll().is_over:
        time.sleep(0.1)


def _python() -> str:
    given = os.environ.get(PYTHON, "")
    own = (found.path for found in environments.find_interpreters() if found.kind == "slicer")
    python = given or next(map(str, own), "")
    if not python:
        raise LogicError("There is no Python to test with.", f"Set {PYTHON} to one.")
    return python
