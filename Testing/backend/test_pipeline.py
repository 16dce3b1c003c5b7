"""The whole way through the command line: scan, pretrain, fine-tune, segment, evaluate."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import SimpleITK
from cli_runner import (
    FINETUNE,
    PRETRAIN,
    SIZE,
    Material,
    Runs,
    backend_here,
    records,
    status,
)
from safetensors.numpy import load_file

from backend.data.index import read_index
from backend.data.readers import read_label, read_volume
from backend.weights import read_header

STRUCTURES = 8


@pytest.fixture(scope="module")
def variants(
    tmp_path_factory: pytest.TempPathFactory, material: Material, runs: Runs
) -> dict[str, Path]:
    """Fine-tunings that differ from that of `runs` in one thing each."""
    folder = tmp_path_factory.mktemp("variants")
    options: dict[str, tuple[object, ...]] = {
        "frozen": ("--init", runs.pretrain, "--freeze-encoder"),
        "scratch": ("--init", "none"),
        "nnunet": ("--fraction", 0.5, "--data", material.nnunet),
        "folds": ("--folds", 2),
    }
    lines: dict[str, tuple[object, ...]] = {
        name: (*labelled_line(material), "--output", folder / name, *words)
        for name, words in options.items()
    }
    lines["plain"] = (
        *("finetune", "--data", material.labelled, "--init", runs.pretrain, "--device", "cpu"),
        *("--output", folder / "plain", "--cache", material.cache, "--max-steps", 1),
        *("--set", "preprocess.spacing_mm=[6, 6, 6]", "--set", "crop=32"),
    )
    for words in lines.values():
        done = backend_here(*words)
        assert done.code == 0, done.err
    return {name: folder / name for name in lines}


def labelled_line(material: Material) -> tuple[object, ...]:
    return (
        *(*FINETUNE, "--data", material.labelled, "--cache", material.cache),
        *("--max-steps", 2, "--set", "validate_every_epochs=1000"),
    )


def split(run: Path) -> dict[str, list[str]]:
    content: dict[str, list[str]] = json.loads((run / "split.json").read_text())
    return content


def test_a_scan_finds_every_series_and_a_run_can_start_from_its_index(
    tmp_path: Path, material: Material
) -> None:
    index = tmp_path / "index.csv"
    done = backend_here("scan", material.unlabelled, "--output", index)
    assert done.code == 0
    assert "3 usable CT series" in done.out
    rows = read_index(index)
    assert sorted(row.format for row in rows) == ["DICOM", "NIfTI", "NRRD"]
    assert {row.size for row in rows} == {SIZE}
    run = tmp_path / "run"
    trained = backend_here(
        *(*PRETRAIN, "--data", index, "--output", run, "--cache", material.cache),
        *("--max-steps", 1),
    )
    assert trained.code == 0, trained.err
    assert len(records(run)) == 1
    assert status(run)["scans"] == {"training": 3, "held_out": 0}


def test_both_trainings_tell_where_they_are_and_what_comes_next(runs: Runs) -> None:
    assert "Cache " in runs.pretrained.err
    assert "Pretraining" in runs.pretrained.err
    assert f"backend finetune --init {runs.pretrain}" in runs.pretrained.out
    # Labels are checked by threads; what comes after that must still reach the screen.
    assert "Checking labels" in runs.finetuned.err
    assert "Fine-tuning" in runs.finetuned.err
    assert "100.0% of the parameters" in runs.finetuned.err
    # What is no terminal gets plain lines, at the start and the end of what is quick.
    for done, what in ((runs.pretrained, "Pretraining"), (runs.finetuned, "Fine-tuning")):
        assert not {"\r", "\x1b"} & set(done.err)
        lines = [line for line in done.err.splitlines() if line.startswith(f"{what}: ")]
        assert [re.search(r" (\d+/\d+) \[", line)[1] for line in lines] == ["0/4", "4/4"]  # type: ignore[index]
    for run, weights in ((runs.pretrain, "encoder"), (runs.finetune, "model")):
        state = status(run)
        assert (state["state"], state["step"], state["total_steps"]) == ("done", 4, 4)
        assert [record["step"] for record in records(run)] == [1, 2, 3, 4]
        for name in ("config.json", "report.html", "log.txt", "checkpoints/last.pt"):
            assert (run / name).stat().st_size > 0
        assert (run / "log.txt").read_text().splitlines()[-1].endswith("INFO Done at step 4 of 4")
        assert (run / "checkpoints" / f"{weights}.safetensors").exists()
        assert list((run / "previews").glob("step_*.png"))


def test_fine_tuning_starts_from_the_encoder_that_was_pretrained_and_is_marked_so(
    variants: dict[str, Path], runs: Runs
) -> None:
    frozen = variants["frozen"]
    pretrained = load_file(runs.pretrain / "checkpoints" / "encoder.safetensors")
    kept = load_file(frozen / "checkpoints" / "model.safetensors")
    learnt = load_file(runs.finetune / "checkpoints" / "model.safetensors")
    assert pretrained
    for name, tensor in pretrained.items():
        assert (kept[f"encoder.{name}"] == tensor).all(), name
    changed = [n for n, t in pretrained.items() if (learnt[f"encoder.{n}"] != t).any()]
    assert len(changed) > len(pretrained) / 2
    decoder = [name for name in kept if not name.startswith("encoder.")]
    assert decoder
    assert any((kept[name] != learnt[name]).any() for name in decoder)
    assert len(read_header(frozen / "checkpoints" / "model.safetensors").labels) == STRUCTURES


def test_fine_tuning_needs_no_pretraining_and_takes_the_architecture_of_one(
    variants: dict[str, Path],
) -> None:
    assert "Encoder from random weights" in (variants["scratch"] / "log.txt").read_text()
    # Its command names nothing of the encoder: that stands in the weights.
    config = json.loads((variants["plain"] / "config.json").read_text())["config"]
    assert config["method"]["encoder"]["embed_dim"] == 4


def test_the_split_follows_from_the_seed_and_an_nnunet_folder_gives_the_same(
    variants: dict[str, Path], runs: Runs
) -> None:
    first = split(runs.finetune)
    assert sorted(first["training"] + first["validation"]) == ["case_1", "case_2", "case_3"]
    assert len(first["validation"]) == 1
    part = variants["nnunet"]
    second = split(part)
    assert second["validation"] == first["validation"]
    assert len(second["training"]) == 1
    assert set(second["training"]) < set(first["training"])
    labels = read_header(part / "checkpoints" / "model.safetensors").labels
    expected = read_header(runs.finetune / "checkpoints" / "model.safetensors").labels
    assert labels == expected


def test_cross_validation_judges_every_case_once_and_resumes_only_as_it_was_started(
    variants: dict[str, Path], material: Material
) -> None:
    run = variants["folds"]
    words = (*labelled_line(material), "--output", run, "--folds", 2)
    summary = json.loads((run / "cross_validation.json").read_text())
    judged = [case for fold in summary["folds"] for case in fold["cases"]]
    assert sorted(judged) == ["case_1", "case_2", "case_3"]
    for number, fold in enumerate(summary["folds"], start=1):
        assert split(run / f"fold_{number}")["validation"] == fold["cases"]
        assert not set(split(run / f"fold_{number}")["training"]) & set(fold["cases"])
    again = backend_here(*words)
    assert again.code == 2
    assert str(run) in again.told
    other = backend_here(*words, "--resume", "--set", "train.learning_rate=0.5")
    assert other.code == 2
    assert "train.learning_rate" in other.told
    assert backend_here(*words[:-1], 3, "--resume").code == 2
    assert backend_here(*words, "--resume").code == 0
    assert json.loads((run / "cross_validation.json").read_text()) == summary


@pytest.fixture(scope="module")
def segmented(
    tmp_path_factory: pytest.TempPathFactory, material: Material, runs: Runs
) -> dict[str, Path]:
    """A DICOM series, an oblique NIfTI and a folder, segmented by the fine-tuned network."""
    folder = tmp_path_factory.mktemp("segmented")
    outputs = {
        "dicom": (material.dicom, folder / "dicom.nrrd"),
        "oblique": (material.oblique, folder / "oblique.nii.gz"),
        "folder": (material.nnunet / "imagesTr", folder / "many"),
    }
    lines = {
        name: (
            *("segment", "--model", runs.finetune, "--input", source, "--output", output),
            *("--device", "cpu"),
        )
        for name, (source, output) in outputs.items()
    }
    for words in lines.values():
        done = backend_here(*words)
        assert done.code == 0, done.err
    return {name: output for name, (_, output) in outputs.items()}


def assert_same_grid(label: Path, scan: Path) -> None:
    """As another program reads both files: alike but for the rounding of NIfTI's 32-bit numbers."""
    ours, theirs = (SimpleITK.ReadImage(str(path)) for path in (label, scan))
    assert ours.GetSize() == theirs.GetSize()
    assert ours.GetSpacing() == theirs.GetSpacing()
    assert ours.GetOrigin() == theirs.GetOrigin()
    assert ours.GetDirection() == pytest.approx(theirs.GetDirection(), abs=1e-7)


