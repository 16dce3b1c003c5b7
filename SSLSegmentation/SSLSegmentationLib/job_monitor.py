"""Looks after the jobs of the open project with one timer, and tells the panels what is new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import qt

from SSLPretrainLogic import jobs
from SSLPretrainLogic.jobs import Job, JobStatus
from SSLPretrainLogic.run_folder import Follower, Update
from SSLPretrainLogic.stopping import Stopping, StopProgress
from SSLSegmentationLib.session import Session
from SSLSegmentationLib.signals import Signal

SHOWN_MS = 500
HIDDEN_MS = 2000
_LIST_EVERY = 6
"""Ticks between two looks at the folder of jobs, where another Slicer may have started one."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A job and how it stands."""

    job: Job
    status: JobStatus


class Following:
    """One run that somebody follows; `close` ends it."""

    def __init__(self, monitor: JobMonitor, run: Path, receiver: Callable[[Update], None]) -> None:
        self.run = run
        self.receiver = receiver
        self.follower = Follower(run)
        self._monitor = monitor

    def close(self) -> None:
        """Follow it no more."""
        self._monitor.unfollow(self)


class JobMonitor:
    """The one timer behind everything that changes by itself.

    Attributes:
        changed: emitted without values when a job has come, gone, or stands otherwise, or the
            project itself is gone or back.
        ended: with the `Watched` that has ended since the last look.
        stop_progress: with job folder and `StopProgress` while a job is being stopped.
        ticked: without values after each look, for what a job tells while its state is the same.
    """

    def __init__(self, session: Session) -> None:
        self.changed = Signal()
        self.ended = Signal()
        self.stop_progress = Signal()
        self.ticked = Signal()
        self._session = session
        self._watched: dict[Path, Watched] = {}
        self._followings: list[Following] = []
        self._stoppings: dict[Path, Stopping] = {}
        self._ticks = 0
        self._is_there = True
        self._timer = qt.QTimer()
        self._timer.interval = SHOWN_MS
        self._timer.connect("timeout()", self.tick)
        session.project_changed.connect(self._on_project)
        session.started.connect(self._on_started)

    # What the panels ask

    @property
    def jobs(self) -> tuple[Watched, ...]:
        """The jobs of the project, the newest first."""
        return tuple(self._watched.values())

    def active(self, *, what: str = "", run: Path | None = None) -> Watched | None:
        """The newest job that goes on, of a kind ("scan", "pretrain" …) or in a run folder."""
        for watched in self._watched.values():
            fits = what in ("", watched.job.what) and run in (None, watched.job.run)
            if fits and watched.status.is_active:
                return watched
        return None

    def job_of(self, run: Path) -> Watched | None:
        """The newest job that worked in a run folder."""
        return next((w for w in self._watched.values() if w.job.run == run), None)

    def follow(self, run: Path, receiver: Callable[[Update], None]) -> Following:
        """Call a function with what is new in a run: at once with all there is, then at each tick.

        Args:
            run: its folder; it may not be there yet.
            receiver: is given an `Update`.
        """
        following = Following(self, run, receiver)
        self._followings.append(following)
        receiver(following.follower.look())
        return following

    def unfollow(self, following: Following) -> None:
        """Follow a run no more."""
        if following in self._followings:
            self._followings.remove(following)

    def stop(self, *, job: Job | None = None, run: Path | None = None) -> None:
        """Stop a job, a run that has no job, or both: kindly first, then by force.

        `stop_progress` tells how far it is.

        Raises:
            LogicError: if it cannot even be asked.
        """
        key = job.folder if job is not None else run
        if key is not None and key not in self._stoppings:
            self._stoppings[key] = Stopping(job=job, run=run)
            self.tick()

    def forget(self, ended: Sequence[Job]) -> None:
        """Forget jobs that have ended; runs and results stay.

        Raises:
            LogicError: if one goes on, or cannot be deleted.
        """
        try:
            jobs.forget(ended)
        finally:
            self._list()

    def is_stopping(self, key: Path) -> bool:
        """Whether a job (by its folder) or a run is being stopped."""
        return key in self._stoppings

    # The life of the module

    def enter(self) -> None:
        """The module is shown: look often."""
        self._timer.interval = SHOWN_MS
        self.tick()

    def exit(self) -> None:
        """Another module is shown: look seldom."""
        self._timer.interval = HIDDEN_MS

    def cleanup(self) -> None:
        """Look no more; all jobs go on."""
        self._timer.stop()
        self._timer.disconnect("timeout()", self.tick)
        self._followings.clear()
        self._session.project_changed.disconnect(self._on_project)
        self._session.started.disconnect(self._on_started)

    # Each look

    def tick(self) -> None:
        """Look at everything that may have changed."""
        if self._session.project is None:
            return
        self._ticks += 1
        if self._ticks % _LIST_EVERY == 1:
            self._list()
        self._look()
        self._go_on_stopping()
        for following in tuple(self._followings):
            following.receiver(following.follower.look())
        self.ticked.emit()

    def _on_project(self) -> None:
        if self._session.project is None:
            return
        self._watched.clear()
        self._list()
        self.changed.emit()
        self._timer.start()

    def _on_started(self, job: Job) -> None:
        # Not looked at yet: the end of one that has ended already must be told too.
        begun = Watched(job=job, status=JobStatus(state="starting"))
        self._watched = {job.folder: begun, **self._watched}
        self._timer.start()
        self.changed.emit()

    def _list(self) -> None:
        project = self._session.project
        if project is None:
            return
        found = jobs.find_jobs(project).jobs
        listed: dict[Path, Watched] = {}
        for job in found:
            known = self._watched.get(job.folder)
            listed[job.folder] = known or Watched(job=job, status=jobs.look(job))
        # One whose folder has vanished is kept until a look has told that it has ended.
        listed |= {
            folder: known
            for folder, known in self._watched.items()
            if folder not in listed and known.status.is_active
        }
        was_there, self._is_there = self._is_there, project.is_there
        differs = listed.keys() != self._watched.keys() or self._is_there != was_there
        self._watched = listed
        if differs:
            self.changed.emit()

    def _look(self) -> None:
        ended: list[Watched] = []
        differs = False
        for folder, before in tuple(self._watched.items()):
            if not before.status.is_active:
                continue
            now = Watched(job=before.job, status=jobs.look(before.job))
            self._watched[folder] = now
            differs = differs or now.status != before.status
            if not now.status.is_active:
                ended.append(now)
        for watched in ended:
            self.ended.emit(watched)
        if differs:
            self.changed.emit()

    def _go_on_stopping(self) -> None:
        for key, stopping in tuple(self._stoppings.items()):
            progress: StopProgress = stopping.poll()
            if progress.is_over:
                del self._stoppings[key]
            self.stop_progress.emit(key, progress)
