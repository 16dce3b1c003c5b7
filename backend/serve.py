"""`backend serve`: a warm worker that segments on request, spoken to in JSON lines.

One thread reads requests, so that a cancel or a ping is answered while another, the main one,
computes. The protocol stands in docs/serve.md.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import psutil
from filelock import FileLock, Timeout
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from backend import __version__
from backend.config import first_fault
from backend.data.cache import default_cache_dir
from backend.data.label_files import write_labels_file
from backend.data.labels import Label
from backend.data.readers import read_volume
from backend.data.stacking import axes_problem, orthonormal, spacing_problem
from backend.data.volume_file import detached_data
from backend.engine.signals import ending_at_once
from backend.errors import BackendError, Cancelled, ScanError, UserError, told_plainly
from backend.files import write_json
from backend.geometry import Direction, Geometry, Vec3, Volume, direction9
from backend.preparation import check_device
from backend.segment import chosen_labels, find_scans, structure_volumes

if TYPE_CHECKING:
    from backend.inference.predictor import Predictor
    from backend.inference.worker import Models, Phases, Prepared, Region, Stamp, Taken

PROTOCOL = 1
"""Raised when a request or reply changes its meaning; new fields and events do not raise it."""

LONGEST_LINE = 1 << 20
"""Bytes of a request; a DICOM series is named by its folder, so no honest one comes near."""
MOST_WAITING = 64

_FOLDER_PREFIX = "sslsegmentation-serve-"
_TOLD_EVERY_S = 0.2
_WATCH_S = 1.0
_GRACE_S = 30.0
"""How long a forward pass may go on after the worker was told to end."""
_LAST_WORDS_S = 2.0

log = logging.getLogger("backend")


def _usable_path(path: Path) -> Path:
    """Refuse what no system can open, and what depends on where the worker happens to run."""
    if "\0" in str(path):
        raise ValueError("is no path")
    if not path.is_absolute():
        raise ValueError("is no absolute path")
    return path


_CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
AbsolutePath = Annotated[Path, AfterValidator(_usable_path)]
Id = Annotated[str, Field(min_length=1, max_length=64)]
_Edge = Annotated[int, Field(ge=1, le=1 << 16)]
_Start = Annotated[int, Field(ge=0, le=1 << 16)]


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class ArrayFile:
    """A CT as bare numbers: a .npy, or values in C order and this machine's byte order.

    Attributes:
        file: where they stand.
        dtype: of one value.
        size: voxels along (z, y, x).
        spacing_mm: along (z, y, x).
        origin_mm: world LPS position (x, y, z) of the first voxel's centre.
        direction: nine cosines row by row, as SimpleITK gives them.
    """

    file: AbsolutePath
    dtype: Literal["int8", "uint8", "int16", "uint16", "int32", "float32", "float64"] = "int16"
    size: tuple[_Edge, _Edge, _Edge]
    spacing_mm: Vec3
    origin_mm: Vec3
    direction: Direction

    def geometry(self) -> Geometry:
        """The grid.

        Raises:
            ScanError: if it is none of a CT.
        """
        axes = np.asarray(self.direction, dtype=np.float64).reshape(3, 3)
        problem = spacing_problem(self.spacing_mm) or axes_problem(axes)
        if problem:
            raise ScanError(f"{self.file}: {problem}.", "Tell the geometry as the scan has it.")
        return Geometry(
            size=self.size,
            spacing_mm=self.spacing_mm,
            origin_mm=self.origin_mm,
            direction=direction9([float(v) for v in orthonormal(axes).ravel()]),
        )


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class Box:
    """A box of voxels of the scan's own grid, along (z, y, x)."""

    start: tuple[_Start, _Start, _Start]
    size: tuple[_Edge, _Edge, _Edge]


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class Hello:
    """Ask who is there; refused if the asker speaks another protocol."""

    id: Id
    kind: Literal["hello"]
    protocol: int = PROTOCOL


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class Ping:
    """Ask for a sign of life."""

    id: Id
    kind: Literal["ping"]


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class Status:
    """Ask what is held and what is done."""

    id: Id
    kind: Literal["status"]


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class Cancel:
    """End a request that waits or runs."""

    id: Id
    kind: Literal["cancel"]
    target: Id


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class Shutdown:
    """End the worker; what runs is cancelled."""

    id: Id
    kind: Literal["shutdown"]


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class Load:
    """Load a network before it is needed."""

    id: Id
    kind: Literal["load"]
    model: AbsolutePath


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class Unload:
    """Forget one network, or all and the last scan."""

    id: Id
    kind: Literal["unload"]
    model: AbsolutePath | None = None


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class SegmentRequest:
    """Label a scan or a box of it.

    Attributes:
        id: named by every reply.
        kind: tells the requests apart.
        model: weights or the run folder that made them.
        volume: a volume file or the folder of a DICOM series; or else
        array: the scan as bare numbers.
        structures: names of those to write; None means all.
        region: the part to label; None means all of the scan.
        device: must be the worker's own, or "auto".
        ending: format of the label file.
    """

    id: Id
    kind: Literal["segment"]
    model: AbsolutePath
    volume: AbsolutePath | None = None
    array: ArrayFile | None = None
    structures: tuple[str, ...] | None = None
    region: Box | None = None
    device: str = "auto"
    ending: Literal[".npy", ".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha"] = ".npy"


