"""Frozen features are asked while they are pretrained, and nothing else changes for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cli_runner import (
    PRETRAIN,
    Material,
    Runs,
    backend_here,
    backend_stopped,
    records,
    status,
)
from safetensors.numpy import load_file
from torch import Tensor, nn

from backend.probe import LabelledImage, ProbeSettings, effective_rank, linear_probe

STEPS = 4
TIMED = {"time_s", "volumes_per_s", "memory_mb"}


def line(material: Material, run: Path, *words: object, data: Path | None = None) -> list[object]:
    """As the run of `Runs`, with a probe after every second step (an epoch has one and a half)."""
    return [
        *(*PRETRAIN, "--data", material.unlabelled, "--cache", material.cache, "--output", run),
        *("--probe-data", data or material.labelled, "--max-steps", STEPS),
        *("--set", "probe.every_epochs=1.3", "--set", "probe.windows=2", *words),
    ]


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Path:
    run = tmp_path_factory.mktemp("probed") / "run"
    done = backend_here(*line(material, run))
    assert done.code == 0, done.err
    (first,) = (r["probe/linear"] for r in records(run) if r["step"] == 0)
    best = status(run)["best"]
    scores = [f"{best['probe/linear']:.3f} at step {best['step']}"] if best["step"] else []
    told = ", ".join([*scores, f"{first:.3f} before training"])
    told += "" if best["step"] else "; nothing is gained yet"
    file = run / "checkpoints" / "best.safetensors"
    assert f"Best:    {file} (linear probe {told})\n" in done.out
    return run


def told(run: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in record.items() if k not in TIMED} for record in records(run)]


def test_features_are_asked_at_the_start_now_and_then_and_at_the_end(probed: Path) -> None:
    asked = {r["step"]: r["probe/linear"] for r in records(probed) if "probe/linear" in r}
    assert list(asked) == [0, 2, 4]
    assert all(1 / 9 < score < 1 for score in asked.values())
    best = status(probed)["best"]
    assert best["probe/linear"] == max(asked.values()) == asked[best["step"]]
    names = json.loads((probed / "probe.json").read_text())
    assert sorted(names["learn"] + names["judge"]) == ["case_1", "case_2", "case_3"]
    page = (probed / "report.html").read_text()
    assert "Best linear probe" in page
    assert "a linear map of the frozen features" in page


def test_a_probe_changes_nothing_in_what_is_learnt(probed: Path, runs: Runs) -> None:
    without = [{k: v for k, v in r.items() if not k.startswith("probe/")} for r in told(probed)]
    assert without[0] == {"step": 0, "epoch": 0.0}
    assert without[1:] == told(runs.pretrain)
    ours, theirs = (
        load_file(r / "checkpoints/encoder.safetensors") for r in (probed, runs.pretrain)
    )
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_stopped_run_goes_on_with_its_probe_and_its_best(
    probed: Path, material: Material, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert backend_stopped(*line(material, run), run=run, step=2).code == 3
    assert records(run)[-1]["step"] < STEPS
    done = backend_here("pretrain", "--output", run, "--resume")
    assert done.code == 0, done.err
    assert told(run) == told(probed)
    assert status(run)["best"] == status(probed)["best"]
    ours, theirs = (load_file(r / "checkpoints" / "best.safetensors") for r in (run, probed))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_what_cannot_be_probed_is_refused_before_a_run_begins(
    probed: Path, material: Material, tmp_path: Path
) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone"
    alone.mkdir()
    shutil.copytree(material.labelled / "case_1", alone / "case_1")
    shutil.copy(material.labelled / "labels.json", alone)
    one = backend_here(*line(material, run, data=alone))
    assert (one.code, "and there is one" in one.told) == (2, True)
    words = [w for w in line(material, run) if w not in ("--probe-data", material.labelled)]
    nothing = backend_here(*words)
    assert (nothing.code, "--probe-data" in nothing.told) == (2, True)
    assert not run.exists()
    other = backend_here("pretrain", "--output", probed, "--resume", "--probe-data", alone)
    assert (other.code, "--probe-data" in other.told) == (2, True)


def test_cases_that_came_later_are_no_part_of_a_resumed_run(
    material: Material, tmp_path: Path
) -> None:
    run, labelled = tmp_path / "run", tmp_path / "labelled"
    shutil.copytree(material.labelled, labelled)
    assert backend_stopped(*line(material, run, data=labelled), run=run, step=1).code == 3
    shutil.copytree(labelled / "case_1", labelled / "case_0")
    done = backend_here("pretrain", "--output", run, "--resume")
    assert done.code == 2
    assert str(run / "probe.json") in done.told


class _Output(NamedTuple):
    pyramid: tuple[Tensor, ...]
    bottleneck: Tensor


class _Encoder(nn.Module):
    """Its features are the values, and noise; a part of it stays in another mode."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.drop = nn.Dropout(0.5)
        self.still = nn.Dropout(0.5).eval()

    def forward(self, volume: Tensor) -> _Output:
        both = torch.cat([volume * self.factor, volume.roll(3, dims=2)], dim=1)
        return _Output((self.still(self.drop(both)),), both)


def image(seed: int, *, values: bool) -> LabelledImage:
    """Three classes, of which `values` tell or nothing does."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 3, (8, 8, 8))
    told = target if values else rng.integers(0, 3, (8, 8, 8))
    return LabelledImage(torch.from_numpy(told.astype(np.float32)), target)


def test_a_linear_probe_tells_what_features_know_and_leaves_no_trace() -> None:
    encoder = _Encoder()
    assert encoder.training
    before = torch.get_rng_state()
    known = {
        values: linear_probe(
            encoder, [image(0, values=values)], [image(1, values=values)], ProbeSettings()
        )
        for values in (True, False)
    }
    # A line through three steps has no room for the middle one, but the ends are told.
    assert known[True] > 0.6
    assert known[False] == pytest.approx(1 / 3, abs=0.1)
    assert torch.equal(torch.get_rng_state(), before)
    assert (encoder.training, encoder.drop.training, encoder.still.training) == (True, True, False)


def test_the_rank_of_features_is_that_of_the_published_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(50, 6, generator=generator))
    assert effective_rank(directions) == pytest.approx(6)
    assert effective_rank(directions[:, :1] @ torch.ones(1, 6)) == pytest.approx(1)
    assert effective_rank(torch.ones(50, 6)) == pytest.approx(1)
    assert effective_rank(torch.zeros(50, 6)) == 1
    # Singular values 3 and 1: shares 3/4 and 1/4.
    two = directions[:, :2] * torch.tensor([3.0, 1.0])
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert effective_rank(two) == pytest.approx(expected)
