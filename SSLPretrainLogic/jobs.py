"""Commands that go on by themselves, also after Slicer has ended, and are found again.

A job is a folder in the project:

    jobs/ID/job.json      what was asked: argv, cwd, run, what, title, started, host
    jobs/ID/process.json  the process that minds it (see wrapper.py); command.json: the command's
    jobs/ID/output.txt    standard output; log.txt: standard error
    jobs/ID/stop.json     somebody asked it to stop
    jobs/ID/result.json   how it ended
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from SSLPretrainLogic import wrapper
from SSLPretrainLogic.commands import Request, words
from SSLPretrainLogic.environments import Interpreter, backend_argv, doctor_argv
from SSLPretrainLogic.errors import LogicError, told_plainly
from SSLPretrainLogic.files import absolute, checked_moment, read_json, write_json
from SSLPretrainLogic.processes import MARK, Origin, Process, find_process
from SSLPretrainLogic.project import Project, free_name, from_text, to_text
from SSLPretrainLogic.run_folder import Tail

SCHEMA = 1

JobState = Literal["starting", "running", "done", "failed", "cancelled", "interrupted", "elsewhere"]
"""How a job stands; "elsewhere" if it was started on another machine and has not told its end."""

_START_S = 60.0
"""A Python that has not begun after so long has died."""
_CLOCK_S = 2.0
_TAIL_BYTES = 1 << 16
_LEAST_BYTES = 1 << 16
"""With less room on the disk a job cannot tell how it ended."""
_CANCELLED, _INTERRUPTED = 3, 5
_KILLED = frozenset({-9, 137})

_children: dict[Path, subprocess.Popen[bytes]] = {}
"""Those that this process started: it must take note of their end."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to start.

    Attributes:
        argv: program and arguments; the program is a Python, which also minds the job.
        environment: all variables of the child.
        what: the backend's word for it, e.g. "pretrain".
        title: for people, e.g. "Pretrain smit"; no patient's name.
        run: the run folder it works in, None if there is none.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    what: str
    title: str
    run: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command that was started.

    Attributes:
        folder: of the job; its name is the job's id.
        argv: program and arguments.
        what: the backend's word for it.
        title: for people.
        run: the run folder it works in, None if there is none.
        started: ISO 8601, UTC.
        host: machine it was started on.
    """

    folder: Path
    argv: tuple[str, ...]
    what: str
    title: str
    run: Path | None
    started: str
    host: str

    @property
    def output(self) -> Path:
        """Standard output."""
        return self.folder / "output.txt"

    @property
    def log(self) -> Path:
        """Standard error: progress, warnings, and in the end the error."""
        return self.folder / "log.txt"


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """How a job stands.

    Attributes:
        state: see `JobState`.
        code: exit code, None while there is none; negative for the signal that killed it.
        message: the error in one or two sentences, "" if there is none.
        stopping: whether somebody asked it to stop.
    """

    state: JobState
    code: int | None = None
    message: str = ""
    stopping: bool = False

    @property
    def is_active(self) -> bool:
        """Whether it goes on."""
        return self.state in {"starting", "running"}


@dataclass(frozen=True, kw_only=True)
class FoundJobs:
    """The jobs of a project, the newest first, and the folders that are none any more and why."""

    jobs: tuple[Job, ...]
    damaged: Mapping[Path, str]


def backend_command(
    request: Request, *, interpreter: Interpreter, environment: Mapping[str, str], title: str
) -> Command:
    """The command that asks the backend for something.

    Args:
        request: what is asked.
        interpreter: who runs it.
        environment: as `child_environment` makes it.
        title: for people; no patient's name.

    Raises:
        LogicError: if a value cannot stand on a command line.
    """
    return Command(
        argv=backend_argv(interpreter, words(request)),
        environment=environment,
        what=request.command,
        title=title,
        run=request.run,
    )


def doctor_command(interpreter: Interpreter, *, environment: Mapping[str, str]) -> Command:
    """The command whose output `environments.parse_report` reads and `remember` keeps."""
    return Command(
        argv=doctor_argv(interpreter),
        environment=environment,
        what="doctor",
        title=f"Test {interpreter.path}",
    )


def start(command: Command, *, project: Project) -> Job:
    """Start a command so that it outlives this process; returns at once.

    Raises:
        LogicError: if another job works in its run folder, the program cannot be started, or the
            project cannot be written.
    """
    _reap()
    _refuse_second(command, project)
    now = datetime.now(UTC)
    folder = _new_folder(project.jobs, f"{now:%Y%m%d-%H%M%S}-{command.what}")
    job = Job(
        folder=folder,
        argv=command.argv,
        what=command.what,
        title=command.title,
        run=None if command.run is None else absolute(command.run),
        started=now.isoformat(timespec="milliseconds"),
        host=socket.gethostname(),
    )
    _write_job(job, project)
    try:
        with job.output.open("ab") as output, job.log.open("ab") as log:
            _children[folder] = _launched(job, command.environment, output=output, log=log)
    except OSError as error:
        failed = LogicError(
            f"{command.argv[0]}: cannot be started ({error.strerror or error}).",
            "Choose another Python.",
        )
        write_json(folder / "result.json", {"code": None, "ended": 0.0, "error": str(failed)})
        raise failed from error
    return job


def _refuse_second(command: Command, project: Project) -> None:
    if command.run is None:
        return
    wanted = absolute(command.run)
    for job in find_jobs(project).jobs:
        if job.run == wanted and look(job).is_active:
            raise LogicError(
                f"{wanted}: {job.title!r} is working in it.", "Wait, or stop it first."
            )


def _new_folder(jobs: Path, name: str) -> Path:
    while True:
        folder = free_name(jobs, name)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            # Another process was quicker.
            continue
        except OSError as error:
            raise told_plainly(error, folder) from error
        return folder


def _write_job(job: Job, project: Project) -> None:
    write_json(
        job.folder / "job.json",
        {
            "schema": SCHEMA,
            "argv": list(job.argv),
            "cwd": str(project.folder),
            "what": job.what,
            "title": job.title,
            "run": None if job.run is None else to_text(project, job.run),
            "started": job.started,
            "host": job.host,
        },
    )


def _launched(
    job: Job, environment: Mapping[str, str], *, output: IO[bytes], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start the process that minds a job, apart from ours: no signal or console is shared."""
    argv = [job.argv[0], "-u", str(Path(wrapper.__file__).resolve()), str(job.folder)]
    variables = {**environment, MARK: mark_of(job)}
    if sys.platform != "win32":
        return subprocess.Popen(
            argv,
            env=variables,
            cwd=job.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=log,
            start_new_session=True,
        )
    apart = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    for flags in (apart | subprocess.CREATE_BREAKAWAY_FROM_JOB, apart):
        try:
            return subprocess.Popen(
                argv,
                env=variables,
                cwd=job.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                creationflags=flags,
            )
        except PermissionError:
            # Where Slicer itself is held in a job object that lets nobody go.
            continue
    raise PermissionError(13, "refused by Windows")


