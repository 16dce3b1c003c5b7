"""Work on many files in processes of their own, which end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from backend.errors import ResourceError

In = TypeVar("In")
Out = TypeVar("Out")


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_processes(
    function: Callable[[In], Out],
    items: Sequence[In],
    *,
    on_crash: Callable[[In], Out],
    workers: int,
    batch: int = 1,
    apart: bool = False,
) -> Generator[Out, None, None]:
    """Yield `function(item)` in the order of `items`, which several processes work on.

    Processes rather than threads: parsing headers is Python and holds the interpreter's lock.

    Args:
        function: importable by name, as processes need it.
        items: what to work on.
        on_crash: the result for an item that takes its process down.
        workers: number of processes; with 1, or little to do, the work is done right here.
        batch: how many items travel to a process at once.
        apart: never work right here, as an item may take the process down.

    Raises:
        ResourceError: if no process can be started.
    """
    if not apart and (workers <= 1 or len(items) <= 2 * batch):
        yield from map(function, items)
        return
    done = 0
    while done < len(items):
        try:
            with _pool(min(workers, len(items))) as pool:
                with _interrupts_held():
                    results = pool.map(function, items[done:], chunksize=batch)
                for result in results:
                    done += 1
                    yield result
        except BrokenProcessPool:
            yield _alone(function, items[done], on_crash)
            done += 1


def _alone(function: Callable[[In], Out], item: In, on_crash: Callable[[In], Out]) -> Out:
    """The result of one item under suspicion, in a process that holds nothing else."""
    try:
        with _pool(1) as pool:
            with _interrupts_held():
                future = pool.submit(function, item)
            return future.result()
    except BrokenProcessPool:
        _check_processes_start()
        return on_crash(item)


def _check_processes_start() -> None:
    try:
        with _pool(1) as pool:
            pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise ResourceError(
            "Worker processes cannot be started.", "Use --workers 1 to work without them."
        ) from error


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let processes start deaf to Ctrl-C, which would hit them before they can decline it.

    A Ctrl-C that comes meanwhile reaches this process when the block ends.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _start_worker() -> None:
    # Ctrl-C reaches the whole process group: the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
