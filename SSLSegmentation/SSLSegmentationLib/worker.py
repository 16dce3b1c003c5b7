"""The warm worker of this Slicer: one process that keeps networks ready, for all that segment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import qt
import slicer

from SSLPretrainLogic.environments import backend_argv
from SSLPretrainLogic.worker_client import Reply, WorkerClient
from SSLSegmentationLib.session import Session

POLL_MS = 25
_LET_THREADS_RUN_S = 0.001
_END_WITHIN_S = 1.0
IDLE_MINUTES, MEMORY_MB = "worker_idle_minutes", "worker_memory_mb"
_DEFAULTS = {IDLE_MINUTES: 15, MEMORY_MB: 4096}
"""Settings of the worker: minutes without work until it ends, and room for networks."""


class Worker:
    """Sends requests and hands every reply to whoever asked; never waits.

    Args:
        client: starts the process when the first request comes.
    """

    def __init__(self, client: WorkerClient) -> None:
        self._client = client
        self._receivers: dict[str, Callable[[Reply], None]] = {}
        self._timer = qt.QTimer()
        self._timer.interval = POLL_MS
        self._timer.connect("timeout()", self._poll)

    @property
    def running(self) -> bool:
        """Whether the process is there already."""
        return self._client.running

    def ask(self, kind: str, receiver: Callable[[Reply], None], **content: object) -> str:
        """Ask for something and come back at once.

        Args:
            kind: of request, see docs/serve.md.
            receiver: is given every reply, the last one is a "result" or an "error".
            content: fields of the request.

        Returns:
            The request's id.
        """
        identity = self._client.send(kind, **content)
        self._receivers[identity] = receiver
        self._timer.start()
        return identity

    def drop(self, identity: str) -> None:
        """End a request; nothing more is heard of it."""
        if self._receivers.pop(identity, None) is not None:
            self._client.cancel(identity)

    def end(self) -> None:
        """End the process; what it leaves undone is told as errors."""
        self._client.shutdown(within_s=_END_WITHIN_S)
        self._poll()
        self._timer.stop()

    def _poll(self) -> None:
        # Slicer's window holds Python's lock; the threads at the pipes run while this one sleeps.
        time.sleep(_LET_THREADS_RUN_S)
        for reply in self._client.poll():
            receiver = self._receivers.get(reply["id"])
            if receiver is not None:
                receiver(reply)
        # Several replies may come at once, and only the last one ends a request.
        pending = set(self._client.pending)
        for identity in self._receivers.keys() - pending:
            del self._receivers[identity]
        if not pending:
            self._timer.stop()


_shared: dict[tuple[str, ...], Worker] = {}


def shared(session: Session) -> Worker:
    """The worker for the chosen Python, device and limits; one for other choices is ended.

    Raises:
        LogicError: if no Python is chosen, or it is known to lack something.
    """
    argv = backend_argv(session.needs_interpreter(), words(session))
    if argv not in _shared:
        # Two on one device would fight for its memory.
        end_all()
        slicer.app.connect("aboutToQuit()", end_all)
        _shared[argv] = Worker(WorkerClient(argv, env=session.variables()))
    return _shared[argv]


def limit(session: Session, name: str) -> int:
    """A setting of the worker, `IDLE_MINUTES` or `MEMORY_MB`."""
    text = session.setting(name)
    return int(text) if text.isdecimal() and int(text) else _DEFAULTS[name]


def unload() -> bool:
    """Let the networks in memory go; answers whether a worker runs that could hold one."""
    running = [worker for worker in _shared.values() if worker.running]
    for worker in running:
        worker.ask("unload", lambda _reply: None)
    return bool(running)


def end_all() -> None:
    """End every worker of this Slicer."""
    while _shared:
        _shared.popitem()[1].end()


def words(session: Session) -> tuple[str, ...]:
    """The command line of a worker, after `backend`."""
    idle, memory = (str(limit(session, name)) for name in (IDLE_MINUTES, MEMORY_MB))
    # The program that starts Slicer's Python lies between this process and the worker.
    owner = str(os.getpid())
    limits = ("--idle-minutes", idle, "--model-memory-mb", memory)
    return ("serve", "--device", session.device, *limits, "--owner", owner)
