"""What the table of jobs lists: each run once, with the newest job in it, and jobs without one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from slicer.i18n import tr as _

from SSLPretrainLogic.command_lines import System, for_server, quoted, this_system
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.project import Project, outside
from SSLPretrainLogic.run_folder import RunStatus, read_status
from SSLSegmentationLib.job_monitor import Watched
from SSLSegmentationLib.log_view import last_words, percent_told, without_bar
from SSLSegmentationLib.run_view import standing
from SSLSegmentationLib.wording import (
    duration_words,
    kind_words,
    moment_words,
    seconds_between,
    state_words,
)

_PROGRAMS = ("backend", "__main__.py", "backend.exe")
_SHOWN_OUTSIDE = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run, or a job that works in none.

    Attributes:
        key: the run folder or the job's.
        title: for people.
        what: the backend's word for it.
        state: see `Standing`.
        is_active: whether it goes on.
        percent: done, None if unknown or over.
        started: ISO 8601, UTC.
        message: what it does just now, or why it failed.
        seconds: how long it took or takes, None if unknown.
        run: the run folder, None if there is none.
        watched: the newest job, None for a run that was copied here.
    """

    key: Path
    title: str
    what: str
    state: str
    is_active: bool
    percent: int | None
    started: str
    message: str
    seconds: float | None
    run: Path | None
    watched: Watched | None

    @property
    def texts(self) -> tuple[str, ...]:
        """Its cells, in the order of the columns."""
        state = state_words(self.state)
        if self.percent is not None and self.is_active:
            state = f"{state} {self.percent} %"
        took = "" if self.seconds is None else duration_words(self.seconds)
        return (self.title, kind_words(self.what), state, moment_words(self.started), took)

    @property
    def tips(self) -> tuple[str, ...]:
        """What the tooltips of its cells say."""
        state = self.texts[2] if self.percent is None else f"{self.texts[2]} ({self.percent} %)"
        started = moment_words(self.started, whole=True)
        return (str(self.key), self.texts[1], f"{state}. {self.message}", started, self.texts[4])

    @property
    def log(self) -> Path | None:
        """The file that tells most, None if there is none."""
        own = None if self.run is None else self.run / "log.txt"
        if own is not None and own.is_file():
            return own
        return None if self.watched is None else self.watched.job.log


def make_rows(runs: Iterable[RunStatus], jobs: Sequence[Watched]) -> tuple[Row, ...]:
    """All rows, the newest first.

    Args:
        runs: of the project.
        jobs: of the project, the newest first.
    """
    known = {run.folder: run for run in runs}
    newest: dict[Path, Watched] = {}
    for watched in jobs:
        if watched.job.run is not None:
            newest.setdefault(watched.job.run, watched)
    for folder in newest.keys() - known.keys():
        known[folder] = read_status(folder)
    rows = [_run_row(run, newest.get(run.folder)) for run in known.values()]
    rows += [_job_row(watched) for watched in jobs if watched.job.run is None]
    return tuple(sorted(rows, key=lambda row: (row.started, row.key.name), reverse=True))


def _run_row(run: RunStatus, watched: Watched | None) -> Row:
    now = standing(run, watched)
    steps = run.total_steps or 0
    job = None if watched is None else watched.job
    begun = max(run.started, job.started if job else "")
    last = _now() if now.is_active else run.updated
    return Row(
        key=run.folder,
        title=run.folder.name,
        what=run.kind or (job.what if job else ""),
        state=now.state,
        is_active=now.is_active,
        percent=100 * min(run.step, steps) // steps if steps and run.step < steps else None,
        started=begun,
        message=now.message,
        seconds=seconds_between(run.started or begun, last),
        run=run.folder,
        watched=watched,
    )


def _job_row(watched: Watched) -> Row:
    job, status = watched.job, watched.status
    words = last_words(job.log) if status.is_active else ""
    return Row(
        key=job.folder,
        title=job.title,
        what=job.what,
        state="stopping" if status.is_active and status.stopping else status.state,
        is_active=status.is_active,
        percent=percent_told(words),
        started=job.started,
        message=status.message or without_bar(words),
        seconds=seconds_between(job.started, _now() if status.is_active else _ended(job.folder)),
        run=None,
        watched=watched,
    )


def _ended(job: Path) -> str:
    """When a job told its end, "" if it has not."""
    try:
        moment = (job / "result.json").stat().st_mtime
    except OSError:
        return ""
    return datetime.fromtimestamp(moment, UTC).isoformat()


def _now() -> str:
    return datetime.now(UTC).isoformat()


@dataclass(frozen=True, kw_only=True)
class Copied:
    """A command line for the clipboard, and what is to be said about it."""

    line: str
    message: str


def argv_of(row: Row) -> tuple[str, ...]:
    """Program and arguments of a row.

    Raises:
        LogicError: if they are not known.
    """
    if row.watched is not None:
        return row.watched.job.argv
    told = read_status(row.run).argv if row.run is not None else ()
    if not told:
        raise LogicError(
            _("{title}: does not tell how it was started.").format(title=row.title),
            _("Its config.json holds all settings."),
        )
    return told


def words_of(argv: Sequence[str]) -> tuple[str, ...]:
    """What stands behind `backend` in a command.

    Raises:
        LogicError: if it is another program's.
    """
    for at, word in enumerate(argv):
        if word.replace("\\", "/").rpartition("/")[2] in _PROGRAMS:
            return tuple(argv[at + 1 :])
    raise LogicError(
        _("This command is one of this machine only."), _("Copy the one for this machine.")
    )


def line_here(argv: Sequence[str]) -> Copied:
    """The command line for this machine.

    Raises:
        LogicError: if a word has a line break.
    """
    line = quoted(argv, system=this_system())
    return Copied(line=line, message=_("The command line for this machine was copied."))


def line_there(argv: Sequence[str], *, project: Project, system: System) -> Copied:
    """The command line for a server with a copy of the project.

    Raises:
        LogicError: if it cannot run there.
    """
    command = for_server(words_of(argv), project=project, system=system)
    message = _(
        "Copied. Copy the project folder to the server, install the backend there, and type the "
        "command in the copy."
    )
    needed = tuple(dict.fromkeys((*command.outside, *outside(project))))
    if needed:
        names = ", ".join(needed[:_SHOWN_OUTSIDE])
        more = len(needed) - _SHOWN_OUTSIDE
        names += _(" and {n} more").format(n=more) if more > 0 else ""
        lack = _("Outside of the project, and needed there at the same place: {names}.")
        message += " " + lack.format(names=names)
    return Copied(line=command.text, message=message)
