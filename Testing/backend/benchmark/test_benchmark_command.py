"""The command from a plan to tables and report: continued, shared, and the same every time."""

from __future__ import annotations

import csv
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from benchmark_plans import write_plan
from cli_runner import (
    LIMIT_S,
    Ended,
    Material,
    backend,
    backend_here,
    ended,
    started,
    status,
    wait_until,
)


def _plan(folder: Path, material: Material, **changes: Any) -> Path:
    data = {"labelled": str(material.labelled), **changes.pop("data", {})}
    # The labelled images are among those to pretrain on, the test case too: it has to be left out.
    pretrain = {"data": [str(material.unlabelled), str(material.labelled)]}
    folder.mkdir(exist_ok=True)
    return write_plan(folder, {"data": data, "pretrain": pretrain, **changes})


def _words(plan: Path, output: Path, material: Material) -> tuple[object, ...]:
    options = ("--device", "cpu", "--cache", material.cache)
    return ("benchmark", plan, "--output", output, *options)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, material: Material
) -> tuple[Path, Path, Ended]:
    """A plan, the output of its benchmark, and what it said."""
    folder = tmp_path_factory.mktemp("benchmark")
    plan, output = _plan(folder, material), folder / "out"
    return plan, output, backend_here(*_words(plan, output, material))


def test_every_arm_has_a_row_for_every_case_and_organ(finished: tuple[Path, Path, Ended]) -> None:
    _, output, done = finished
    assert done.code == 0, done.err
    rows = _rows(output / "results.csv")
    assert {row["start"] for row in rows} == {"random swin", "SMIT"}
    assert {(row["case"], row["labels"], row["seed"], row["mode"]) for row in rows} == {
        ("case_3", "1", "0", "end to end")
    }
    organs = {row["organ"] for row in rows}
    assert {"liver", "background"} <= organs
    assert len(rows) == 2 * len(organs)
    # Two arms that share nothing but the network and its budget.
    steps = {run.name: status(run)["step"] for run in (output / "runs").iterdir()}
    assert len(steps) == 2
    assert set(steps.values()) == {3}
    curves = _rows(output / "curves.csv")
    assert {(row["start"], row["step"]) for row in curves} == {("random swin", "3"), ("SMIT", "3")}


def test_the_report_says_what_was_compared_on_what_and_no_more(
    finished: tuple[Path, Path, Ended],
) -> None:
    _, output, done = finished
    page = (output / "report.html").read_text("utf-8")
    assert "A single case or seed tells of no other, so nothing can be shown." in page
    assert "images of test cases left out: 1" in page
    assert "<script" not in page
    assert "Not finished" not in page
    assert "no difference shown for SMIT" in done.out
    summary = _rows(output / "summary.csv")
    assert [row["start"] for row in summary] == ["random swin", "SMIT"]
    assert [row["shown"] for row in summary] == ["", "no"]


