"""What is read of the probes of a run, and which encoder did best in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backend.engine.record import RunFolder
from SSLPretrainLogic.probes import BEST, PROBE, best_encoder, course
from SSLPretrainLogic.run_folder import read_status


def test_of_equally_good_probes_the_later_is_the_best_as_its_encoder_is_kept() -> None:
    found = course([0, 10, 20, 30], [0.3, 0.5, 0.5, 0.4])
    assert found is not None
    assert (found.best_step, found.best_score, found.since) == (20, 0.5, 1)
    assert (found.step, found.score, found.only) == (30, 0.4, False)


def test_without_a_probe_there_is_no_course_and_the_first_has_nothing_to_compare_with() -> None:
    assert course([], []) is None
    first = course([0], [0.3])
    assert first is not None
    assert (first.best_step, first.since, first.only) == (0, 0, True)


def ended(folder: Path, *, kept: bool = True, **status: Any) -> Path:
    """A pretraining of 40 steps that is over."""
    with RunFolder(folder, kind="pretrain", argv=["backend"], resume=False) as run:
        run.update(**{"state": "done", "step": 40, "total_steps": 40, **status})
    if kept:
        (folder / BEST).touch()
    return folder


def test_the_best_encoder_is_told_with_its_step_and_whether_it_is_the_last(tmp_path: Path) -> None:
    best = {"step": 30, PROBE: 0.5}
    run = ended(tmp_path / "run", best=best)
    found = best_encoder(read_status(run))
    assert found is not None
    assert (found.path, found.step, found.score, found.is_last) == (run / BEST, 30, 0.5, False)
    whole = best_encoder(read_status(ended(tmp_path / "whole", best={**best, "step": 40})))
    assert whole is not None
    assert whole.is_last
    stopped = ended(tmp_path / "stopped", best={**best, "step": 40}, state="cancelled")
    early = best_encoder(read_status(stopped))
    assert early is not None
    assert not early.is_last


@pytest.mark.parametrize(
    "best", [None, {"step": 30, "val/dice_mean": 0.5}, {"step": "30", PROBE: 0.5}]
)
def test_a_run_without_a_probe_has_no_best_encoder(tmp_path: Path, best: Any) -> None:
    assert best_encoder(read_status(ended(tmp_path / "run", best=best))) is None


def test_best_weights_that_were_deleted_are_not_offered(tmp_path: Path) -> None:
    run = ended(tmp_path / "run", kept=False, best={"step": 30, PROBE: 0.5})
    assert json.loads((run / "status.json").read_text("utf-8"))["best"]["step"] == 30
    assert best_encoder(read_status(run)) is None