Work = Load | Unload | SegmentRequest
Request = Hello | Ping | Status | Cancel | Shutdown | Work
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="kind")])


class BadRequest(UserError):
    """A line that is no request; told with its id where it has one."""

    def __init__(self, message: str, *, identity: str | None = None) -> None:
        super().__init__(message, "docs/serve.md has the protocol.")
        self.identity = identity


def parse_request(line: bytes) -> Request:
    """The request that a line stands for, checked in every field.

    Raises:
        BadRequest: if it is none.
    """
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise BadRequest("The line is no JSON.") from None
    identity = content.get("id") if isinstance(content, dict) else None
    # Without a usable id a reply can be told of no request.
    known = identity if isinstance(identity, str) and 0 < len(identity) <= 64 else None
    try:
        return _REQUEST.validate_json(line)
    except ValidationError as error:
        raise BadRequest(f"{first_fault(error)}.", identity=known) from None


def lines_of(source: int, *, longest: int) -> Iterator[bytes | None]:
    """Whole lines of a pipe as they come, None in place of one that is too long.

    Args:
        source: file descriptor.
        longest: bytes of a line.
    """
    rest, too_long = b"", False
    while chunk := os.read(source, 1 << 16):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if not too_long and line.strip():
                yield None if len(line) > longest else line
            too_long = False
        if len(rest) > longest:
            if not too_long:
                yield None
            too_long = True
        # What goes on being too long is not kept.
        rest = b"" if too_long else rest


class Replies:
    """Writes replies from a thread of its own: who does not read them holds nobody up.

    Args:
        sink: file descriptor.
        lost: called when nobody can read them any more.
    """

    def __init__(self, sink: int, *, lost: Callable[[str], None]) -> None:
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._lost = lost
        self._thread = threading.Thread(target=self._write, args=(sink,), daemon=True)
        self._thread.start()

    def tell(self, event: str, identity: str | None, **content: Any) -> None:
        """Queue one reply."""
        reply = {"event": event, "id": identity, **content}
        self._queue.put(json.dumps(reply, allow_nan=False).encode("ascii") + b"\n")

    def close(self) -> None:
        """Write what is queued, if somebody reads it."""
        self._queue.put(None)
        self._thread.join(_LAST_WORDS_S)

    def _write(self, sink: int) -> None:
        try:
            while (line := self._queue.get()) is not None:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(sink, rest) :]
            os.close(sink)
        except OSError:
            self._lost("nobody reads its replies")