def _reap() -> None:
    """Take note of our children that have ended, so that no dead ones stay about."""
    for process in _children.values():
        process.poll()


def find_jobs(project: Project) -> FoundJobs:
    """All jobs of a project, also those that another process has started."""
    try:
        folders = sorted((p for p in project.jobs.iterdir() if p.is_dir()), reverse=True)
    except OSError:
        folders = []
    jobs: list[Job] = []
    damaged: dict[Path, str] = {}
    for folder in folders:
        try:
            jobs.append(_read_job(folder, project))
        except LogicError as error:
            damaged[folder] = str(error)
    newest = sorted(jobs, key=lambda job: (job.started, job.folder.name), reverse=True)
    return FoundJobs(jobs=tuple(newest), damaged=damaged)


def _read_job(folder: Path, project: Project) -> Job:
    path = folder / "job.json"
    told = read_json(path, cure="Delete the folder.")
    texts = [told.get(key) for key in ("what", "title", "started", "host")]
    argv, run = told.get("argv"), told.get("run")
    sound = isinstance(argv, list) and argv and (run is None or isinstance(run, str))
    if told.get("schema") != SCHEMA or not sound or not all(isinstance(t, str) for t in texts):
        raise LogicError(f"{path}: is damaged, or of another version.", "Delete the folder.")
    what, title, started, host = map(str, texts)
    checked_moment(started, path=path, cure="Delete the folder.")
    return Job(
        folder=folder,
        argv=tuple(map(str, argv or ())),
        what=what,
        title=title,
        run=None if run is None else from_text(project, run),
        started=started,
        host=host,
    )


def look(job: Job) -> JobStatus:
    """How a job stands, whoever started it; never raises."""
    _reap()
    stopping = (job.folder / "stop.json").exists()
    # In this order: what begins, or writes its result and ends, in between must not seem lost.
    has_begun = (job.folder / "process.json").exists()
    alive = minder(job) is not None
    result = _read(job.folder / "result.json")
    if result is not None:
        return _ended(job, result, stopping=stopping)
    if alive:
        return JobStatus(state="running", stopping=stopping)
    if job.host != socket.gethostname():
        told = f"Was started on {job.host}, which has not told how it ended."
        return JobStatus(state="elsewhere", message=told, stopping=stopping)
    if not job.folder.exists():
        return JobStatus(state="interrupted", message=f"{job.folder}: is not there any more.")
    if not has_begun and _may_still_start(job):
        return JobStatus(state="starting", stopping=stopping)
    if stopping:
        return JobStatus(state="cancelled", stopping=True)
    return JobStatus(state="interrupted", message=_lost(job))


