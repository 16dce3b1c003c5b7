"""Samples in an order that follows from the seed alone, read ahead by threads.

Position p of the endless stream is sample p mod n of epoch p div n, and epochs follow each other
without a gap: every sample comes once per epoch, batches are always full, and any step can be the
first, which is what resuming needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import count, islice
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.geometry import Index3, index3

T = TypeVar("T")

_LOOK_S = 0.2
"""Seconds between two calls of `between` while a sample is waited for."""

_AT_ONCE = 32
"""Samples that are queued before one is waited for: a huge batch is queued little by little."""

_BATCHES_AHEAD, _SAMPLES_AHEAD = 3, 64
"""What is read beyond a batch at the most: more would only take memory."""


class Batches(NamedTuple):
    """Which samples make up the batches, and which of them one process reads.

    A batch is cut into parts, whose gradients are added up, and each part is divided among the
    processes in their order.

    Attributes:
        samples: how many there are.
        size: samples in a batch.
        seed: decides their order.
        parts: of a batch.
        processes: among which each part is divided.
        number: of this process, from 0.
    """

    samples: int
    size: int
    seed: int
    parts: int = 1
    processes: int = 1
    number: int = 0

    @property
    def share(self) -> list[int]:
        """The places in each batch that this process reads, in their order."""
        part = self.size // self.parts
        ours = part // self.processes
        begins = range(self.number * ours, self.size, part)
        return [place for begin in begins for place in range(begin, begin + ours)]


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
    batches: Batches,
    *,
    first_step: int = 0,
    workers: int = 2,
    between: Callable[[], None] = lambda: None,
) -> Generator[list[T], None, None]:
    """This process' share of each batch, from `first_step` on, for ever.

    Args:
        read: reads one sample; called from threads, must depend on the position alone.
        batches: of which samples.
        first_step: step of the first batch.
        workers: threads; 0 reads when asked.
        between: called before each sample, and while one is waited for; may raise to end.

    Raises:
        Whatever `read` raised, at the batch it belongs to, and whatever `between` raised.
    """
    share = batches.share
    places = (step * batches.size + place for step in count(first_step) for place in share)
    positions = (position(p, samples=batches.samples, seed=batches.seed) for p in places)
    if workers == 0:
        one_by_one = _one_by_one(read, positions, between)
    else:
        most = len(share) + min(_BATCHES_AHEAD * len(share), _SAMPLES_AHEAD)
        one_by_one = _read_ahead(read, positions, between, workers=workers, most=most)
    try:
        while True:
            yield list(islice(one_by_one, len(share)))
    finally:
        one_by_one.close()


def _one_by_one(
    read: Callable[[Position], T], positions: Iterator[Position], between: Callable[[], None]
) -> Generator[T, None, None]:
    for place in positions:
        between()
        yield read(place)


def _read_ahead(
    read: Callable[[Position], T],
    positions: Iterator[Position],
    between: Callable[[], None],
    *,
    workers: int,
    most: int,
) -> Generator[T, None, None]:
    """Samples in their order; threads read up to `most` of them before they are asked for."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="reader")
    waiting: deque[Future[T]] = deque()
    try:
        while True:
            room = min(most - len(waiting), _AT_ONCE)
            waiting.extend(pool.submit(read, place) for place in islice(positions, room))
            future = waiting.popleft()
            between()
            while not future.done():
                wait([future], timeout=_LOOK_S)
                between()
            yield future.result()
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
