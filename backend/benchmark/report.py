"""What a benchmark leaves for people: `summary.csv`, `report.html` and a few lines on screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from backend.benchmark.cases import Cases
from backend.benchmark.grid import Arm, plan_key
from backend.benchmark.pictures import convergence_pictures, efficiency_pictures
from backend.benchmark.plan import Plan
from backend.benchmark.summary import (
    COLUMNS,
    METRIC_NAMES,
    Finding,
    findings,
    summary_rows,
    verdict,
)
from backend.benchmark.tables import Row, csv_text
from backend.cards import card
from backend.files import write_text
from backend.progress import told_time
from backend.report import render_page
from backend.report.curves import Chart
from backend.report.words import plural


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a report is made from.

    Attributes:
        plan: what was asked.
        grid: every arm.
        cases: the labelled scans.
        results: rows of finished arms.
        curves: the same of validation.
        runs: seconds and versions of each.
        pretraining: `scans` pretrained on and test images `left_out` of them, once that is known.
    """

    plan: Plan
    grid: Sequence[Arm]
    cases: Cases
    results: Sequence[Row]
    curves: Sequence[Row]
    runs: Sequence[Row]
    pretraining: Mapping[str, Any]


def start_names(given: Findings) -> list[str]:
    """The starts in the order of the plan, each control before those it is compared with."""
    return list(dict.fromkeys(arm.start.entry.name for arm in given.grid))


def found_in(given: Findings) -> list[Finding]:
    """What each start reached, and how it differs from its control."""
    return findings(given.results, metric=given.plan.metric, order=start_names(given))


def write_findings(folder: Path, given: Findings) -> Path:
    """Write `summary.csv` and `report.html` of what is finished.

    Returns:
        The path of the report.
    """
    order, found = start_names(given), found_in(given)
    write_text(folder / "summary.csv", csv_text(COLUMNS, summary_rows(found)))
    page = render_page(
        "benchmark.html.j2",
        plan=given.plan,
        measure=METRIC_NAMES[given.plan.metric],
        verdict=verdict(found, metric=given.plan.metric),
        unfinished=_unfinished(given),
        facts=list(_facts(given)),
        efficiency=_charts(efficiency_pictures(found, metric=given.plan.metric, order=order)),
        convergence=_charts(convergence_pictures(given.curves, order=order)),
        tables=_tables(found),
        citations=_citations(given),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _unfinished(given: Findings) -> int:
    done = {row["key"] for row in given.results}
    return sum(arm.key not in done for arm in given.grid)


def text_of(folder: Path, given: Findings) -> str:
    """The verdict and where to read on, for a terminal."""
    found = found_in(given)
    told = "\n".join(verdict(found, metric=given.plan.metric))
    if left := _unfinished(given):
        arms = len(given.grid)
        told = f"{arms - left} of {arms} arms are done; what follows is of these.\n{told}"
    return f"{told}\nTables: {folder / 'results.csv'}, {folder / 'summary.csv'}\n"


def _facts(given: Findings) -> Iterator[tuple[str, str]]:
    plan, data = given.plan, given.plan.data
    parts = [f"{len(cases)} {name}" for name, cases in given.cases.parts.items()]
    yield "Cases", ", ".join(parts)
    yield "Divided by", data.split_source
    yield "Seeds", ", ".join(map(str, plan.seeds))
    yield "Fine-tuning", f"{plural(plan.finetune.steps, 'step')} each; the last weights are judged"
    if plan.pretrain is not None:
        each = "one for each seed" if plan.pretrain.each_seed else "one for all seeds"
        yield "Pretraining", f"{plural(plan.pretrain.steps, 'step')} each, {each}"
    yield "Test cases in pretraining", _test_in_pretraining(given)
    weights = [arm.start.entry.name for arm in given.grid if arm.start.weights is not None]
    if weights:
        told = ", ".join(dict.fromkeys(weights))
        yield "Weights from outside", f"{told}: what they have seen is not known here"
    seconds = sum(float(row["seconds"]) for row in given.runs)
    if given.runs:
        yield "Computing time", f"{told_time(seconds)} on {machines(given.runs)}"
    yield "Key of the plan", plan_key(given.grid)


def _test_in_pretraining(given: Findings) -> str:
    if given.plan.pretrain_on_test:
        return "yes, their images without labels, as the plan asks"
    if not given.pretraining:
        return "no"
    scans, left_out = given.pretraining["scans"], len(given.pretraining["left_out"])
    return f"no; scans used: {scans}, images of test cases left out: {left_out}"


def machines(runs: Sequence[Row]) -> str:
    """What runs were made on, each kind once."""
    return "; ".join(dict.fromkeys(map(_machine, runs)))


def _machine(run: Row) -> str:
    """What a run was made on; a row of an older table lacks some of it."""
    parts = (
        run["device"],
        run["processor"],
        f"backend {run['backend']}",
        f"torch {run['torch']}",
        f"commit {run['commit']}" if run["commit"] else "",
    )
    return ", ".join(filter(None, parts))


def _charts(pictures: Mapping[str, str]) -> list[Chart]:
    return [Chart(Markup(svg), wide=True) for svg in pictures.values()]


def _tables(found: Sequence[Finding]) -> list[tuple[str, list[Finding]]]:
    return [
        (f"{plural(labels, 'labelled scan')}, {mode}", list(members))
        for (mode, labels), members in groupby(found, key=lambda f: (f.mode, f.labels))
    ]


def _citations(given: Findings) -> list[str]:
    methods = dict.fromkeys(arm.start.entry.method for arm in given.grid)
    return list(dict.fromkeys(text for method in methods for text in card(method).citations))
