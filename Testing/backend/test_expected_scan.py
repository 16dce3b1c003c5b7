"""Every series of a folder of real scans gets the verdict that was written down beforehand.

The rows of `expected_scan.csv` come from the data's own manifest and from reading the raw headers,
not from the scan. `SSL_TEST_DATA` names the folder; zipped DICOM is unpacked beside its archive.
"""

from __future__ import annotations

import csv
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from backend.data.scan import scan
from backend.data.series import SeriesRow

EXPECTED = Path(__file__).with_name("expected_scan.csv")
BESIDE_REPOSITORY = Path(__file__).resolve().parents[3] / "shared" / "data"


def data_folder() -> Path:
    named = os.environ.get("SSL_TEST_DATA")
    folder = Path(named) if named else BESIDE_REPOSITORY
    return folder / "open" if (folder / "open").is_dir() else folder


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = data_folder()
    if not source.is_dir():
        pytest.skip(f"no scans in {source}: name their folder with SSL_TEST_DATA")
    target = tmp_path_factory.mktemp("scans") / "open"
    shutil.copytree(source, target)
    for archive in target.rglob("dicom.zip"):
        with zipfile.ZipFile(archive) as content:
            content.extractall(archive.parent)
    return target


def key(row: SeriesRow, root: Path) -> tuple[str, str]:
    """Where a series lies and, for DICOM, its orientation, as a folder may hold several."""
    return row.path.relative_to(root).as_posix(), row.orientation if row.format == "DICOM" else ""


def close(shown: str, spacing_zyx: tuple[float, ...] | None) -> bool:
    wanted = [float(v) for v in shown.split("x")]
    return spacing_zyx is not None and all(
        abs(a - b) <= 6e-4 for a, b in zip(wanted, reversed(spacing_zyx), strict=True)
    )


@pytest.mark.slow
def test_every_series_of_the_real_scans_gets_the_row_that_was_written_down(
    unpacked: Path,
) -> None:
    with EXPECTED.open(encoding="utf-8", newline="") as stream:
        expected = {(r["path"], r["series"]): r for r in csv.DictReader(stream)}
    root = unpacked.resolve()
    found = {key(row, root): row for row in scan([unpacked]).rows}

    assert set(found) == set(expected)
    wrong = []
    for place, want in expected.items():
        row = found[place]
        size = "x".join(str(n) for n in reversed(row.size or ()))
        fits = row.verdict == want["verdict"] and want["reason"] in row.reason
        fits &= (want["reason"] == "") == (row.reason == "")
        fits &= size == want["size"]
        fits &= not want["spacing"] or close(want["spacing"], row.spacing_mm)
        if not fits:
            wrong.append((want, row))
    assert wrong == []
