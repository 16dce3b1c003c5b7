"""Every method on real CT: it trains, can be killed, goes on exactly; the papers' go all the way.

Run with `pytest -m slow Testing/backend/test_real_methods.py -n 2 --dist load`; `SSL_TEST_DATA`
names the folder with `hn_pool/` and `open/`. Figures go to Testing/benchmarks/real_methods.json.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from cli_runner import (
    REPOSITORY,
    backend,
    note_figures,
    records,
    started,
    status,
    wait_until,
)
from filelock import FileLock

from backend.config import PRESETS

pytestmark = pytest.mark.slow

FIGURES = REPOSITORY / "Testing" / "benchmarks" / "real_methods.json"
STEPS = 10
LONG = int(os.environ.get("METHOD_STEPS", "150"))
LEARNT, OTHER = ("pt_4", "pt_17", "pt_31"), "pt_59"
LIMIT_S = 3600


@pytest.fixture(scope="session")
def data() -> Path:
    folder = Path(os.environ.get("SSL_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "hn_pool").is_dir():
        pytest.skip(f"no scans in {folder}: name their folder with SSL_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """One folder for all processes of a test run, with the index and the cache that they share."""
    here = tmp_path_factory.getbasetemp()
    root = here.parent if "PYTEST_XDIST_WORKER" in os.environ else here
    folder = root / "real_methods"
    with FileLock(root / "real_methods.lock"):
        if not (folder / "index.csv").exists():
            folder.mkdir()
            done = backend(
                *("scan", data / "hn_pool", "--output", folder / "index.csv"), limit_s=LIMIT_S
            )
            assert done.code == 0, done.err
    return folder


def pretrain(method: str, work: Path, run: Path, steps: int, *more: str) -> list[str | Path]:
    return [
        *("pretrain", "--method", method, "--preset", "tiny", "--data", work / "index.csv"),
        *("--output", run, "--cache", work / "cache", "--max-steps", str(steps)),
        *("--set", "train.preview_every_steps=1000", *more),
    ]


def losses(run: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in record.items() if k.startswith("loss/") or k == "step"}
        for record in records(run)
    ]


@pytest.mark.parametrize("method", PRESETS)
def test_every_method_trains_on_real_scans_and_resumes_exactly(method: str, work: Path) -> None:
    whole, killed = work / f"{method}_whole", work / f"{method}_killed"
    often = ("--set", "train.checkpoint_every_steps=3")
    done = backend(*pretrain(method, work, whole, STEPS, *often), limit_s=LIMIT_S)
    assert done.code == 0, done.err
    assert status(whole)["state"] == "done"
    with started(*pretrain(method, work, killed, STEPS, *often)) as process:
        wait_until(lambda: len(records(killed)) >= 5, process=process, limit_s=LIMIT_S)
        process.send_signal(signal.SIGKILL)
        process.wait()
    reached = len(records(killed))
    assert reached < STEPS
    done = backend("pretrain", "--output", killed, "--resume", limit_s=LIMIT_S)
    assert done.code == 0, done.err
    assert losses(whole) == losses(killed)
    assert [r["step"] for r in losses(whole)] == list(range(1, STEPS + 1))
    last = records(whole)[-1]
    note_figures(
        FIGURES,
        method,
        {
            "losses": {k: v for k, v in last.items() if k.startswith("loss/")},
            "monitors": {k: v for k, v in last.items() if k.startswith("monitor/")},
            "killed_at_step": reached,
            "resumed_to_the_last_bit": True,
            "seconds_per_step_on_one_core": round(
                (last["time_s"] - records(whole)[0]["time_s"]) / (STEPS - 1), 2
            ),
            "memory_mb": last["memory_mb"],
        },
    )


@pytest.mark.parametrize("method", ["smit", "glmae", "pgl"])
def test_each_paper_goes_from_scans_to_an_evaluation(method: str, work: Path, data: Path) -> None:
    root = work / f"{method}_way"
    cases = data / "open"
    for case in LEARNT:
        shutil.copytree(cases / f"hn_openkbp_{case}", root / "labelled" / case)
    other = cases / f"hn_openkbp_{OTHER}"
    for folder, file in (("images", "ct.nii.gz"), ("references", "label.nii.gz")):
        (root / folder).mkdir()
        shutil.copy(other / file, root / folder / f"{OTHER}.nii.gz")
    shutil.copy(other / "labels.json", root / "references")
    commands = {
        "pretrain": pretrain(method, work, root / "pretrain", LONG),
        "finetune": [
            *("finetune", "--init", root / "pretrain", "--data", root / "labelled"),
            *("--output", root / "finetune", "--cache", work / "cache", "--max-steps", str(LONG)),
            *("--set", "validation_fraction=0"),
        ],
        "segment": [
            *("segment", "--model", root / "finetune", "--input", root / "images"),
            *("--output", root / "predictions"),
        ],
        "evaluate": [
            *("evaluate", "--prediction", root / "predictions"),
            *("--reference", root / "references", "--output", root / "evaluation"),
        ],
    }
    for name, words in commands.items():
        done = backend(*words, limit_s=LIMIT_S)
        assert done.code == 0, (name, done.err)
    [scores] = (root / "evaluation").glob("*.json")
    figures = {"steps": LONG, "evaluation": json.loads(scores.read_text())}
    note_figures(FIGURES, f"{method}_all_the_way", figures)
