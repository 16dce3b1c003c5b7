"""Talks to the warm worker, `backend serve`, without ever making a window wait.

Only the standard library is used, of Python 3.9 on. Threads read and write the pipes, so that
neither side can fill one and stand still; a timer of the window calls `WorkerClient.poll`.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

Reply = dict[str, Any]
"""An event of the worker as docs/serve.md describes it, or one of the client's own:

- `{"event": "ended", "id": None, "code": int | None, "message": str, "log": [str, ...]}`
- `{"event": "error", "id": str, "type": "WorkerEnded", "message": str, "hint": str}` for every
  request that a worker left undone.
"""

_LOG_LINES = 200
_TOLD_LINES = 3
_LAST_EVENTS = frozenset({"result", "error", "pong", "hello"})
"""After one of these nothing more comes for a request."""
_TERM_S = 2.0


@dataclass
class _Asked:
    """A request that has no answer yet.

    Attributes:
        line: as it was sent.
        accepted: whether the worker has it in its queue.
        again: whether it was sent before, to a worker that was just ending.
    """

    line: bytes
    accepted: bool = False
    again: bool = False


class WorkerClient:
    """Sends requests to a worker that it starts when one is needed, and collects the replies.

    All methods are for one thread, that of the window.

    Args:
        argv: the command that starts the worker.
        env: its environment; None means this process's own.
        cwd: its working folder.

    Example:
        client = WorkerClient([python, "-m", "backend", "serve"])
        wanted = client.send("segment", model="/models/run", volume="/data/ct.nrrd")
        for reply in client.poll():  # again and again, from a timer
            if reply["id"] == wanted and reply["event"] == "result":
                show(reply["labels"])
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._argv = tuple(argv)
        self._env = None if env is None else dict(env)
        self._cwd = cwd
        self._numbers = count(1)
        # Besides the last one there may be some that have ended and were not polled since.
        self._children: list[_Child] = []

    @property
    def running(self) -> bool:
        """Whether a worker runs; the next request starts one if not."""
        return bool(self._children) and self._children[-1].runs()

    @property
    def pending(self) -> tuple[str, ...]:
        """Requests whose last reply was not polled yet."""
        return tuple(identity for child in self._children for identity in child.asked)

    @property
    def log(self) -> tuple[str, ...]:
        """The last lines that the newest worker wrote to its log."""
        return tuple(self._children[-1].log) if self._children else ()

    def send(self, kind: str, **content: object) -> str:
        """Ask for something and come back at once; starts a worker if none runs.

        A worker that cannot be started is told by `poll`, like one that has died.

        Args:
            kind: of request, e.g. "segment".
            content: its fields.

        Returns:
            The id that its replies carry.

        Raises:
            TypeError: if a field is nothing that JSON has.
            ValueError: if a number is not finite.
        """
        identity = f"r{next(self._numbers)}"
        request = {"kind": kind, "id": identity, **content}
        line = json.dumps(request, allow_nan=False).encode("ascii") + b"\n"
        self._ask(identity, _Asked(line))
        return identity

    def cancel(self, target: str) -> str | None:
        """Ask to end a request; None if nothing is left to be ended.

        Args:
            target: what `send` returned for it.
        """
        if not self.running or target not in self._children[-1].asked:
            return None
        return self.send("cancel", target=target)

    def poll(self) -> list[Reply]:
        """What has come since the last call, in order; never waits."""
        replies = []
        for child in tuple(self._children):
            for reply in child.take():
                replies.append(reply)
                if reply["event"] == "ended":
                    self._children.remove(child)
                    replies += self._undone(child, reply)
        return replies

    def shutdown(self, *, within_s: float = 5.0) -> None:
        """End the worker; one that does not end by itself is ended. Waits at most for so long.

        Args:
            within_s: time for it to end by itself, which it does between two windows.
        """
        for child in self._children:
            child.shutdown(f"r{next(self._numbers)}", within_s=within_s)

    def _ask(self, identity: str, asked: _Asked) -> None:
        if not self.running:
            self._children.append(_Child(self._argv, env=self._env, cwd=self._cwd))
        self._children[-1].ask(identity, asked)

    def _undone(self, child: _Child, ended: Reply) -> list[Reply]:
        """Errors for what an ended worker left undone; what it never took goes to the next one."""
        errors = []
        for identity, asked in child.asked.items():
            if child.bye and not child.told_to_end and not (asked.accepted or asked.again):
                self._ask(identity, _Asked(asked.line, again=True))
                continue
            errors.append(
                {
                    "event": "error",
                    "id": identity,
                    "type": "WorkerEnded",
                    "message": ended["message"],
                    "hint": "The next request starts a new worker.",
                }
            )
        return errors


