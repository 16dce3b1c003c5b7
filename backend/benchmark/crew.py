"""Several processes of one machine that work one benchmark off, and one that watches over them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from backend.engine.distributed import repeated, told_of
from backend.errors import BackendError, Cancelled, Interrupted, told_plainly

_POLL_S = 1.0
_GRACE_S = 900.0
"""How long a process may take to end its step and save, before it is killed."""


def places(
    device: str, *, processes: int | None, threads: int | None, cores: int, gpus: int
) -> list[str]:
    """The device of each process, of as many as pay.

    Args:
        device: as asked for: auto, cpu, cuda, or one GPU by its number.
        processes: how many are asked for; None: one for each GPU, or as many as have cores.
        threads: of a process on a processor; None: all cores, so that one process is enough.
        cores: that this program may use.
        gpus: that PyTorch sees.
    """
    if device in ("auto", "cuda") and gpus > 1:
        return [f"cuda:{number % gpus}" for number in range(processes or gpus)]
    on_processor = device == "cpu" or (device == "auto" and not gpus)
    fitting = max(1, cores // threads) if threads and on_processor else 1
    return [device] * (processes or fitting)


def work_together(
    task: Callable[[Any], None],
    shares: Sequence[Any],
    *,
    threads: int,
    logs: Path,
    watch: Callable[[], None],
) -> None:
    """Give a task to as many new processes as there are shares of it, and wait for all.

    If one fails or is killed, or `watch` raises, the others are asked to stop and waited for.

    Args:
        task: run in each process; importable, as processes start anew.
        shares: what each is called with; picklable.
        threads: that each computes with.
        logs: folder for what each of them says.
        watch: called about once a second.

    Raises:
        BackendError: what a process failed with.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with _environment(OMP_NUM_THREADS=str(threads)):
        members = [
            _Member(task, share, log=logs / f"process_{number}.log")
            for number, share in enumerate(shares, start=1)
        ]
    try:
        while True:
            # First, or one that ends between the two would pass for well.
            running = [member.process.sentinel for member in members if member.runs]
            for member in members:
                member.require_well()
            if not running:
                return
            watch()
            wait(running, timeout=_POLL_S)
    finally:
        for member in members:
            member.ask_to_stop()
        for member in members:
            member.wait()


class _Member:
    """A process at work; it stops when the watching one lets go of the connection, or dies."""

    def __init__(self, task: Callable[[Any], None], share: Any, *, log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._log = log
        self._connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(task, share, log, theirs))
        self.process.start()
        theirs.close()

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.is_alive()

    def require_well(self) -> None:
        """Raise what it failed with, if it did."""
        if self.runs or self.process.exitcode == 0:
            return
        try:
            told = self._connection.recv()
        except (EOFError, OSError):
            code = self.process.exitcode or 0
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            raise BackendError(
                f"A process of the benchmark {how}; its last words are in {self._log}.",
                "What is finished stays: start again, with --processes 1 if memory was short.",
            ) from None
        raise repeated(told)

    def ask_to_stop(self) -> None:
        """Once it has ended its step."""
        self._connection.close()

    def wait(self) -> None:
        """Until it has ended; not for ever."""
        self.process.join(_GRACE_S)
        if self.runs:
            self.process.kill()
            self.process.join()


def _work(task: Callable[[Any], None], share: Any, log: Path, connection: Connection) -> None:
    """What a new process does first and last."""
    threading.Thread(target=_stop_when_alone, args=(connection,), daemon=True).start()
    with log.open("a", encoding="utf-8") as stream:
        for said in (sys.stdout, sys.stderr):
            os.dup2(stream.fileno(), said.fileno())
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("backend").setLevel(logging.INFO)
    try:
        task(share)
    except (Exception, KeyboardInterrupt) as caught:
        if isinstance(caught, Cancelled | Interrupted):
            logging.getLogger("backend").info("The benchmark, started again, goes on from here.")
        else:
            logging.getLogger("backend").info("Ended", exc_info=caught)
        # Who has let go of the connection has asked for the end, and knows.
        if not connection.closed:
            _tell(connection, told_plainly(caught))
        sys.exit(1)


def _tell(connection: Connection, error: BackendError) -> None:
    try:
        connection.send(told_of(error))
    except OSError:
        logging.getLogger("backend").info("Nobody is left to be told.")


def _stop_when_alone(connection: Connection) -> None:
    """Ask this process to stop when the other end of a connection, on which nothing comes, goes."""
    wait([connection])
    signal.raise_signal(signal.SIGTERM)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables that processes started meanwhile inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
