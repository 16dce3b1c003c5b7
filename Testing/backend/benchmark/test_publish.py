"""What is published tells of no folder, and writes over nothing but its own earlier tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_plans import write_plan

from backend.benchmark.plan import read_plan
from backend.benchmark.publish import require_free, require_no_paths
from backend.errors import UserError


@pytest.mark.parametrize(
    "text",
    [
        "scp gpu01:/home/alice/scans/x .",
        "`/home/alice/x`",
        "file:///home/alice/x",
        *(f"x {mark}/home/alice" for mark in "<{|;\N{LEFT DOUBLE QUOTATION MARK}="),
        "~alice/scans",
        "~/scans",
        "//nas/share/alice",
        "../../home/alice/x",
        r"xC:\Users\alice",
        "path:/mnt/d/e",
        r"\\nas\share",
    ],
)
def test_a_text_that_tells_of_a_folder_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(UserError, match=r"plan\.yaml, line 2: .* tells of a folder"):
        require_no_paths({"plan.yaml": f"name: x\ntext: {text}\n"})


@pytest.mark.parametrize(
    "text",
    [
        "1/8 of the scans",
        "and/or",
        "a/b/c",
        "https://zenodo.org/records/1",
        "</svg>",
        "Dice: 1/2/3",
    ],
)
def test_other_slashes_are_no_folders(text: str) -> None:
    require_no_paths({"plan.yaml": text})


def test_only_an_earlier_publication_of_the_same_plan_is_written_over(tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path, {}))
    shown = tmp_path / "shown"
    require_free(shown, plan)
    shown.mkdir()
    (shown / "plan.yaml").write_text("name: tiny\n", "utf-8")
    with pytest.raises(UserError, match=r"plan\.yaml is there without results\.csv"):
        require_free(shown, plan)
    for table in ("results", "summary", "curves", "runs"):
        (shown / f"{table}.csv").touch()
    require_free(shown, plan)
    (shown / "plan.yaml").write_text("name: another\n", "utf-8")
    with pytest.raises(UserError, match="is 'another', not 'tiny'"):
        require_free(shown, plan)
    (shown / "plan.yaml").rename(shown / "results.csv")
    with pytest.raises(UserError, match=r"results\.csv there is of no plan"):
        require_free(shown, plan)
    (shown / "locks").mkdir()
    with pytest.raises(UserError, match="is where a benchmark works"):
        require_free(shown / "runs", plan)