class _Child:
    """One worker process with the threads at its pipes."""

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None, cwd: Path | None
    ) -> None:
        self.asked: dict[str, _Asked] = {}
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self.bye = ""
        self.told_to_end = False
        self._replies: SimpleQueue[Reply] = SimpleQueue()
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=env,
                cwd=cwd,
                # Ctrl-C in a terminal is meant for the window's own process.
                start_new_session=os.name == "posix",
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            self._tell_end(None, f"The worker cannot be started: {argv[0]}: {error.strerror}.")
            return
        pipes = self._process
        listening = threading.Thread(target=self._keep_log, args=(pipes.stderr,), daemon=True)
        reading = (pipes.stdout, pipes, listening)
        listening.start()
        threading.Thread(target=self._read, args=reading, daemon=True).start()
        threading.Thread(target=self._write, args=(pipes.stdin,), daemon=True).start()

    def runs(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def ask(self, identity: str, asked: _Asked) -> None:
        """Queue a request for the writing thread."""
        self.asked[identity] = asked
        self._lines.put(asked.line)

    def take(self) -> list[Reply]:
        """Replies that have come; keeps account of what is still to be answered."""
        taken: list[Reply] = []
        with suppress(Empty):
            while True:
                taken.append(self._replies.get_nowait())
        for reply in taken:
            asked = self.asked.get(reply["id"])
            if asked is not None:
                asked.accepted = True
                if reply["event"] in _LAST_EVENTS:
                    del self.asked[reply["id"]]
        return taken

    def shutdown(self, identity: str, *, within_s: float) -> None:
        """Ask to end, then close the pipe, then end."""
        self.told_to_end = True
        self._lines.put(json.dumps({"kind": "shutdown", "id": identity}).encode("ascii") + b"\n")
        self._lines.put(None)
        if self._process is None:
            return
        for end, wait_s in ((None, within_s), (self._process.terminate, _TERM_S)):
            if end is not None:
                end()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(wait_s)
                return
        self._process.kill()
        self._process.wait()

    def _write(self, stream: IO[bytes]) -> None:
        # A pipe that broke is told by the end of the replies.
        with suppress(OSError), stream:
            while (line := self._lines.get()) is not None:
                stream.write(line)
                stream.flush()

    def _read(
        self, stream: IO[bytes], process: subprocess.Popen[bytes], listening: threading.Thread
    ) -> None:
        with stream:
            for line in stream:
                reply = _parsed(line)
                if reply is None:
                    self.log.append(_text(line))
                else:
                    self._replies.put(reply)
                    if reply["event"] == "bye":
                        self.bye = str(reply.get("reason", "it said good-bye"))
        code = process.wait()
        # Children of the worker may hold its log open for longer.
        listening.join(_TERM_S)
        # The writing thread waits for lines that nobody takes any more.
        self._lines.put(None)
        last = " ".join([line for line in self.log if line.strip()][-_TOLD_LINES:])
        why = f": {self.bye}." if self.bye else f" with exit code {code}. {last}".rstrip()
        self._tell_end(code, f"The worker ended{why}")

    def _keep_log(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self.log.append(_text(line))

    def _tell_end(self, code: int | None, message: str) -> None:
        self._replies.put(
            {
                "event": "ended",
                "id": None,
                "code": code,
                "message": message,
                "log": list(self.log),
            }
        )


def _parsed(line: bytes) -> Reply | None:
    """The reply that a line is, None for anything else."""
    with suppress(ValueError, RecursionError):
        content = json.loads(line)
        if isinstance(content, dict) and isinstance(content.get("event"), str):
            return {"id": None, **content}
    return None


def _text(line: bytes) -> str:
    """A line of the log; a bar that is drawn over and over leaves its last state."""
    return line.decode("utf-8", errors="replace").rstrip("\r\n").rpartition("\r")[2]
