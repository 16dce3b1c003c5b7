"""A benchmark that was run again, beside its committed tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from beside_published import beside

SUMMARY = """mode,labels,network,start,mean,shown
end to end,1,swin,random swin,0.4,
end to end,1,swin,SMIT,0.5,yes
"""
RUNS = "processor,threads,torch,backend\nA,1,2.13.0,0.1.0\n"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    here, committed = tmp_path / "here", tmp_path / "committed"
    here.mkdir()
    (here / "summary.csv").write_text(SUMMARY)
    (here / "runs.csv").write_text(RUNS)
    (here / "results.csv").write_text("dice\n0.4\n")
    shutil.copytree(here, committed)
    return here, committed


def test_the_same_numbers_are_told_as_such(folders: tuple[Path, Path]) -> None:
    told, fits = beside(*folders)
    assert fits
    assert (
        told[1] == "end to end, 1, swin, SMIT: 0.5000, committed 0.5000; difference shown: yes, yes"
    )
    assert told[-1] == "Every number is the committed one."


@pytest.mark.parametrize(("processor", "shown", "fits"), [
    ("A", "yes", False), ("B", "yes", True), ("B", "no", False),
])  # fmt: skip
def test_other_numbers_need_another_processor_and_may_not_show_other_differences(
    processor: str, shown: str, fits: bool, folders: tuple[Path, Path]
) -> None:
    here, _ = folders
    (here / "results.csv").write_text("dice\n0.41\n")
    (here / "runs.csv").write_text(RUNS.replace("A,", f"{processor},"))
    (here / "summary.csv").write_text(SUMMARY.replace("0.5,yes", f"0.51,{shown}"))
    assert beside(*folders)[1] == fits


def test_another_plan_is_told(folders: tuple[Path, Path]) -> None:
    here, _ = folders
    (here / "summary.csv").write_text(SUMMARY.replace("SMIT", "PGL"))
    assert beside(*folders) == (["They do not answer the same questions."], False)
