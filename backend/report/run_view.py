"""What a page says about one run: recorded facts and numbers, put into words."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from backend.cards import card
from backend.charts import Curve
from backend.errors import UserError
from backend.progress import told_time
from backend.report.curves import ChartGroup, chart_groups, final_dice, has_points, last_best
from backend.report.pictures import Pictures, choose_pictures
from backend.report.run_files import RunFiles
from backend.report.scan_table import ScanTable, index_table
from backend.report.words import number_text, plural

MAX_LISTED = 20
"""Longer lists in the configuration are told by their length."""


@dataclass(frozen=True)
class Figure:
    """A key figure: what, how much, and a remark."""

    label: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Command:
    """What one may do next."""

    purpose: str
    line: str


@dataclass(frozen=True)
class RunView:
    """A run, ready to be shown."""

    title: str
    kind: str
    state: str
    lead: str
    warning: str
    error: Mapping[str, str] | None
    notes: Sequence[str]
    figures: Sequence[Figure]
    facts: Sequence[tuple[str, str]]
    groups: Sequence[ChartGroup]
    final_dice: Sequence[tuple[str, float, float, int]]
    pictures: Pictures
    scans: ScanTable | None
    commands: Sequence[Command]
    config: str
    citations: Sequence[str]


def view_run(run: RunFiles) -> RunView:
    """Everything a page says about one run."""
    kind, method = _kind(run), _method_name(run)
    names = {"pretrain": "Pretraining", "finetune": "Fine-tuning"}
    preset = str(run.find("preset") or "")
    return RunView(
        title=" · ".join(part for part in (method, preset) if part) or run.path.name,
        kind=names.get(kind, kind.capitalize()),
        state=str(run.status.get("state") or "unknown"),
        lead=_lead(run),
        warning=str(run.status.get("warning") or ""),
        error=_error(run),
        notes=_notes(run),
        figures=_figures(run),
        facts=_facts(run),
        groups=chart_groups(run.curves, answers=_answers(run)),
        final_dice=final_dice(run.curves),
        pictures=choose_pictures(run.path / "previews"),
        scans=index_table(run.path / "index.csv"),
        commands=next_commands(run, kind),
        config=json.dumps(_without_long_lists(run.config), indent=2, ensure_ascii=False),
        citations=_citations(run, method),
    )


def _lead(run: RunFiles) -> str:
    """One sentence of what was done, of recorded numbers only."""
    words = []
    if scans := _count(run, "training", "scans", "cases"):
        words.append(f"on {plural(scans, 'scan')}")
    if (step := run.status.get("step")) is not None:
        words.append(f"for {plural(int(step), 'step')}")
    if (seconds := _seconds(run)) is not None:
        words.append(f"in {told_time(seconds)}")
    if device := run.find("device_name", "device"):
        words.append(f"on {device}")
    return f"Trained {' '.join(words)}." if words else ""


def _error(run: RunFiles) -> Mapping[str, str] | None:
    error = run.status.get("error")
    if not isinstance(error, Mapping):
        return None
    return {key: str(error.get(key) or "") for key in ("type", "message", "hint")}


def _notes(run: RunFiles) -> list[str]:
    """What a reader must know before trusting the curves."""
    notes = []
    if run.broken_lines:
        lines = plural(run.broken_lines, "line")
        notes.append(f"{lines} of metrics.jsonl could not be read and are missing in the curves.")
    for key, curve in run.curves.items():
        bad = np.flatnonzero(~np.isfinite(curve.values))
        if len(bad):
            first = int(curve.steps[bad[0]])
            notes.append(f"{key} was not finite in {plural(len(bad), 'record')}, first at step "
                         f"{first:,}; these are left out of its curve.")  # fmt: skip
    if not run.curves:
        notes.append("No metrics were recorded yet.")
    state = run.status.get("state")
    if state in ("queued", "running"):
        notes.append("Written while the run was going on.")
    return notes


def _figures(run: RunFiles) -> list[Figure]:
    figures = []
    step, total = run.status.get("step"), run.status.get("total_steps")
    if step is not None:
        figures.append(Figure("Steps", f"{step:,}", f"of {total:,}" if total else ""))
    if (seconds := _seconds(run)) is not None:
        figures.append(Figure("Time", told_time(seconds)))
    # A curve without any finite value is told among the notes.
    curves = {key: curve for key, curve in run.curves.items() if has_points(curve)}
    if (mean := curves.get("val/dice_mean")) is not None:
        best = last_best(mean.values)
        remark = f"mean, at step {mean.steps[best]:,.0f}"
        figures.append(Figure("Best validation Dice", f"{mean.values[best]:.3f}", remark))
    if (probe := curves.get("probe/linear")) is not None:
        best = last_best(probe.values)
        remark = f"at step {probe.steps[best]:,.0f}; {probe.values[0]:.3f} at the start"
        figures.append(Figure("Best linear probe", f"{probe.values[best]:.3f}", remark))
    if (loss := curves.get("loss/total")) is not None:
        first, last = _ends(loss)
        start = number_text(first)
        remark = f"larger than at the start: {start}" if last > first else f"from {start}"
        figures.append(Figure("Loss", number_text(last), remark))
    if (speed := curves.get("volumes_per_s")) is not None:
        median = number_text(float(np.nanmedian(speed.values)))
        figures.append(Figure("Speed", median, "volumes per second, median"))
    if (memory := curves.get("memory_mb")) is not None:
        most = f"{np.nanmax(memory.values):,.0f} MB"
        figures.append(Figure("Memory", most, "highest recorded, of one process"))
    return figures


def _ends(curve: Curve) -> tuple[float, float]:
    """Median of the first and of the last twentieth of a curve."""
    values = curve.values[np.isfinite(curve.values)]
    part = max(1, len(values) // 20)
    return float(np.median(values[:part])), float(np.median(values[-part:]))


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    """Recorded facts by name; what is not recorded is not listed."""
    facts: list[tuple[str, str]] = []
    for label, names in (
        ("Method", ("method",)), ("Preset", ("preset",)), ("Initialised from", ("init",)),
        ("Scans", ("scans",)), ("Refused", ("refused",)), ("Device", ("device_name", "device")),
        ("Precision", ("precision",)), ("Processes", ("world_size", "devices")),
        ("Host", ("host",)), ("Seed", ("seed",)), ("Started", ("started",)),
    ):  # fmt: skip
        value: object = run.find(*names)
        if label == "Method":
            value = _method_name(run)
        elif isinstance(value, Mapping):
            value = ", ".join(f"{v} {str(k).replace('_', ' ')}" for k, v in value.items())
        elif isinstance(value, list):
            value = len(value)
        elif label == "Started" and (moment := _moment(value)) is not None:
            value = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
        if isinstance(value, str | int | float) and value != "":
            facts.append((label, str(value)))
    versions = run.find("versions")
    if isinstance(versions, Mapping):
        facts.append(("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return facts


def _without_long_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_long_lists(item) for key, item in value.items()}
    if isinstance(value, list):
        if len(value) > MAX_LISTED:
            return f"{len(value)} entries, see config.json"
        return [_without_long_lists(item) for item in value]
    return value


def _citations(run: RunFiles, method: str) -> list[str]:
    recorded = run.find("citations", "papers")
    if isinstance(recorded, list) and recorded:
        return [str(text) for text in recorded]
    try:
        return list(card(method).citations)
    except UserError:
        return []


def next_commands(run: RunFiles, kind: str) -> list[Command]:
    """How to go on from here, as lines for a shell."""
    folder = shlex.quote(str(run.path))
    if run.status.get("state") in ("failed", "cancelled", "interrupted"):
        argv = [str(part) for part in run.status.get("argv") or []]
        if kind not in argv:
            return []
        rest = argv[argv.index(kind) :]
        line = shlex.join(["backend", *rest, *([] if "--resume" in rest else ["--resume"])])
        return [Command("Go on where the run stopped", line)]
    if kind == "pretrain":
        return [
            Command("Fine-tune on your labelled scans",
                    f"backend finetune --data LABELLED --init {folder} --output FINETUNED"),
            Command("The same network without this pretraining, to see what it brings; give both "
                    "the same --max-steps or --epochs", _from_scratch(run)),
        ]  # fmt: skip
    return [
        Command("Segment new scans",
                f"backend segment --model {folder} --input SCANS --output SEGMENTATIONS"),
        Command("Compare with reference segmentations",
                "backend evaluate --prediction SEGMENTATIONS --reference REFERENCE"),
    ]  # fmt: skip


def _from_scratch(run: RunFiles) -> str:
    """Without weights to tell, method and preset have to be named: else it is another network."""
    chosen = {"--method": _method_name(run), "--preset": str(run.find("preset") or "")}
    words = [word for name, value in chosen.items() if value for word in (name, value)]
    words = ["--data", "LABELLED", *words, "--init", "none", "--output", "FROM_SCRATCH"]
    return shlex.join(["backend", "finetune", *words])


def _method_name(run: RunFiles) -> str:
    method = run.find("method")
    name = method.get("name", "") if isinstance(method, Mapping) else method
    return str(name or "")


def _kind(run: RunFiles) -> str:
    kind = str(run.find("kind") or "")
    if kind:
        return kind
    return "finetune" if any(key.startswith("val/") for key in run.curves) else "pretrain"


def _answers(run: RunFiles) -> int | None:
    """Among how many answers a teacher spreads its own, if the method's settings tell."""
    method = run.find("method")
    for part, size in (("head", "prototypes"), ("projector", "output")):
        settings = method.get(part) if isinstance(method, Mapping) else None
        count = settings.get(size) if isinstance(settings, Mapping) else None
        if isinstance(count, int) and count > 1:
            return count
    return None


def _count(run: RunFiles, *names: str) -> int | None:
    """A number of things that is recorded as such, or as the list of them."""
    for name in names:
        value = run.find(name)
        if isinstance(value, list):
            return len(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _seconds(run: RunFiles) -> float | None:
    """Training time as recorded with the metrics, else from start to last heartbeat."""
    started, updated = _moment(run.status.get("started")), _moment(run.status.get("updated"))
    if run.seconds is not None or started is None or updated is None:
        return run.seconds
    return max(0.0, updated - started)


def _moment(value: object) -> float | None:
    """Seconds since 1970 of a number or of an ISO 8601 text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None
