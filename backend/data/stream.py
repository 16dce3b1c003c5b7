"""Samples in an order that follows from the seed alone, read ahead by threads.

Position p of the endless stream is sample p mod n of epoch p div n, and epochs follow each other
without a gap: every sample comes once per epoch, batches are always full, and any step can be the
first, which is what resuming needs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from functools import lru_cache
from itertools import count, islice
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.geometry import Index3, index3

T = TypeVar("T")

_LOOK_S = 0.2
"""Seconds between two calls of `between` while a sample is waited for."""

_LAST_READ_S = 1.0
"""How long threads are waited for that still read when no more samples are wanted."""

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
    def each(self) -> int:
        """How many samples of a batch one process reads."""
        return self.size // self.processes

    def share(self) -> Iterator[int]:
        """The places in each batch that this process reads, in their order."""
        part = self.size // self.parts
        ours = part // self.processes
        for begin in range(self.number * ours, self.size, part):
            yield from range(begin, begin + ours)


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
    places = (s * batches.size + place for s in count(first_step) for place in batches.share())
    positions = (position(p, samples=batches.samples, seed=batches.seed) for p in places)
    if workers == 0:
        one_by_one = _one_by_one(read, positions, between)
    else:
        most = batches.each + min(_BATCHES_AHEAD * batches.each, _SAMPLES_AHEAD)
        one_by_one = _read_ahead(read, positions, between, workers=workers, most=most)
    try:
        while True:
            yield list(islice(one_by_one, batches.each))
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
    readers = _Readers(read, workers)
    waiting: deque[Future[T]] = deque()
    try:
        while True:
            room = min(most - len(waiting), _AT_ONCE)
            waiting.extend(readers.submit(place) for place in islice(positions, room))
            future = waiting.popleft()
            between()
            while not future.done():
                wait([future], timeout=_LOOK_S)
                between()
            yield future.result()
    finally:
        for future in waiting:
            future.cancel()
        readers.close()


class _Readers(Generic[T]):
    """Threads that read.

    Unlike an executor's the process does not wait for them in the end: a disk that does not answer
    must not keep a run from ending.
    """

    def __init__(self, read: Callable[[Position], T], workers: int) -> None:
        self._read = read
        self._jobs: SimpleQueue[tuple[Position, Future[T]] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"reader {n}", daemon=True)
            for n in range(1, workers + 1)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, place: Position) -> Future[T]:
        """The sample at a place, as soon as it is read."""
        future: Future[T] = Future()
        self._jobs.put((place, future))
        return future

    def close(self) -> None:
        """Let the threads end; one that is stuck is left behind."""
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + _LAST_READ_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            place, future = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._read(place))
                # Whatever it is, it belongs to whoever asks for the sample.
                except BaseException as error:
                    future.set_exception(error)


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
