"""Pretraining on phantoms leaves features that know more of unseen ones than random features do.

A linear probe (backend/probe.py) on frozen features: solved on voxels of four phantoms, judged on
four others, none of them pretrained on. CI trains SMIT for a moment, and asks for what must hold
every time: it ends, nothing collapses, the features changed; so do the long proofs of GL-MAE and
PGL. Whether they got better is asked over three seeds, of every method, by
`pytest -m slow Testing/backend/test_learned_something.py`, which writes
Testing/benchmarks/probe.json.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from cli_runner import REPOSITORY, backend, records, status
from torch import nn

from backend.config import PRESETS, PretrainConfig, load_config
from backend.data.phantom import make_phantom
from backend.data.phantom.cohort import write_image
from backend.data.preprocess import preprocess_pair
from backend.geometry import Volume
from backend.inference.predictor import intensity_tensor
from backend.methods import build_method
from backend.models.encoder import build_encoder
from backend.preparation import recipe_of
from backend.probe import NOT_ASKED, LabelledImage, ProbeSettings, linear_probe
from backend.provenance import preprocessing
from backend.settings.common import triple
from backend.weights import load_into, load_weights

pytestmark = pytest.mark.early

SIZE, SPACING_MM = (48, 72, 72), (5.0, 5.0, 5.0)
PRETRAINED_ON = range(100, 112)
SOLVED_ON = range(200, 204)
JUDGED_ON = range(204, 208)
SEEDS = (0, 1, 2)
LARGEST_WINDOW = 48
WINDOWS = 12
"""Read from each phantom."""
MUST_BEAT_RANDOM = ("smit", "glmae", "pgl", "mae3d")
RESULTS = REPOSITORY / "Testing" / "benchmarks" / "probe.json"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe_cohort")
    for seed in PRETRAINED_ON:
        scan, _ = phantom(seed)
        write_image(folder / "scans" / f"phantom_{seed}.nii.gz", scan)
    return folder


def tiny(method: str) -> PretrainConfig:
    return load_config(PretrainConfig, method=method, preset="tiny")


@cache
def phantom(seed: int) -> tuple[Volume, Volume]:
    return make_phantom(seed, size=SIZE, spacing_mm=SPACING_MM)


def labelled(config: PretrainConfig, seeds: Sequence[int]) -> list[LabelledImage]:
    """Windows of phantoms as the encoder sees them, at random places; their middles are asked for.

    Every phantom shows the same part of the body, so in a whole one, and to a lesser degree
    anywhere in a window, the place of a voxel tells its organ. A transformer is told places, and
    with random weights would need to know nothing else: asked anywhere in windows its features
    scored .69, where those of its patches alone, without places, scored .30.
    """
    windows = []
    for seed in seeds:
        image, label = preprocess_pair(*phantom(seed), recipe_of(config.preprocess))
        seen = intensity_tensor(image.voxels, preprocessing(config.preprocess)).image[0]
        target = np.asarray(label.voxels).astype(np.int16)
        # CPC-3D's view is a grid of patches, larger than a phantom; no encoder sees it whole.
        size = tuple(min(n, LARGEST_WINDOW) for n in triple(config.views.main.size))
        middle = tuple(slice(s // 3, s - s // 3) for s in size)
        rng = np.random.default_rng(seed)
        for _ in range(WINDOWS):
            starts = [
                int(rng.integers(0, n - s + 1)) for n, s in zip(seen.shape, size, strict=True)
            ]
            cut = tuple(slice(a, a + s) for a, s in zip(starts, size, strict=True))
            asked = np.full(size, NOT_ASKED, np.int16)
            asked[middle] = target[cut][middle]
            windows.append(LabelledImage(seen[cut], asked))
    return windows


def accuracies(encoder: nn.Module, config: PretrainConfig, seed: int) -> dict[str, float]:
    learn, judge = labelled(config, SOLVED_ON), labelled(config, JUDGED_ON)
    return {
        name: linear_probe(
            encoder, learn, judge, ProbeSettings(deepest=deepest, voxels=60, seed=seed)
        )
        for name, deepest in (("all_maps", False), ("deepest_map", True))
    }


def random_encoder(config: PretrainConfig, seed: int) -> nn.Module:
    """What a run of this seed begins with."""
    torch.manual_seed(seed)
    return build_method(config.method, epochs=config.train.epochs).encoder


def pretrained(
    method: str, cohort: Path, *, seed: int, options: tuple[object, ...] = ()
) -> tuple[Path, nn.Module]:
    """A run as the preset says, but for the options."""
    run = cohort / "runs" / f"{method}_{seed}"
    ended = backend(
        *("pretrain", "--method", method, "--preset", "tiny", "--data", cohort / "scans"),
        *("--output", run, "--cache", cohort / "cache", "--device", "cpu"),
        *options,
        *("--set", f"train.seed={seed}", "--set", "train.preview_every_steps=1000000"),
        limit_s=3600,
    )
    assert ended.code == 0, ended.err
    tensors, header = load_weights(run / "checkpoints" / "encoder.safetensors")
    encoder = build_encoder(header.architecture["encoder"])
    load_into(encoder, tensors, minimum_share=1.0, what=method)
    return run, encoder


def assert_healthy(run: Path) -> None:
    told = status(run)
    assert told["state"] == "done"
    assert told.get("warning") is None


@pytest.mark.parametrize(
    ("method", "falls", "options"),
    [
        # With smaller views than the preset's: every change waits for it.
        ("smit", "mip", ("--set", "views.region=40", "--set", "views.main.size=32")),
        # A minute of two cores together, which every change would wait for.
        pytest.param("glmae", "reconstruction_main", (), marks=pytest.mark.slow),
        pytest.param("pgl", "total", (), marks=pytest.mark.slow),
    ],
)
def test_a_short_pretraining_ends_healthy_with_other_features(
    method: str, falls: str, options: tuple[object, ...], cohort: Path
) -> None:
    run, encoder = pretrained(method, cohort, seed=0, options=("--max-steps", 20, *options))
    assert_healthy(run)
    # Distillation terms rise while a teacher learns to tell things apart.
    losses = [r[f"loss/{falls}"] for r in records(run)]
    assert mean(losses[-5:]) < mean(losses[:5])
    config = tiny(method)
    before = random_encoder(config, 0)
    ours = labelled(config, JUDGED_ON[:1])
    settings = ProbeSettings(voxels=50)
    # Solved and judged on one scan: any features do well there, but not equally well.
    assert linear_probe(encoder, ours, ours, settings) != linear_probe(before, ours, ours, settings)


@pytest.mark.slow
@pytest.mark.parametrize("method", PRESETS)
def test_pretrained_features_know_more_than_random_ones(method: str, cohort: Path) -> None:
    config = tiny(method)
    seeds = SEEDS if method in MUST_BEAT_RANDOM else SEEDS[: int(os.environ.get("PROBE_SEEDS", 3))]
    rows = []
    for seed in seeds:
        run, encoder = pretrained(method, cohort, seed=seed)
        assert_healthy(run)
        last = records(run)[-1]
        rows.append(
            {
                "seed": seed,
                "random": accuracies(random_encoder(config, seed), config, seed),
                "pretrained": accuracies(encoder, config, seed),
                "monitors": {k: v for k, v in last.items() if k.startswith("monitor/")},
                "steps": len(records(run)),
                "seconds": last["time_s"],
            }
        )
        _remember(method, rows)
    gains = {
        name: mean(r["pretrained"][name] - r["random"][name] for r in rows)
        for name in ("all_maps", "deepest_map")
    }
    sys.stdout.write(f"\n{method}: gain over random features {gains}\n")
    if method in MUST_BEAT_RANDOM:
        assert gains["all_maps"] > 0


def _remember(method: str, rows: list[dict[str, object]]) -> None:
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept["about"] = (
        f"Balanced accuracy of a linear probe on frozen features; {len(PRETRAINED_ON)} phantoms "
        f"pretrained on for as long as `tiny` says, {len(SOLVED_ON)} solved on, "
        f"{len(JUDGED_ON)} judged on."
    )
    kept[method] = rows
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
