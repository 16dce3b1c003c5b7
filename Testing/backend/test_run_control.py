"""Runs that are stopped, killed, resumed, fought over or fed with rubbish, as real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
from cli_runner import (
    FINETUNE,
    PRETRAIN,
    Ended,
    Material,
    Runs,
    backend,
    backend_here,
    ended,
    records,
    snapshot,
    started,
    status,
    wait_until,
)

from backend.engine.record import check_target, read_status

pytestmark = pytest.mark.early

ENDLESS = ("--max-steps", 100000)
STEPS = 10
KILLED_AFTER = 4
"""Neither a checkpoint step nor the end of an epoch."""


def line(kind: str, run: Path, material: Material) -> tuple[object, ...]:
    """The command that trains in `run`, without its length."""
    words, data = {
        "pretrain": (PRETRAIN, material.unlabelled),
        "finetune": (FINETUNE, material.labelled),
    }[kind]
    return (
        *(*words, "--data", data, "--output", run, "--cache", material.cache),
        *("--set", "train.checkpoint_every_steps=3", "--set", "validation_fraction=0")[
            : 4 if kind == "finetune" else 2
        ],
    )


def losses(run: Path) -> dict[int, dict[str, float]]:
    """All loss terms by step; each step may stand but once."""
    found = records(run)
    steps = [record["step"] for record in found]
    assert len(set(steps)) == len(steps)
    return {
        record["step"]: {k: v for k, v in record.items() if k.startswith("loss/")}
        for record in found
    }


def running(process: subprocess.Popen[str], run: Path, *, steps: int = 1) -> None:
    wait_until(lambda: len(records(run)) >= steps, process=process)


def assert_ended(run: Path, done: Ended, *, code: int, state: str) -> dict[str, Any]:
    """Exit code, status.json and report.html agree on how a run ended."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    kept = status(run)
    assert kept["state"] == state
    assert read_status(run)["state"] == state
    assert not psutil.pid_exists(kept["pid"])
    page = (run / "report.html").read_text("utf-8")
    assert state in page.lower()
    hidden = [name for name in snapshot(run) if ".part-" in name]
    assert hidden == []
    return kept


