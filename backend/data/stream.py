"""Samples in an order that follows from the seed alone, read ahead by threads.

Position p of the endless stream is sample p mod n of epoch p div n, and epochs follow each other
without a gap: every sample comes once per epoch, batches are always full, and any step can be the
first, which is what resuming needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.geometry import Index3, index3

T = TypeVar("T")


class Position(NamedTuple):
    """Which sample is read, and the how-manieth time."""

    sample: int
    epoch: int


def position(index: int, *, samples: int, seed: int) -> Position:
    """The sample at a place of the stream; each epoch has an order of its own."""
    epoch, place = divmod(index, samples)
    return Position(int(_order(samples, seed, epoch)[place]), epoch)


@lru_cache(maxsize=4)
def _order(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(samples)


def stream(
    read: Callable[[Position], T],
    *,
    samples: int,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    workers: int = 2,
    ahead: int = 4,
) -> Iterator[list[T]]:
    """Batches from `first_step` on, for ever.

    Args:
        read: reads one sample; called from threads, must depend on the position alone.
        samples: how many there are.
        batch_size: samples in each list.
        seed: decides the order.
        first_step: step of the first batch.
        workers: threads; 0 reads when asked.
        ahead: batches that are read before they are asked for.

    Raises:
        Whatever `read` raised, at the batch it belongs to.
    """

    def positions(step: int) -> list[Position]:
        places = range(step * batch_size, (step + 1) * batch_size)
        return [position(p, samples=samples, seed=seed) for p in places]

    step = first_step
    if workers == 0:
        while True:
            yield [read(p) for p in positions(step)]
            step += 1
    pool = ThreadPoolExecutor(workers, thread_name_prefix="reader")
    waiting: deque[list[Future[T]]] = deque()
    try:
        while True:
            while len(waiting) < ahead:
                waiting.append([pool.submit(read, p) for p in positions(step)])
                step += 1
            yield [future.result() for future in waiting.popleft()]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def random_start(size: Index3, region: Index3, rng: np.random.Generator) -> Index3:
    """Where a random region begins in a volume, both (z, y, x).

    Along an axis on which the volume is smaller than the region it lies in the middle, so the
    start is negative there.
    """
    starts = [
        int(rng.integers(0, n - r + 1)) if n >= r else -((r - n) // 2)
        for n, r in zip(size, region, strict=True)
    ]
    return index3(starts)
