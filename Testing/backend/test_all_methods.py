"""Every method through the command line: pretrained, stopped, resumed; one of each kind used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import (
    Ended,
    Material,
    backend_here,
    backend_stopped,
    records,
    status,
)

from backend.config import PRESETS
from backend.data.readers import read_label, read_volume
from backend.engine.checkpoint import load_checkpoint
from backend.weights import load_weights

STEPS = 6
_VIT = ("encoder={width: 12, depth: 3, heads: 2, patch: 8}", "decoder.width=12", "decoder.depth=1")
_SWIN = ("encoder.embed_dim=4", "encoder.heads=[1, 1, 2]")
_HEAD = ("head.hidden=8", "head.bottleneck=4", "head.prototypes=16")
_RESNET = ("encoder.width=2", "projector={hidden: 8, output: 8}")
_PGL = (*_RESNET, "predictor_hidden=8")
_UNET = ("encoder.widths=[4, 8, 16]",)

NARROW: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("smit", "ibot", "dino"), (*_SWIN, *_HEAD)),
    **dict.fromkeys(("mip", "simmim", "fullrec", "ml_mip"), _SWIN),
    **dict.fromkeys(("swinunetr_trio",), (*_SWIN, "contrast_width=8")),
    "glmae": (*_VIT, "projector={hidden: 8, output: 8}"),
    "mae3d": _VIT,
    **dict.fromkeys(
        ("pgl", "byol", "simsiam", "mocov3", "pgl_no_flip", "pgl_no_csalign", "pgl_no_align"), _PGL
    ),
    "pgl_mip": _PGL,
    "simclr": _RESNET,
    "models_genesis": (*_UNET, "blocks=20"),
    "pcrl": (*_UNET, "projection=8", "condition=8", "queue=8", "shuffle_blocks=20"),
    "pcrlv2": _UNET,
    "rubik": _UNET,
    "rubik_pp": (*_UNET, "discriminator_width=4"),
    "cpc3d": (*_UNET, "code=8", "context=8", "negatives=2"),
    "spark": ("encoder={widths: [4, 8, 16], blocks: [1, 1, 1]}",),
}
"""What makes the network of the preset tiny tinier still: settings of `method`."""

SMALL = {"smit": 32, "swinunetr_trio": 32, "models_genesis": 32, "spark": 32, "rubik_pp": 32}
"""Edges of regions and views where fewer voxels do as well."""

EDGES = ("region", "main.size")

QUICK = ("smit", "glmae", "pgl", "pcrl")
"""The papers' three, and one that keeps a queue; others are slow."""


