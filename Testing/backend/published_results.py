"""What README says of the benchmarks whose tables are committed: every number is one of theirs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from backend.benchmark.plan import Plan, read_plan
from backend.benchmark.report import machines
from backend.benchmark.summary import METRIC_NAMES, Finding, findings, unlearnt, verdict
from backend.progress import told_time
from backend.report.words import plural

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
SHOWN_AT = "Testing/benchmarks/results"
NONE = "None has been published yet."

Row = dict[str, str]


def read_rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def published(results: Path = RESULTS) -> list[Path]:
    """The folders of benchmarks, by name."""
    return sorted(path.parent for path in results.glob("*/plan.yaml"))


def found_in(folder: Path) -> list[Finding]:
    """What the rows of every case and organ say."""
    order = dict.fromkeys(row["start"] for row in read_rows(folder / "summary.csv"))
    plan = read_plan(folder / "plan.yaml")
    return findings(read_rows(folder / "results.csv"), metric=plan.metric, order=list(order))


def readme_rows(results: Path = RESULTS) -> list[str]:
    """A section for each benchmark that compares anything."""
    sections = [section(f) for f in published(results) if any(x.against for x in found_in(f))]
    return [row for rows in sections for row in rows][:-1] or [NONE]


def section(folder: Path) -> list[str]:
    plan, at = read_plan(folder / "plan.yaml"), f"{SHOWN_AT}/{folder.name}"
    found, name = found_in(folder), METRIC_NAMES[plan.metric]
    told = [verdict(found, metric=plan.metric)[0], *unlearnt(found, name)]
    pictures = [
        f"![{name} over the number of labelled scans]({at}/{path.name})"
        for path in sorted(folder.glob("efficiency_*.svg"))
    ]
    return [
        " ".join(filter(None, (f"**{plan.name}.**", plan.text, *told))),
        "",
        *pictures,
        "",
        *table(read_rows(folder / "summary.csv"), plan),
        "",
        f"Every number is a row of [`summary.csv`]({at}/summary.csv), which is made from "
        f"[`results.csv`]({at}/results.csv), one row for each case, structure, start and seed; "
        f"plan: [`plan.yaml`]({at}/plan.yaml), {budget(plan)}. "
        f"{made_on(read_rows(folder / 'runs.csv'))}",
        "",
    ]


def budget(plan: Plan) -> str:
    pretrained = "" if plan.pretrain is None else f"{plan.pretrain.steps:,} steps of pretraining, "
    return f"{pretrained}{plan.finetune.steps:,} of fine-tuning each"


def table(summary: Sequence[Row], plan: Plan) -> list[str]:
    control = {place(row): row["mean"] for row in summary if not row["control"]}
    name = METRIC_NAMES[plan.metric]
    return [
        f"| network | labelled scans | pretrained with | {name}: random weights | pretrained | "
        "difference (95 % interval) | shown | cases, seeds |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {row['network']} | {row['labels']}{', frozen' * (row['mode'] == 'frozen')} | "
            f"{row['start']} | {level(control[place(row)])} | {level(row['mean'])} | {gain(row)} | "
            f"{row['shown']} | {row['cases']}, {row['seeds']} |"
            for row in summary
            if row["control"]
        ),
    ]


def place(row: Row) -> tuple[str, str, str]:
    """What a start and its control have in common."""
    return row["mode"], row["labels"], row["network"]


def level(cell: str) -> str:
    return f"{float(cell):.3f}"


def gain(row: Row) -> str:
    told = f"{float(row['difference']):+.3f}"
    if row["difference_low"]:
        low, high = (float(row[f"difference_{end}"]) for end in ("low", "high"))
        told += f" ({low:+.3f} to {high:+.3f})"
    return told.replace("-", "\N{MINUS SIGN}")


def made_on(runs: Sequence[Row]) -> str:
    """Time and circumstances; of a table that does not tell a commit, none is told."""
    seconds = sum(float(row["seconds"]) for row in runs)
    return f"Computed in {told_time(seconds)} ({plural(len(runs), 'run')}) on {machines(runs)}."