class Office:
    """What the reading and the computing thread share: who waits, who runs, whether to end."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Work] = deque()
        self._running: Work | None = None
        self._cancelled = threading.Event()
        self.closing = threading.Event()
        self.reason = ""

    def add(self, work: Work, *, accepted: Callable[[int], None]) -> None:
        """Queue work.

        Args:
            work: what to do.
            accepted: told how many come before it, before any of it is done.

        Raises:
            BadRequest: if its id is in use, or too many wait.
        """
        with self._changed:
            if self.closing.is_set():
                # Not accepted: who asked sees by it that the next worker is to be asked.
                return
            ahead = [*self._waiting, *([self._running] if self._running else [])]
            if any(work.id == other.id for other in ahead):
                raise BadRequest(f"id {work.id!r} is in use.", identity=work.id)
            if len(ahead) >= MOST_WAITING:
                raise BadRequest(f"{MOST_WAITING} requests wait already.", identity=work.id)
            accepted(len(ahead))
            self._waiting.append(work)
            self._changed.notify_all()

    def next(self, *, within_s: float) -> Work | None:
        """Wait for work and mark it as running; None if the worker ends, as it then does."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting or self.closing.is_set(), within_s):
                self.close(f"idle for {within_s / 60:g} minutes")
            if self.closing.is_set():
                return None
            self._running = self._waiting.popleft()
            self._cancelled.clear()
            return self._running

    def finish(self) -> None:
        """Nothing runs any more."""
        with self._changed:
            self._running = None

    def cancel(self, target: str) -> Literal["running", "waiting"]:
        """Ask the running work to end, or take waiting work away.

        Raises:
            UserError: if there is no such work.
        """
        with self._changed:
            if self._running is not None and self._running.id == target:
                self._cancelled.set()
                return "running"
            found = [work for work in self._waiting if work.id == target]
            if not found:
                raise UserError(f"No request {target!r} waits or runs.", "It may be done by now.")
            self._waiting.remove(found[0])
            return "waiting"

    def close(self, reason: str) -> None:
        """Ask the worker to end; the first reason counts."""
        with self._changed:
            self.reason = self.reason or reason
            self.closing.set()
            self._changed.notify_all()

    def leftover(self) -> tuple[str, ...]:
        """Ids of what still waits."""
        with self._changed:
            return tuple(work.id for work in self._waiting)

    def state(self) -> dict[str, Any]:
        """What is done now, for replies."""
        with self._changed:
            running = self._running.id if self._running else None
            return {"running": running, "waiting": [work.id for work in self._waiting]}

    def should_stop(self) -> bool:
        """Whether the running work is to end."""
        return self._cancelled.is_set() or self.closing.is_set()

    def check(self) -> None:
        """Raise Cancelled if the running work is to end."""
        if self.should_stop():
            raise Cancelled("Segmentation stopped on request.")


