"""Stops a run or a job: asks it first, then ends the whole tree of its processes.

Nothing here waits: a timer of the GUI calls `poll` until it says that all has ended.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.jobs import (
    Job,
    JobStatus,
    command_process,
    look,
    mark_stopping,
    minder,
    origin,
)
from SSLPretrainLogic.processes import Process, family, kill_signal, living, send
from SSLPretrainLogic.run_folder import STOP_FILE, RunStatus, read_status

Phase = Literal["asked", "terminating", "killing", "stopped", "unreachable"]

_TERMINATE_S = 5.0
_KILL_S = 5.0
_LAST_WORDS_S = 30.0
"""A run that has told how it ended still writes its report."""
_ENDS = frozenset({"stopped", "unreachable"})
_MESSAGES: dict[Phase, str] = {
    "asked": "Saving and stopping",
    "terminating": "Ending its processes",
    "killing": "Ending its processes by force",
    "stopped": "Stopped",
    "unreachable": "Works on another machine and has not stopped. Stop it there, or wait.",
}


@dataclass(frozen=True, kw_only=True)
class StopProgress:
    """How far stopping is.

    Attributes:
        phase: "stopped" when nothing of it lives, "unreachable" if it works on another machine and
            did not answer.
        seen: processes that belonged to it, all together.
        left: those that still live.
        message: for people.
    """

    phase: Phase
    seen: int
    left: int
    message: str

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.phase in _ENDS


@dataclass(frozen=True, kw_only=True)
class _Sight:
    """What is seen at one moment: run and job, None where there is none, and who lives."""

    run: RunStatus | None
    job: JobStatus | None
    left: tuple[Process, ...]
    minders: frozenset[int]
    has_root: bool
    has_begun: bool

    @property
    def workers(self) -> tuple[Process, ...]:
        """All but those who write how the command ended, and end by themselves."""
        return tuple(process for process in self.left if process.pid not in self.minders)

    @property
    def is_elsewhere(self) -> bool:
        return self.run is not None and self.run.is_active and not self.run.is_here

    @property
    def is_starting(self) -> bool:
        return self.job is not None and self.job.state == "starting"

    @property
    def is_over(self) -> bool:
        return not self.left and not self.is_elsewhere and not self.is_starting

    @property
    def is_orphaned(self) -> bool:
        """Whether command and run have ended and left children behind."""
        return bool(self.left) and not self.has_root and not self.is_starting


class Stopping:
    """Stops a run, a job, or a job with its run.

    Example:
        stopping = Stopping(job=job, grace_s=60)
        while not stopping.poll().is_over:
            time.sleep(0.5)
    """

    def __init__(
        self, *, job: Job | None = None, run: Path | None = None, grace_s: float = 60.0
    ) -> None:
        """Ask it to stop.

        Args:
            job: the job, if it was started as one; its run is stopped with it.
            run: the run folder.
            grace_s: how long it may take to save and end by itself.
        """
        self._job = job
        self._run = job.run if run is None and job is not None else run
        self._seen: list[Process] = []
        self._told: list[Process] = []
        self._phase: Phase = "asked"
        self._deadline = time.monotonic() + grace_s
        self._words_until: float | None = None
        self._is_asked = False
        if job is not None and look(job).is_active:
            # A full disk must not keep anything from being stopped.
            with suppress(LogicError):
                mark_stopping(job)
        self.poll()

    def poll(self) -> StopProgress:
        """Go on with stopping, and tell how far it is; never raises."""
        sight = self._look()
        if self._phase not in _ENDS:
            self._step(sight)
        return StopProgress(
            phase=self._phase,
            seen=len(self._seen),
            left=len(sight.left),
            message=_MESSAGES[self._phase],
        )

    def _look(self) -> _Sight:
        run = None if self._run is None else read_status(self._run)
        job = None if self._job is None else look(self._job)
        minding = command = source = None
        if self._job is not None:
            minding, command = minder(self._job), command_process(self._job)
            source = origin(self._job)
        roots = [p for p in (run.process if run else None, minding, command) if p]
        members = family([*roots, *self._seen], origin=source).values()
        self._seen += _without(members, self._seen)
        left = tuple(living(self._seen))
        return _Sight(
            run=run,
            job=job,
            left=left,
            minders=frozenset() if minding is None else _with_launchers(minding, left),
            has_root=bool(roots),
            has_begun=command is not None or bool(run and run.process),
        )

    def _step(self, sight: _Sight) -> None:
        if sight.is_over:
            self._finish()
        elif self._phase == "asked" and time.monotonic() < self._patience(sight):
            self._ask(sight)
        elif sight.is_elsewhere and not sight.left:
            self._phase = "unreachable"
        else:
            self._end(sight)

    def _patience(self, sight: _Sight) -> float:
        """Until when it may end by itself."""
        if sight.is_orphaned:
            # Nobody is left who would end them.
            return 0.0
        has_ended = sight.run is not None and self._is_asked and not sight.run.is_active
        if has_ended and self._words_until is None:
            self._words_until = time.monotonic() + _LAST_WORDS_S
        return max(self._deadline, self._words_until or 0.0)

    def _ask(self, sight: _Sight) -> None:
        """Ask once: by the file that a run looks for, else by what Ctrl+C sends."""
        if self._is_asked:
            return
        if sight.run is not None and sight.run.is_active:
            self._is_asked = _touched(sight.run.folder / STOP_FILE)
        # What is just starting is asked when it is there; before, a signal would be lost.
        if not self._is_asked and sight.has_begun and sight.workers and sys.platform != "win32":
            send(int(signal.SIGINT), sight.workers)
            self._is_asked = True

    def _end(self, sight: _Sight) -> None:
        now = time.monotonic()
        if self._phase == "asked":
            self._phase, self._deadline = "terminating", now + _TERMINATE_S
        elif self._phase == "terminating" and now >= self._deadline:
            self._phase, self._deadline = "killing", now + _KILL_S
        if self._phase == "terminating":
            # Once each: a second signal would disturb whoever is saving.
            new = _without(sight.workers, self._told)
            send(int(signal.SIGTERM), new)
            self._told += new
        else:
            is_stuck = not sight.workers and now >= self._deadline
            send(kill_signal(), sight.left if is_stuck else sight.workers)

    def _finish(self) -> None:
        self._phase = "stopped"
        if self._run is not None:
            # What it asked for is done.
            with suppress(OSError):
                (self._run / STOP_FILE).unlink(missing_ok=True)


def _touched(path: Path) -> bool:
    try:
        path.touch()
    except OSError:
        # The disk may be full, or read-only by now.
        return False
    return True


def _without(processes: Iterable[Process], known: Sequence[Process]) -> list[Process]:
    return [p for p in processes if not any(map(p.is_same, known))]


def _with_launchers(process: Process, left: Sequence[Process]) -> frozenset[int]:
    """A process and those that it was started through, such as Slicer's launcher."""
    by_pid = {member.pid: member for member in left}
    found: set[int] = set()
    step: Process | None = process
    while step is not None and step.pid not in found:
        found.add(step.pid)
        step = by_pid.get(step.parent)
    return frozenset(found)
