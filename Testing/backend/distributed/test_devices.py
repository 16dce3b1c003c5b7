"""`--devices 2` through the command line: real processes, stopped, killed, resumed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest
import SimpleITK
from cli_runner import (
    FINETUNE,
    LIMIT_S,
    PRETRAIN,
    REPOSITORY,
    Ended,
    Material,
    backend,
    backend_here,
    ended,
    environment,
    records,
    started,
    status,
    wait_until,
)

from backend.engine.record import read_status

TWO = ("--devices", 2)
ENDLESS = ("--max-steps", 100000)


def line(run: Path, material: Material) -> tuple[object, ...]:
    return (
        *(*PRETRAIN, "--data", material.unlabelled, "--output", run, "--cache", material.cache),
        *("--set", "train.checkpoint_every_steps=3"),
    )


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The launcher and the processes that train, in the order of their rank."""
    parent = psutil.Process(process.pid)
    return [parent, *sorted(parent.children(), key=lambda child: int(child.environ()["RANK"]))]


def gone(processes: list[psutil.Process]) -> bool:
    return not any(
        p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes if _there(p)
    )


def _there(process: psutil.Process) -> bool:
    try:
        process.status()
    except psutil.NoSuchProcess:
        return False
    return True


def disturbed(
    run: Path, material: Material, disturb: Callable[[list[psutil.Process]], None]
) -> tuple[Ended, list[psutil.Process]]:
    """A run of two processes that something happens to after its fourth step."""
    with started(*line(run, material), *ENDLESS, *TWO) as process:
        wait_until(lambda: len(records(run)) >= 4, process=process)
        members = family(process)
        assert len(members) == 3
        disturb(members)
        done = ended(process)
    deadline = time.monotonic() + LIMIT_S
    while not gone(members):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.05)
    return done, members


def _kill(number: int) -> Callable[[list[psutil.Process]], None]:
    return lambda members: members[number].kill()


def _signal(number: int) -> Callable[[list[psutil.Process]], None]:
    return lambda members: members[0].send_signal(number)


LAUNCHER, LEADER, FOLLOWER = range(3)
FAULTS: Mapping[str, tuple[Callable[[list[psutil.Process]], None], int, str, str]] = {
    "follower killed": (_kill(FOLLOWER), 1, "failed", "has ended without a word"),
    "leader killed": (_kill(LEADER), 1, "interrupted", "was ended by SIGKILL"),
    "launcher killed": (_kill(LAUNCHER), -signal.SIGKILL, "interrupted", ""),
    "SIGTERM": (_signal(signal.SIGTERM), 5, "interrupted", "SIGTERM"),
    "SIGUSR1": (_signal(signal.SIGUSR1), 5, "interrupted", "SIGUSR1"),
    "SIGINT": (_signal(signal.SIGINT), 3, "cancelled", "by the keyboard"),
}
IN_EVERY_RUN = ("follower killed",)


@pytest.mark.parametrize(
    "fault",
    [
        fault if fault in IN_EVERY_RUN else pytest.param(fault, marks=pytest.mark.slow)
        for fault in FAULTS
    ],
)
def test_whatever_ends_two_processes_leaves_none_and_a_run_that_can_be_resumed(
    fault: str, tmp_path: Path, material: Material
) -> None:
    disturb, code, state, words = FAULTS[fault]
    run = tmp_path / "run"
    done, _ = disturbed(run, material, disturb)
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    # Nor what the launcher's library says of it at length.
    assert "elastic" not in done.err
    assert words in done.err
    assert read_status(run)["state"] == state
    assert whole_steps(run)
    # Who is killed leaves a file that was being written, under a name that says so.
    assert "killed" in fault or not list(run.rglob(".part-*"))

    before = len(records(run))
    with started(*line(run, material), *ENDLESS, "--resume") as process:
        wait_until(lambda: len(records(run)) > before, process=process)
        (run / "stop").touch()
        assert ended(process).code == 3
    assert whole_steps(run)
    assert not list(run.rglob(".part-*"))


