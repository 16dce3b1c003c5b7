"""Reads a run folder, which another process writes, perhaps on another machine.

A folder may vanish, or be half there, at any moment: nothing here raises for that, it says so in
what it returns.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.files import read_json
from SSLPretrainLogic.processes import Process, find_process, same_boot

SCHEMA = 1
STOP_FILE = "stop"

State = Literal[
    "queued", "running", "done", "failed", "cancelled", "interrupted", "absent", "damaged"
]
ACTIVE = frozenset({"queued", "running"})
RESUMABLE = frozenset({"cancelled", "interrupted", "failed"})

_STATES = frozenset({*ACTIVE, *RESUMABLE, "done"})
_SILENT_S = 60.0
"""A run on another machine that was not heard of for so long has died; clocks may differ."""
_START_S = 2.0
_MOST_STEPS = 1 << 30
_CHUNK = 1 << 20
_REMEMBERED = 64


@dataclass(frozen=True, kw_only=True)
class RunError:
    """Why a run failed, as the backend told it."""

    type: str
    message: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What status.json says, checked.

    Attributes:
        folder: the run.
        state: "interrupted" also where the file says running and its process has died; "absent" if
            there is no run, "damaged" if its status cannot be read (`message` says why).
        kind: "pretrain" or "finetune", "" if unknown.
        message: what it does just now.
        step: steps done.
        total_steps: None if unknown.
        epoch: passes over the data.
        eta_s: seconds left, None if unknown.
        best: what was best in validation, {} if nothing yet.
        error: only if it failed.
        warning: what looks wrong while it goes on, e.g. that the features have collapsed.
        host: machine it runs on.
        started: ISO 8601, UTC.
        updated: last sign of life, likewise.
        silent_s: seconds since that sign, None if unknown.
        process: the process that writes it, None if it does not live here.
        argv: the command that started it.
    """

    folder: Path
    state: State
    kind: str = ""
    message: str = ""
    step: int = 0
    total_steps: int | None = None
    epoch: float = 0.0
    eta_s: float | None = None
    best: Mapping[str, Any] | None = None
    error: RunError | None = None
    warning: str = ""
    host: str = ""
    started: str = ""
    updated: str = ""
    silent_s: float | None = None
    process: Process | None = None
    argv: tuple[str, ...] = ()

    @property
    def is_active(self) -> bool:
        """Whether it goes on, as far as one can tell."""
        return self.state in ACTIVE

    @property
    def is_here(self) -> bool:
        """Whether it was started on this machine."""
        return self.host == socket.gethostname()

    @property
    def can_resume(self) -> bool:
        """Whether `--resume` can go on with it."""
        there = (self.folder / "config.json", self.folder / "checkpoints" / "last.pt")
        return self.state in RESUMABLE and any(path.exists() for path in there)


def read_status(folder: Path) -> RunStatus:
    """status.json as things really stand; never raises."""
    path = folder / "status.json"
    try:
        if not path.exists():
            return RunStatus(folder=folder, state="absent", message=f"{folder}: there is no run.")
        return _status(folder, read_json(path, cure="Start the run again."))
    except (LogicError, OSError) as error:
        return RunStatus(folder=folder, state="damaged", message=str(error))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"{path}: is damaged ({type(error).__name__}: {error}). Start the run again."
        return RunStatus(folder=folder, state="damaged", message=what)


