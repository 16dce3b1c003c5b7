"""The three papers' presets at full size: a real step on a real scan, beside what is predicted.

Run with `pytest -m slow Testing/backend/test_full_size.py` on a machine that does nothing else;
`SSL_TEST_DATA` names the folder with `open/`. Figures go to Testing/benchmarks/full_size.json.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from cli_runner import REPOSITORY, backend, note_figures, records, started

from backend.bench.run import circumstances

pytestmark = pytest.mark.slow

FIGURES = REPOSITORY / "Testing" / "benchmarks" / "full_size.json"
STEPS = 5
LIMIT_S = 1800
TOLERANCE = 0.25
ONE = ("--set", "train.batch_size=1", "--set", "train.accumulate=1")


@pytest.fixture(scope="module")
def scans() -> Path:
    folder = Path(os.environ.get("SSL_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "hn_pool").is_dir():
        pytest.skip(f"no scans in {folder}: name their folder with SSL_TEST_DATA")
    return folder / "hn_pool"


def peak_mb(pid: int) -> float:
    """The most that a process ever held; 0 once it is gone."""
    try:
        told = Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", told)
    return int(found[1]) / 1024 if found else 0.0


@pytest.mark.parametrize(
    "preset",
    ["smit/released", "smit/paper", "glmae/vit_t", "glmae/vit_b", "pgl/paper", "pgl/iso"],
)
def test_a_step_costs_what_is_predicted(preset: str, scans: Path, tmp_path: Path) -> None:
    method, _, name = preset.partition("/")
    which = ("--method", method, "--preset", name, *ONE)
    run = tmp_path / "run"
    several = {"OMP_NUM_THREADS": str(os.cpu_count())}
    peak = 0.0
    with started(
        *("pretrain", "--data", scans / "pt_101", scans / "pt_105", "--output", run, *which),
        *("--cache", tmp_path / "cache", "--max-steps", STEPS, "--set", "data.held_out=0"),
        *("--set", "train.preview_every_steps=1000", "--device", "cpu"),
        env=several,
    ) as process:
        while process.poll() is None:
            peak = max(peak, peak_mb(process.pid))
            time.sleep(0.1)
    assert process.returncode == 0
    told = backend("describe", *which, "--json", env=several, limit_s=LIMIT_S)
    cost = json.loads(told.out)["cost"]
    times = [0.0, *(record["time_s"] for record in records(run))]
    steps = [after - before for before, after in itertools.pairwise(times)]
    seconds = statistics.median(steps[2:])
    figures: dict[str, Any] = {
        "seconds_per_step": {"measured": round(seconds, 2), "told": cost["seconds_per_step_here"]},
        "memory_mb": {"measured": round(peak), "told": cost["memory_mib_fp32"]},
    }
    note_figures(FIGURES, preset, {**figures, **circumstances()})
    for what, pair in figures.items():
        assert abs(pair["told"] / pair["measured"] - 1) <= TOLERANCE, (what, pair)
