"""`backend bench` as a user meets it, with the one row that takes no time."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_runner import backend, backend_here, ended, started, wait_until

from backend.bench.catalogue import ROWS, Goal
from backend.bench.run import chosen, table, told_seconds
from backend.errors import UserError

NO_GPU = "not measured: no GPU"


def test_the_list_names_every_row_with_its_goals_and_measures_nothing(tmp_path: Path) -> None:
    shown = backend("bench", "--list", python=("-X", "importtime"), cwd=tmp_path)
    assert shown.code == 0
    for row in ROWS:
        assert f" {row.name} " in shown.out
        assert row.path in shown.out
    assert ">= 1.1 or >= 1, memory <= 0.5" in shown.out
    assert " torch\n" not in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    """What is printed, what is written, and where."""
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    done = backend_here(
        "bench", "help", "geometry", "--repeats", 2, "--device", "auto", "--output", file
    )
    assert done.code == 0, done.err
    assert "Measuring" in done.err
    return done.out, json.loads(file.read_text()), file


def measured(content: dict[str, Any]) -> dict[str, Any]:
    """The row that costs least."""
    row: dict[str, Any] = next(row for row in content["rows"] if row["number"] == "14")
    return row


def test_the_file_holds_every_measurement_and_what_it_depends_on(
    figures: tuple[str, dict[str, Any], Path],
) -> None:
    _, content, _ = figures
    first = measured(content)
    assert (content["schema"], first["number"], first["device"]) == (1, "14", "cpu")
    assert len(first["ours_s"]) == len(first["peer_s"]) == 2
    assert first["ratio"] == pytest.approx(first["peer_median_s"] / first["ours_median_s"])
    assert first["met"] == (first["ratio"] >= 0.2)
    around = first["circumstances"]
    assert around.keys() >= {"machine", "cores", "threads", "load", "versions", "commit", "began"}
    assert around["versions"].keys() >= {"torch", "monai", "python", "backend"}


def test_what_cannot_be_measured_says_why(figures: tuple[str, dict[str, Any], Path]) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("everything can be measured")
    out, content, _ = figures
    numbers = [(row["number"], row.get("not_measured")) for row in content["rows"]]
    assert sorted(numbers, key=str) == [("10a", NO_GPU), ("10a", None), ("14", None)]
    assert out.count(NO_GPU) == 1
    assert "backend --help" in out
    assert "met" in out or "missed" in out


def test_a_later_run_replaces_its_rows_and_keeps_the_others(
    figures: tuple[str, dict[str, Any], Path],
) -> None:
    _, before, file = figures
    done = backend_here("bench", "14", "--repeats", 1, "--output", file, "--json")
    assert done.code == 0, done.err
    after = json.loads(file.read_text())
    assert [row["number"] for row in after["rows"]] == [r["number"] for r in before["rows"]]
    assert len(measured(after)["ours_s"]) == 1
    assert json.loads(done.out)["rows"] == [measured(after)]


def test_a_row_for_a_gpu_says_that_there_is_none() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = backend_here("bench", "tail", "--device", "cuda")
    assert done.code == 2
    assert "cuda" in done.told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("smti",), "smit"),
        (("help", "--repeats", 0), "--repeats"),
    ],
)
def test_what_cannot_be_asked_is_refused(words: tuple[object, ...], told: str) -> None:
    done = backend_here("bench", *words)
    assert done.code == 2
    assert told in done.told


def test_a_file_of_another_kind_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"mine": 1}')
    done = backend_here("bench", "help", "--output", file)
    assert done.code == 2
    assert "mine.json" in done.told
    assert file.read_text() == '{"mine": 1}'


def test_ctrl_c_ends_at_once_and_keeps_what_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    words = ("bench", "crop_plain", "help", "--repeats", 40, "--device", "cpu", "--output", file)
    with started(*words) as process:
        wait_until(file.exists, process=process)
        process.send_signal(signal.SIGINT)
        done = ended(process)
    assert done.code == 3
    assert "Stopped by the keyboard" in done.told
    assert "the same, plain cache" in done.out
    [kept] = json.loads(file.read_text())["rows"]
    assert (kept["number"], len(kept["ours_s"])) == ("9b", 40)


def test_a_number_with_parts_means_all_of_them() -> None:
    assert [row.number for row in chosen(["help", "9"])] == ["14", "9a", "9b"]
    with pytest.raises(UserError, match="no row 'nothing'"):
        chosen(["nothing"])


@pytest.mark.parametrize(
    ("measured", "met"),
    [
        ({"ratio": 1.2}, True),
        ({"ratio": 0.9, "memory": {"ratio": 0.1}}, False),
        ({"ratio": 1.0, "memory": {"ratio": 0.5}}, True),
        ({"ratio": 1.0, "memory": {"ratio": 0.6}}, False),
        ({}, False),
    ],
)
def test_a_goal_is_met_in_any_of_its_ways(measured: dict[str, Any], met: bool) -> None:
    ways = (Goal(ratio=1.1), Goal(ratio=1.0, memory_ratio=0.5))
    assert any(way.met(measured) for way in ways) is met


def test_the_table_tells_medians_spread_and_memory() -> None:
    line = {
        "number": "1",
        "path": "ours",
        "peer": "theirs",
        "device": "cpu",
        "goal": ">= 2",
        "size": "one",
        "ours_s": [1.0, 1.1],
        "peer_s": [2.0, 2.2],
        "ours_median_s": 1.05,
        "peer_median_s": 2.1,
        "ratio": 2.0,
        "memory": {"what": "counted", "ours": 10.0, "peer": 40.0, "ratio": 0.25},
        "met": True,
    }
    told = table([line])
    for cell in ("1.05 s", "2.1 s", "2.00", "10%", "0.25", "met", "one"):
        assert cell in told
    assert [told_seconds(s) for s in (2.0, 0.0034, 5e-5)] == ["2 s", "3.4 ms", "50 us"]
