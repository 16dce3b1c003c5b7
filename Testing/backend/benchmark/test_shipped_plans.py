"""The plans that ship: each is understood, meets on equal terms and says whose division it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runner import backend_here

from backend.benchmark.grid import starts
from backend.benchmark.plan import read_plan

PLANS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.yaml"))


@pytest.mark.parametrize("plan", PLANS, ids=lambda path: path.stem)
def test_a_plan_that_ships_is_resolved_and_tells_how_to_get_its_data(plan: Path) -> None:
    read = read_plan(plan)
    compared = [entry.name for entry in read.entries if entry.start != "random"]
    assert len(starts(read)) > len(compared)
    assert read.data.split_source
    checked = backend_here("benchmark", plan, "--check")
    if read.data.phantoms is None:
        assert checked.code == 2
        assert "does not exist" in checked.told
        assert read.data.get.strip() in checked.told
    else:
        assert checked.code == 0, checked.err
    assert all(name in checked.out for name in compared)
