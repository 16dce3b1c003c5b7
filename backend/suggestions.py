"""What `backend pretrain --dry-run` suggests for a machine: batch, reading threads, precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from backend.config import TrainConfig

_USABLE = 0.9
"""Of free memory: other programs need some of it now and then."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was measured and counted of one process.

    Attributes:
        at_once: scans in a part of its batch.
        memory_mb: peak with so many.
        memory_free_mb: what it may have.
        memory_per_scan_mb: that one more takes.
        step_s: a step, without waiting for scans.
        read_s: one scan, read by one thread.
        bf16: whether its device computes in bf16.
    """

    at_once: int
    memory_mb: float
    memory_free_mb: float
    memory_per_scan_mb: float
    step_s: float
    read_s: float
    bf16: bool


def scans_that_fit(seen: Seen) -> int:
    """At once, in nine tenths of the memory that is free."""
    room = _USABLE * seen.memory_free_mb - seen.memory_mb
    return max(0, seen.at_once + math.floor(room / max(seen.memory_per_scan_mb, 1e-9)))


def suggested(
    train: TrainConfig, *, share: int, workers: int, least: int, seen: Seen
) -> dict[str, Any]:
    """Settings by their names; the batch of a step stays what it is, so that the result does.

    Args:
        train: what is set.
        share: scans of a step in this process.
        workers: as set.
        least: scans that a part has to have.
        seen: what was found.

    Returns:
        `train.batch_size`, `train.accumulate`, `data.workers` and `train.precision`. Where no
        `accumulate` makes a step fit, it is None.
    """
    fit = scans_that_fit(seen)
    parts = [n for n in range(1, share + 1) if share % n == 0 and share // n >= least]
    return {
        "train.batch_size": train.batch_size,
        "train.accumulate": next((n for n in parts if share // n <= fit), None),
        # Too many threads do no harm, too few leave the device waiting.
        "data.workers": max(workers, math.ceil(share * seen.read_s / max(seen.step_s, 1e-9))),
        "train.precision": "bf16" if seen.bf16 and train.precision == "fp32" else train.precision,
    }
