"""Every start of a plan once with a few steps, and what all of it would take."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from benchmark_plans import write_plan
from cli_runner import Material, backend_here

from backend.benchmark.rehearsal import pace_of


def _records(*, first: float, step: float, validation: float, last: float) -> list[dict[str, Any]]:
    """Of ten steps, every other with a point of the curve."""
    validated = [number % 2 == 1 for number in range(10)]
    takes = [step + validation * v for v in validated]
    takes[0] += first
    takes[-1] += last
    return [
        {"time_s": time, **({"val/dice_mean": 0.5} if v else {})}
        for time, v in zip(itertools.accumulate(takes), validated, strict=True)
    ]


@pytest.mark.parametrize("validation", [0.0, 3.0])
def test_start_end_and_points_of_the_curve_are_told_from_steps(validation: float) -> None:
    records = _records(first=7, step=0.5, validation=validation, last=2)
    pace = pace_of(records, seconds=records[-1]["time_s"] + 10)
    assert pace.step_s == pytest.approx(0.5)
    assert pace.validation_s == pytest.approx(validation)
    assert pace.rest_s == pytest.approx(7 + 2 + 10)
    assert pace.seconds(300) == pytest.approx(19 + 150 + 5 * validation)


def test_a_rehearsal_meets_every_start_and_tells_what_all_would_take(
    material: Material, tmp_path: Path
) -> None:
    changes = {
        "data": {"labelled": str(material.labelled)},
        "pretrain": {"data": [str(material.unlabelled)], "steps": 1000},
        "finetune": {"steps": 2000},
        "frozen_labels": [1],
        "seeds": [4, 5, 6],
    }
    plan, output = write_plan(tmp_path, changes), tmp_path / "out"
    words = ("benchmark", plan, "--output", output, "--rehearse", "--device", "cpu")
    done = backend_here(*words, "--cache", material.cache)
    assert done.code == 0, done.err
    assert [path.name for path in output.iterdir()] == ["rehearsal"]
    assert "Verdict" not in done.out
    for start in ("random swin  a fine-tuning", "SMIT         a fine-tuning (frozen)"):
        assert start in done.out
    assert "1 pretraining" in done.out
    assert "12 fine-tunings" in done.out
    assert "\nAbout " in done.out
    # A fine-tuning of 2000 steps takes longer than one of ten, and is not told as one of those.
    (run,) = (output / "rehearsal" / "runs").glob("smit_1_seed4_[!f]*")
    ten = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    assert ten["step"] == 10
    assert re.search(r"SMIT +a fine-tuning \d+ (min|h)", done.out), done.out


@pytest.mark.parametrize("options", [("--check",), ("--publish", "shown")])
def test_what_a_rehearsal_does_not_go_with_is_refused(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    words = ("benchmark", write_plan(tmp_path), "--output", tmp_path / "out", "--rehearse")
    refused = backend_here(*words, *options)
    assert refused.code == 2
    assert options[0] in refused.told
    assert not (tmp_path / "out").exists()