# Each change is tried on the runs of faults/test_faults.py, which are killed as well.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_killed_run_reads_as_interrupted_and_resumes_bit_for_bit(
    kind: str, tmp_path: Path, material: Material
) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    length = ("--max-steps", STEPS)
    with (
        started(*line(kind, torn, material), *length) as process,
        started(*line(kind, whole, material), *length) as other,
    ):
        running(process, torn, steps=KILLED_AFTER)
        process.kill()
        process.wait()
        assert ended(other).code == 0
    expected = losses(whole)
    assert sorted(expected) == list(range(1, STEPS + 1))
    assert len(records(torn)) < STEPS
    assert status(torn)["state"] == "running"
    assert read_status(torn)["state"] == "interrupted"
    # What a crash leaves in the middle of a line.
    with (torn / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 99, "loss/to')
    (torn / "checkpoints" / f".part-{process.pid}-0-last.pt").touch()

    resumed = backend(*line(kind, torn, material), *length, "--resume")
    kept = assert_ended(torn, resumed, code=0, state="done")
    assert (kept["step"], kept["total_steps"]) == (STEPS, STEPS)
    assert losses(torn) == expected
    log = (torn / "log.txt").read_text("utf-8")
    assert "Resumed at step" in log
    weights = "encoder" if kind == "pretrain" else "model"
    one, other = (r / "checkpoints" / f"{weights}.safetensors" for r in (whole, torn))
    assert one.read_bytes()[-1000:] == other.read_bytes()[-1000:]


SIGNALS = {
    signal.SIGTERM: (5, "interrupted"),
    signal.SIGUSR1: (5, "interrupted"),
    signal.SIGINT: (3, "cancelled"),
}


def test_a_signal_ends_a_run_after_its_step_and_it_can_be_resumed(
    tmp_path: Path, material: Material
) -> None:
    with ExitStack() as stack:
        processes = {
            number: stack.enter_context(
                started(*line("pretrain", tmp_path / number.name, material), *ENDLESS)
            )
            for number in SIGNALS
        }
        for number, process in processes.items():
            running(process, tmp_path / number.name)
            process.send_signal(number)
        outcomes = {number: ended(process) for number, process in processes.items()}
    for number, (code, state) in SIGNALS.items():
        run, done = tmp_path / number.name, outcomes[number]
        kept = assert_ended(run, done, code=code, state=state)
        assert "--resume" in done.told
        assert kept["step"] == len(records(run))
        assert kept["error"] is None
        assert (run / "checkpoints" / "last.pt").exists()
        assert (run / "checkpoints" / "encoder.safetensors").exists()
        texts = [done.out, done.err, *(p.read_text("utf-8") for p in told_in(run))]
        assert len(texts) == 6
        assert not any("PHANTOM_1" in text for text in texts), "a patient is named"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_data_is_looked_through_ends_with_one_line_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path, material: Material
) -> None:
    scans, run = tmp_path / "scans", tmp_path / "run"
    scans.mkdir()
    # So few that no worker is started, and yet more than is read before the signal comes.
    for k in range(2):
        os.link(material.unlabelled / "plain.nrrd", scans / f"{k}.nrrd")
    with started(*PRETRAIN, "--data", scans, "--output", run, *ENDLESS) as process:
        assert process.stderr is not None
        assert process.stderr.read(1)
        process.send_signal(number)
        done = ended(process)
    assert done.code == SIGNALS[number][0], done.err
    assert "Traceback" not in done.err
    assert done.told.startswith("Stopped by ")
    assert len(done.told.splitlines()) == 1
    assert not run.exists()


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_signal_before_the_first_step_leaves_a_run_that_can_be_resumed(
    kind: Literal["pretrain", "finetune"], tmp_path: Path, material: Material
) -> None:
    run = tmp_path / "run"
    with started(*line(kind, run, material), *ENDLESS) as process:
        wait_until(lambda: (run / "config.json").exists(), process=process)
        process.send_signal(signal.SIGTERM)
        done = ended(process)
    kept = assert_ended(run, done, code=5, state="interrupted")
    assert done.told == "Stopped by SIGTERM. Continue with --resume."
    assert kept["step"] == 0
    assert records(run) == []
    assert not list((run / "checkpoints").iterdir())
    check_target(run, kind=kind, resume=True)


def told_in(run: Path) -> list[Path]:
    """What a run writes for people and for the GUI to read."""
    return [run / name for name in ("status.json", "log.txt", "report.html", "config.json")]


