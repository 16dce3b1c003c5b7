"""What a benchmark leaves for people: `summary.csv`, `report.html` and a few lines on screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from backend import charts
from backend.benchmark.cases import Cases
from backend.benchmark.grid import Arm, control_name, plan_key
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
from backend.charts import Curve, Efficiency
from backend.files import write_text
from backend.report import render_page
from backend.report.curves import Chart
from backend.report.words import duration_text, plural


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


def write_findings(folder: Path, given: Findings) -> Path:
    """Write `summary.csv` and `report.html` of what is finished.

    Returns:
        The path of the report.
    """
    order = list(dict.fromkeys(arm.start.entry.name for arm in given.grid))
    found = findings(given.results, metric=given.plan.metric, order=order)
    write_text(folder / "summary.csv", csv_text(COLUMNS, summary_rows(found)))
    done = {row["key"] for row in given.results}
    page = render_page(
        "benchmark.html.j2",
        plan=given.plan,
        measure=METRIC_NAMES[given.plan.metric],
        verdict=verdict(found, metric=given.plan.metric),
        unfinished=sum(arm.key not in done for arm in given.grid),
        facts=list(_facts(given)),
        efficiency=_efficiency_charts(found, given.plan),
        convergence=_convergence_charts(given.curves, order),
        tables=_tables(found),
        citations=_citations(given),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def text_of(folder: Path, given: Findings) -> str:
    """The verdict and where to read on, for a terminal."""
    order = list(dict.fromkeys(arm.start.entry.name for arm in given.grid))
    found = findings(given.results, metric=given.plan.metric, order=order)
    told = "\n".join(verdict(found, metric=given.plan.metric))
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
        yield "Computing time", f"{duration_text(seconds)} on {_machines(given.runs)}"
    yield "Key of the plan", plan_key(given.grid)


def _test_in_pretraining(given: Findings) -> str:
    if given.plan.pretrain_on_test:
        return "yes, their images without labels, as the plan asks"
    if not given.pretraining:
        return "no"
    scans, left_out = given.pretraining["scans"], len(given.pretraining["left_out"])
    return f"no; scans used: {scans}, images of test cases left out: {left_out}"


def _machines(runs: Sequence[Row]) -> str:
    told = [f"{row['device']}, backend {row['backend']}, torch {row['torch']}" for row in runs]
    return "; ".join(dict.fromkeys(told))


def _efficiency_charts(found: Sequence[Finding], plan: Plan) -> list[Chart]:
    """One for each mode and network, the control first."""

    def panel(finding: Finding) -> tuple[str, str]:
        return finding.mode, finding.network

    made = []
    for (mode, network), members in groupby(sorted(found, key=panel), key=panel):
        by_start: dict[str, list[Finding]] = {}
        for finding in members:
            by_start.setdefault(finding.start, []).append(finding)
        lines = [
            replace(_line(name, of), control=name == control_name(network))
            for name, of in by_start.items()
        ]
        svg = charts.efficiency_chart(
            lines, title=f"{network}, {mode}", measure=METRIC_NAMES[plan.metric]
        )
        made.append(Chart(Markup(svg), wide=True))
    return made


def _line(name: str, found: Sequence[Finding]) -> Efficiency:
    points = sorted(found, key=lambda finding: finding.labels)

    def column(attribute: str) -> charts.Floats:
        values = [getattr(point.mean, attribute) for point in points]
        return np.array([np.nan if v is None else v for v in values], dtype=np.float64)

    return Efficiency(
        name=name,
        labels=[point.labels for point in points],
        mean=column("mean"),
        low=column("low"),
        high=column("high"),
    )


def _convergence_charts(rows: Sequence[Row], order: Sequence[str]) -> list[Chart]:
    """Validation Dice over the steps, the mean over seeds; one chart for each number of scans."""

    def panel(row: Row) -> tuple[str, int]:
        return row["mode"], int(row["labels"])

    made = []
    for (mode, labels), of_panel in groupby(sorted(rows, key=panel), key=panel):
        points: dict[str, dict[int, list[float]]] = {}
        for row in of_panel:
            of_start = points.setdefault(row["start"], {})
            of_start.setdefault(int(row["step"]), []).append(float(row["dice"]))
        curves = [_curve(name, points[name]) for name in order if name in points]
        title = f"Dice with {plural(labels, 'labelled scan')}, {mode}"
        made.append(Chart(Markup(charts.lines_chart(curves, title=title, wide=True)), wide=True))
    return made


def _curve(name: str, points: Mapping[int, Sequence[float]]) -> Curve:
    steps = sorted(points)
    return Curve(
        name=name,
        steps=np.array(steps, dtype=np.float64),
        values=np.array([np.mean(points[step]) for step in steps]),
    )


def _tables(found: Sequence[Finding]) -> list[tuple[str, list[Finding]]]:
    return [
        (f"{plural(labels, 'labelled scan')}, {mode}", list(members))
        for (mode, labels), members in groupby(found, key=lambda f: (f.mode, f.labels))
    ]


def _citations(given: Findings) -> list[str]:
    methods = dict.fromkeys(arm.start.entry.method for arm in given.grid)
    return list(dict.fromkeys(text for method in methods for text in card(method).citations))
