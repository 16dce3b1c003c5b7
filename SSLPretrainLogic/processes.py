"""Processes of this machine, without psutil: who lives, since when, and who belongs to whom.

A number is used again once its process has died, so a process is its number and its start together.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MARK = "SSLSEGMENTATION_JOB"
"""Environment variable by which all processes of a job are known, also those of a dead parent."""

_CLOCK_S = 2.0
"""Ways to tell when a process started, or the machine, differ by so much."""
_PS_FIELDS = "pid=,ppid=,pgid=,stat=,lstart="


class Process(NamedTuple):
    """A process that lives; one that is dead and waits for its parent to take note is none.

    Attributes:
        pid: its number.
        parent: number of the process that started it; on POSIX 1 or so once that one has died.
        group: its process group, 0 on Windows.
        started: seconds since 1970.
    """

    pid: int
    parent: int
    group: int
    started: float

    def is_same(self, other: Process | None) -> bool:
        """Whether this is that process, and not another one under its number."""
        return (
            other is not None
            and self.pid == other.pid
            and abs(self.started - other.started) < _CLOCK_S
        )


def find_process(pid: int) -> Process | None:
    """The process of a number, None if there is none that lives."""
    if sys.platform == "linux":
        return next(_from_proc([pid]), None)
    if sys.platform == "win32":
        return all_processes().get(pid)
    return next(_from_ps("-p", str(pid)), None)


def all_processes() -> dict[int, Process]:
    """Every process that can be seen, by number."""
    if sys.platform == "linux":
        found = _from_proc(int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit())
    elif sys.platform == "win32":
        found = _from_windows()
    else:
        found = _from_ps("-ax")
    return {process.pid: process for process in found}


class Origin(NamedTuple):
    """How processes of a job are known whose parents have died.

    Attributes:
        mark: value of the variable `MARK`, which they inherit; Linux shows it.
        group: process group in which they began, told elsewhere; 0 for none.
        since: when the job had begun, in seconds since 1970.
    """

    mark: str
    group: int
    since: float


def family(roots: Iterable[Process], *, origin: Origin | None = None) -> dict[int, Process]:
    """Some processes and all that descend from them, as far as they live; never ourselves.

    Args:
        roots: the first of them; they may be dead.
        origin: of those whose parents have died.
    """
    everyone = all_processes()
    known = {root.pid: root for root in roots}
    members = {pid: p for pid, p in known.items() if p.is_same(everyone.get(pid))}
    if origin is not None:
        members.update((p.pid, p) for p in everyone.values() if _is_of(p, origin, everyone))
    grown = -1
    while grown != len(members):
        grown = len(members)
        known |= members
        members.update((p.pid, p) for p in everyone.values() if _is_child(p, known, everyone))
    # A signal to ourselves would end Slicer.
    members.pop(os.getpid(), None)
    return members


def _is_of(process: Process, origin: Origin, everyone: Mapping[int, Process]) -> bool:
    if sys.platform == "linux":
        return _has_mark(process.pid, origin.mark)
    # A group that somebody else leads by now is not the job's any more.
    leader = everyone.get(origin.group)
    is_another = leader is not None and leader.started > origin.since + _CLOCK_S
    return process.group == origin.group != 0 and not is_another


def _is_child(
    process: Process, known: Mapping[int, Process], everyone: Mapping[int, Process]
) -> bool:
    parent, holder = known.get(process.parent), everyone.get(process.parent)
    if parent is None or process.started < parent.started - _CLOCK_S:
        return False
    # Windows keeps the number of a dead parent, which may be another process by now.
    return holder is None or parent.is_same(holder) or process.started < holder.started


def _has_mark(pid: int, mark: str) -> bool:
    # Processes of other users do not show theirs.
    with suppress(OSError):
        return os.fsencode(f"{MARK}={mark}") in Path(f"/proc/{pid}/environ").read_bytes().split(
            b"\0"
        )
    return False


def living(processes: Iterable[Process]) -> list[Process]:
    """Those of some processes that still live."""
    return [process for process in processes if process.is_same(find_process(process.pid))]


def send(signal_number: int, processes: Iterable[Process]) -> None:
    """Send a signal to those that still live; on Windows any signal ends them at once."""
    for process in living(processes):
        # It may die in between, or have become another user's.
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal_number)


def kill_signal() -> int:
    """The signal that no process can refuse."""
    return int(getattr(signal, "SIGKILL", signal.SIGTERM))


def same_boot(name: object) -> bool:
    """Whether the machine has not been started again since somebody noted this name of a boot.

    Args:
        name: `boot_id` of a status.json: on Linux the kernel's, elsewhere the second of the start.
    """
    now = boot_id()
    if name == now:
        return True
    with suppress(TypeError, ValueError):
        # Reckoned back from a clock, which is corrected now and then.
        return isinstance(name, str) and abs(int(name) - int(now)) < 30
    return False


def boot_id() -> str:
    """A name for this boot of the machine."""
    path = Path("/proc/sys/kernel/random/boot_id")
    if path.exists():
        return path.read_text("ascii").strip()
    if sys.platform == "win32":
        import ctypes

        # Without its type the count would be cut after 25 days.
        ticks = ctypes.windll.kernel32.GetTickCount64
        ticks.restype = ctypes.c_ulonglong
        return str(int(time.time() - ticks() / 1000))
    told = _output("sysctl", "-n", "kern.boottime")
    second = re.search(r"sec = (\d+)", told)
    return second.group(1) if second else ""


def _output(*words: str) -> str:
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _from_proc(pids: Iterable[int]) -> Iterator[Process]:
    if sys.platform == "win32":
        return
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    booted = _boot_time()
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
        except OSError:
            continue
        # The name in brackets may hold anything, brackets too.
        fields = text.rpartition(")")[2].split()
        if fields and fields[0] not in "ZXx":
            started = booted + int(fields[19]) / ticks_per_s
            yield Process(pid, parent=int(fields[1]), group=int(fields[2]), started=started)


def _boot_time() -> float:
    """Second of the start of this Linux; 0.0 never occurs."""
    for line in Path("/proc/stat").read_text("ascii").splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0


def _from_ps(*choice: str) -> Iterator[Process]:
    """Processes as the POSIX tool of that name tells them."""
    for line in _output("ps", *choice, "-o", _PS_FIELDS).splitlines():
        pid, parent, group, state, *started = line.split()
        if not state.startswith("Z"):
            second = time.mktime(time.strptime(" ".join(started), "%a %b %d %H:%M:%S %Y"))
            yield Process(int(pid), parent=int(parent), group=int(group), started=second)


def _from_windows() -> Iterator[Process]:
    if sys.platform != "win32":
        return
    import ctypes
    from ctypes import wintypes

    class Entry(ctypes.Structure):
        """PROCESSENTRY32W of tlhelp32.h."""

        _fields_ = (
            ("size", wintypes.DWORD),
            ("usage", wintypes.DWORD),
            ("pid", wintypes.DWORD),
            ("heap", ctypes.c_size_t),
            ("module", wintypes.DWORD),
            ("threads", wintypes.DWORD),
            ("parent", wintypes.DWORD),
            ("priority", wintypes.LONG),
            ("flags", wintypes.DWORD),
            ("name", wintypes.WCHAR * 260),
        )

    kernel = ctypes.WinDLL("kernel32")
    kernel.CreateToolhelp32Snapshot.restype = wintypes.HANDLE
    kernel.OpenProcess.restype = wintypes.HANDLE
    snapshot = wintypes.HANDLE(kernel.CreateToolhelp32Snapshot(0x2, 0))  # TH32CS_SNAPPROCESS
    entry = Entry(size=ctypes.sizeof(Entry))
    more = kernel.Process32FirstW(snapshot, ctypes.byref(entry))
    while more:
        started = _windows_start(kernel, entry.pid)
        if started is not None:
            yield Process(entry.pid, parent=entry.parent, group=0, started=started)
        more = kernel.Process32NextW(snapshot, ctypes.byref(entry))
    kernel.CloseHandle(snapshot)


def _windows_start(kernel: object, pid: int) -> float | None:
    """Start of a process, None if it has ended or is not ours to look at."""
    if sys.platform != "win32":
        return None
    import ctypes
    from ctypes import wintypes

    assert isinstance(kernel, ctypes.WinDLL)
    handle = wintypes.HANDLE(kernel.OpenProcess(0x1000, False, pid))  # QUERY_LIMITED_INFORMATION
    if not handle:
        return None
    times = [wintypes.FILETIME() for _ in range(4)]
    code = wintypes.DWORD()
    known = kernel.GetProcessTimes(handle, *map(ctypes.byref, times))
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    still_active = 259
    if not known or code.value != still_active:
        return None
    ticks = (times[0].dwHighDateTime << 32) + times[0].dwLowDateTime
    # Tenths of microseconds since 1601.
    return float(ticks / 1e7 - 11644473600)