class Desk:
    """Answers requests: at once what needs no computing, the rest one after the other.

    Args:
        office: who waits and who runs.
        replies: where answers go.
        models: the networks.
        folder: for label files.
        greeting: what a hello tells.
    """

    def __init__(
        self,
        *,
        office: Office,
        replies: Replies,
        models: Models,
        folder: Path,
        greeting: Mapping[str, Any],
    ) -> None:
        self._office = office
        self._replies = replies
        self._models = models
        self._folder = folder
        self._greeting = greeting
        # The scan that was prepared last; work in an editor comes back to it again and again.
        self._last: tuple[Stamp, Prepared] | None = None
        self._files = 0

    def listen(self, source: int) -> None:
        """Answer or queue every line until there are no more. For the reading thread."""
        try:
            for line in lines_of(source, longest=LONGEST_LINE):
                self._hear(line)
        finally:
            # Nobody could reach a worker that does not listen any more.
            self._office.close("its input was closed")

    def work(self, *, idle_s: float) -> None:
        """Do what is queued until the worker is to end, or nothing comes for `idle_s`."""
        while (work := self._office.next(within_s=idle_s)) is not None:
            try:
                self._tell_outcome(work)
            finally:
                self._office.finish()
        for identity in self._office.leftover():
            self._refuse(identity, Cancelled("The worker ends.", "Ask the next one."))
        self._replies.tell("bye", None, reason=self._office.reason)

    def _hear(self, line: bytes | None) -> None:
        try:
            if line is None:
                raise BadRequest(f"The line is longer than {LONGEST_LINE} bytes.")
            self._receive(parse_request(line))
        except BadRequest as error:
            self._refuse(error.identity, error)

    def _receive(self, request: Request) -> None:
        match request:
            case Hello():
                self._greet(request)
            case Ping():
                self._replies.tell("pong", request.id, **self._office.state())
            case Status():
                self._replies.tell("result", request.id, **self._status())
            case Cancel():
                self._cancel(request)
            case Shutdown():
                self._replies.tell("result", request.id)
                self._office.close("it was asked to")
            case Load() | Unload() | SegmentRequest():
                self._office.add(
                    request,
                    accepted=lambda n: self._replies.tell("accepted", request.id, ahead=n),
                )

    def _greet(self, request: Hello) -> None:
        if request.protocol != PROTOCOL:
            raise BadRequest(
                f"protocol = {request.protocol}: this worker speaks {PROTOCOL}.",
                identity=request.id,
            )
        self._replies.tell("hello", request.id, **self._greeting)

    def _cancel(self, request: Cancel) -> None:
        try:
            was = self._office.cancel(request.target)
        except UserError as error:
            self._refuse(request.id, error)
            return
        self._replies.tell("result", request.id, target=request.target, was=was)
        if was == "waiting":
            self._refuse(request.target, Cancelled("Cancelled before it began."))

    def _status(self) -> dict[str, Any]:
        from backend.engine.device import memory_mb

        held = [
            {"model": str(entry.file), "memory_mb": round(entry.memory / 2**20, 2)}
            for entry in self._models.held
        ]
        return {
            **self._office.state(),
            "models": held,
            "scan_held": self._last is not None,
            "peak_memory_mb": round(memory_mb(self._models.device), 1),
        }

    def _tell_outcome(self, work: Work) -> None:
        began = time.perf_counter()
        try:
            result = self._done(work)
        except Exception as caught:
            error = told_plainly(caught)
            if type(error) is BackendError:
                log.error("%s", "".join(traceback.format_exception(caught)))
            self._refuse(work.id, error)
        else:
            self._replies.tell(
                "result", work.id, **result, total_s=round(time.perf_counter() - began, 4)
            )
        log.info("%s %s: %.2f s", work.kind, work.id, time.perf_counter() - began)

    def _done(self, work: Work) -> dict[str, Any]:
        match work:
            case Load():
                taken = self._taken(work)
                return {
                    "model": str(taken.held.file),
                    "reused": {"model": taken.reused},
                    "memory_mb": round(taken.held.memory / 2**20, 2),
                    "structures": [asdict(label) for label in taken.held.predictor.labels],
                }
            case Unload():
                self._last = None if work.model is None else self._last
                return {"unloaded": [str(file) for file in self._unloaded(work.model)]}
            case SegmentRequest():
                return self._segmented(work)

    def _unloaded(self, model: Path | None) -> tuple[Path, ...]:
        from backend.weights import resolve_weights

        return self._models.drop(None if model is None else resolve_weights(model).resolve())

    def _taken(self, work: Load | SegmentRequest) -> Taken:
        taken = self._models.take(work.model)
        for file in taken.unloaded:
            self._replies.tell("unloaded", work.id, model=str(file))
        return taken

    def _segmented(self, work: SegmentRequest) -> dict[str, Any]:
        from backend.inference.worker import Phases, Region, label_region

        self._require_here(work.device)
        progress = _Progress(work.id, self._replies, check=self._office.check)
        phases = Phases(between=progress.begin)
        phases.begin("read")
        source = _source_of(work)
        phases.begin("load")
        taken = self._taken(work)
        predictor = taken.held.predictor
        labels = chosen_labels(predictor.labels, work.structures)
        scan, reused = self._prepared(source, predictor, phases)
        box = work.region
        region = None if box is None else Region(start=box.start, size=box.size)
        _require_inside(region, scan.source)
        found = label_region(
            predictor,
            scan,
            region,
            labels=labels,
            phases=phases,
            should_stop=self._office.should_stop,
            progress=progress.windows,
        )
        phases.begin("write")
        file = self._written(found, labels, ending=work.ending)
        statistics = structure_volumes(found, labels)
        phases.begin()
        return {
            "model": str(taken.held.file),
            "labels": {"file": str(file), **_told_grid(found)},
            "region": None if box is None else asdict(box),
            "structures": [
                {
                    **asdict(label),
                    "voxels": entry.voxels,
                    "volume_mm3": round(entry.voxels * found.geometry.voxel_ml * 1000, 3),
                }
                for label, entry in zip(labels, statistics, strict=True)
            ],
            "windows": progress.total,
            "seconds": {name: round(value, 4) for name, value in phases.seconds.items()},
            "reused": {"model": taken.reused, "scan": reused},
        }

    def _require_here(self, device: str) -> None:
        here = str(self._models.device)
        if device != "auto" and device_name(device) != here:
            raise UserError(
                f"This worker computes on {here}, not on {device!r}.",
                f"Start another one with --device {device}.",
            )

    def _prepared(
        self, source: _Source, predictor: Predictor, phases: Phases
    ) -> tuple[Prepared, bool]:
        """The scan as the network sees it, and whether it was at hand."""
        from backend.inference.worker import preparation_key, prepare

        key = (preparation_key(predictor), *source.stamp)
        if self._last is not None and self._last[0] == key:
            return self._last[1], True
        # Two of them would take twice the memory.
        self._last = None
        phases.begin("read")
        volume = source.read()
        phases.begin("prepare")
        scan = prepare(predictor, volume)
        self._last = (key, scan)
        return scan, False

    def _written(self, found: Volume, labels: tuple[Label, ...], *, ending: str) -> Path:
        self._files += 1
        file = self._folder / f"labels-{self._files}{ending}"
        if ending == ".npy":
            # Nobody knows of it before it is whole.
            np.save(file, found.voxels, allow_pickle=False)
        else:
            write_labels_file(file, found, labels)
        return file

    def _refuse(self, identity: str | None, error: BackendError) -> None:
        self._replies.tell(
            "error", identity, type=type(error).__name__, message=error.message, hint=error.hint
        )


