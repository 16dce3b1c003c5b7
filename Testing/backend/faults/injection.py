"""What goes wrong inside a command, at a moment that is named and not timed.

Python tells of every file that it opens (`sys.addaudithook`), just before it does. A `Fault` waits
for the opening of a certain file and then does to its own process, or to a file, what a bad day
does. Workers inherit faults through the environment; across all processes of a command each
happens once.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VARIABLE = "SSL_TEST_FAULTS"
_POLL_S = 0.005
_MIB = 2**20
_MMAP_THRESHOLD, _SMALL_BYTES = -3, 2**17
"""Name and default of glibc's malloc.h: larger blocks are mapped one by one."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that happens when a file is opened.

    Attributes:
        do: a name of `_DEEDS`, or of a signal.
        path: regular expression of the file's path.
        mode: characters of which the mode of opening has one; empty: any.
        at: the how-manieth such opening in a process.
        argument: a path or a number, as the deed needs it.
        marker: a file that is made when it happens, so that it does but once; empty: each time
            from then on, in every process.
        rank: the process that it happens in, of several that train together; empty: any.
    """

    do: str
    path: str
    mode: str = ""
    at: int = 1
    argument: str = ""
    marker: str = ""
    rank: str = ""


def environment(faults: Sequence[Fault]) -> dict[str, str]:
    """What a command must find in its environment to have these faults."""
    return {VARIABLE: json.dumps([asdict(fault) for fault in faults])}


def install() -> None:
    """Let the faults that the environment tells of happen in this process."""
    for told in json.loads(os.environ.get(VARIABLE, "[]")):
        sys.addaudithook(_Watch(Fault(**told)))


class _Watch:
    """Waits for the moment of a fault."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._path = re.compile(fault.path)
        self._seen = 0
        self._busy = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or self._busy or not isinstance(arguments[0], str):
            return
        path, mode = arguments[0], arguments[1] or ""
        fault = self._fault
        if fault.rank not in ("", os.environ.get("RANK", "")):
            return
        if not self._path.search(path) or (fault.mode and not set(fault.mode) & set(mode)):
            return
        self._seen += 1
        if self._seen < fault.at or (fault.marker and not self._first()):
            return
        self._busy = True
        try:
            _DEEDS.get(fault.do, _signal)(fault, path)
        finally:
            self._busy = False

    def _first(self) -> bool:
        self._busy = True
        try:
            Path(self._fault.marker).open("x").close()
        except FileExistsError:
            return False
        finally:
            self._busy = False
        return True


def _signal(fault: Fault, _: str) -> None:
    for name in fault.do.split(", "):
        os.kill(os.getpid(), signal.Signals[name])


def _full(_: Fault, path: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def _read_only(fault: Fault, path: str) -> None:
    """From now on nothing below a folder can be opened for writing."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(fault.argument):
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            if set(arguments[1] or "") & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))

    sys.addaudithook(refuse)
    refuse("open", (path, "w", 0))


def _limit_files(fault: Fault, _: str) -> None:
    """No file grows beyond so many bytes any more: what is being written breaks off."""
    _limit(resource.RLIMIT_FSIZE, int(fault.argument))


def _limit_memory(fault: Fault, _: str) -> None:
    """The process gets so many MiB more than it has, and no more.

    What it may write counts, not its addresses: each new thread sets 64 MiB of those aside. Freed
    blocks go back at once, as pages in truth do; else they would count on.
    """
    assert ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _SMALL_BYTES)
    told = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert told
    _limit(resource.RLIMIT_DATA, int(told[1]) * 1024 + int(fault.argument) * _MIB)


def _limit(kind: int, most: int) -> None:
    resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def _fill_disk(fault: Fault, path: str) -> None:
    """Leave so many bytes free on a small disk."""
    folder = Path(path).parent
    disk = os.statvfs(folder)
    with (folder / "ballast").open("wb") as stream:
        stream.write(bytes(disk.f_bavail * disk.f_frsize - int(fault.argument)))


def _stall(fault: Fault, _: str) -> None:
    """The disk does not answer until a file appears."""
    while not Path(fault.argument).exists():
        time.sleep(_POLL_S)


def _remove(fault: Fault, _: str) -> None:
    for file in files(fault.argument):
        file.unlink()


def _flip(fault: Fault, _: str) -> None:
    for file in files(fault.argument):
        flip_bit(file)


def _truncate(fault: Fault, _: str) -> None:
    for file in files(fault.argument):
        os.truncate(file, file.stat().st_size // 2)


def files(pattern: str) -> list[Path]:
    """Files by a pattern, at least one."""
    found = sorted(Path("/").glob(pattern.removeprefix("/")))
    assert found, pattern
    return found


def flip_bit(file: Path) -> None:
    """Change one bit, in the middle of a file."""
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 0x10]))


_DEEDS: dict[str, Callable[[Fault, str], None]] = {
    "full": _full,
    "read-only": _read_only,
    "limit files": _limit_files,
    "limit memory": _limit_memory,
    "fill disk": _fill_disk,
    "stall": _stall,
    "remove": _remove,
    "flip": _flip,
    "truncate": _truncate,
}
