"""The report of a run, and of the whole way: one HTML file that opens offline without a script.

A report says only what stands in the files it is given. What is missing there is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from backend import charts
from backend.charts import Curve
from backend.files import write_text
from backend.progress import told_time
from backend.report.comparison import compare, read_evaluation
from backend.report.curves import Chart, has_points, renamed
from backend.report.pictures import given_pictures
from backend.report.run_files import read_run
from backend.report.run_view import view_run
from backend.report.scan_table import ScanRow, scan_table

__all__ = ["render_page", "write_demo_report", "write_run_report"]


def write_run_report(run: Path) -> Path:
    """Write `report.html` into a run folder, from what that folder holds and nothing else.

    Returns:
        The path of the report.

    Raises:
        UserError: if `run` is no run folder or one of its files is damaged.
    """
    page = render_page("run.html.j2", run=view_run(read_run(run)))
    write_text(run / "report.html", page)
    return run / "report.html"


def write_demo_report(
    folder: Path,
    *,
    scan_rows: Sequence[ScanRow] = (),
    pretrain_run: Path | None = None,
    finetune_runs: Mapping[str, Path] | None = None,
    evaluations: Mapping[str, Path] | None = None,
    pictures: Mapping[str, Path] | None = None,
    timings: Mapping[str, float] | None = None,
) -> Path:
    """Write `report.html` of the whole way: scans, pretraining, fine-tuning, comparison, pictures.

    Args:
        folder: where to write.
        scan_rows: usable and refused series.
        pretrain_run: its run folder.
        finetune_runs: run folders by the name of the arm, e.g. "with pretraining". Names are read
            inside sentences; the order is that of the columns.
        evaluations: `evaluation.csv` (or its folder, or the JSON beside it) by the same names.
            Differences are the first arm minus the second.
        pictures: PNG files by their captions, in the order to show them.
        timings: seconds by the name of the step.

    Returns:
        The path of the report.

    Raises:
        UserError: if a given file is missing or damaged.
    """
    arms = {name: view_run(read_run(path)) for name, path in (finetune_runs or {}).items()}
    scores = {name: read_evaluation(path) for name, path in (evaluations or {}).items()}
    pretraining = view_run(read_run(pretrain_run)) if pretrain_run else None
    page = render_page(
        "demo.html.j2",
        scans=scan_table(scan_rows) if scan_rows else None,
        pretraining=pretraining,
        arms=arms,
        **_arms_chart(finetune_runs or {}),
        comparison=compare(scores) if any(scores.values()) else None,
        pictures=given_pictures(pictures or {}),
        timings=timings or {},
        longest=max((timings or {}).values(), default=0.0),
        citations=list(
            dict.fromkeys(
                text
                for view in (pretraining, *arms.values())
                if view is not None
                for text in view.citations
            )
        ),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _arms_chart(runs: Mapping[str, Path]) -> dict[str, Any]:
    """All arms over the steps: mean validation Dice, or the loss where nothing was validated."""
    recorded = {name: read_run(path).curves for name, path in runs.items()}

    def found(key: str) -> list[Curve]:
        curves = {name: of_run.get(key) for name, of_run in recorded.items()}
        return [renamed(c, name) for name, c in curves.items() if c is not None and has_points(c)]

    if dice := found("val/dice_mean"):
        text = "Mean Dice on the validation scans, which were not trained on."
        return {
            "arm_chart": Chart(Markup(charts.dice_chart(dice, None)), wide=True),
            "arm_text": text,
        }
    if losses := found("loss/total"):
        text = "Loss on the scans that are trained on (range and median); lower is better."
        svg = charts.lines_chart(losses, title="loss", wide=True)
        return {"arm_chart": Chart(Markup(svg), wide=True), "arm_text": text}
    return {"arm_chart": None, "arm_text": ""}


def render_page(template: str, **context: Any) -> str:
    """A page of the templates beside this file; `written` says when."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = told_time
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(written=written, **context)