def works(process: psutil.Process) -> bool:
    """Whether a process still does anything; where nobody takes note of the dead, they linger."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_running_run_is_protected_and_stops_on_request(
    tmp_path: Path, material: Material
) -> None:
    run = tmp_path / "run"
    words = line("pretrain", run, material)
    with started(*words, *ENDLESS) as process:
        running(process, run)
        for intruder in (
            (*words, *ENDLESS),
            (*words, *ENDLESS, "--resume"),
            (*line("finetune", run, material), "--max-steps", 1),
        ):
            refused = backend(*intruder)
            assert refused.code == 2
            assert str(run) in refused.told
            assert "stop --run" in refused.told
        assert read_status(run)["state"] == "running"
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
        stop = backend("stop", "--run", run)
        done = ended(process)
    assert stop.code == 0, stop.err
    assert "cancelled" in stop.out
    assert_ended(run, done, code=3, state="cancelled")
    assert done.told.count("Stopped on request") == 1
    assert not (run / "stop").exists()
    assert not any(map(works, family))
    again = backend("stop", "--run", run)
    assert again.code == 0
    assert "not running: cancelled" in again.out


def test_an_existing_run_is_continued_only_as_it_was_started(
    tmp_path: Path, material: Material, runs: Runs
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs.pretrain, run)
    words = (*PRETRAIN, "--data", material.unlabelled, "--output", run, "--cache", material.cache)
    length = ("--max-steps", 4)
    before = snapshot(run)
    again = backend_here(*words, *length)
    assert again.code == 2
    assert "--resume" in again.told
    shorter = ("pretrain", "--output", run, "--resume")
    for setting, told in (
        (("--set", "train.learning_rate=0.5"), "train.learning_rate"),
        (("--max-steps", 8), "train.max_steps=4"),
        (("--preset", "paper"), 'preset="tiny"'),
        (("--data", material.labelled), f"--data {material.unlabelled}"),
    ):
        other = backend_here(*shorter, *setting)
        assert other.code == 2, other.err
        assert told in other.told
        assert "Resume without" in other.told
    assert snapshot(run) == before
    # Settings that are not named stay as they were, and a finished run is not trained any longer.
    for same in ((*shorter, "--method", "smit"), (*words, *length, "--resume")):
        done = backend_here(*same)
        assert done.code == 0, done.err
        assert [record["step"] for record in records(run)] == [1, 2, 3, 4]
    other_kind = backend_here("finetune", "--output", run, "--resume")
    assert other_kind.code == 2
    assert "pretrain" in other_kind.told


def test_a_scan_that_has_vanished_is_named(tmp_path: Path, material: Material) -> None:
    scans = tmp_path / "scans"
    shutil.copytree(material.unlabelled, scans)
    index, run = tmp_path / "index.csv", tmp_path / "run"
    assert backend_here("scan", scans, "--output", index).code == 0
    (scans / "plain.nrrd").unlink()
    done = backend_here(
        *(*PRETRAIN, "--data", index, "--output", run, "--cache", tmp_path / "cache"),
        *("--max-steps", 1),
    )
    assert done.code == 2
    assert str(scans / "plain.nrrd") in done.told
    assert "scan again" in done.told
    assert not run.exists()
    assert not (tmp_path / "cache").exists()


def test_a_cached_scan_that_is_damaged_under_way_is_named_and_mended_by_resuming(
    tmp_path: Path, material: Material
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    words = (
        *(*PRETRAIN, "--data", material.unlabelled, "--output", run, "--cache", cache),
        *("--set", "train.checkpoint_every_steps=1"),
    )
    with started(*words, *ENDLESS) as process:
        running(process, run)
        arrays = sorted(cache.glob("*/*.b2nd"))
        assert len(arrays) == 3
        for array in arrays:
            spoilt = array.with_suffix(".spoilt")
            spoilt.write_bytes(bytes(array.stat().st_size))
            spoilt.replace(array)
        done = ended(process)
    kept = assert_ended(run, done, code=2, state="failed")
    assert any(str(array) in done.told for array in arrays)
    assert "--resume" in done.told
    assert str(cache) in kept["error"]["message"]
    step = records(run)[-1]["step"]
    with started(*words, *ENDLESS, "--resume") as process:
        wait_until(lambda: len(records(run)) > step + 1, process=process)
        process.send_signal(signal.SIGTERM)
        assert_ended(run, ended(process), code=5, state="interrupted")
    assert all(array.read_bytes().strip(b"\0") for array in arrays)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, material: Material
) -> None:
    run = tmp_path / "run"
    done = backend(
        *(*line("pretrain", run, material), "--max-steps", 40),
        *("--set", "train.optimizer=sgd", "--set", "train.learning_rate=100"),
        *("--set", "train.clip_norm=null", "--set", "train.warmup_epochs=0"),
        *("--set", "train.checkpoint_every_steps=1"),
    )
    kept = assert_ended(run, done, code=1, state="failed")
    error = kept["error"]
    assert error.keys() == {"type", "message", "hint"}
    assert error["type"] == "TrainingError"
    assert "not finite" in error["message"]
    assert error["message"].startswith(("loss/", "monitor/", "gradient_norm"))
    assert "train.learning_rate" in error["hint"]
    assert error["message"] in done.told
    assert len(done.told.splitlines()) <= 2
    for name in ("last.pt", "encoder.safetensors"):
        assert (run / "checkpoints" / name).stat().st_size > 0
    finite = [record["loss/total"] for record in records(run)]
    assert finite
    assert None not in finite