class _Progress:
    """Tells how far a request is, not more often than anybody can read.

    Args:
        identity: of the request.
        replies: where it is told.
        check: raises if the request is to end.
    """

    def __init__(self, identity: str, replies: Replies, *, check: Callable[[], None]) -> None:
        self.total = 0
        self._identity = identity
        self._replies = replies
        self._check = check
        self._began = 0.0
        self._told = 0.0

    def begin(self, phase: str) -> None:
        """A phase begins."""
        self._check()
        # These two alternate, and the windows tell of themselves.
        if phase not in {"network", "labels"}:
            self._replies.tell("progress", self._identity, phase=phase)

    def windows(self, done: int, total: int) -> None:
        """So many windows have been evaluated, or skipped."""
        now = time.perf_counter()
        self._began = self._began or now
        self.total = total
        if done < total and now - self._told < _TOLD_EVERY_S:
            return
        self._told = now
        passed = now - self._began
        left = round(passed / done * (total - done), 1) if done and passed else None
        self._replies.tell(
            "progress", self._identity, phase="network", done=done, total=total, seconds_left=left
        )


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where a scan comes from: what tells it from others, and how it is read."""

    stamp: tuple[object, ...]
    read: Callable[[], Volume]


def _source_of(work: SegmentRequest) -> _Source:
    from backend.inference.worker import file_stamp, read_array

    match work.volume, work.array:
        case Path() as volume, None:
            return _Source(
                stamp=(str(volume), *map(file_stamp, _files_behind(volume))),
                read=lambda: read_volume(find_scans(volume, single=True)[0].files),
            )
        case None, ArrayFile() as array:
            grid = array.geometry()
            return _Source(
                stamp=(file_stamp(array.file), grid, array.dtype),
                read=partial(read_array, array.file, grid, kind=array.dtype),
            )
    raise UserError("The request names no scan, or two.", "Give either volume or array.")


def _files_behind(volume: Path) -> list[Path]:
    """All files that decide what a volume is; listing them is quick, searching them is not."""
    if volume.suffix.lower() == ".csv":
        raise UserError(f"{volume}: an index is no scan.", "Give a volume file or a folder.")
    if volume.is_dir():
        return sorted(path for path in volume.rglob("*") if path.is_file())
    data = detached_data(volume) if volume.is_file() else None
    return [volume, data] if data is not None and data.is_file() else [volume]


def _require_inside(region: Region | None, grid: Geometry) -> None:
    if region is None:
        return
    ends = [a + n for a, n in zip(region.start, region.size, strict=True)]
    if any(end > n for end, n in zip(ends, grid.size, strict=True)):
        raise UserError(
            f"The region from {region.start} of size {region.size} leaves the scan of size "
            f"{grid.size}.",
            "Cut it to the scan; all are (z, y, x).",
        )


def _told_grid(volume: Volume) -> dict[str, Any]:
    return {"dtype": str(volume.voxels.dtype), **asdict(volume.geometry)}


def device_name(name: str) -> str:
    """One name for a device that has two."""
    return "cuda:0" if name == "cuda" else name


@ending_at_once()
def run(
    *,
    device: str = "auto",
    idle_minutes: float = 15.0,
    model_memory_mb: float = 4096.0,
    allow_second: bool = False,
    owner: int | None = None,
) -> None:
    """Serve requests from standard input until it is closed.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        idle_minutes: ends after so long without work.
        model_memory_mb: for the networks that are kept.
        allow_second: do not ask whether another worker serves the device.
        owner: process with which the worker ends; None means the one that started it.

    Raises:
        UserError: for a device that is not there or is served already, or a time or amount that
            is none.
        Interrupted: on SIGTERM.
    """
    for name, value in (("--idle-minutes", idle_minutes), ("--model-memory-mb", model_memory_mb)):
        if not 0 < value < float("inf"):
            raise UserError(f"{name} {value:g} is not above 0.", "Give a number such as 15.")
    check_device(device)
    watched = _process(os.getppid() if owner is None else owner)
    source, sink = _take_pipes()
    if device != "cpu":
        from backend.engine.device import resolve_device

        device = device_name(str(resolve_device(device)))
    with _private_folder(device, allow_second=allow_second) as folder:
        office = Office()
        replies = Replies(sink, lost=office.close)
        ended = threading.Event()
        try:
            desk = _desk(office, replies, folder, device=device, memory_mb=model_memory_mb)
            for target in (partial(desk.listen, source), partial(_watch, watched, office, ended)):
                threading.Thread(target=target, daemon=True).start()
            desk.work(idle_s=idle_minutes * 60)
        finally:
            ended.set()
            replies.close()


def _desk(office: Office, replies: Replies, folder: Path, *, device: str, memory_mb: float) -> Desk:
    import torch

    from backend.engine.device import device_text
    from backend.inference.worker import Models

    place = torch.device(device)
    greeting = {
        "protocol": PROTOCOL,
        "pid": os.getpid(),
        "device": device,
        "device_text": device_text(place),
        "versions": {
            "backend": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "folder": str(folder),
        "model_memory_mb": memory_mb,
    }
    replies.tell("hello", None, **greeting)
    models = Models(place, budget=int(memory_mb * 2**20))
    return Desk(office=office, replies=replies, models=models, folder=folder, greeting=greeting)


def _take_pipes() -> tuple[int, int]:
    """Descriptors for requests and replies that no library knows of.

    Whatever else reads or prints gets an empty input, and the log for its output.
    """
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.flush()
    os.dup2(2, 1)
    return source, sink


def _process(pid: int) -> psutil.Process:
    try:
        return psutil.Process(pid)
    except (psutil.NoSuchProcess, ValueError):
        raise UserError(f"There is no process {pid} to serve.", "Give a running --owner.") from None


def _watch(owner: psutil.Process, office: Office, ended: threading.Event) -> None:
    """End with the owner, and end for sure: a forward pass cannot be broken off."""
    while not office.closing.wait(_WATCH_S):
        with suppress(psutil.NoSuchProcess):
            if owner.is_running() and owner.status() != psutil.STATUS_ZOMBIE:
                continue
        office.close("its owner has ended")
    if not ended.wait(_GRACE_S):
        os._exit(0)


@contextmanager
def _private_folder(device: str, *, allow_second: bool) -> Iterator[Path]:
    """A folder for results that goes with the worker, while no other one serves the device.

    Raises:
        UserError: if another one does.
    """
    if allow_second:
        with _results_folder() as folder:
            yield folder
        return
    place = default_cache_dir(None) / "serve"
    # The user's folder may be shared by several machines.
    name = f"{socket.gethostname()}-{device.replace(':', '-')}"
    note = place / f"{name}.json"
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place / f"{name}.lock")
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{device}: another worker ({_noted(note).get('pid', 'just starting')}) serves this "
            "device.",
            "Close the program that started it, choose another --device, or add --allow-second.",
        ) from None
    except OSError as error:
        raise told_plainly(error, place) from None
    try:
        # Who held the lock before is dead; if it was killed, its results are still there.
        left = Path(str(_noted(note).get("folder", "")))
        if left.name.startswith(_FOLDER_PREFIX):
            shutil.rmtree(left, ignore_errors=True)
        with _results_folder() as folder:
            write_json(note, {"pid": os.getpid(), "folder": str(folder)})
            yield folder
        note.unlink(missing_ok=True)
    finally:
        lock.release()


@contextmanager
def _results_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=_FOLDER_PREFIX, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _noted(note: Path) -> dict[str, Any]:
    """What the last worker on a device noted of itself, {} if it has left nothing readable."""
    try:
        content = json.loads(note.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
