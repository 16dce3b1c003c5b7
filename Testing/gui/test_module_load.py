"""Slicer starts as fast with the module as without: nothing heavy is read before it is opened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GUI = Path(__file__).resolve().parent
ROOT = GUI.parents[1]
SCRIPT = GUI.parent / "benchmarks" / "module_load.py"
BENCHMARK = SCRIPT.with_suffix(".json")
SLICERS = {"slicer", "qt", "ctk", "vtk", "SampleData", "qSlicerSegmentationsEditorEffectsPythonQt"}
OURS = {"SSLSegmentation", "SSLSegmentationLib", "SSLPretrainLogic", "SegmentEditorEffects"}
WITH_NUMPY = {f"SSLPretrainLogic.scene.{n}" for n in ("grids", "volumes", "segments", "results")}
LIMIT_MS = 50


@pytest.fixture(scope="module")
def told() -> Any:
    """What loading the module in a fresh host imports, and how long it takes."""
    pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
    pytest.importorskip("slicer_core", exc_type=ImportError)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--once"],
        env={**os.environ, "PYTHONPATH": str(GUI), "QT_QPA_PLATFORM": "offscreen"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_loading_it_works_and_is_measured_after_the_host_has_begun(told: Any) -> None:
    assert told["faults"] == []
    assert {"SSLSegmentation", "SSLSegmentationLib.startup"} <= set(told["added"])


def test_our_files_import_nothing_but_pythons_own_slicers_and_ours(told: Any) -> None:
    """Also not what the host had loaded before, as numpy."""
    tops = {name.partition(".")[0] for name in told["asked"]}
    assert tops - set(sys.stdlib_module_names) - SLICERS - OURS == set()


def test_loading_it_brings_no_module_of_others_with_it(told: Any) -> None:
    tops = {name.partition(".")[0].removeprefix("_") for name in told["added"]}
    plain = {name.removeprefix("_") for name in sys.stdlib_module_names}
    foreign = tops - plain - SLICERS - OURS
    assert {name for name in foreign if not name.startswith("SSLSegmentation")} == set()
    assert WITH_NUMPY.isdisjoint(told["added"]), "these are for panels that are used"


def test_loading_it_stays_below_its_budget(told: Any) -> None:
    """In time of the processor, which other programs that run meanwhile do not change."""
    assert told["cpu_ms"] < LIMIT_MS, f"{told['cpu_ms']} ms; it added {told['added']}"


def test_the_committed_benchmark_is_below_the_budget_too() -> None:
    found = json.loads(BENCHMARK.read_text("utf-8"))
    assert found["wall_ms"]["median"] < found["budget_ms"] == LIMIT_MS
