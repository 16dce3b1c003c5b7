"""What a run would cost is measured, told, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import shutil
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cli_runner import (
    PRETRAIN,
    Material,
    backend_here,
    ended,
    started,
    status,
)

from backend.progress import told_time


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place for temporary files."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return place


def left(temporary: Path) -> list[Path]:
    """What we have left; PyTorch keeps a folder of its own."""
    return sorted(temporary.glob("backend-*"))


def dry(material: Material, *words: object) -> tuple[object, ...]:
    return (*PRETRAIN, "--data", material.unlabelled, "--dry-run", *words)


def test_an_estimate_agrees_with_the_run_and_leaves_nothing(
    tmp_path: Path, temporary: Path, material: Material
) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"
    done = backend_here(*dry(material, "--cache", cache, "--epochs", 2, "--json"))
    assert done.code == 0, done.err
    assert not cache.exists()
    assert left(temporary) == []
    found = json.loads(done.out)
    made = backend_here(
        *(*PRETRAIN, "--data", material.unlabelled, "--cache", cache, "--epochs", 2),
        *("--output", run),
    )
    assert made.code == 0, made.err
    kept = status(run)
    assert {k: found[k] for k in ("device", "precision", "total_steps")} == {
        k: kept[k] for k in ("device", "precision", "total_steps")
    }
    assert (found["scans"], found["steps_per_epoch"], found["steps_measured"]) == (3, 1.5, 5)
    assert f"0 held out; {found['held_out_note']}" in made.err
    assert found["training_s"] == pytest.approx(3 * found["seconds_per_step"], abs=0.06)
    # Each of the three is rounded to a tenth.
    parts = found["training_s"] + found["preparation_s"]
    assert found["total_s"] == pytest.approx(parts, abs=0.16)
    assert found["scans_to_prepare"] == 3
    # All three were prepared, so that the bytes are those that the run has written.
    written = sum(p.stat().st_size for p in cache.rglob("*.b2nd"))
    assert found["cache_bytes"] == pytest.approx(written, rel=0.05)
    assert 0 < found["memory_mb"] < found["memory_free_mb"]
    assert found["problem"] == ""
    again = backend_here(*dry(material, "--cache", cache, "--max-steps", 70, "--json"))
    found = json.loads(again.out)
    assert (found["scans_to_prepare"], found["cache_bytes"], found["preparation_s"]) == (0, 0, 0)
    assert found["total_steps"] == 70
    assert left(temporary) == []


@pytest.mark.usefixtures("temporary")
def test_what_does_not_fit_is_told_to_people_in_one_sentence(
    tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, usage = tmp_path / "small disk", shutil.disk_usage
    small.mkdir()

    def of(path: Path) -> object:
        return SimpleNamespace(free=10**8) if Path(path).is_relative_to(small) else usage(path)

    monkeypatch.setattr(shutil, "disk_usage", of)
    done = backend_here(*dry(material, "--cache", small))
    assert done.code == 0, done.err
    *rows, problem = done.out.splitlines()
    assert rows[0] == "smit tiny"
    assert [row.split()[0] for row in rows[1:]] == [
        *("Device", "Network", "Memory", "Cache", "Preparation"),
        *("Step", "Reading", "Scans", "Steps", "Checkpoints", "Training", "Total", "Suggested"),
    ]
    told = {row.split()[0]: " ".join(row.split()[1:]) for row in rows[1:]}
    few = "too few to hold one out; --set data.held_out=0.17 would"
    assert told["Scans"] == f"3 to learn from, 0 held out; {few}"
    assert re.fullmatch(r"at most .* s, for 3 scans not yet in the cache", told["Preparation"])
    assert problem.startswith("It does not fit: The cache needs")
    assert "100 MB free" in problem
    as_set = (
        "train.batch_size=2, train.accumulate=1, data.workers=1, train.precision=auto, as it is"
    )
    assert re.fullmatch(rf"{as_set} set; [\d]+ scans fit at once", told["Suggested"])
    done = backend_here(*dry(material, "--cache", material.cache, "--set", "data.held_out=0.17"))
    assert " Scans        2 to learn from, 1 held out\n" in done.out


@pytest.mark.usefixtures("temporary")
def test_what_memory_does_not_suffice_for_is_not_tried(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = dry(material, "--cache", material.cache, "--set", "train.batch_size=64")
    monkeypatch.setattr("backend.dry_run._free_mb", lambda _: 100.0)
    none = backend_here(*line)
    assert none.code == 4
    assert "and 100 MB are free; 0 would fit. Choose a smaller preset" in none.told
    needed = re.search(r"64 scans at once would take some ([\d,]+) MB", none.told)
    assert needed is not None
    monkeypatch.setattr(
        "backend.dry_run._free_mb", lambda _: 0.9 * float(needed[1].replace(",", ""))
    )
    some = backend_here(*line)
    assert some.code == 4
    # How many fit beside the program depends on what it holds by then.
    fit = re.search(r" (\d+) would fit\. Set train\.accumulate=(\d+): the same batch", some.told)
    assert fit is not None, some.told
    assert 64 // int(fit[2]) <= int(fit[1]) < 2 * 64 // int(fit[2])


@pytest.mark.usefixtures("temporary")
def test_one_of_several_processes_is_measured_with_its_share(material: Material) -> None:
    threads = torch.get_num_threads()
    line = dry(material, "--cache", material.cache, "--max-steps", 3)
    two = ("--devices", 2, "--probe-data", material.labelled)
    done = backend_here(*line, *two, "--set", "train.checkpoint_every_steps=9")
    assert done.code == 0, done.err
    told = {row.split()[0]: row for row in done.out.splitlines()[1:-1]}
    assert told["Device"].endswith(", one of 2 processes), fp32")
    assert told["Step"].endswith("; one of 2 processes, 1 of 2 scans)")
    assert told["Steps"].split()[1:3] == ["3", "(1.5"]
    assert told["Checkpoints"].endswith(" every 9 steps, else every 10 minutes")
    assert told["Total"].endswith(", without probes and the exchange between processes")
    sizes = re.findall(r"([\d,]+) MB [ao][tf]", told["Memory"])
    each, together = (int(size.replace(",", "")) for size in sizes)
    assert together == pytest.approx(2 * each, abs=1)
    assert torch.get_num_threads() == threads
    for devices, why in ((3, "cannot be divided among 3"), (0, "at least one is needed")):
        refused = backend_here(*line, "--devices", devices)
        assert (refused.code, why in refused.told) == (2, True)


def test_a_signal_ends_an_estimate_and_leaves_nothing(
    tmp_path: Path, temporary: Path, material: Material
) -> None:
    with started(*dry(material, "--cache", tmp_path / "cache")) as process:
        assert process.stderr is not None
        # It stands there before the first step; a step of this network takes a while.
        while "step 0 of" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        done = ended(process)
    assert done.code == 3, done.err
    assert "Traceback" not in done.err
    assert left(temporary) == []
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--dry-run", "--resume", "--method", "smit"), "Leave out --resume"),
        (("--json", "--method", "smit", "--output", "run"), "Add --dry-run"),
        (("--method", "smit", "--data", "index.csv"), "Add --output RUN"),
        (("--dry-run", "--method", "smit"), "Add --data"),
        (("--dry-run", "--data", "index.csv"), "Add --method"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_cure(words: tuple[str, ...], told: str) -> None:
    done = backend_here("pretrain", *words)
    assert done.code == 2
    assert told in done.told


def test_times_are_told_as_people_do() -> None:
    times = (0.04, 8.25, 59.96, 61, 3600, 3 * 3600 + 20 * 60 + 5, 50 * 3600)
    assert [told_time(t) for t in times] == [
        *("0.0 s", "8.2 s", "1 min", "1 min 1 s", "1 h", "3 h 20 min", "2 d 2 h"),
    ]


def test_scans_that_cannot_be_read_are_told_and_counted_and_others_are_tried(
    tmp_path: Path, temporary: Path, material: Material
) -> None:
    folder, index = tmp_path / "scans", tmp_path / "index.csv"
    folder.mkdir()
    for number in (1, 2, 3):
        shutil.copy(material.labelled / f"case_{number}" / "ct.nii.gz", folder / f"{number}.nii.gz")
    assert backend_here("scan", folder, "--output", index, "--quick", "--workers", 1).code == 0
    for number in (1, 2):
        file = folder / f"{number}.nii.gz"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    words = ("--dry-run", "--data", index, "--cache", tmp_path / "cache", "--max-steps", 2)
    done = backend_here(*PRETRAIN, *words, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["scans"], found["scans_left_out"]) == (1, 2)
    assert done.err.count("Left out ") == 2
    few = ("pretrain", "--method", "simclr", "--preset", "tiny", "--device", "cpu")
    refused = backend_here(*few, *words, "--set", "preprocess.spacing_mm=[6, 6, 6]")
    assert refused.code == 2
    assert "needs 2 to learn from; there is 1" in refused.told
    assert left(temporary) == []


@pytest.mark.usefixtures("temporary")
def test_what_the_run_would_refuse_is_refused_before_the_steps(material: Material) -> None:
    file = material.oblique
    done = backend_here(*dry(material, "--cache", file))
    assert (done.code, "cannot be written: Not a directory" in done.told) == (4, True)
    done = backend_here(*dry(material, "--output", material.labelled))
    assert (done.code, "exists already and is not empty" in done.told) == (2, True)


def test_a_temporary_folder_that_cannot_be_used_names_its_variable(
    tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    done = backend_here(*dry(material, "--cache", tmp_path / "cache"))
    assert (done.code, "TMPDIR" in done.told) == (4, True)