def _status(folder: Path, told: Mapping[str, Any]) -> RunStatus:
    if told["schema"] != SCHEMA:
        raise LogicError(
            f"{folder}: is a run of version {told['schema']}, this program knows {SCHEMA}.",
            "Update the extension.",
        )
    if told["state"] not in _STATES:
        raise ValueError(f"state {told['state']!r}")
    state, message = told["state"], _text(told, "message")
    process = _writer(told)
    silent_s = (datetime.now(UTC) - datetime.fromisoformat(told["updated"])).total_seconds()
    here = told["host"] == socket.gethostname()
    alive = process is not None if here else silent_s < _SILENT_S
    if state in ACTIVE and not alive:
        state, message = "interrupted", "Interrupted; can be resumed"
    return RunStatus(
        folder=folder,
        state=state,
        kind=_text(told, "kind"),
        message=message,
        step=_steps(told["step"]),
        total_steps=_number(told, "total_steps", _steps),
        epoch=float(told.get("epoch") or 0.0),
        eta_s=_number(told, "eta_s", float),
        best=dict(told.get("best") or {}),
        error=_error(told.get("error")),
        warning=_text(told, "warning"),
        host=_text(told, "host"),
        started=_text(told, "started"),
        updated=_text(told, "updated"),
        silent_s=max(silent_s, 0.0),
        process=process,
        argv=tuple(map(str, told.get("argv") or ())),
    )


def _writer(told: Mapping[str, Any]) -> Process | None:
    """The process that wrote a status, if it still lives on this machine and since this boot."""
    if told["host"] != socket.gethostname() or not same_boot(told.get("boot_id")):
        return None
    process = find_process(int(told["pid"]))
    started = float(told["process_started"])
    return process if process and abs(process.started - started) < _START_S else None


def _text(told: Mapping[str, Any], key: str) -> str:
    return str(told.get(key) or "")


def _number(told: Mapping[str, Any], key: str, kind: Callable[[Any], Any]) -> Any:
    return None if told.get(key) is None else kind(told[key])


def _steps(value: Any) -> int:
    count = int(value)
    if not 0 <= count <= _MOST_STEPS:
        raise ValueError(f"{count} steps")
    return count


