"""Segments volumes and folders in the background, one task at a time, and loads the results."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic import tasks
from SSLPretrainLogic.commands import SegmentRequest
from SSLPretrainLogic.errors import LogicError, told_plainly
from SSLPretrainLogic.jobs import Job
from SSLPretrainLogic.models import Model
from SSLPretrainLogic.tasks import Bar, Case, Row, Task
from SSLSegmentationLib import loading
from SSLSegmentationLib.job_monitor import Following, JobMonitor, Watched
from SSLSegmentationLib.session import Session
from SSLSegmentationLib.signals import Signal


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How to segment.

    Attributes:
        model: with which network.
        structures: names of those that are wanted; none means all.
        device: as `--device` takes it.
    """

    model: Model
    structures: tuple[str, ...] = ()
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a task.

    Attributes:
        rows: for the table.
        notes: what one should know of it, in sentences.
        level: how grave that is: "info", "warning" or "error".
    """

    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    level: str = "info"


@dataclass(kw_only=True)
class _Plan:
    """What only this session knows of a task: nodes have other names and ids in the next one."""

    choice: Choice | None = None
    show_3d: bool = False
    output: str = ""
    queue: list[str] = field(default_factory=list)
    total: int = 0
    sources: dict[str, tuple[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def named(self, text: str, task: Task) -> str:
        """A sentence of the backend with the names of nodes for those of files."""
        short = text.replace(f"{task.input}/", "").replace(f"{task.input}\\", "")
        return re.sub(r"\b(volume_\d+)(\.nrrd)?", self._name, short)

    def _name(self, match: re.Match[str]) -> str:
        return self.sources.get(match[1], ("", match[0]))[1]

    def outcome(self, rows: tuple[Row, ...] = (), *, level: str = "") -> Outcome:
        """What came of it."""
        found = level or ("warning" if self.warnings else "info")
        return Outcome(rows=rows, notes=(*self.warnings, *self.notes), level=found)


class Segmenter:
    """Exports, starts `backend segment`, follows it, and loads what it made.

    Attributes:
        changed: emitted without values when a task begins, gets on or ends, or another one waits.
        finished: with the `Outcome` of a task.
        waiting: tasks that are done and not loaded, as after a start of Slicer; the newest first.
        stopping: whether the user has cancelled.
    """

    def __init__(self, session: Session, monitor: JobMonitor) -> None:
        self.changed = Signal()
        self.finished = Signal()
        self.waiting: tuple[Task, ...] = ()
        self.stopping = False
        self._session = session
        self._monitor = monitor
        self._following: Following | None = None
        self._task: Task | None = None
        self._job: Job | None = None
        self._plan: _Plan | None = None
        session.project_changed.connect(self._on_project)
        monitor.ended.connect(self._on_ended)

    def cleanup(self) -> None:
        """Let go of everything; a job goes on and its result waits."""
        self._session.project_changed.disconnect(self._on_project)
        self._monitor.ended.disconnect(self._on_ended)
        self._forget()

    @property
    def is_busy(self) -> bool:
        """Whether a task goes on."""
        return self._task is not None

    @property
    def is_batch(self) -> bool:
        """Whether what goes on is a folder or several volumes."""
        task, plan = self._task, self._plan
        if task is None:
            return False
        return not task.is_of_scene or max(len(task.cases), plan.total if plan else 0) > 1

    @property
    def bar(self) -> Bar | None:
        """How far the task is, None before that is known."""
        if self._job is not None:
            return tasks.read_bar(self._job)
        if self._plan is None:
            return None
        done = self._plan.total - len(self._plan.queue)
        return Bar(what=_("Preparing volumes"), done=done, total=self._plan.total, left_s=None)

    # What can be asked of it

    def segment_volumes(
        self, choice: Choice, volumes: Sequence[Any], *, output: Any = None, show_3d: bool = False
    ) -> None:
        """Segment volumes of the scene; `finished` tells what came of it.

        Args:
            choice: how.
            volumes: vtkMRMLScalarVolumeNodes.
            output: a segmentation, for a single volume; None makes a new one for each.
            show_3d: whether surfaces are made.

        Raises:
            LogicError: if it cannot even begin.
        """
        queue = [volume.GetID() for volume in volumes]
        plan = _Plan(choice=choice, show_3d=show_3d, queue=queue, total=len(queue))
        plan.output = "" if output is None else output.GetID()
        self._begin(plan)
        self._later()

    def segment_folder(
        self, choice: Choice, source: Path, *, output: Path, overwrite: bool
    ) -> None:
        """Segment all scans below a folder into another one.

        Raises:
            LogicError: if it cannot be started.
        """
        self._begin(_Plan(choice=choice), output=output)
        self._launch(source, output, ending=tasks.ENDING, overwrite=overwrite)

    def cancel(self) -> None:
        """Stop what goes on; nothing is loaded."""
        self.stopping = True
        if self._job is not None:
            self._monitor.stop(job=self._job)
        self.changed.emit()

    def load(self, task: Task, *, show_3d: bool) -> None:
        """Load a task that waits; a volume that is not in the scene comes in with it.

        Raises:
            LogicError: if it cannot be loaded.
        """
        plan = _Plan(show_3d=show_3d)
        self._hear(task, plan)
        self._load(task, plan, with_volumes=True)

    def discard(self, task: Task) -> None:
        """Delete a task that waits.

        Raises:
            LogicError: if it cannot be deleted.
        """
        tasks.discard(task)
        self._look_for_waiting()

    # From the scene to files, one volume at a time so that the window stays alive

    def _begin(self, plan: _Plan, *, output: Path | None = None) -> None:
        project = self._session.needs_project()
        self._session.needs_interpreter()
        if self.is_busy or plan.choice is None:
            raise LogicError(_("A segmentation goes on."), _("Wait for it, or cancel it."))
        self._task = tasks.new_task(project, model=plan.choice.model.name, output=output)
        self._plan = plan
        self.changed.emit()

    def _later(self) -> None:
        qt.QTimer.singleShot(0, self._export_next)

    def _export_next(self) -> None:
        task, plan = self._task, self._plan
        if task is None or plan is None or self._job is not None:
            return
        if self.stopping:
            self._end(Outcome(notes=(_("Cancelled."),)))
        elif plan.queue:
            with slicer.util.WaitCursor():
                self._export(task, plan)
            self.changed.emit()
            self._later()
        elif not task.cases:
            self._end(plan.outcome(level="error"))
        elif plan.total == 1:
            case = task.cases[0]
            self._launch(task.input / f"{case.name}.nrrd", task.label_file(case))
        else:
            self._launch(task.input, task.output, ending=tasks.ENDING)

    def _export(self, task: Task, plan: _Plan) -> None:
        from SSLPretrainLogic.scene.measures import fingerprint
        from SSLPretrainLogic.scene.volumes import export_volume

        volume = slicer.mrmlScene.GetNodeByID(plan.queue.pop(0))
        name = f"volume_{plan.total - len(plan.queue)}"
        if volume is None:
            plan.warnings.append(_("A volume is not in the scene any more."))
            return
        try:
            exported = export_volume(volume, task.input / f"{name}.nrrd")
            case = Case(name=name, fingerprint=fingerprint(volume))
        except LogicError as error:
            plan.warnings.append(str(error))
            return
        if exported.resampled:
            told = _("{name} was put on a straight grid first: {why}.")
            plan.notes.append(told.format(name=volume.GetName(), why=exported.resampled))
        plan.sources[name] = (volume.GetID(), volume.GetName())
        self._task = replace(task, cases=(*task.cases, case))

    def _launch(
        self, source: Path, output: Path, *, ending: str | None = None, overwrite: bool = False
    ) -> None:
        task, plan = self._task, self._plan
        if task is None or plan is None or plan.choice is None:
            return
        choice = plan.choice
        request = SegmentRequest(
            model=choice.model.path,
            input=source,
            output=output,
            structures=choice.structures,
            device=choice.device,
            ending=ending,
            overwrite=overwrite,
        )
        try:
            job = self._session.start(request, title=_title(task, plan, choice.model))
            self._task, self._job = replace(task, job=job.folder.name), job
            tasks.keep(self._session.needs_project(), self._task)
        except LogicError as error:
            plan.warnings.append(str(error))
            self._end(plan.outcome(level="error"))
            return
        self._follow(job)

    # While it runs, and its end

    def _follow(self, job: Job) -> None:
        self._following = self._monitor.follow(job.folder, lambda _update: self.changed.emit())

    def _on_ended(self, watched: Watched) -> None:
        job, task, plan = self._job, self._task, self._plan
        if job is None or task is None or watched.job.folder != job.folder:
            return
        told = plan or _Plan()
        self._hear(task, told)
        # Who is stopped while it starts may not find the time to say that it was.
        if watched.status.state == "cancelled" or watched.status.stopping:
            self._end(Outcome(notes=(_("Cancelled. Nothing was loaded."),)))
        elif not tasks.has_result(task):
            told.warnings = told.warnings or [_("Nothing was segmented.")]
            self._end(told.outcome(level="error"))
        else:
            self._forget()
            # What was started before Slicer waits: nobody expects the scene to change by itself.
            if plan is not None:
                self._load_guarded(task, plan)
        self._look_for_waiting()

    def _hear(self, task: Task, plan: _Plan) -> None:
        """Take note of what the backend has left out, and why."""
        for watched in self._monitor.jobs:
            if watched.job.folder.name == task.job:
                failure = (watched.status.message,) if watched.status.message else ()
                texts = (*tasks.problems(watched.job), *failure)
                plan.warnings += [plan.named(text, task) for text in texts]

    def _end(self, outcome: Outcome) -> None:
        """A task without a result has ended."""
        task = self._task
        self._forget()
        if task is not None:
            self._discard_guarded(task)
        self.changed.emit()
        self.finished.emit(outcome)

    def _forget(self) -> None:
        if self._following is not None:
            self._following.close()
        self._task = self._job = self._plan = self._following = None
        self.stopping = False

    # From files to the scene

    def _load_guarded(self, task: Task, plan: _Plan) -> None:
        """As `load`, where no panel is there to catch what goes wrong; the result waits then."""
        try:
            self._load(task, plan, with_volumes=False)
        except LogicError as error:
            self.finished.emit(Outcome(notes=(str(error),), level="error"))
        except OSError as error:
            told = told_plainly(error, error.filename or "")
            self.finished.emit(Outcome(notes=(str(told),), level="error"))

    def _load(self, task: Task, plan: _Plan, *, with_volumes: bool) -> None:
        rows: tuple[Row, ...] = ()
        left: tuple[Case, ...] = ()
        if task.is_of_scene:
            with slicer.util.WaitCursor():
                rows, left = self._load_cases(task, plan, with_volumes=with_volumes)
        else:
            rows = tasks.folder_rows(task)
            plan.notes += missing_in_folder(rows)
            plan.notes.append(_("Written to {folder}.").format(folder=task.output))
        if left:
            tasks.keep(self._session.needs_project(), replace(task, cases=left))
        else:
            tasks.discard(task)
        self._look_for_waiting()
        self.finished.emit(plan.outcome(rows))

    def _load_cases(
        self, task: Task, plan: _Plan, *, with_volumes: bool
    ) -> tuple[tuple[Row, ...], tuple[Case, ...]]:
        """The rows of what is in the scene now, and the cases that could not be loaded."""
        output = slicer.mrmlScene.GetNodeByID(plan.output) if plan.output else None
        rows: list[Row] = []
        left: list[Case] = []
        is_first = True
        for case in task.cases:
            if not task.label_file(case).is_file():
                continue
            node_id, name = plan.sources.get(case.name, ("", case.name))
            volume = loading.volume_of(case, node_id=node_id)
            if volume is None and with_volumes:
                volume = loading.read_volume(task, case)
            if volume is None:
                left.append(case)
                plan.warnings.append(_kept(name, task.label_file(case)))
                continue
            found, node = loading.load_case(task, case, volume, output=output, show_3d=plan.show_3d)
            rows += found
            plan.notes += _empty(found, name=volume.GetName())
            if is_first:
                loading.show(volume)
            else:
                loading.hide(node)
            is_first = False
        return tuple(rows), tuple(left)

    # After a start of Slicer

    def _on_project(self) -> None:
        project = self._session.project
        if project is None or (self._task and self._task.folder.is_relative_to(project.folder)):
            return
        self._forget()
        by_job = {watched.job.folder.name: watched for watched in self._monitor.jobs}
        for task in tasks.find_tasks(project):
            watched = by_job.get(task.job)
            if watched is not None and watched.status.is_active:
                self._task, self._job = task, watched.job
                self._follow(watched.job)
            elif tasks.is_abandoned(task):
                self._discard_guarded(task)
        self._look_for_waiting()

    def _look_for_waiting(self) -> None:
        project = self._session.project
        found = tasks.find_tasks(project) if project is not None else ()
        active = {w.job.folder.name for w in self._monitor.jobs if w.status.is_active}
        self.waiting = tuple(
            t for t in found if t.job and t.job not in active and tasks.has_result(t)
        )
        self.changed.emit()

    def _discard_guarded(self, task: Task) -> None:
        try:
            tasks.discard(task)
        except LogicError as error:
            self.finished.emit(Outcome(notes=(str(error),), level="warning"))


def _title(task: Task, plan: _Plan, model: Model) -> str:
    """What a job is called: without names of volumes, which may be those of patients."""
    title = _("Segment a folder with {model}")
    if task.is_of_scene:
        one, several = _("Segment one volume with {model}"), _("Segment {n} volumes with {model}")
        title = one if plan.total == 1 else several
    return str(title.format(model=model.name, n=plan.total))


def _kept(name: str, path: Path) -> str:
    told = _(
        "{name} was changed or removed meanwhile, so its segmentation was not loaded. It is kept: "
        "{path}. “Load the result” brings it in with the volume as it was."
    )
    return told.format(name=name, path=path)


def _empty(rows: Sequence[Row], *, name: str) -> list[str]:
    missing = ", ".join(row.structure for row in rows if row.voxels == 0)
    return [_("Not found in {name}: {missing}.").format(name=name, missing=missing)] * bool(missing)


def missing_in_folder(rows: Sequence[Row]) -> list[str]:
    """Which structures were not found in how many scans, in one sentence, if there are any."""
    scans = len({row.case for row in rows})
    told = _("{structure} in {n} of {all} scans")
    missing = Counter(row.structure for row in rows if row.voxels == 0)
    texts = [told.format(structure=name, n=n, all=scans) for name, n in missing.items()]
    return [_("Not found: {missing}.").format(missing=", ".join(texts))] if texts else []