def whole_steps(run: Path) -> bool:
    """Every step is recorded once."""
    steps = [record["step"] for record in records(run)]
    return steps == list(range(1, len(steps) + 1))


LENGTH = 24
SHORT = ("--max-steps", LENGTH)


def losses(run: Path) -> list[float]:
    return [record["loss/total"] for record in records(run) if record["step"]]


def test_a_run_of_two_processes_that_was_stopped_goes_on_in_one(
    tmp_path: Path, material: Material
) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone"
    # The leader alone asks the features; the other waits for it.
    probe = ("--probe-data", material.labelled, "--set", "probe.windows=1")
    with started(*line(run, material), *SHORT, *TWO, *probe) as process:
        wait_until(lambda: len(records(run)) >= 5, process=process)
        (run / "stop").touch()
        assert ended(process).code == 3
    steps = records(run)[-1]["step"]
    assert status(run)["state"] == "cancelled"
    assert status(run)["step"] == steps < LENGTH
    assert backend_here(*line(run, material), *SHORT, "--resume").code == 0
    assert backend_here(*line(alone, material), *SHORT).code == 0
    start, *made = records(run)
    assert start["probe/linear"] > 0
    assert [record["step"] for record in made] == list(range(1, LENGTH + 1))
    assert [r["step"] for r in made if "probe/linear" in r] == [10, 20, LENGTH]
    # Rounding alone: what is read, cut, hidden and dropped follows from seed, epoch and scan.
    assert losses(run)[:steps] == pytest.approx(losses(alone)[:steps], rel=1e-3)
    assert losses(run)[-1] == pytest.approx(losses(alone)[-1], rel=0.05)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--devices", 0), "at least one is needed"),
        (("--devices", 3), "train.batch_size 2 cannot be divided among 3 processes"),
        (("--devices", 2, "--device", "cuda:1"), "is one device"),
        (("--devices", 2, "--device", "cuda"), "sees 0 CUDA GPUs"),
    ],
)
def test_numbers_of_processes_that_cannot_be_are_refused_before_anything_begins(
    words: tuple[object, ...], told: str, tmp_path: Path, material: Material
) -> None:
    run = tmp_path / "run"
    refused = backend_here(*line(run, material), *SHORT, *words)
    assert refused.code == 2
    assert told in refused.told
    assert not run.exists()


@pytest.mark.slow
def test_four_processes_cross_validate_as_one_does(tmp_path: Path, material: Material) -> None:
    words = (
        *(*FINETUNE, "--data", material.labelled, "--cache", material.cache, "--init", "none"),
        *("--method", "smit", "--folds", 3, "--max-steps", 6, "--set", "train.batch_size=4"),
    )
    four, one = tmp_path / "four", tmp_path / "one"
    assert backend(*words, "--output", one).code == 0
    done = backend(*words, "--output", four, "--devices", 4)
    assert done.code == 0, done.err
    for fold in ("fold_1", "fold_2", "fold_3"):
        assert losses(four / fold) == pytest.approx(losses(one / fold), rel=1e-3)
        assert status(four / fold)["state"] == "done"