def test_labels_lie_voxel_for_voxel_on_their_scan(
    segmented: dict[str, Path], material: Material
) -> None:
    assert_same_grid(segmented["oblique"], material.oblique)
    for case in ("case_1", "case_2", "case_3"):
        label = segmented["folder"] / f"{case}.nii.gz"
        assert_same_grid(label, material.labelled / case / "ct.nii.gz")
    series = read_volume(sorted(material.dicom.iterdir()))
    label = read_label(segmented["dicom"])
    assert label.geometry.size == series.geometry.size == SIZE
    assert label.geometry.matches(series.geometry, tolerance_mm=1e-6)
    assert label.geometry.direction == series.geometry.direction


def test_beside_the_labels_stand_their_volumes(segmented: dict[str, Path]) -> None:
    with (segmented["folder"] / "volumes.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * STRUCTURES
    assert {row["case"] for row in rows} == {"case_1", "case_2", "case_3"}
    for row in rows:
        label = read_label(segmented["folder"] / f"{row['case']}.nii.gz")
        voxels = int((label.voxels == int(row["value"])).sum())
        assert int(row["voxels"]) == voxels
        assert float(row["ml"]) == pytest.approx(voxels * 0.216)


def test_what_was_segmented_is_kept_and_never_overwritten_in_silence(
    segmented: dict[str, Path], material: Material, runs: Runs
) -> None:
    words = ("segment", "--model", runs.finetune, "--device", "cpu")
    again = backend_here(
        *(*words, "--input", material.nnunet / "imagesTr", "--output", segmented["folder"])
    )
    assert again.code == 0
    assert "Kept, already there (3 of 3)" in again.out
    before = segmented["dicom"].read_bytes()
    refused = backend_here(*words, "--input", material.dicom, "--output", segmented["dicom"])
    assert refused.code == 2
    assert "--overwrite" in refused.told
    assert segmented["dicom"].read_bytes() == before


def test_the_evaluation_knows_a_perfect_segmentation_from_a_poor_one(
    segmented: dict[str, Path], material: Material, tmp_path: Path
) -> None:
    found = {}
    for name, prediction in (("own", segmented["folder"]), ("same", material.nnunet / "labelsTr")):
        done = backend_here(
            *("evaluate", "--prediction", prediction, "--reference", material.labelled),
            *("--output", tmp_path / name),
        )
        assert done.code == 0, done.err
        assert "mean without background" in done.out
        found[name] = json.loads((tmp_path / name / "evaluation.json").read_text())
        with (tmp_path / name / "evaluation.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == 3 * (STRUCTURES + 1)
    assert found["same"]["mean_without_background"]["dice"]["mean"] == 1.0
    assert 0.0 <= found["own"]["mean_without_background"]["dice"]["mean"] < 0.5
    assert found["own"]["cases"] == ["case_1", "case_2", "case_3"]


def test_a_report_can_be_written_again_and_needs_nothing_beside_it(
    runs: Runs, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs.finetune, run)
    (run / "report.html").unlink()
    done = backend_here("report", "--run", run)
    assert done.code == 0
    assert done.out.strip() == str(run / "report.html")
    page = (run / "report.html").read_text("utf-8")
    assert "data:image/png;base64," in page
    for outside in ('src="http', 'href="http', "url(http", "@import"):
        assert outside not in page


def test_the_cache_is_listed_and_pruned(material: Material, runs: Runs, tmp_path: Path) -> None:
    del runs
    cache = tmp_path / "cache"
    shutil.copytree(material.cache, cache)
    listed = backend_here("cache", "--list", "--cache", cache)
    assert listed.code == 0
    assert "6 x 6 x 6" in listed.out
    pruned = backend_here("cache", "--prune", "--all", "--cache", cache)
    assert pruned.code == 0
    assert "Removed" in pruned.out
    assert "is empty" in pruned.out
    assert not list(cache.glob("*/*.b2nd"))


def test_the_released_preset_is_described_with_the_numbers_of_the_paper_code() -> None:
    done = backend_here("describe", "--method", "smit", "--preset", "released", "--json")
    assert done.code == 0
    facts = json.loads(done.out)
    counts = facts["parameters"].values()
    assert {8763832, 7614720, 25198592} <= set(counts), facts["parameters"]
    assert (facts["mask"]["hidden_cells"], facts["mask"]["cells"]) == (152, 216)
    assert facts["deviations"]
    for deviation in facts["deviations"]:
        assert deviation.keys() == {"what", "paper", "here", "reason"}
        assert all(deviation.values())


def test_methods_are_listed_for_people_and_programs() -> None:
    cards = {card["name"]: card for card in json.loads(backend_here("methods", "--json").out)}
    assert {"released", "paper", "tiny"} <= set(cards["smit"]["presets"])
    assert all(card["clinician"] and card["engineer"] for card in cards.values())
