"""The division of the head-and-neck scans is what its script makes; test cases are kept apart."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from cli_runner import REPOSITORY

SCRIPT = REPOSITORY / "Testing" / "benchmarks" / "hn_split.py"
KEPT = SCRIPT.with_suffix(".json")


def test_the_division_follows_from_the_names_of_the_cases() -> None:
    kept = json.loads(KEPT.read_text("utf-8"))
    names = [*kept["train"], *kept["test"]]
    made = runpy.run_path(str(SCRIPT))["divided"](sorted(names))
    assert made == {key: kept[key] for key in made}
    assert (len(kept["train"]), len(kept["test"]), len(set(names))) == (15, 8, 23)


def test_a_label_set_is_part_of_every_larger_one_and_no_case_of_it_tests() -> None:
    kept = json.loads(KEPT.read_text("utf-8"))
    for sets in kept["label_sets"].values():
        assert [len(chosen) for chosen in sets] == [1, 3, 5, 10, 15]
        for smaller, larger in pairwise(sets):
            assert set(smaller) < set(larger) <= set(kept["train"])
    firsts = {sets[0][0] for sets in kept["label_sets"].values()}
    assert len(firsts) > 1


@pytest.mark.slow
def test_the_script_makes_it_again_from_the_scans(tmp_path: Path) -> None:
    data = os.environ.get("SSL_TEST_DATA")
    if data is None:
        pytest.skip("name the folder of the scans with SSL_TEST_DATA")
    made = tmp_path / "made.json"
    subprocess.run([sys.executable, str(SCRIPT), data, str(made)], check=True)
    assert made.read_bytes() == KEPT.read_bytes()