@pytest.mark.slow
def test_an_error_of_a_process_that_does_not_lead_is_told_by_the_one_that_does(
    tmp_path: Path, material: Material
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    words = (*line(run, material), *SHORT, "--cache", cache)
    first = backend(*line(tmp_path / "first", material), "--cache", cache, "--max-steps", 1)
    assert first.code == 0, first.err
    with started(*words, *TWO) as process:
        wait_until(lambda: len(records(run)) >= 2, process=process)
        # Every scan is read again in every epoch, by one process or the other.
        for file in cache.rglob("*.b2nd"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        done = ended(process)
    assert done.code == 2, done.err
    assert "damaged" in done.err
    assert status(run)["state"] == "failed"


@pytest.mark.slow
def test_two_launchers_meet_as_on_two_machines(tmp_path: Path, material: Material) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone"
    words = [str(word) for word in (*line(run, material), "--max-steps", 6)]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torchrun = (
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--local-addr=localhost"),
        *("--max-restarts=0", "-m", "backend", *words),
    )
    env = {**environment(), "GLOO_SOCKET_IFNAME": "lo"}
    nodes = [subprocess.Popen(torchrun, cwd=REPOSITORY, env=env) for _ in range(2)]
    assert [node.wait(timeout=LIMIT_S) for node in nodes] == [0, 0]
    assert backend(*line(alone, material), "--max-steps", 6).code == 0
    assert losses(run) == pytest.approx(losses(alone), rel=1e-3)


@pytest.mark.slow
def test_an_elastic_launcher_goes_on_after_a_process_was_killed(
    tmp_path: Path, material: Material
) -> None:
    run = tmp_path / "run"
    words = [str(word) for word in (*line(run, material), *SHORT)]
    torchrun = (
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("--local-addr=localhost", "--max-restarts=2", "-m", "backend", *words),
    )
    env = {**environment(), "GLOO_SOCKET_IFNAME": "lo"}
    with subprocess.Popen(torchrun, cwd=REPOSITORY, env=env) as launcher:
        wait_until(lambda: len(records(run)) >= 4, process=launcher)
        family(launcher)[FOLLOWER].kill()
        assert launcher.wait(timeout=LIMIT_S) == 0
    assert status(run)["state"] == "done"
    assert [record["step"] for record in records(run)] == list(range(1, LENGTH + 1))


@pytest.mark.slow
def test_the_scans_of_a_folder_are_divided_among_processes(
    tmp_path: Path, material: Material
) -> None:
    model, cases = tmp_path / "model", tmp_path / "scans"
    made = backend(
        *(*FINETUNE, "--data", material.labelled, "--cache", material.cache, "--init", "none"),
        *("--method", "smit", "--max-steps", 1, "--output", model),
    )
    assert made.code == 0, made.err
    shutil.copytree(material.nnunet / "imagesTr", cases)
    (cases / "case_4_0000.nii.gz").write_bytes(b"no scan")
    words = ("segment", "--model", model, "--input", cases, "--device", "cpu", "--output")
    one, two = tmp_path / "one", tmp_path / "two"
    assert backend(*words, one).code == 0
    divided = backend(*words, two, *TWO)
    assert divided.code == 0, divided.err
    assert {f.name for f in one.iterdir()} == {f.name for f in two.iterdir()}
    for file in one.glob("*.nii.gz"):
        maps = (SimpleITK.ReadImage(folder / file.name) for folder in (one, two))
        assert np.array_equal(*map(SimpleITK.GetArrayFromImage, maps))
    assert (one / "volumes.csv").read_text() == (two / "volumes.csv").read_text()
    assert "Kept, already there (3 of 3)" in backend(*words, two, *TWO).out


@pytest.mark.slow
def test_tasks_of_srun_find_each_other_without_a_launcher(
    tmp_path: Path, material: Material
) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone"
    words = (sys.executable, "-m", "backend", *map(str, line(run, material)), "--max-steps", "6")
    # What `scontrol show hostnames` prints on a cluster.
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\necho localhost\necho elsewhere\n")
    scontrol.chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    known = {
        **environment(PATH=f"{scontrol.parent}:{os.environ['PATH']}"),
        **{"GLOO_SOCKET_IFNAME": "lo", "MASTER_PORT": port},
        **{"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost,elsewhere"},
    }
    tasks = [
        subprocess.Popen(
            words, cwd=REPOSITORY, env={**known, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)}
        )
        for n in range(2)
    ]
    assert [task.wait(timeout=LIMIT_S) for task in tasks] == [0, 0]
    assert backend(*line(alone, material), "--max-steps", 6).code == 0
    assert losses(run) == pytest.approx(losses(alone), rel=1e-3)
