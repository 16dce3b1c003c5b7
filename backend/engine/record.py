"""The run folder: all that the GUI and a human need to follow a run.

Files are written whole (beside the target, then replaced); `metrics.jsonl` grows line by line.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil
from filelock import FileLock, Timeout

from backend.errors import (
    TOLD_AT_THE_END,
    AtOnce,
    BackendError,
    Cancelled,
    Interrupted,
    ResourceError,
    UserError,
    told_plainly,
)
from backend.files import remove_parts, write_json, write_text, written_whole
from backend.progress import progress_bar

SCHEMA = 1
HEARTBEAT_S = 4.0
"""status.json is never older than this (the contract says 5) while the run lives."""

_SILENT_S = 60.0
"""A run on another machine that was not heard of for so long has died; clocks may differ."""

_RESERVE_BYTES = 1 << 14
"""Kept free on the disk while a run lives, so that the last status.json finds room."""

STOP_FILE = "stop"
"""Its appearance in a run folder asks the run to stop."""

Kind = Literal["pretrain", "finetune"]
State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]

log = logging.getLogger("backend")

T = TypeVar("T")

_STATUS_KEYS = ("kind", "state", "pid", "process_started", "host", "updated", "step")


def read_json(path: Path, *, needs: Sequence[str] = ()) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        needs: keys it must have.

    Raises:
        UserError: if it is not there or damaged.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}).", "Is this a run folder?"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: is damaged.", "Start the run again.") from None
    if not isinstance(value, dict) or not set(needs) <= value.keys():
        raise UserError(f"{path}: is damaged.", "Start the run again.")
    return value


class _EveryLine(logging.Formatter):
    """Gives each line of a message its time and level, so that a search finds all of them."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record; those after the first are indented."""
        first, *rest = super().format(record).splitlines() or [""]
        head = f"{record.asctime} {record.levelname}"
        return "\n".join([first, *(f"{head}   {line}" for line in rest)])


class _RunLog(logging.Handler):
    """log.txt; lines that a full disk does not take are left out.

    Whoever can act hears of the disk from what must be written; a handler of `logging` would put a
    traceback on standard error for each line.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.setFormatter(_EveryLine("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Add the lines of a record."""
        text = self.format(record)
        with suppress(OSError), self._path.open("a", encoding="utf-8") as stream:
            stream.write(f"{text}\n")


