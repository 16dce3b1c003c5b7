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
from collections.abc import Sequence
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
SARCOMAS_LEARNT = ("sts_002", "sts_003", "sts_008", "sts_012", "sts_025")
SARCOMAS_OTHERS = ("sts_035", "sts_041")
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


def judged(model: Path, cases: Sequence[Path], work: Path) -> dict[str, float]:
    """Mean Dice of each structure over case folders, on the grids of their scans."""
    predictions, references = work / "predictions", work / "references"
    references.mkdir(parents=True)
    shutil.copy(cases[0] / "labels.json", references)
    for case in cases:
        shutil.copy(case / "label.nii.gz", references / f"{case.name}.nii.gz")
        output = predictions / f"{case.name}.nii.gz"
        completed("segment", "--model", model, "--input", case / "ct.nii.gz", "--output", output)
    result = work / "evaluation"
    completed(
        *("evaluate", "--prediction", predictions, "--reference", references, "--output", result)
    )
    organs = json.loads((result / "evaluation.json").read_text("utf-8"))["organs"]
    return {organ["name"]: organ["dice"]["mean"] for organ in organs}


def finetuned(labelled: Path, start: Path | str, output: Path, *more: str | Path) -> Path:
    """A run of the smallest preset over all its steps; nothing is held back to choose by."""
    completed(
        *("finetune", "--data", labelled, "--preset", "tiny", "--init", start, "--output", output),
        *("--max-steps", str(FINETUNE_STEPS), "--set", "validation_fraction=0", *more),
    )
    return output


@pytest.fixture(scope="module")
def models(pretrained: Path, labelled: Path, work: Path) -> dict[str, Path]:
    """Fine-tuned on three cases, all of them trained on, twice from the same seed."""
    more = ("--cache", work / "cache", "--cases", *LEARNT)
    return {
        arm: finetuned(labelled, pretrained if uses else "none", work / f"finetune_{arm}", *more)
        for arm, uses in ARMS.items()
    }


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
            folders = [labelled / case for case in cases]
            dice.setdefault(part, {})[arm] = judged(model, folders, work / f"{arm}_{part}")
    tell("fine_tuning", {"steps": FINETUNE_STEPS, "trained_on": LEARNT, "dice": dice})
    fitted = dice["learnt"]["pretrained"]
    for organ in ("brainstem", "mandible", "parotid_right", "parotid_left"):
        assert fitted[organ] >= 0.7, fitted


def test_weights_from_heads_and_necks_serve_to_find_sarcomas_of_limbs(
    pretrained: Path, data: Path, work: Path
) -> None:
    """Another body part, other voxels, a structure without a place of its own; no accuracy."""
    parts = {"learnt": SARCOMAS_LEARNT, "others": SARCOMAS_OTHERS}
    folders = {
        part: [shutil.copytree(data / "open" / c, work / "sarcomas" / part / c) for c in cases]
        for part, cases in parts.items()
    }
    more = ("--cache", work / "cache")
    dice: dict[str, dict[str, dict[str, float]]] = {}
    for arm, uses in ARMS.items():
        start = pretrained if uses else "none"
        run = finetuned(work / "sarcomas" / "learnt", start, work / f"sarcoma_{arm}", *more)
        assert ("100.0% of the parameters" in (run / "log.txt").read_text("utf-8")) == uses
        for part, cases in folders.items():
            found = judged(run, cases, work / f"sarcoma_{arm}_{part}")
            dice.setdefault(part, {})[arm] = found
    tell("transfer", {"steps": FINETUNE_STEPS, **parts, "dice": dice})
    assert dice["learnt"]["pretrained"]["sarcoma_gtv"] >= 0.6, dice


@pytest.mark.parametrize("scan", ["abd_totalseg_example", "chest_lidc0001"])
def test_a_single_scan_with_a_dozen_organs_is_learnt_by_heart(
    scan: str, data: Path, work: Path
) -> None:
    """From random weights: a network, a loss or a grid that is wrong would not get there."""
    source, case = data / "open" / scan, work / f"by_heart_{scan}" / scan
    case.mkdir(parents=True)
    shutil.copy(source / "ct.nii.gz", case)
    shutil.copy(source / "label_btcv13.nii.gz", case / "label.nii.gz")
    names = json.loads((source / "labels_btcv13.json").read_text("utf-8"))["present"]
    (case / "labels.json").write_text(json.dumps({"labels": names}), encoding="utf-8")
    run = finetuned(case.parent, "none", work / f"learnt_{scan}", "--cache", work / "cache")
    dice = judged(run, [case], work / f"judged_{scan}")
    tell(f"by_heart_{scan}", {"steps": FINETUNE_STEPS, "dice": dice})
    assert len(dice) == 12
    for organ in ("spleen", "kidney_right", "kidney_left", "liver", "stomach", "aorta"):
        assert dice[organ] >= 0.8, dice


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