def _error(told: object) -> RunError | None:
    if not isinstance(told, dict):
        return None
    return RunError(**{key: _text(told, key) for key in ("type", "message", "hint")})


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is new in a file that grows.

    Attributes:
        lines: whole lines, without their ends.
        restarted: the file is another one than before: forget what was read from it.
    """

    lines: tuple[str, ...] = ()
    restarted: bool = False


class Tail:
    """Reads a growing file line by line, by byte offset; a torn last line waits for its end.

    A file that was cut or replaced, as resuming does, is read again from its start. It is told by
    the bytes before the offset: also if it has grown past the offset by then.
    """

    def __init__(self, path: Path, *, last_bytes: int | None = None) -> None:
        """Begin at the start of the file.

        Args:
            path: the file; it may come later.
            last_bytes: begin so much before the end instead.
        """
        self._path = path
        self._last_bytes = last_bytes
        self._offset = 0
        self._before = b""
        self._begun = False

    def read(self) -> Piece:
        """The lines that are new, at most about a mebibyte of them."""
        try:
            with self._path.open("rb") as stream:
                restarted = self._begun and not self._is_the_same(stream.read, stream.seek)
                if restarted or not self._begun:
                    stream.seek(0, 2)
                    self._start(stream.tell())
                stream.seek(self._offset)
                chunk = stream.read(_CHUNK)
        except OSError:
            # It is not there yet, or not any more.
            return self._gone()
        return Piece(lines=self._take(chunk), restarted=restarted)

    def _gone(self) -> Piece:
        restarted, self._begun = self._begun and self._offset > 0, False
        return Piece(restarted=restarted)

    def _is_the_same(self, read: Callable[[int], bytes], seek: Callable[[int], int]) -> bool:
        seek(self._offset - len(self._before))
        return read(len(self._before)) == self._before

    def _start(self, size: int) -> None:
        skipped = 0 if self._last_bytes is None else max(size - self._last_bytes, 0)
        self._offset, self._before, self._begun = skipped, b"", True

    def _take(self, chunk: bytes) -> tuple[str, ...]:
        # A line that is longer than a piece goes on in parts: it must not stop all that follows.
        is_endless = len(chunk) == _CHUNK and b"\n" not in chunk
        whole = chunk if is_endless else chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._before = (self._before + whole)[-_REMEMBERED:]
        text = whole.decode("utf-8", errors="replace")
        lines = text.removesuffix("\n").split("\n") if text else []
        # Bars write over themselves: what stood last counts.
        return tuple(line.rstrip("\r").rpartition("\r")[2] for line in lines)


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A picture of a step.

    Attributes:
        step: of the run.
        picture: the PNG.
        volumes: the same as volumes, by what they show: input, masked, reconstruction ...
    """

    step: int
    picture: Path
    volumes: Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file of weights, or the one to resume from."""

    path: Path
    size: int
    modified: float


@dataclass(frozen=True, kw_only=True)
class Update:
    """What is new in a run since the last look.

    Attributes:
        status: as it stands.
        records: new records of metrics.jsonl.
        metrics_restarted: forget the records so far, `records` begins at the start.
        damaged_lines: new lines of metrics.jsonl that are none.
        log: new lines of log.txt.
        log_restarted: forget the log so far.
        previews: all of them, by step.
        checkpoints: all of them, by name.
    """

    status: RunStatus
    records: tuple[Mapping[str, Any], ...]
    metrics_restarted: bool
    damaged_lines: int
    log: tuple[str, ...]
    log_restarted: bool
    previews: tuple[Preview, ...]
    checkpoints: Mapping[str, Checkpoint]


class Follower:
    """Follows one run: each look tells what is new.

    Example:
        follower = Follower(project.runs_folder / "smit")
        update = follower.look()
        curve.extend(record["loss/total"] for record in update.records)
    """

    def __init__(self, folder: Path, *, log_bytes: int = 1 << 16) -> None:
        """Nothing is read yet.

        Args:
            folder: the run; it may come later.
            log_bytes: so much of the end of the log is read at first.
        """
        self.folder = folder
        self._metrics = Tail(folder / "metrics.jsonl")
        self._log = Tail(folder / "log.txt", last_bytes=log_bytes)

    def look(self) -> Update:
        """What is new; never raises."""
        # First: what is written until it says done, is read then.
        status = read_status(self.folder)
        metrics, log = self._metrics.read(), self._log.read()
        records = [_record(line) for line in metrics.lines]
        return Update(
            status=status,
            records=tuple(record for record in records if record is not None),
            metrics_restarted=metrics.restarted,
            damaged_lines=records.count(None),
            log=log.lines,
            log_restarted=log.restarted,
            previews=find_previews(self.folder),
            checkpoints=find_checkpoints(self.folder),
        )


def _record(line: str) -> Mapping[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("step"), int) else None


def read_config(folder: Path) -> Mapping[str, Any]:
    """config.json, {} where there is none that can be read."""
    try:
        return read_json(folder / "config.json")
    except LogicError:
        return {}


def find_previews(folder: Path) -> tuple[Preview, ...]:
    """The pictures of a run, in the order of their steps."""
    pictures: dict[int, Path] = {}
    volumes: dict[int, dict[str, Path]] = {}
    for path in _files(folder / "previews"):
        match = re.fullmatch(r"step_(\d+)(?:\.png|_(\w+)\.nrrd)", path.name)
        if match and match[2] is None:
            pictures[int(match[1])] = path
        elif match:
            volumes.setdefault(int(match[1]), {})[match[2]] = path
    return tuple(
        Preview(step=step, picture=pictures[step], volumes=volumes.get(step, {}))
        for step in sorted(pictures)
    )


def find_checkpoints(folder: Path) -> Mapping[str, Checkpoint]:
    """The files of weights of a run, by name."""
    found = {}
    for path in _files(folder / "checkpoints"):
        try:
            facts = path.stat()
        except OSError:
            continue
        if path.suffix in {".pt", ".safetensors"}:
            found[path.name] = Checkpoint(path=path, size=facts.st_size, modified=facts.st_mtime)
    return found


def _files(folder: Path) -> list[Path]:
    """The files of a folder, without those that are just being written; [] where there is none."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