@pytest.fixture(scope="session")
def index(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scans, searched and preprocessed once."""
    path = tmp_path_factory.mktemp("index") / "index.csv"
    done(backend_here("scan", material.unlabelled, "--output", path))
    return path


def pretrain(method: str, index: Path, cache: Path) -> tuple[object, ...]:
    """The smallest pretraining of a method; lacks --output."""
    settings = (
        *(f"method.{setting}" for setting in NARROW[method]),
        *(f"views.{edge}={SMALL[method]}" for edge in EDGES if method in SMALL),
        *("preprocess.spacing_mm=[6, 6, 6]", "data.workers=1", "train.preview_every_steps=1000"),
        *("train.batch_size=2", "train.accumulate=1"),
    )
    return (
        *("pretrain", "--method", method, "--preset", "tiny", "--device", "cpu"),
        *("--data", index, "--cache", cache, "--max-steps", STEPS),
        *(word for setting in settings for word in ("--set", setting)),
    )


def told(run: Path) -> list[dict[str, Any]]:
    """The record but for what depends on the clock."""
    timed = {"time_s", "volumes_per_s", "memory_mb"}
    return [{k: v for k, v in record.items() if k not in timed} for record in records(run)]


def done(ended: Ended) -> None:
    assert ended.code == 0, ended.err[-2000:]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_there_are_narrow_settings_for_every_method() -> None:
    assert NARROW.keys() == PRESETS.keys()
    assert PRESETS.keys() >= {*QUICK}


@pytest.mark.parametrize(
    "method",
    [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in PRESETS],
)
def test_a_method_that_is_stopped_and_resumed_ends_as_if_it_had_not_been(
    method: str, material: Material, index: Path, tmp_path: Path
) -> None:
    words = pretrain(method, index, material.cache)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    done(backend_here(*words, "--output", whole))
    stopped = backend_stopped(*words, "--output", torn, run=torn, step=STEPS // 2)
    assert stopped.code == 3, stopped.err[-2000:]
    assert STEPS // 2 <= len(records(torn)) < STEPS
    done(backend_here("pretrain", "--resume", "--output", torn, "--device", "cpu"))
    assert told(whole) == told(torn)
    assert [record["step"] for record in records(torn)] == list(range(1, STEPS + 1))
    ends = [load_checkpoint(run / "checkpoints" / "last.pt") for run in (whole, torn)]
    for part in ("module", "optimizer", "step"):
        assert same(ends[0][part], ends[1][part]), part
    files = [load_weights(run / "checkpoints" / "encoder.safetensors") for run in (whole, torn)]
    assert files[0][1] == files[1][1]
    assert files[0][1].method == method
    assert same(dict(files[0][0]), dict(files[1][0]))
    assert (status(torn)["state"], status(torn)["step"]) == ("done", STEPS)
    assert (torn / "report.html").stat().st_size > 0
    assert list((torn / "previews").glob("step_000006*.png"))


USED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "glmae": ((), ("decoder.width=4",)),
    "pgl": (("preprocess.spacing_mm=null",), ("decoder.width=4",)),
    "spark": (("preprocess.intensity=zscore",), ("preprocess.intensity=zscore",)),
    "segresnet": ((), ()),
}
"""One of each family that is taken to its end: settings of its pretraining and fine-tuning."""


def words_of(settings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for setting in settings for word in ("--set", setting))


@pytest.mark.parametrize("method", USED)
def test_a_family_goes_from_scans_to_judged_segmentations(
    method: str, material: Material, index: Path, tmp_path: Path
) -> None:
    before, after = USED[method]
    start: tuple[object, ...] = ("--init", "none")
    network = [f"method.{setting}" for setting in NARROW.get(method, ())]
    if method in PRESETS:
        run = tmp_path / "pretrain"
        words = (*pretrain(method, index, material.cache), *words_of(before))
        done(backend_here(*words, "--output", run))
        start = ("--init", run)
    tuned = backend_here(
        *("finetune", "--method", method, "--preset", "tiny", "--device", "cpu", *start),
        *("--data", material.labelled, "--cache", material.cache, "--max-steps", 2),
        *("--output", tmp_path / "finetune"),
        *words_of((*network, *after, "preprocess.spacing_mm=[6, 6, 6]", "crop=32")),
        *words_of(("crops_per_scan=1", "data.workers=1", "validate_every_epochs=1000")),
    )
    done(tuned)
    if method in PRESETS:
        assert "100.0% of the parameters" in tuned.err
    done(
        backend_here(
            *("segment", "--model", tmp_path / "finetune", "--device", "cpu"),
            *("--input", material.nnunet / "imagesTr", "--output", tmp_path / "labels"),
        )
    )
    for case in ("case_1", "case_2", "case_3"):
        label = read_label(tmp_path / "labels" / f"{case}.nii.gz")
        scan = read_volume([material.labelled / case / "ct.nii.gz"])
        assert label.geometry.matches(scan.geometry, tolerance_mm=1e-4)
    judged = backend_here(
        *("evaluate", "--prediction", tmp_path / "labels", "--reference", material.labelled),
        *("--output", tmp_path / "evaluation"),
    )
    done(judged)
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert found["cases"] == ["case_1", "case_2", "case_3"]
    assert 0 <= found["mean_without_background"]["dice"]["mean"] < 0.5
