from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from cli_runner import REPOSITORY, environment

from backend.data.index import read_index
from backend.errors import UserError
from backend.scan import run

SLICES = 16


def volume(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([-1.0, -1.0, 2.0, 1.0])), path)


def ct(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, (4, 5, SLICES), dtype=np.int16)


def scan_to(output: Path, *paths: Path, quick: bool = False) -> None:
    run(paths, output=output, min_slices=SLICES, quick=quick, workers=1)


def test_the_summary_tells_what_was_found_what_was_refused_and_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        volume(tmp_path / "data" / f"{i}" / "ct.nii.gz", ct(i))
        volume(tmp_path / "data" / f"{i}" / "label.nii.gz", ct(i).astype(np.uint8) % 3 + i)
    (tmp_path / "data" / "notes.json").write_text("{}")
    output = tmp_path / "out" / "index.csv"
    scan_to(output, tmp_path / "data")
    told = capsys.readouterr().out
    assert "2 usable CT series of 2 patients, 2 refused" in told
    assert "Refused, label map: 2" in told
    rows = [row for row in read_index(output) if row.verdict == "refused"]
    for row in rows:
        # The id tells those of one folder apart; no reason is cut, however long.
        line = f"{row.path.parent.name}/label.nii.gz ({row.id}, 4x5x16): {row.reason}"
        assert line in " ".join(told.split())
    assert "…" not in told
    assert all(len(line) <= 100 for line in told.splitlines() if str(output) not in line)
    assert "5 files in" in told
    assert "files/s" in told
    assert "1 file is no image (1 .json)" in told
    run_folder = output.parent / "runs" / "pretrain"
    assert f"backend pretrain --method smit --data {output} --output {run_folder}\n" in told
    assert [row.verdict for row in read_index(output)].count("usable") == 2


def test_a_second_scan_reads_nothing_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume(tmp_path / "data" / "ct.nii.gz", ct(0))
    output = tmp_path / "index.csv"
    scan_to(output, tmp_path / "data")
    first = output.read_bytes()
    scan_to(output, tmp_path / "data")
    assert ", 1 unchanged" in capsys.readouterr().out
    assert output.read_bytes() == first


def test_without_usable_ct_the_index_is_written_and_the_error_says_why(tmp_path: Path) -> None:
    volume(tmp_path / "data" / "label.nii.gz", ct(0).astype(np.uint8))
    output = tmp_path / "index.csv"
    with pytest.raises(UserError, match=r"no usable CT series\..*1 label map"):
        scan_to(output, tmp_path / "data")
    assert [row.reason_kind for row in read_index(output)] == ["label map"]


def test_impossible_paths_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        scan_to(tmp_path / "index.csv", tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a folder"):
        scan_to(tmp_path, tmp_path)
    with pytest.raises(UserError, match=r"no \.csv file"):
        scan_to(tmp_path / "index.xlsx", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 3), (signal.SIGTERM, 5)])
def test_a_signal_ends_the_scan_and_its_processes_and_writes_no_index(
    tmp_path: Path, kind: signal.Signals, code: int
) -> None:
    data = tmp_path / "data"
    volume(data / "0.nii", ct(0))
    for i in range(1, 3000):
        shutil.copy(data / "0.nii", data / f"{i}.nii")
    index = tmp_path / "i.csv"
    process = subprocess.Popen(
        [sys.executable, "-m", "backend", "scan", data, "--output", index, "--workers", "2"],
        env=environment(PYTHONPATH=str(REPOSITORY)),
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while len(children := parent.children(recursive=True)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(process.pid, kind)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in errors
    assert errors.decode().rstrip().endswith("No index was written; scan again.")
    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert list(tmp_path.iterdir()) == [data]


INTERRUPTED = """
import runpy, signal, sys
def hook(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("i.csv"):
        signal.raise_signal(signal.SIGINT)
sys.addaudithook(hook)
runpy.run_module("backend", run_name="__main__")
"""
"""The command, with a Ctrl-C at the moment in which the index gets its name."""


def test_a_stop_that_comes_while_the_index_is_written_comes_too_late(tmp_path: Path) -> None:
    volume(tmp_path / "data" / "a.nii", ct(0))
    index = tmp_path / "i.csv"
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "scan", tmp_path / "data", "--output", index],
        env=environment(PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"Index: {index}" in done.stdout
    assert len(read_index(index)) == 1