class RunFolder:
    """One run on disk, owned by this process while it is open.

    Use as a context manager: it holds the lock, keeps the heartbeat and closes the log.
    """

    def __init__(self, path: Path, *, kind: Kind, argv: Sequence[str], resume: bool) -> None:
        """Create the folder, or take an existing one over.

        Raises:
            UserError: if it exists without `resume`, if there is nothing to resume, if another
                process works on it, or if it cannot be written.
        """
        self.path = path
        self._kind: Kind = kind
        check_target(path, kind=kind, resume=resume)
        try:
            for folder in (path, self.checkpoints, self.previews):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / ".lock")
            self._lock.acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"{path}: another process is working on this run.",
                f"Wait for it, or stop it with `backend stop --run {path}`.",
            ) from None
        except OSError as error:
            raise told_plainly(error, path) from None
        (path / STOP_FILE).unlink(missing_ok=True)
        remove_leftovers(path)
        now = _now()
        self._started_at = time.monotonic()
        self._written_at = 0.0
        self._status: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": kind,
            "state": "running",
            "argv": list(argv),
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "boot_id": boot_id(),
            "host": socket.gethostname(),
            "started": now,
            "updated": now,
            "step": 0,
            "total_steps": None,
            "epoch": 0.0,
            "eta_s": None,
            "best": None,
            "message": "Starting",
            "error": None,
        }
        self._warnings: dict[str, str] = {}
        self._mutex = threading.Lock()
        self._closing = threading.Event()
        self._beat = threading.Thread(target=self._heartbeat, daemon=True, name="heartbeat")
        self._handler = _RunLog(path / "log.txt")
        self._reserve = path / ".reserve"

    @property
    def checkpoints(self) -> Path:
        """Folder of the weights."""
        return self.path / "checkpoints"

    @property
    def previews(self) -> Path:
        """Folder of the pictures."""
        return self.path / "previews"

    @property
    def stop_file(self) -> Path:
        """Its appearance asks the run to stop."""
        return self.path / STOP_FILE

    @property
    def seconds(self) -> float:
        """Time since this process took the run over."""
        return time.monotonic() - self._started_at

    def __enter__(self) -> RunFolder:
        """Start log and heartbeat."""
        log.addHandler(self._handler)
        with written_whole(self._reserve) as part:
            # Nothing that a file system could pack.
            part.write_bytes(os.urandom(_RESERVE_BYTES))
        self.update()
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the heartbeat, close the log, release the folder."""
        self._closing.set()
        if self._beat.is_alive():
            self._beat.join()
        with suppress(OSError):
            self._reserve.unlink(missing_ok=True)
        log.removeHandler(self._handler)
        self._handler.close()
        self._lock.release()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Keep everything that was resolved."""
        write_json(self.path / "config.json", config)

    def update(self, **values: Any) -> None:
        """Set fields of status.json and write it."""
        with self._mutex:
            self._status.update(values)
            self._status["updated"] = _now()
            write_json(self.path / "status.json", self._status)
            self._written_at = time.monotonic()

    def note(self, **values: Any) -> None:
        """Set fields of status.json and write it if it is older than a second.

        For the loop, whose steps may be quicker than a disk.
        """
        if time.monotonic() - self._written_at >= 1.0:
            self.update(**values)
            return
        with self._mutex:
            self._status.update(values)

    def warn(self, about: str, text: str | None) -> None:
        """Keep `warning` of status.json: the last of those that hold; None takes one back."""
        self._warnings.pop(about, None)
        if text is not None:
            log.warning("%s", text)
            self._warnings[about] = text
        self.update(warning=next(reversed(self._warnings.values()), None))

    def through(self, items: Sequence[T], *, doing: str, unit: str = "scan") -> Iterator[T]:
        """Yield `items` while status.json and a bar tell how far and how much time is left.

        For what interrupts the steps of a run, or comes before them: otherwise it would seem to
        stand still.

        Args:
            items: what to go through.
            doing: what is done, e.g. "Validating".
            unit: what is counted, in the singular.
        """
        began = time.monotonic()
        bar = progress_bar(total=len(items), what=doing, unit=unit)
        # It stands below the bar of the run, and goes when it is done.
        bar.leave = False
        with bar:
            for number, item in enumerate(items, start=1):
                left = _left(time.monotonic() - began, done=number - 1, total=len(items))
                self.update(message=f"{doing} {number}/{len(items)} {unit}s{left}")
                yield item
                bar.update()

    @contextmanager
    def outcome(self) -> Iterator[None]:
        """Write how the block ended: done, or what its error means.

        Raises:
            BackendError: the error of the block, told plainly.
        """
        try:
            yield
        except BaseException as caught:
            error = told_plainly(caught)
            if error is not caught and not isinstance(caught, AtOnce):
                log.error("%s", "".join(traceback.format_exception(caught)))
            self._finish(_state_after(error), error)
            raise error from caught
        self._finish("done", None)

    def _finish(self, state: State, error: BackendError | None) -> None:
        told = None
        if state == "failed" and error is not None:
            told = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
        try:
            self._update_at_last(state=state, error=told, eta_s=None, message=_LAST_WORDS[state])
        except BackendError as unwritten:
            log.error("%s", unwritten)
            # A run that is done must be seen to be.
            if state == "done":
                raise
        # What it asked for is done.
        with suppress(OSError):
            self.stop_file.unlink(missing_ok=True)
        # The last line of the log; a stop that was asked for is no mistake.
        level = logging.ERROR if state == "failed" else logging.INFO
        ending = f"{state.capitalize()} at step {self._status['step']}"
        total = self._status["total_steps"]
        ending += f" of {total}" if total else ""
        words = ending if error is None else f"{ending}: {error}"
        log.log(level, "%s", words, extra={TOLD_AT_THE_END: True})

    def _update_at_last(self, **values: Any) -> None:
        """As `update`; a full disk takes it in place of what was kept free for it."""
        try:
            self.update(**values)
        except ResourceError:
            with suppress(OSError):
                self._reserve.unlink(missing_ok=True)
            self.update(**values)

    def append(self, record: Mapping[str, float | int | str]) -> None:
        """Add a line to metrics.jsonl; numbers that are not finite become null.

        Raises:
            ResourceError, UserError: if the disk does not take it.
        """
        clean = {k: _finite(v) for k, v in record.items()}
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(clean) + "\n")
        except OSError as error:
            raise told_plainly(error, path) from error

    def cut_metrics(self, step: int) -> None:
        """Drop records after `step`, so that each step stands once after resuming."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            kept = [json.dumps(r) for r in read_metrics(self.path) if r.get("step", 0) <= step]
            write_text(path, "".join(line + "\n" for line in kept))

    def _heartbeat(self) -> None:
        while not self._closing.wait(HEARTBEAT_S):
            try:
                self.update()
            except BackendError as error:
                # A full disk must not end the run from here; the next checkpoint tells of it.
                log.warning("%s", error)


class FollowedFolder(RunFolder):
    """A run folder as the processes see it that do not lead: they read it, and write nothing.

    Args:
        path: of the run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started_at = time.monotonic()

    def __enter__(self) -> RunFolder:
        """Nothing is opened."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is closed."""

    def write_config(self, config: Mapping[str, Any]) -> None:
        """The leader does."""

    def update(self, **values: Any) -> None:
        """The leader does."""

    def note(self, **values: Any) -> None:
        """The leader does."""

    def warn(self, about: str, text: str | None) -> None:
        """The leader does."""

    def append(self, record: Mapping[str, float | int | str]) -> None:
        """The leader does."""

    def cut_metrics(self, step: int) -> None:
        """The leader does."""