def _lost(job: Job) -> str:
    """Why a job may have ended without a word."""
    with suppress(OSError):
        if shutil.disk_usage(job.folder).free < _LEAST_BYTES:
            return f"{job.folder}: the disk is full. Free some space and start it again."
    return "It was killed or the machine went down" + _last_line(job, before=": ") + "."


def _may_still_start(job: Job) -> bool:
    if job.folder in _children:
        return _children[job.folder].poll() is None
    age_s = (datetime.now(UTC) - datetime.fromisoformat(job.started)).total_seconds()
    return age_s < _START_S


def _ended(job: Job, result: Mapping[str, Any], *, stopping: bool) -> JobStatus:
    code = result.get("code")
    if not isinstance(code, int):
        message = str(result.get("error") or "It could not be started.")
        return JobStatus(state="failed", message=message, stopping=stopping)
    states: dict[int, JobState] = {
        0: "done",
        _CANCELLED: "cancelled",
        _INTERRUPTED: "interrupted",
    }
    # Killed by a signal before it could say a word of its own, or while Python was starting.
    is_mute = code < 0 or code > 128 or _last_line(job, before="") == "KeyboardInterrupt"
    otherwise: JobState = "cancelled" if stopping and is_mute else "failed"
    state = states.get(code, otherwise)
    message = error_told(job, code) if state == "failed" else ""
    return JobStatus(state=state, code=code, message=message, stopping=stopping)


def error_told(job: Job, code: int) -> str:
    """Why a job failed, in the backend's own words where it had any."""
    log = "\n".join(Tail(job.log, last_bytes=_TAIL_BYTES).read().lines)
    told = re.findall(r"^backend: (?!details in )(.+)$", log, flags=re.MULTILINE)
    if told:
        return str(told[-1])
    if code in _KILLED:
        return "It was killed, most likely because memory ran out. Choose a smaller batch or crop."
    return f"It ended with code {code}" + _last_line(job, before=": ") + "."


def _last_line(job: Job, *, before: str) -> str:
    """The last line of the log, "" if there is none."""
    lines = [line.strip() for line in Tail(job.log, last_bytes=_TAIL_BYTES).read().lines]
    return next((before + line.rstrip(".") for line in reversed(lines) if line), "")


def read_answer(job: Job) -> Any:
    """What a command with `--json` answered.

    Raises:
        LogicError: if it is no JSON, or cannot be read.
    """
    try:
        return json.loads(job.output.read_text("utf-8"))
    except OSError as error:
        raise told_plainly(error, job.output) from error
    except (ValueError, RecursionError):
        raise LogicError(f"{job.output}: is no answer.", f"See {job.log}.") from None


def minder(job: Job) -> Process | None:
    """The process that minds a job, None if it does not live here."""
    return _process(job, "process.json")


def command_process(job: Job) -> Process | None:
    """The process of the command itself, None if it does not live here."""
    return _process(job, "command.json")


def mark_of(job: Job) -> str:
    """What all processes of a job inherit: the same in no other project, and after a move."""
    return f"{job.folder.name} {job.started}"


def origin(job: Job) -> Origin | None:
    """How processes of a job are known whose parents have died; None if they are not here."""
    if job.host != socket.gethostname():
        return None
    told = _read(job.folder / "process.json") or {}
    group, written = told.get("group"), told.get("written")
    return Origin(
        mark=mark_of(job),
        group=group if isinstance(group, int) else 0,
        since=float(written) if isinstance(written, (int, float)) else 0.0,
    )


def _process(job: Job, name: str) -> Process | None:
    told = _read(job.folder / name)
    if told is None or job.host != socket.gethostname():
        return None
    try:
        process, written = find_process(int(told["pid"])), float(told["written"])
    except (KeyError, TypeError, ValueError):
        return None
    # Whoever took over the number of a process that has ended, has started after that.
    return process if process and process.started < written + _CLOCK_S else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except LogicError:
        return None


def mark_stopping(job: Job) -> None:
    """Keep that somebody asked a job to stop.

    Raises:
        LogicError: if its folder cannot be written.
    """
    if not (job.folder / "stop.json").exists():
        write_json(job.folder / "stop.json", {"asked": time.time()})


def forget(jobs: Sequence[Job]) -> None:
    """Delete the folders of jobs that have ended; runs and results stay.

    Raises:
        LogicError: if one goes on, or cannot be deleted.
    """
    for job in jobs:
        if look(job).is_active:
            raise LogicError(f"{job.title!r} goes on.", "Stop it first.")
        try:
            for path in job.folder.iterdir():
                path.unlink(missing_ok=True)
            job.folder.rmdir()
        except FileNotFoundError:
            # Somebody else has deleted it.
            continue
        except OSError as error:
            raise told_plainly(error, job.folder) from error
