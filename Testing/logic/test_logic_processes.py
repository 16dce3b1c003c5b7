"""Processes, told without psutil; psutil is the reference."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from SSLPretrainLogic import processes
from SSLPretrainLogic.processes import (
    MARK,
    Origin,
    Process,
    all_processes,
    boot_id,
    family,
    find_process,
    living,
    same_boot,
    send,
)

PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', {0!r}]).wait()"
CHILD = "import sys, time; sys.stdout.write('up'); sys.stdout.flush(); time.sleep(100)"


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own that has one child, which is up."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(CHILD)],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, MARK: "marked"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"up"
        yield process
        os.killpg(process.pid, signal.SIGKILL)


def test_start_parent_and_group_are_those_that_psutil_tells() -> None:
    found = find_process(os.getpid())
    assert found is not None
    assert found.parent == os.getppid()
    assert found.group == os.getpgrp()
    assert found.started == pytest.approx(psutil.Process().create_time(), abs=1.0)


def test_the_posix_tool_tells_the_same_as_the_kernel() -> None:
    by_tool = next(processes._from_ps("-p", str(os.getpid())))
    assert by_tool.is_same(find_process(os.getpid()))
    assert by_tool[:3] == (os.getpid(), os.getppid(), os.getpgrp())


def test_all_processes_has_those_that_psutil_sees() -> None:
    ours = all_processes()
    lasting = set(psutil.pids()) & set(ours) & set(psutil.pids())
    assert os.getpid() in lasting
    assert len(lasting) > 0.5 * len(ours)


def test_a_process_that_nobody_has_taken_note_of_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        deadline = time.monotonic() + 20
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert find_process(child.pid) is None


def test_another_process_under_the_same_number_is_another() -> None:
    now = find_process(os.getpid())
    assert now is not None
    before = now._replace(started=now.started - 10)
    assert living([now]) == [now]
    assert living([before]) == []
    # It would end the tests if it took us for the process that was meant.
    send(signal.SIGKILL, [before])


def test_a_family_is_a_process_with_its_descendants(parent: subprocess.Popen[bytes]) -> None:
    root = find_process(parent.pid)
    assert root is not None
    expected = {parent.pid, *(c.pid for c in psutil.Process(parent.pid).children(recursive=True))}
    assert len(expected) == 2
    assert family([root]).keys() == expected


def test_orphans_are_known_by_the_mark_they_inherited(parent: subprocess.Popen[bytes]) -> None:
    (child,) = psutil.Process(parent.pid).children()
    root = find_process(parent.pid)
    assert root is not None
    parent.kill()
    parent.wait()
    assert family([root]) == {}
    origin = Origin(mark="marked", group=parent.pid, since=root.started)
    assert family([root], origin=origin).keys() == {child.pid}
    assert family([root], origin=origin._replace(mark="mark", group=1)) == {}


def test_a_child_of_whoever_took_over_a_number_is_not_ours() -> None:
    root = Process(10, parent=1, group=10, started=100.0)
    other = Process(10, parent=1, group=10, started=200.0)
    mine, foreign = (
        Process(n, parent=10, group=0, started=s) for n, s in ((11, 150.0), (12, 201.0))
    )
    everyone = {p.pid: p for p in (other, mine, foreign)}
    assert processes._is_child(mine, {10: root}, everyone)
    assert not processes._is_child(foreign, {10: root}, everyone)


def test_this_boot_is_told_from_others() -> None:
    assert same_boot(boot_id())
    assert not same_boot("1")
    assert not same_boot(None)


@pytest.mark.skipif(not Path("/proc/sys/kernel/random/boot_id").exists(), reason="Linux tells it")
def test_the_kernels_name_for_this_boot_is_taken() -> None:
    assert boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