_LAST_WORDS: dict[State, str] = {
    "queued": "Waiting",
    "running": "Running",
    "done": "Done",
    "failed": "Failed",
    "cancelled": "Cancelled; can be resumed",
    "interrupted": "Interrupted; can be resumed",
}


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Records of a run; a torn line, as a crash leaves it, is passed over."""
    path = run / "metrics.jsonl"
    records = []
    text = path.read_text("utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def read_status(run: Path) -> dict[str, Any]:
    """status.json, in which a run whose process has died reads as interrupted.

    Raises:
        UserError: if this is no run folder.
    """
    return as_it_is(read_json(run / "status.json", needs=_STATUS_KEYS))


def as_it_is(status: Mapping[str, Any]) -> dict[str, Any]:
    """A status as it was written, but interrupted if it says running and its process has died."""
    if status.get("state") in {"running", "queued"} and not process_alive(status):
        return {**status, "state": "interrupted", "message": _LAST_WORDS["interrupted"]}
    return dict(status)


def process_alive(status: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a status still runs (told from a reused number).

    A status that does not say by whom and where it was written is nobody's.
    """
    try:
        if status["host"] == socket.gethostname():
            return _runs_here(status)
        # Another machine's process: only the heartbeat tells.
        updated = datetime.fromisoformat(status["updated"])
        return (datetime.now(UTC) - updated).total_seconds() < _SILENT_S
    except (KeyError, TypeError, ValueError):
        return False


def _runs_here(status: Mapping[str, Any]) -> bool:
    if status.get("boot_id") != boot_id():
        return False
    try:
        process = psutil.Process(int(status["pid"]))
        started: float = process.create_time()
        # Dead, but its parent has not taken note; in a container perhaps nobody ever does.
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return abs(started - float(status["process_started"])) < 2.0


def boot_id() -> str:
    """A name for this boot of the machine, so that old process numbers are not mistaken."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else str(int(psutil.boot_time()))


def _state_after(error: BackendError) -> State:
    if isinstance(error, Cancelled):
        return "cancelled"
    return "interrupted" if isinstance(error, Interrupted) else "failed"


def remove_leftovers(path: Path) -> None:
    """Remove what a killed process had begun to write in a run folder."""
    for folder in (path, path / "checkpoints", path / "previews"):
        remove_parts(folder)


def check_target(path: Path, *, kind: Kind, resume: bool) -> None:
    """Refuse a folder that a run cannot begin in, or go on in; nothing is written.

    Raises:
        UserError: see `RunFolder`.
    """
    if resume:
        if not (path / "checkpoints" / "last.pt").exists() and not (path / "config.json").exists():
            raise UserError(f"{path}: there is no run to resume.", "Start it without --resume.")
        found = read_json(path / "status.json", needs=_STATUS_KEYS)["kind"]
        if found != kind:
            raise UserError(
                f"{path}: is a {found} run, not a {kind} run.", f"Use `backend {found} --resume`."
            )
        return
    if (path / "status.json").exists() and read_status(path)["state"] == "running":
        raise UserError(
            f"{path}: another process is working on this run.",
            f"Choose another --output, or stop it with `backend stop --run {path}`.",
        )
    if path.is_file():
        raise UserError(f"{path}: is a file.", "Give a folder that does not exist yet.")
    if path.exists() and any(path.iterdir()) and not _never_began(path):
        raise UserError(
            f"{path}: exists already and is not empty.",
            "Choose another --output, or add --resume to continue the run in it.",
        )


def _never_began(path: Path) -> bool:
    """Whether a run was ended before its settings were written, so that it is as good as none."""
    written = (path / "config.json", path / "checkpoints" / "last.pt")
    return (path / ".lock").exists() and not any(file.exists() for file in written)


def _left(seconds: float, *, done: int, total: int) -> str:
    """The time left for the rest of some items, once one of them has shown how long it takes."""
    return f", {seconds / done * (total - done):.0f} s left" if done else ""


def _finite(value: float | int | str) -> float | int | str | None:
    if isinstance(value, float) and (value != value or value in {float("inf"), float("-inf")}):
        return None
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
