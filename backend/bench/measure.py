"""How two sides of a row are measured: turn by turn in one process, and in what memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from backend.engine.device import trim_memory

Forward = Callable[[], Tensor]


class Told(NamedTuple):
    """A result whose seconds are not those that the call took."""

    seconds: float
    value: Any = None


class Memory(NamedTuple):
    """What both sides need.

    Attributes:
        what: of which kind, for people.
        ours: in MiB.
        peer: likewise; None if it was not measured.
    """

    what: str
    ours: float
    peer: float | None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Both sides of a row, ready to run again and again.

    Attributes:
        size: what they work on, for people.
        ours: does the work once; returns what the peer's must be equal to.
        peer: likewise; None where it cannot run.
        loops: calls that make up one measurement, for work of milliseconds.
        warm: whether each side runs once before it is measured.
        memory: measures what both need; None where nothing is asked.
        close: ends what was started.
    """

    size: str
    ours: Callable[[], Any]
    peer: Callable[[], Any] | None
    loops: int = 1
    warm: bool = True
    memory: Callable[[], Memory] | None = None
    close: Callable[[], None] = lambda: None


def measured(pair: Pair, *, repeats: int, turn: Callable[[int, int], None]) -> dict[str, Any]:
    """Seconds of both sides, taken in turns, and their memory.

    Args:
        pair: the sides.
        repeats: measurements of each.
        turn: told `(done, in all)` after each call.

    Returns:
        `ours_s` and `peer_s` with every measurement, their medians, `ratio` (the peer's median over
        ours), `memory`, and the same of the processor's seconds, which other work on the machine
        disturbs less.
    """
    sides = {"ours": pair.ours, "peer": pair.peer}
    seconds: dict[str, list[float]] = {name: [] for name, side in sides.items() if side is not None}
    worked: dict[str, list[float]] = {name: [] for name in seconds}
    rounds = repeats + pair.warm
    total = rounds * len(seconds) + (pair.memory is not None)
    for number in range(rounds):
        for place, name in enumerate(seconds):
            taken, cpu = _seconds(sides[name], pair.loops)
            if number or not pair.warm:
                seconds[name].append(taken)
                worked[name].append(cpu)
            turn(number * len(seconds) + place + 1, total)
    figures: dict[str, Any] = {"size": pair.size}
    for name, values in seconds.items():
        figures |= {f"{name}_s": values, f"{name}_median_s": median(values)}
        figures[f"{name}_cpu_s"] = worked[name]
    if "peer" in seconds:
        figures["ratio"] = figures["peer_median_s"] / figures["ours_median_s"]
    if all(median(values) > 0 for values in worked.values()) and len(worked) > 1:
        figures["cpu_ratio"] = median(worked["peer"]) / median(worked["ours"])
    if pair.memory is not None:
        figures["memory"] = _told(pair.memory())
        turn(total, total)
    return figures


def _seconds(side: Any, loops: int) -> tuple[float, float]:
    """Seconds of one call, and those of the processor in this process."""
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(loops):
        result = side()
    taken, cpu = ((time.perf_counter() - began) / loops, (time.process_time() - cpu) / loops)
    # Where others did the work, this process tells nothing of the processor.
    return (result.seconds, 0.0) if isinstance(result, Told) else (taken, cpu)


def _told(memory: Memory) -> dict[str, Any]:
    told: dict[str, Any] = {"what": memory.what, "ours": memory.ours}
    if memory.peer is not None:
        told |= {"peer": memory.peer, "ratio": memory.ours / memory.peer}
    return told


def activations(ours: Forward, peer: Forward, *, modules: Sequence[nn.Module]) -> Memory:
    """What both forward passes keep for their backward pass.

    Args:
        ours: a forward pass of our side.
        peer: of the other.
        modules: whose weights do not count: they are there anyway.
    """
    weights = {p.untyped_storage().data_ptr() for m in modules for p in m.parameters()}
    both = (saved_mib(forward, besides=weights) for forward in (ours, peer))
    return Memory("saved activations, counted", *both)


def saved_mib(forward: Forward, *, besides: Set[int] = frozenset()) -> float:
    """MiB that a forward pass keeps for its backward pass, each storage once.

    Args:
        forward: gives a loss.
        besides: addresses of storages that do not count.
    """
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Holding the storage keeps its address from being given to another one.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in besides:
            kept.setdefault(storage.data_ptr(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return float(sum(storage.nbytes() for storage in kept.values()) / 2**20)


def peak_growth_mib(work: Callable[[], Any]) -> float | None:
    """By how much the process grows at most while it works; None where the system cannot tell.

    It is the high-water mark of Linux (VmHWM), which is set back before: meant for a fresh process,
    as memory that was freed before is used again unseen.
    """
    before = _status_mib("VmRSS")
    if before is None:
        work()
        return None
    trim_memory()
    before = _status_mib("VmRSS") or before
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return (_status_mib("VmHWM") or before) - before


def _status_mib(name: str) -> float | None:
    if sys.platform != "linux":
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))
