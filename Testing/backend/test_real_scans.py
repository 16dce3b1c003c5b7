"""Long proofs on real CT: exact resuming, learning, fitting, and labels on every source grid.

Run with `pytest -m slow Testing/backend/test_real_scans.py -s`; `SSL_TEST_DATA` names the folder
with `hn_pool/` and `open/`. What is measured is written to `Testing/benchmarks/real_scans.json`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.data.index import read_index
from backend.data.readers import read_label, read_volume
from backend.engine.record import read_metrics, read_status
from backend.segment import find_scans

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
BESIDE_REPOSITORY = REPOSITORY.parent / "shared" / "data"
FIGURES = REPOSITORY / "Testing" / "benchmarks" / "real_scans.json"

PRETRAIN_STEPS = int(os.environ.get("REAL_STEPS", "900"))
FINETUNE_STEPS = 1000
LEARNT = ("pt_4", "pt_17", "pt_31")
OTHERS = ("pt_59", "pt_60", "pt_61", "pt_66", "pt_82")
ARMS = {"pretrained": True, "scratch": False}


def backend(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "backend", *map(str, arguments)]
    return subprocess.Popen(command, text=True)


def completed(*arguments: str | Path) -> None:
    assert backend(*arguments).wait() == 0, arguments


def tell(name: str, figures: Any) -> None:
    """Keep the figures of a proof beside those of the others."""
    known = json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(json.dumps({**known, name: figures}, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def data() -> Path:
    folder = Path(os.environ.get("SSL_TEST_DATA", BESIDE_REPOSITORY))
    if not (folder / "hn_pool").is_dir():
        pytest.skip(f"no scans in {folder}: name their folder with SSL_TEST_DATA")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


def pretrain(data: Path, work: Path, name: str, *more: str) -> list[str | Path]:
    return [
        *("pretrain", "--method", "smit", "--preset", "tiny", "--data", data / "hn_pool"),
        *("--output", work / name, "--cache", work / "cache", *more),
    ]


@pytest.fixture(scope="module")
def pretrained(data: Path, work: Path) -> Path:
    completed(*pretrain(data, work, "pretrain", "--max-steps", str(PRETRAIN_STEPS)))
    return work / "pretrain"


@pytest.fixture(scope="module")
def labelled(data: Path, work: Path) -> Path:
    """The head-and-neck cases with seven organs, alone in a folder."""
    folder = work / "labelled"
    for case in LEARNT + OTHERS:
        shutil.copytree(data / "open" / f"hn_openkbp_{case}", folder / case)
    return folder


@pytest.fixture(scope="module")
def models(pretrained: Path, labelled: Path, work: Path) -> dict[str, Path]:
    """Fine-tuned on three cases, all of them trained on, twice from the same seed."""
    runs = {}
    for arm, uses in ARMS.items():
        runs[arm] = work / f"finetune_{arm}"
        completed(
            *("finetune", "--data", labelled, "--cases", *LEARNT, "--preset", "tiny"),
            *("--init", pretrained if uses else "none", "--output", runs[arm]),
            *("--max-steps", str(FINETUNE_STEPS), "--set", "validation_fraction=0"),
            *("--cache", work / "cache"),
        )
    return runs


def test_a_killed_run_resumes_with_the_losses_of_one_that_was_never_interrupted(
    data: Path, work: Path
) -> None:
    length = ("--max-steps", "20", "--set", "train.checkpoint_every_steps=5")
    completed(*pretrain(data, work, "whole", *length))
    process = backend(*pretrain(data, work, "killed", *length))
    while len(read_metrics(work / "killed")) < 12:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = len(read_metrics(work / "killed"))
    assert 12 <= reached < 20
    assert read_status(work / "killed")["state"] == "interrupted"
    completed("pretrain", "--output", work / "killed", "--resume")
    assert read_status(work / "killed")["state"] == "done"
    runs = [read_metrics(work / name) for name in ("whole", "killed")]
    losses = [
        [{k: v for k, v in r.items() if k.startswith("loss/") or k == "step"} for r in run]
        for run in runs
    ]
    assert [r["step"] for r in losses[0]] == list(range(1, 21))
    assert losses[0] == losses[1]
    tell("resume", {"killed_at_step": reached, "steps": 20, "losses_equal_to_the_last_bit": True})


def test_pretraining_learns_to_fill_in_scans_that_it_was_not_trained_on(pretrained: Path) -> None:
    records = read_metrics(pretrained)
    mip = [r["loss/mip"] for r in records]
    first, last = statistics.median(mip[:10]), statistics.median(mip[-50:])
    probe = [r for r in records if "probe/held_out_error" in r][-1]
    tell(
        "pretraining",
        {
            "steps": len(mip),
            "seconds": records[-1]["time_s"],
            "scans": read_status(pretrained)["scans"],
            "mip_first_10": first,
            "mip_last_50": last,
            "ratio": last / first,
            "held_out_error": probe["probe/held_out_error"],
            "held_out_error_of_mean": probe["probe/held_out_error_of_mean"],
        },
    )
    assert last <= 0.7 * first
    assert probe["probe/held_out_error"] < probe["probe/held_out_error_of_mean"]


def test_fine_tuning_fits_three_cases_and_is_told_beside_the_scratch_arm(
    models: dict[str, Path], labelled: Path, work: Path
) -> None:
    dice: dict[str, dict[str, dict[str, float]]] = {}
    for arm, model in models.items():
        for part, cases in {"learnt": LEARNT, "others": OTHERS}.items():
            predictions, references = work / f"{arm}_{part}", work / f"reference_{part}"
            references.mkdir(exist_ok=True)
            shutil.copy(labelled / LEARNT[0] / "labels.json", references)
            for case in cases:
                shutil.copy(labelled / case / "label.nii.gz", references / f"{case}.nii.gz")
                output = predictions / f"{case}.nii.gz"
                scan = labelled / case / "ct.nii.gz"
                completed("segment", "--model", model, "--input", scan, "--output", output)
            result = work / f"evaluation_{arm}_{part}"
            completed(
                *("evaluate", "--prediction", predictions, "--reference", references),
                *("--output", result),
            )
            organs = json.loads((result / "evaluation.json").read_text("utf-8"))["organs"]
            dice.setdefault(part, {})[arm] = {o["name"]: o["dice"]["mean"] for o in organs}
    tell("fine_tuning", {"steps": FINETUNE_STEPS, "trained_on": LEARNT, "dice": dice})
    fitted = dice["learnt"]["pretrained"]
    for organ in ("brainstem", "mandible", "parotid_right", "parotid_left"):
        assert fitted[organ] >= 0.7, fitted


def test_labels_of_every_accepted_scan_lie_on_its_own_grid(
    models: dict[str, Path], data: Path, work: Path
) -> None:
    scans = work / "open"
    shutil.copytree(data / "open", scans)
    for archive in scans.rglob("dicom.zip"):
        with zipfile.ZipFile(archive) as content:
            content.extractall(archive.parent)
    completed("scan", scans, "--output", work / "index.csv")
    accepted = [row for row in read_index(work / "index.csv") if row.verdict == "usable"]
    segmented = work / "segmented"
    completed("segment", "--model", models["pretrained"], "--input", scans, "--output", segmented)
    found = find_scans(scans, single=False)
    assert {scan.files for scan in found} == {row.files for row in accepted}
    for scan in found:
        source = read_volume(scan.files).geometry
        labels = read_label(segmented / f"{scan.name}.nii.gz").geometry
        assert labels.size == source.size
        np.testing.assert_allclose(labels.spacing_mm, source.spacing_mm, atol=1e-5)
        np.testing.assert_allclose(labels.origin_mm, source.origin_mm, atol=1e-3)
        np.testing.assert_allclose(labels.direction, source.direction, atol=1e-5)
    formats = sorted({row.format for row in accepted})
    tell("grids", {"scans": len(accepted), "formats": formats, "all_equal": True})
