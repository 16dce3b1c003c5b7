"""`backend pretrain --dry-run`: what a run would cost, from a few real steps; leaves nothing."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from backend.config import PretrainConfig, TrainConfig, with_settings
from backend.data.cache import (
    BuildReport,
    Cache,
    CachedVolume,
    Series,
    require_any,
    told_bytes,
)
from backend.data.index import SeriesRow, found_series, usable
from backend.doctor import look_at_memory
from backend.engine.record import RunFolder, check_target
from backend.engine.signals import ending_at_once
from backend.errors import ResourceError, UserError
from backend.launch import check_devices, environment_of
from backend.preparation import (
    cache_root,
    check_device,
    encoder_header,
    recipe_of,
    require_same_encoder,
    require_shares,
    stall_watch,
)
from backend.pretrain import (
    PretrainRequest,
    initialise,
    require_enough,
    resolve,
    split_held_out,
    too_few_to_hold_out,
)
from backend.probe_scans import probed_cases
from backend.progress import told_time
from backend.suggestions import Seen, scans_that_fit, suggested

if TYPE_CHECKING:
    import torch

    from backend.engine.loop import Loop
    from backend.training import Samples

log = logging.getLogger("backend")

_SCANS = 3
"""Scans that are prepared: the cache makes so few one after the other."""
_WARM_UP, _MEASURED = 2, 5
"""The first steps allocate memory and choose kernels."""
_LIMIT_S = 30.0
"""After so long what was measured has to do."""
_LOOK_S = 0.02
_TMPDIR = "Free some space there, or name another folder in the environment variable TMPDIR."


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would cost, as `--json` prints it.

    Attributes:
        method: that was asked for.
        preset: likewise.
        device: in words, with what it is.
        precision: fp32 or bf16.
        parameters: numbers that learn.
        processes: that would train together; one of them was measured.
        scans_per_step: of all processes.
        scans_measured: of the measured process in a step; more than its share where the method
            cannot tell so few scans apart by itself.
        memory_mb: peak of the measured steps, of the GPU where one computes, else of the process.
        memory_together_mb: of all processes that share one memory; each GPU has its own.
        memory_free_mb: what there is for them.
        scans_that_fit: at once in each process.
        read_s_per_step: time that one thread takes to read the scans of a step.
        suggested: settings for this machine by their names (`suggestions.suggested`).
        as_set: whether they are those that were asked for.
        scans: to learn from, without those held out.
        scans_held_out: to judge by.
        held_out_note: why none is held out although a share was asked for, else "".
        scans_left_out: of those that were prepared, such as cannot be read.
        steps_measured: after the warm-up.
        seconds_per_step: their median.
        steps_per_epoch: may be a fraction.
        total_steps: of the run.
        checkpoints: when one is written, in words.
        scans_to_prepare: those that are not in the cache.
        preparation_s: time for them on one processor after the other, so rather too much.
        training_s: time of all steps.
        total_s: of both.
        not_counted: what the times leave out, in words, else "".
        cache: its folder.
        cache_bytes: disk space for the scans to prepare, from that of the measured ones.
        disk_free_bytes: of the cache's disk.
        problem: a sentence if memory or disk do not suffice, else "".
    """

    method: str
    preset: str
    device: str
    precision: str
    parameters: int
    processes: int
    scans_per_step: int
    scans_measured: int
    memory_mb: int
    memory_together_mb: int
    memory_free_mb: int
    scans_that_fit: int
    read_s_per_step: float
    suggested: dict[str, Any]
    as_set: bool
    scans: int
    scans_held_out: int
    held_out_note: str
    scans_left_out: int
    steps_measured: int
    seconds_per_step: float
    steps_per_epoch: float
    total_steps: int
    checkpoints: str
    scans_to_prepare: int
    preparation_s: float
    training_s: float
    total_s: float
    not_counted: str
    cache: str
    cache_bytes: int
    disk_free_bytes: int
    problem: str


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A run, the processes that it is divided among, and how many scans it learns from."""

    request: PretrainRequest
    config: PretrainConfig
    processes: int
    scans: int

    @property
    def share(self) -> TrainConfig:
        """The settings of one of the processes, with its part of the batch."""
        train = self.config.train
        if self.processes == 1:
            return train
        # Alone it cannot tell its scans from those of the others.
        least = self.config.method.least_batch * train.accumulate
        return replace(train, batch_size=max(train.batch_size // self.processes, least))

    @property
    def not_counted(self) -> str:
        """What a run does besides the steps that are measured, as far as it takes long."""
        parts = {
            "probes": self.request.probe_data is not None,
            "the exchange between processes": self.processes > 1,
        }
        return " and ".join(part for part, there in parts.items() if there)


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A few scans, and what it takes to prepare all that are missing."""

    volumes: list[CachedVolume]
    missing: int
    seconds: float
    bytes: int
    failed: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What a few steps have told."""

    facts: dict[str, Any]
    seconds: list[float]
    memory_mb: float
    memory_together_mb: float
    memory_free_mb: float
    seen: Seen


def run(request: PretrainRequest, *, as_json: bool, processes: int = 1) -> None:
    """Print what a run in so many processes would cost.

    Raises:
        UserError, ResourceError, Cancelled, Interrupted: as pretraining would.
    """
    found = estimate(request, processes=processes)
    text = json.dumps(asdict(found), indent=1) if as_json else told(found)
    sys.stdout.write(text + "\n")


@ending_at_once()
def estimate(request: PretrainRequest, *, processes: int = 1) -> Estimate:
    """Prepare a few scans in a temporary folder, take a few steps on them, and reckon.

    Of several processes one is measured, with its share of the batch and of the cores.

    Raises:
        UserError: what pretraining would refuse, and a run that is resumed.
        ResourceError: if memory does not suffice for one step.
        Cancelled, Interrupted: on a signal.
    """
    if request.resume:
        raise UserError("--dry-run is for a new run.", "Leave out --resume.")
    if request.output != Path():
        check_target(request.output, kind="pretrain", resume=False)
    request, config = resolve(request)
    require_shares(config.train, processes=processes)
    if request.init is not None:
        require_same_encoder(request.init, encoder_header(request.init), config.method)
    probed_cases(request.probe_data, config.probe)
    check_device(request.device)
    if processes > 1:
        check_devices(processes, request.device)
    rows = usable(found_series(request.data))
    root = cache_root(request.cache, request.data[0])
    cache = Cache(root, recipe_of(config.preprocess), config.data.cache_form)
    with _temporary() as place:
        prepared = _prepared(config, rows, cache=cache, place=place)
        ids = sorted(row.id for row in rows if row.id not in prepared.failed)
        split = split_held_out(ids, share=config.data.held_out, seed=config.train.seed)
        require_enough(config, scans=len(split[0]))
        asked = _Asked(request=request, config=config, processes=processes, scans=len(split[0]))
        with _share_of_cores(processes):
            measured = _measured(asked, prepared, place=place)
    return _reckoned(asked, prepared, measured, cache=cache, rows=rows, split=split)


@contextmanager
def _share_of_cores(processes: int) -> Iterator[None]:
    """As many threads as each of several processes gets."""
    import torch

    before = torch.get_num_threads()
    threads = environment_of(processes).get("OMP_NUM_THREADS", before)
    if processes > 1:
        torch.set_num_threads(int(threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _temporary() -> Iterator[Path]:
    """A folder for the time of the estimate; where it cannot be used, TMPDIR is the cure."""
    try:
        # What is still open on Windows cannot be deleted there; the estimate is no worse for that.
        folder = TemporaryDirectory(prefix="backend-dry-run-", ignore_cleanup_errors=True)
    except OSError as error:
        raise ResourceError(
            f"No temporary folder can be made: {error.strerror or error}.", _TMPDIR
        ) from error
    with folder as place:
        try:
            yield Path(place)
        except ResourceError as error:
            if place not in error.message:
                raise
            raise ResourceError(error.message, _TMPDIR) from error


def told(found: Estimate) -> str:
    """An estimate for people: names to the left, values to the right."""
    cache = f"{told_bytes(found.cache_bytes)} to write into {found.cache}"
    left_out = f", {found.scans_left_out} left out" if found.scans_left_out else ""
    scans = f"{found.scans} to learn from, {found.scans_held_out} held out{left_out}"
    note = f"; {found.held_out_note}" if found.held_out_note else ""
    without = f", without {found.not_counted}" if found.not_counted else ""
    rows = {
        "Device": f"{found.device}, {found.precision}",
        "Network": f"{found.parameters:,} parameters that learn",
        "Memory": _told_memory(found),
        "Cache": f"{cache}, {told_bytes(found.disk_free_bytes)} free",
        "Preparation": _told_preparation(found),
        "Step": f"{found.seconds_per_step:.3g} s (median of {found.steps_measured}{_part(found)})",
        "Reading": f"{found.read_s_per_step:.2g} s of one thread for the scans of a step",
        "Scans": scans + note,
        "Steps": f"{found.total_steps:,} ({found.steps_per_epoch:g} per epoch)",
        "Checkpoints": found.checkpoints,
        "Training": told_time(found.training_s),
        "Total": told_time(found.total_s) + without,
        "Suggested": _told_suggestion(found),
    }
    lines = [f"{found.method} {found.preset}", *(f"  {k:<12} {v}" for k, v in rows.items())]
    return "\n".join([*lines, found.problem or "It fits into memory and disk."])


def _told_suggestion(found: Estimate) -> str:
    """Settings to take over, and how many scans there is room for."""
    fit = f"{found.scans_that_fit} scan{'s' * (found.scans_that_fit != 1)} fit at once"
    if found.suggested["train.accumulate"] is None:
        return f"a smaller preset: {fit}, which is no part of the batch"
    settings = ", ".join(f"{key}={value}" for key, value in found.suggested.items())
    return f"{settings}{', as it is set' * found.as_set}; {fit}"


def _told_memory(found: Estimate) -> str:
    each = " of each process" if found.processes > 1 else ""
    shared = found.memory_together_mb > found.memory_mb
    together = f", {found.memory_together_mb:,} MB of all" if shared else ""
    return f"{found.memory_mb:,} MB at the peak{each}{together}, {found.memory_free_mb:,} MB free"


def _part(found: Estimate) -> str:
    """Which part of a step was measured, where it is not all of it."""
    if found.processes == 1:
        return ""
    scans = f"{found.scans_measured} of {found.scans_per_step} scans"
    return f"; one of {found.processes} processes, {scans}"


def _told_preparation(found: Estimate) -> str:
    if not found.scans_to_prepare:
        return "none, all scans are in the cache"
    scans = f"{found.scans_to_prepare} scan{'s' * (found.scans_to_prepare != 1)}"
    return f"at most {told_time(found.preparation_s)}, for {scans} not yet in the cache"


def _prepared(
    config: PretrainConfig, rows: Sequence[SeriesRow], *, cache: Cache, place: Path
) -> _Prepared:
    missing = cache.missing(rows)
    absent = {row.id for row in missing}
    wanted = max(_SCANS, config.method.least_batch)
    volumes = [cache.open(row.id) for row in rows if row.id not in absent][:wanted]
    if not missing:
        return _Prepared(volumes=volumes, missing=0, seconds=0.0, bytes=0, failed={})
    cache.require_folder()
    # Those of one patient or scanner often stand beside each other.
    apart = missing[:: max(1, len(missing) // wanted)][:wanted]
    taken = {row.id for row in apart}
    waiting = [*apart, *(row for row in missing if row.id not in taken)]
    trial = Cache(place / "cache", cache.recipe, cache.form)
    began = time.monotonic()
    tried, report = 0, BuildReport()
    # In the place of one that cannot be read another is tried, until there are enough or no more.
    while tried < len(waiting) and len(report.built) < wanted:
        more = waiting[tried : tried + wanted - len(report.built)]
        tried += len(more)
        found = trial.build(more, allow_none=True)
        report = BuildReport(
            built=(*report.built, *found.built),
            failed={**report.failed, **found.failed},
            bytes=report.bytes + found.bytes,
        )
    seconds = time.monotonic() - began
    for series, reason in report.failed.items():
        log.warning("Left out %s: %s", series, reason)
    volumes += [trial.open(name) for name in report.built]
    if not volumes:
        require_any(report)
    # Scans differ in size: what was measured is scaled by voxels, not by scans.
    share = _weight(cache, missing) / _weight(cache, waiting[:tried])
    return _Prepared(
        volumes=volumes,
        missing=len(missing),
        seconds=seconds * share,
        bytes=round(report.bytes * share),
        failed=report.failed,
    )


def _weight(cache: Cache, rows: Sequence[Series]) -> int:
    # A row of an index written by hand may not tell its size.
    return cache.estimate_bytes(rows) + len(rows)


def _measured(asked: _Asked, prepared: _Prepared, *, place: Path) -> _Measured:
    import torch

    from backend.engine.device import device_text, resolve_device, use_bf16
    from backend.methods import build_method
    from backend.pretext import PretrainTask, Reader, collated
    from backend.training import Samples, plan_of, prepared_loop, told_checkpoints

    request, config, share = asked.request, asked.config, asked.share
    device, train = resolve_device(request.device), config.train
    free = _free_mb(device)
    # Each GPU has its own memory; processes on a processor have one together.
    sharing = 1 if device.type == "cuda" else asked.processes
    before = _reckoned_room(asked, device, free_mb=free / sharing)
    torch.manual_seed(train.seed)
    method = build_method(config.method, epochs=train.epochs)
    if request.init is not None:
        initialise(method, request.init)
    task = PretrainTask(method.to(device).train(), config, device)
    with RunFolder(place / "run", kind="pretrain", argv=(), resume=False) as folder:
        samples = Samples(
            count=len(prepared.volumes),
            read=Reader(prepared.volumes, config).read,
            collate=lambda chosen: collated(chosen, seed=train.seed),
            workers=config.data.workers,
            watch=stall_watch(prepared.volumes, config.data, folder),
        )
        plan = plan_of(train, samples=asked.scans)
        loop = prepared_loop(task, share, plan=plan, device=device, folder=folder, resume=False)
        with closing(samples.batches(share, first_step=0)) as batches, _peak(device) as peak_mb:
            seconds, computing = _timed(loop, batches)
            memory = peak_mb()
        read_s = _reading_s(samples)
    learned = sum(p.numel() for p in method.parameters() if p.requires_grad)
    facts = {
        "device": device_text(device, processes=asked.processes),
        "precision": "bf16" if use_bf16(train.precision, device) else "fp32",
        "parameters": learned,
        "scans_measured": share.batch_size,
        "steps_per_epoch": round(loop.plan.steps_per_epoch, 3),
        "total_steps": loop.plan.total_steps,
        "checkpoints": told_checkpoints(train),
    }
    return _Measured(
        facts=facts,
        seconds=seconds,
        memory_mb=memory,
        memory_together_mb=sharing * memory,
        memory_free_mb=free,
        seen=replace(
            before,
            memory_mb=memory,
            step_s=sorted(computing)[len(computing) // 2],
            read_s=read_s,
        ),
    )


def _reckoned_room(asked: _Asked, device: torch.device, *, free_mb: float) -> Seen:
    """What memory a process will need, counted.

    Raises:
        ResourceError: if the machine's does not suffice; its system would end us without a word.
    """
    from backend.cost import GAPS, bytes_per_scan, step_cost
    from backend.engine.device import memory_mb, use_bf16

    config, share = asked.config, asked.share
    gpu = device.type == "cuda"
    # What is computed in bf16 takes half of the room; a processor leaves gaps between tensors.
    factor = (0.5 if use_bf16(config.train.precision, device) else 1.0) if gpu else 1 + GAPS
    tensors = step_cost(replace(config, train=share)).peak_bytes
    seen = Seen(
        at_once=share.batch_size // share.accumulate,
        memory_mb=memory_mb(device) + factor * tensors / 2**20,
        memory_free_mb=free_mb,
        memory_per_scan_mb=factor * bytes_per_scan(config) / 2**20,
        step_s=math.inf,
        read_s=0.0,
        bf16=gpu and use_bf16("auto", device),
    )
    if not gpu and seen.memory_mb > free_mb:
        advised = _advised(asked, seen)["train.accumulate"]
        fit = scans_that_fit(seen)
        raise ResourceError(
            f"{seen.at_once} scans at once would take some {seen.memory_mb:,.0f} MB of memory, and "
            f"{free_mb:,.0f} MB are free; {fit} would fit.",
            "Choose a smaller preset, or close other programs."
            if advised is None
            else f"Set train.accumulate={advised}: the same batch in so many parts.",
        )
    return seen


def _advised(asked: _Asked, seen: Seen) -> dict[str, Any]:
    return suggested(
        asked.config.train,
        share=asked.share.batch_size,
        workers=asked.config.data.workers,
        least=asked.config.method.least_batch,
        seen=seen,
    )


def _timed(loop: Loop[Any], batches: Iterator[Sequence[Any]]) -> tuple[list[float], list[float]]:
    """Seconds of the first step, again and again, with and without reading; after the warm-up."""
    times: list[float] = []
    computing: list[float] = []
    deadline = time.monotonic() + _LIMIT_S
    while len(times) < _WARM_UP + _MEASURED:
        began = time.monotonic()
        batch = next(batches)
        there = time.monotonic()
        loop.train_step(batch)
        times.append(time.monotonic() - began)
        computing.append(time.monotonic() - there)
        if len(times) >= _WARM_UP and time.monotonic() > deadline:
            break
    return times[_WARM_UP:] or times[-1:], computing[_WARM_UP:] or computing[-1:]


def _reading_s(samples: Samples[Any, Any]) -> float:
    """Seconds in which one thread reads a scan, the median of some."""
    from backend.data.stream import Position

    times = []
    for epoch in range(1, _MEASURED + 1):
        began = time.monotonic()
        samples.read(Position(epoch % samples.count, epoch))
        times.append(time.monotonic() - began)
    return sorted(times)[len(times) // 2]


def _free_mb(device: torch.device) -> float:
    """Memory for the steps: the GPU's, else the machine's with what this process has already."""
    import torch

    from backend.engine.device import memory_mb

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    return float(look_at_memory()[0]["available_mb"]) + memory_mb(device)


@contextmanager
def _peak(device: torch.device) -> Iterator[Callable[[], float]]:
    """Gives a function that tells the most memory in use since the block began, in MiB."""
    from backend.engine.device import memory_mb

    if device.type == "cuda":
        yield lambda: memory_mb(device)
        return
    most, done = [memory_mb(device)], threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_S):
            most[0] = max(most[0], memory_mb(device))

    looking = threading.Thread(target=look, daemon=True, name="memory")
    looking.start()
    try:
        yield lambda: most[0]
    finally:
        done.set()
        looking.join()


def _reckoned(
    asked: _Asked,
    prepared: _Prepared,
    measured: _Measured,
    *,
    cache: Cache,
    rows: Sequence[SeriesRow],
    split: tuple[Sequence[str], Sequence[str]],
) -> Estimate:
    config = asked.config
    scans, held_out = map(len, split)
    per_step = sorted(measured.seconds)[len(measured.seconds) // 2]
    training = per_step * measured.facts["total_steps"]
    advised = _advised(asked, measured.seen)
    return Estimate(
        method=config.method.name,
        preset=config.preset,
        **measured.facts,
        processes=asked.processes,
        scans_per_step=config.train.batch_size,
        memory_mb=round(measured.memory_mb),
        memory_together_mb=round(measured.memory_together_mb),
        memory_free_mb=round(measured.memory_free_mb),
        scans_that_fit=scans_that_fit(measured.seen),
        read_s_per_step=round(asked.share.batch_size * measured.seen.read_s, 4),
        suggested=advised,
        as_set=_is_set(config, advised),
        scans=scans,
        scans_held_out=held_out,
        held_out_note=too_few_to_hold_out(config, scans=scans + held_out),
        scans_left_out=len(prepared.failed),
        steps_measured=len(measured.seconds),
        seconds_per_step=round(per_step, 4),
        scans_to_prepare=prepared.missing,
        preparation_s=round(prepared.seconds, 1),
        training_s=round(training, 1),
        total_s=round(prepared.seconds + training, 1),
        not_counted=asked.not_counted,
        cache=str(cache.root),
        cache_bytes=prepared.bytes,
        disk_free_bytes=cache.free_bytes(),
        problem=_problem(measured, cache=cache, rows=rows),
    )


def _is_set(config: PretrainConfig, advised: Mapping[str, Any]) -> bool:
    texts = tuple(f"{key}={json.dumps(value)}" for key, value in advised.items())
    return None not in advised.values() and with_settings(config, overrides=texts) == config


def _problem(measured: _Measured, *, cache: Cache, rows: Sequence[SeriesRow]) -> str:
    """What does not suffice, with the cure; "" if all does."""
    if measured.memory_together_mb > measured.memory_free_mb:
        return (
            f"It does not fit: a step takes {measured.memory_together_mb:,.0f} MB of memory and "
            f"{measured.memory_free_mb:,.0f} MB are free. Lower train.batch_size, choose a "
            "smaller preset, or close other programs."
        )
    try:
        cache.require_disk(cache.missing(rows))
    except ResourceError as error:
        return f"It does not fit: {error}"
    return ""
