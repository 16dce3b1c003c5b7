"""Settings of the process itself that make computing on a processor faster.

They change no number, only how threads wait and how memory is kept, and must be made before PyTorch
is imported.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of glibc's malloc.h."""

MAP_BYTES = 64 << 20
"""Whole scans are still mapped one by one, and given back as soon as they are done with.

So are the largest tensors of full-size presets on a processor, whose pages the kernel clears each
time. With 1 GiB SMIT's step at batch 1 was 1.4 times as fast and took 1.36 times the memory, which
is the user's to choose (docs/decisions.md).
"""
_KEEP_BYTES = 1 << 30


_USERS = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
"""With one of these the user says how memory is kept."""


def maps_large_blocks() -> bool:
    """Whether blocks of more than `MAP_BYTES` are mapped anew each time."""
    return not _USERS & os.environ.keys()


def tune_process() -> None:
    """Let OpenMP's threads spin less, and keep freed memory; what the user has set stays."""
    # OpenMP's threads spin while they wait for each other. Where something else computes as well
    # that made a step 5 to 25 times slower; with short spinning it costs 2 % on a quiet machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if sys.platform == "linux" and not _USERS & os.environ.keys():
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Do not give tensors' memory back to the system after every operation.

    glibc maps large blocks one by one, and the kernel clears each page again: that was a fifth of
    the time of a fine-tuning step (docs/decisions.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Other C libraries than glibc have none.
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, MAP_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEEP_BYTES)
