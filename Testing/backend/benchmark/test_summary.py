"""From rows to findings and words: organs within cases, pairs within networks, no more claimed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from benchmark_plans import result_row

from backend.benchmark.summary import COLUMNS, findings, scores_of, summary_rows, verdict
from backend.benchmark.tables import RESULTS, RUNS, Table

ORDER = ("random swin", "random vit", "SMIT", "MIP", "GL-MAE")
NETWORK = {"SMIT": "swin", "MIP": "swin", "GL-MAE": "vit"}


def _row(start: str, case: str, seed: int, dice: float, **more: str) -> dict[str, str]:
    network = NETWORK.get(start, start.split()[-1])
    told = {"start": start, "network": network, "case": case, "seed": str(seed), "dice": str(dice)}
    return result_row(**told, **more)


def _rows(shifts: Mapping[str, float], *, seeds: int = 3, cases: int = 10) -> list[dict[str, str]]:
    """Every start on the same cases, better by its shift, with a little chance of its own."""
    rng = np.random.default_rng(0)
    own = rng.normal(0.6, 0.05, cases)
    return [
        _row(start, f"c{k}", seed, own[k] + shift + rng.normal(0, 0.01))
        for start, shift in shifts.items()
        for seed in range(seeds)
        for k in range(cases)
    ]


def test_a_case_is_the_mean_over_the_organs_that_its_reference_has() -> None:
    rows = [
        _row("SMIT", "a", 0, 0.8),
        _row("SMIT", "a", 0, 0.0, organ="spleen", value="2", status="missed"),
        _row("SMIT", "a", 0, 0.0, organ="aorta", value="3", status="false_positive"),
        _row("SMIT", "a", 0, 0.0, organ="gland", value="4", status="absent"),
        _row("SMIT", "a", 0, 0.99, organ="background", value="0"),
        _row("SMIT", "b", 1, 0.5),
    ]
    assert scores_of(rows, "dice") == {("a", 0): 0.4, ("b", 1): 0.5}


def test_each_start_is_compared_with_the_control_of_its_own_network() -> None:
    shifts = {"random swin": 0.0, "random vit": -0.2, "SMIT": 0.1, "MIP": 0.0, "GL-MAE": -0.2}
    found = findings(_rows(shifts), metric="dice", order=ORDER)
    assert [f.start for f in found] == list(ORDER)
    against = {f.start: f.against.mean for f in found if f.against is not None}
    assert against == pytest.approx({"SMIT": 0.1, "MIP": 0.0, "GL-MAE": 0.0}, abs=0.01)
    assert {f.comparisons for f in found if f.against is not None} == {3}
    assert {f.start for f in found if f.shown} == {"SMIT"}
    rows = summary_rows(found)
    assert all(list(row) == list(COLUMNS) for row in rows)
    assert [row["control"] for row in rows] == ["", "", "random swin", "random swin", "random vit"]


def test_the_words_claim_what_is_shown_and_nothing_else() -> None:
    shifts = {"random swin": 0.0, "SMIT": 0.1, "MIP": 0.0}
    found = findings(_rows(shifts), metric="dice", order=ORDER)
    in_all, better, basis = verdict(found, metric="dice")
    assert in_all.startswith("Of 2 comparisons")
    assert "1 show a gain and 0 a loss; no difference is shown in 1." in in_all
    assert better.startswith("With 5 labelled scans: SMIT is better than random swin by 0.")
    assert "no difference shown for MIP" in better
    assert "paired over 10 cases and 3 seeds" in basis
    assert "Holm's correction for the 2 comparisons with the same number of" in basis
    lost = {"random swin": 0.0, "SMIT": -0.1}
    _, worse, _ = verdict(findings(_rows(lost), metric="dice", order=ORDER), metric="dice")
    assert "SMIT is worse than random swin by 0." in worse
    once = findings(_rows(shifts, seeds=1), metric="dice", order=ORDER)
    told = " ".join(verdict(once, metric="dice"))
    assert told.startswith("No difference shown in 2 comparisons")
    assert "better" not in told
    assert "nothing can be shown" in told
    few = verdict(findings(_rows(shifts, cases=5), metric="dice", order=ORDER), metric="dice")
    assert "better" not in " ".join(few)
    assert few[-1].endswith(
        "Fewer than 6 cases can show no difference, however large: name more under data.test."
    )


def test_the_words_round_what_the_table_says() -> None:
    rows = [
        _row(start, f"c{k}", seed, dice)
        for start, dice in (("random swin", 0.5), ("SMIT", 0.60046))
        for seed in range(2)
        for k in range(8)
    ]
    found = findings(rows, metric="dice", order=ORDER)
    assert summary_rows(found)[1]["difference"] == "0.1005"
    told = verdict(found, metric="dice")[1]
    # The value itself, 0.10046, would be 0.100.
    assert "by 0.101 Dice (95 % interval +0.101 to +0.101)" in told


def test_a_start_that_has_learnt_nothing_is_not_told_as_one_that_does_not_differ() -> None:
    shifts = {"random swin": -0.6, "SMIT": -0.55}
    rows = _rows(shifts) + [_row(s, "c", 0, 0.3, labels="9") for s in shifts]
    _, unlearnt, *_ = verdict(findings(rows, metric="dice", order=ORDER), metric="dice")
    assert unlearnt.startswith(
        "Hardly anything is learnt by swin (with 5): from whatever weights, "
    )
    assert unlearnt.endswith("More steps of fine-tuning are needed.")
    learnt = verdict(
        findings(_rows(dict.fromkeys(shifts, 0.0)), metric="dice", order=ORDER), metric="dice"
    )
    assert "Hardly anything" not in " ".join(learnt)


def test_seeds_that_a_start_has_not_finished_are_in_no_pair() -> None:
    rows = _rows({"random swin": 0.0, "SMIT": 0.1})
    unfinished = [row for row in rows if row["start"] != "SMIT" or row["seed"] != "2"]
    control, smit = findings(unfinished, metric="dice", order=ORDER)
    assert control.mean.seeds == 3
    assert smit.against is not None
    assert smit.against.seeds == 2
    alone = findings([r for r in rows if r["start"] == "SMIT"], metric="dice", order=ORDER)
    assert alone[0].against is None
    assert verdict(alone, metric="dice")[0].startswith("Nothing is compared:")


def test_a_table_is_the_same_in_whatever_order_its_arms_come(tmp_path: Path) -> None:
    first, second = Table(tmp_path / "a.csv", RESULTS), Table(tmp_path / "b.csv", RESULTS)
    x, y = "0" * 12, "1" * 12
    arms = {x: [_row("SMIT", "c10", 0, 0.5), _row("SMIT", "c9", 0, 0.5, labels="10")],
            y: [_row("MIP", "c1", 0, 0.25)]}  # fmt: skip
    for key in (x, y):
        first.put(key, arms[key])
    for key in (y, x, y):
        second.put(key, arms[key])
    assert first.path.read_bytes() == second.path.read_bytes()
    assert [(row["start"], row["labels"]) for row in first.rows()] == [
        ("MIP", "5"),
        ("SMIT", "5"),
        ("SMIT", "10"),
    ]
    assert [row["key"] for row in first.rows()] == [y, x, x]
    # What was done again takes the place of what was there.
    first.put(x, [_row("SMIT", "c10", 0, 0.75)])
    assert [row["dice"] for row in first.rows()] == ["0.25", "0.75"]


def test_an_older_table_goes_on_with_empty_cells_for_what_it_does_not_tell(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    x, y = "0" * 12, "1" * 12
    path.write_text(f"run,kind,seconds,device,backend,torch,key\na,arm,1,cpu,0,2,{x}\n")
    run = {"run": "b", "kind": "arm", "seconds": 2, "device": "cpu", "backend": "0", "torch": "2"}
    Table(path, RUNS).put(y, [{**run, "threads": 1, "commit": "abc"}])
    assert path.read_text().splitlines() == [
        "run,kind,seconds,device,processor,threads,backend,torch,commit,key",
        f"a,arm,1,cpu,,,0,2,,{x}",
        f"b,arm,2,cpu,,1,0,2,abc,{y}",
    ]