def test_it_goes_on_from_the_table_alone(
    finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    plan, output, _ = finished
    copy = tmp_path / "out"
    copy.mkdir()
    shutil.copy(output / "results.csv", copy / "results.csv")
    again = backend_here(*_words(plan, copy, material))
    assert again.code == 0, again.err
    # There is no run folder, and none was needed.
    assert not (copy / "runs").exists()
    assert not (copy / "pretrain").exists()
    for table in ("results.csv", "summary.csv"):
        assert (copy / table).read_bytes() == (output / table).read_bytes()


def test_a_table_of_something_else_is_refused(material: Material, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "results.csv").write_text("case,dice\na,0.5\n")
    done = backend_here(*_words(_plan(tmp_path, material), output, material))
    assert done.code == 2
    assert "results.csv, line 1: column 'start' is missing" in done.told


def test_weights_that_have_seen_a_test_case_are_refused_by_its_name(
    finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    _, output, _ = finished
    (run,) = (output / "pretrain").iterdir()
    entry = {
        **{"name": "run", "method": "smit", "preset": "tiny", "start": str(run)},
        "network": {"method": {"encoder": {"embed_dim": 4, "heads": [1, 1, 2]}}},
    }
    plan = _plan(tmp_path, material, entries=[entry], data={"test": ["case_1"]})
    done = backend_here("benchmark", plan, "--check")
    assert done.code == 2
    assert "Entry 'run'" in done.told
    assert "has pretrained on test case case_1" in done.told
    unseen = _plan(tmp_path, material, entries=[entry])
    assert backend_here("benchmark", unseen, "--check").code == 0


def test_a_check_tells_the_grid_and_what_is_missing_and_writes_nothing(
    material: Material, tmp_path: Path
) -> None:
    plan = _plan(tmp_path, material)
    checked = backend("benchmark", plan, "--check", cwd=tmp_path)
    assert checked.code == 0, checked.err
    for told in ("random swin", "from pretrain", "test case_3", "1 pretraining, 2 arms"):
        assert told in checked.out
    where = ("--set", "data.labelled=nowhere", "--set", "data.get=Ask the ward.")
    absent = backend_here("benchmark", plan, "--check", *where)
    assert absent.code == 2
    assert "nowhere does not exist. Ask the ward." in absent.told
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("at", ["pretrain", "runs"])
def test_whenever_it_is_ended_and_started_again_the_table_is_the_same(
    number: signal.Signals,
    at: str,
    finished: tuple[Path, Path, Ended],
    material: Material,
    tmp_path: Path,
) -> None:
    _, whole, _ = finished
    output = tmp_path / "out"
    words = _words(_plan(tmp_path, material), output, material)
    with started(*words) as process:
        wait_until(lambda: list(output.glob(f"{at}/*/metrics.jsonl")), process=process)
        process.send_signal(number)
        stopped = ended(process)
    assert stopped.code == (5 if number == signal.SIGTERM else -number)
    if number == signal.SIGTERM:
        assert "start the same command again to go on" in stopped.told
    assert backend_here(*words).code == 0
    for table in ("results.csv", "curves.csv", "summary.csv"):
        assert (output / table).read_bytes() == (whole / table).read_bytes()


@pytest.mark.slow
def test_two_processes_share_the_arms_and_fill_one_table(
    finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    _, whole, _ = finished
    output = tmp_path / "out"
    words = _words(_plan(tmp_path, material), output, material)
    with started(*words) as first, started(*words) as second:
        results = [ended(first), ended(second)]
    assert [done.code for done in results] == [0, 0], [done.err for done in results]
    assert (output / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    # Each run was done by one of them.
    assert len(_rows(output / "runs.csv")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_processes_that_it_has_started_end_with_it_and_the_table_is_the_same(
    number: signal.Signals,
    finished: tuple[Path, Path, Ended],
    material: Material,
    tmp_path: Path,
) -> None:
    _, whole, _ = finished
    output = tmp_path / "out"
    words = (*_words(_plan(tmp_path, material), output, material), "--processes", 2)
    with started(*words) as process:
        wait_until(lambda: list(output.glob("*/*/metrics.jsonl")), process=process)
        members = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        stopped = ended(process)
        _, alive = psutil.wait_procs(members, timeout=LIMIT_S)
    assert not alive
    assert stopped.code == {"SIGINT": 3, "SIGTERM": 5, "SIGKILL": -9}[number.name], stopped.err
    done = backend(*words)
    assert done.code == 0, done.err
    assert "2 processes" in done.err
    for table in ("results.csv", "curves.csv", "summary.csv"):
        assert (output / table).read_bytes() == (whole / table).read_bytes()


@pytest.mark.slow
def test_a_frozen_encoder_is_compared_with_a_random_frozen_one(
    material: Material, tmp_path: Path
) -> None:
    plan = _plan(tmp_path, material, labels=[], frozen_labels=[1])
    done = backend_here(*_words(plan, tmp_path / "out", material))
    assert done.code == 0, done.err
    rows = _rows(tmp_path / "out" / "results.csv")
    assert {(row["start"], row["mode"]) for row in rows} == {
        ("random swin", "frozen"),
        ("SMIT", "frozen"),
    }
    configs = [run / "config.json" for run in (tmp_path / "out" / "runs").iterdir()]
    assert all('"freeze_encoder": true' in config.read_text() for config in configs)
