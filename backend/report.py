"""The report of a run, and of the whole way: one HTML file that opens offline and needs no script.

A report says only what stands in the run's files. What is missing there is left out of the page.
"""

from __future__ import annotations

import base64
import csv
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from backend import charts
from backend.charts import Curve, Scores
from backend.errors import UserError
from backend.previews import atomic_path

PICTURE_BUDGET_BYTES = 4_000_000
"""PNG bytes put into one report; base64 makes a third more of them."""

MAX_TABLE_ROWS = 200
MAX_LISTED = 20
"""Longer lists in the configuration are told by their length."""

SMALL_DICE = 0.01
"""Differences of the mean Dice below this are called practically none: experts who draw the same
organ twice differ by more."""

FEWEST_CASES = 6
"""With fewer pairs not even a unanimous result is rarer by chance than 1 in 20 (sign test)."""

_CITATIONS = {
    "smit": "Jiang J, Tyagi N, Tringale K, Crane C, Veeraraghavan H. Self-supervised 3D anatomy "
    "segmentation using self-distilled masked image transformer (SMIT). MICCAI 2022.",
    "glmae": "Advancing Volumetric Medical Image Segmentation via Global-Local Masked Autoencoder "
    "(GL-MAE). arXiv:2306.08913.",
    "pgl": "PGL: Prior-Guided Local Self-supervised Learning for 3D Medical Image Segmentation. "
    "arXiv:2011.12640.",
}

_TIMES = "\N{MULTIPLICATION SIGN}"

_NO_CURVE = frozenset({"step", "epoch", "time_s"})

_HINTS = {
    "entropy": "How evenly the teacher spreads its answers. Healthy: settles between 0 and its "
    "ceiling, the logarithm of the number of possible answers. At 0 it gives everything the same "
    "answer (collapse); at the ceiling it tells nothing apart.",
    "feature_std": "How much the features of different crops differ. Healthy: stays clearly above "
    "0. A fall to 0 is a collapse: every crop looks the same to the network.",
    "centre_norm": "Size of the running mean that is taken off the teacher's answers. Healthy: "
    "changes early, then levels off. Growth without end means that one answer takes over.",
    "grad_norm": "Size of the gradient. Healthy: stays within a band; lasting growth announces "
    "that the training diverges.",
}


class ScanRow(Protocol):
    """One series of an index, usable or refused: `backend.data.index.SeriesRow` is one."""

    @property
    def id(self) -> str: ...  # noqa: D102 - as in the index
    @property
    def format(self) -> str: ...  # noqa: D102
    @property
    def size(self) -> tuple[int, int, int] | None: ...  # noqa: D102
    @property
    def spacing_mm(self) -> tuple[float, float, float] | None: ...  # noqa: D102
    @property
    def orientation(self) -> str: ...  # noqa: D102
    @property
    def verdict(self) -> str: ...  # noqa: D102
    @property
    def reason(self) -> str: ...  # noqa: D102


# --- reading a run folder -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run folder holds, as far as it is there."""

    path: Path
    config: Mapping[str, Any]
    status: Mapping[str, Any]
    curves: Mapping[str, Curve]
    seconds: float | None
    broken_lines: int

    def find(self, *names: str) -> Any:
        """The first value under one of these keys, at any depth, status before configuration."""
        return _find([self.status, self.config], names)


def read_run(run: Path) -> RunFiles:
    """Read status, configuration and metrics of a run folder; each of them may be missing.

    Raises:
        UserError: if the folder is not there or holds neither status.json nor config.json.
    """
    config, status = _read_json(run / "config.json"), _read_json(run / "status.json")
    if not config and not status:
        raise UserError(
            f"{run} is no run folder: it has neither status.json nor config.json.",
            "Give the --output folder of a pretraining or fine-tuning.",
        )
    records, broken = read_metrics(run / "metrics.jsonl")
    times = [r["time_s"] for r in records if _is_number(r.get("time_s"))]
    return RunFiles(
        path=run, config=config, status=status, curves=curves_of(records),
        seconds=float(max(times)) if times else None, broken_lines=broken,
    )  # fmt: skip


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON ({error}).", "Restore the file.") from None
    return values if isinstance(values, dict) else {}


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a metrics.jsonl, and how many lines before the last could not be read.

    A last line that is torn is a write in progress and is not counted.
    """
    if not path.is_file():
        return [], 0
    records: list[dict[str, Any]] = []
    broken = 0
    lines = [line for line in path.read_text("utf-8", errors="replace").splitlines() if line]
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            broken += number < len(lines)
            continue
        if isinstance(record, dict) and _is_number(record.get("step")):
            records.append(record)
        else:
            broken += 1
    return records, broken


def curves_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Every recorded number over the steps, by its key, in the order of first appearance."""
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for key, value in record.items():
            if key not in _NO_CURVE and _is_number(value):
                points.setdefault(key, []).append((float(record["step"]), float(value)))
    result = {}
    for key, pairs in points.items():
        steps, values = np.array(sorted(pairs, key=lambda pair: pair[0])).T
        result[key] = Curve(name=key, steps=steps, values=values)
    return result


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _find(trees: Sequence[Any], names: Sequence[str]) -> Any:
    level = [tree for tree in trees if isinstance(tree, Mapping)]
    while level:
        for name in names:
            for tree in level:
                if tree.get(name) not in (None, ""):
                    return tree[name]
        level = [v for tree in level for v in tree.values() if isinstance(v, Mapping)]
    return None


# --- words and numbers ----------------------------------------------------------------------------


def duration_text(seconds: float) -> str:
    """Seconds as people say them: "8.2 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def number_text(value: float) -> str:
    """Three or four telling digits."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def _method_name(run: RunFiles) -> str:
    method = run.find("method")
    name = method.get("name", "") if isinstance(method, Mapping) else method
    return str(name or "")


def _kind(run: RunFiles) -> str:
    kind = str(run.find("kind") or "")
    if kind:
        return kind
    return "finetune" if any(key.startswith("val/") for key in run.curves) else "pretrain"


def _count(run: RunFiles, *names: str) -> int | None:
    """A number of things that is recorded as such, or as the list of them."""
    for name in names:
        value = run.find(name)
        if isinstance(value, list):
            return len(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _wall_seconds(run: RunFiles) -> float | None:
    """From start to last heartbeat, else the time in the metrics."""
    ends = [_moment(run.status.get(key)) for key in ("started", "updated")]
    if ends[0] is not None and ends[1] is not None and ends[1] >= ends[0]:
        return ends[1] - ends[0]
    return run.seconds


def _moment(value: object) -> float | None:
    """Seconds since 1970 of a number or of an ISO 8601 text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None


# --- what a page shows ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A key figure: what, how much, and a remark."""

    label: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart with the sentence under it."""

    svg: Markup
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class ChartGroup:
    """Charts that belong together."""

    title: str
    text: str
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page."""

    source: str
    caption: str


@dataclass(frozen=True)
class Pictures:
    """The chosen pictures, the newest first, and how many more there are."""

    shown: Sequence[Picture]
    left_out: int


@dataclass(frozen=True)
class Command:
    """What one may do next."""

    purpose: str
    line: str


@dataclass(frozen=True)
class ScanLine:
    """One series in the table."""

    id: str
    format: str
    size: str
    spacing: str
    orientation: str
    usable: bool
    reason: str


@dataclass(frozen=True)
class ScanTable:
    """Usable and refused series, cut to a readable length."""

    usable: Sequence[ScanLine]
    refused: Sequence[ScanLine]
    usable_count: int
    refused_count: int
    reasons: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class RunView:
    """A run, ready to be shown."""

    title: str
    kind: str
    state: str
    lead: str
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
        error=_error(run),
        notes=_notes(run),
        figures=_figures(run),
        facts=_facts(run),
        groups=chart_groups(run.curves),
        final_dice=_final_dice(run.curves),
        pictures=choose_pictures(run.path / "previews"),
        scans=_index_table(run.path / "index.csv"),
        commands=next_commands(run, kind),
        config=json.dumps(_without_long_lists(run.config), indent=2, ensure_ascii=False),
        citations=_citations(run, method),
    )


def _lead(run: RunFiles) -> str:
    """One sentence of what was done, of recorded numbers only."""
    words = []
    if scans := _count(run, "scans", "cases", "usable", "training", "train"):
        words.append(f"on {_plural(scans, 'scan')}")
    if (step := run.status.get("step")) is not None:
        words.append(f"for {_plural(int(step), 'step')}")
    if (seconds := _wall_seconds(run)) is not None:
        words.append(f"in {duration_text(seconds)}")
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
        lines = _plural(run.broken_lines, "line")
        notes.append(f"{lines} of metrics.jsonl could not be read and are missing in the curves.")
    for key, curve in run.curves.items():
        bad = np.flatnonzero(~np.isfinite(curve.values))
        if len(bad):
            first = int(curve.steps[bad[0]])
            notes.append(f"{key} was not finite in {_plural(len(bad), 'record')}, first at step "
                         f"{first:,}; these are gaps in its curve.")  # fmt: skip
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
    if (seconds := _wall_seconds(run)) is not None:
        figures.append(Figure("Time", duration_text(seconds)))
    if (mean := run.curves.get("val/dice_mean")) is not None and np.isfinite(mean.values).any():
        best = int(np.nanargmax(mean.values))
        figures.append(
            Figure("Best validation Dice", f"{mean.values[best]:.3f}",
                   f"mean, at step {mean.steps[best]:,.0f}")
        )  # fmt: skip
    if (loss := run.curves.get("loss/total")) is not None and np.isfinite(loss.values).any():
        first, last = _ends(loss)
        figures.append(Figure("Loss", number_text(last), f"from {number_text(first)}"))
    if (speed := run.curves.get("volumes_per_s")) is not None:
        figures.append(Figure("Speed", number_text(float(np.nanmedian(speed.values))),
                              "volumes per second, median"))  # fmt: skip
    if (memory := run.curves.get("memory_mb")) is not None:
        figures.append(Figure("Memory", f"{np.nanmax(memory.values):,.0f} MB", "highest recorded"))
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
        ("Scans", ("scans", "cases", "usable")), ("Training", ("training", "train")),
        ("Validation", ("validation",)), ("Refused", ("refused",)),
        ("Device", ("device_name", "device")), ("Processes", ("world_size", "devices")),
        ("Host", ("host",)), ("Seed", ("seed",)), ("Started", ("started",)),
    ):  # fmt: skip
        value: object = run.find(*names)
        if label == "Method":
            value = _method_name(run)
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
    known = _CITATIONS.get(method) or _CITATIONS.get(method.split("_")[0])
    return [known] if known else []


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
            Command("The same without this pretraining, to see what it brings",
                    "backend finetune --data LABELLED --init none --output FROM_SCRATCH"),
        ]  # fmt: skip
    return [
        Command("Segment new scans",
                f"backend segment --model {folder} --input SCANS --output SEGMENTATIONS"),
        Command("Compare with reference segmentations",
                "backend evaluate --prediction SEGMENTATIONS --reference REFERENCE"),
    ]  # fmt: skip


# --- charts of a run ------------------------------------------------------------------------------


def chart_groups(curves: Mapping[str, Curve]) -> list[ChartGroup]:
    """Charts of all recorded quantities, grouped by the prefix of their keys."""
    groups = [_loss_group(curves), _validation_group(curves), _monitor_group(curves)]
    known = {"loss", "val", "monitor"}
    rest = {key: c for key, c in curves.items() if key.split("/")[0] not in known}
    machine = {k: c for k, c in rest.items() if k.endswith("_per_s") or "memory" in k}
    named = {k: c for k, c in rest.items() if "/" in k and not _is_schedule(k)}
    schedules = {k: c for k, c in rest.items() if k not in machine and k not in named}
    groups.append(
        _joined_group("Schedules", "What was set for each step, as it was used.", schedules)
    )
    for prefix in dict.fromkeys(key.split("/")[0] for key in named):
        members = {k: c for k, c in named.items() if k.split("/")[0] == prefix}
        groups.append(
            ChartGroup(prefix.replace("_", " ").capitalize(), "", _single_charts(members))
        )
    groups.append(_joined_group("Speed and memory", "", machine))
    return [group for group in groups if group.charts]


def _is_schedule(key: str) -> bool:
    return any(word in key for word in ("temperature", "momentum", "lr", "weight_decay"))


def _loss_group(curves: Mapping[str, Curve]) -> ChartGroup:
    losses = {key: c for key, c in curves.items() if key.startswith("loss/") and _has_points(c)}
    total = losses.pop("loss/total", None)
    shown = []
    if total is not None:
        svg = charts.smoothed_chart(_renamed(total, "total loss"), wide=True)
        shown.append(Chart(Markup(svg), wide=True))
    for k, (key, curve) in enumerate(losses.items(), start=1):
        name = key.removeprefix("loss/")
        shown.append(Chart(Markup(charts.smoothed_chart(_renamed(curve, name), color=k))))
    text = (
        "Faint: what was recorded, as a range where steps are many. Line: running median. "
        "Healthy: a quick fall at first, then a slow one."
    )
    return ChartGroup("Loss", text, shown)


def _validation_group(curves: Mapping[str, Curve]) -> ChartGroup:
    mean = curves.get("val/dice_mean")
    organs = [
        _renamed(curve, key.removeprefix("val/dice/"))
        for key, curve in curves.items()
        if key.startswith("val/dice/") and _has_points(curve)
    ]
    shown = []
    if organs or mean is not None:
        shown.append(Chart(Markup(charts.dice_chart(organs, mean)), wide=True))
    others = {
        key: curve
        for key, curve in curves.items()
        if key.startswith("val/") and key != "val/dice_mean" and not key.startswith("val/dice/")
    }
    text = "Measured on scans that were not trained on. 1 is a perfect match, 0 no overlap."
    return ChartGroup("Validation", text, [*shown, *_single_charts(others)])


def _monitor_group(curves: Mapping[str, Curve]) -> ChartGroup:
    monitors = {key: c for key, c in curves.items() if key.startswith("monitor/")}
    text = "Does the network still tell things apart? These curves show a collapse before the loss."
    return ChartGroup("Health", text, _single_charts(monitors))


def _joined_group(title: str, text: str, curves: Mapping[str, Curve]) -> ChartGroup:
    """One chart per prefix, with all its curves in it."""
    shown = []
    for prefix in dict.fromkeys(key.split("/")[0] for key in curves):
        members = [
            _renamed(c, key.rpartition("/")[2])
            for key, c in curves.items()
            if key.split("/")[0] == prefix and _has_points(c)
        ]
        if members:
            label = prefix.replace("_", " ")
            shown.append(Chart(Markup(charts.lines_chart(members, y_label=label))))
    return ChartGroup(title, text, shown)


def _single_charts(curves: Mapping[str, Curve]) -> list[Chart]:
    shown = []
    for key, curve in curves.items():
        if _has_points(curve):
            label = key.partition("/")[2].replace("_", " ")
            svg = charts.lines_chart([_renamed(curve, label)], y_label=label)
            hint = next((text for word, text in _HINTS.items() if word in key), "")
            shown.append(Chart(Markup(svg), hint))
    return _hints_once(shown)


def _hints_once(shown: Sequence[Chart]) -> list[Chart]:
    """Say each hint under the last of the neighbouring charts it belongs to."""
    following = [*(chart.caption for chart in shown[1:]), ""]
    return [
        Chart(chart.svg, "" if chart.caption == after else chart.caption, chart.wide)
        for chart, after in zip(shown, following, strict=True)
    ]


def _has_points(curve: Curve) -> bool:
    return bool(np.isfinite(curve.values).any())


def _renamed(curve: Curve, name: str) -> Curve:
    return Curve(name=name, steps=curve.steps, values=curve.values)


def _final_dice(curves: Mapping[str, Curve]) -> list[tuple[str, float, float, int]]:
    """Per structure: last Dice, best Dice and the step of the best."""
    rows = []
    for key, curve in curves.items():
        if key.startswith("val/dice/") and _has_points(curve):
            best = int(np.nanargmax(curve.values))
            last, top = float(curve.values[-1]), float(curve.values[best])
            rows.append((key.removeprefix("val/dice/"), last, top, int(curve.steps[best])))
    return rows


# --- pictures -------------------------------------------------------------------------------------


def choose_pictures(folder: Path, *, budget_bytes: int = PICTURE_BUDGET_BYTES) -> Pictures:
    """The last, the first and some steps between of a preview folder, as many as fit.

    Args:
        folder: PNG files named by their step, e.g. `step_000100.png`, `step_000100_case.png`.
        budget_bytes: bytes of all chosen files together.
    """
    by_step: dict[int, list[Path]] = {}
    files = sorted(folder.glob("*.png")) if folder.is_dir() else []
    for file in files:
        match = re.search(r"step_?(\d+)", file.stem)
        by_step.setdefault(int(match[1]) if match else -1, []).append(file)
    steps = sorted(by_step)
    chosen: dict[int, list[Picture]] = {}
    left = budget_bytes
    for step in _telling_order(steps):
        pictures = []
        for file in by_step[step]:
            content = file.read_bytes()
            if content.startswith(b"\x89PNG") and len(content) <= left:
                left -= len(content)
                pictures.append(_picture(content, _step_caption(step, last=step == steps[-1])))
        chosen[step] = pictures
    shown = [picture for step in sorted(chosen, reverse=True) for picture in chosen[step]]
    return Pictures(shown, len(files) - len(shown))


def _telling_order(steps: Sequence[int]) -> list[int]:
    """Last, first, middle and quarters: the order in which steps are given room."""
    if not steps:
        return []
    end = len(steps) - 1
    places = [end, 0, end // 2, end // 4, (3 * end) // 4]
    return list(dict.fromkeys(steps[place] for place in places))


def _step_caption(step: int, *, last: bool) -> str:
    if step < 0:
        return ""
    return f"Step {step:,}{' (latest)' if last else ''}"


def _picture(content: bytes, caption: str) -> Picture:
    return Picture(f"data:image/png;base64,{base64.b64encode(content).decode()}", caption)


def _given_pictures(pictures: Mapping[str, Path]) -> Pictures:
    shown = []
    left = PICTURE_BUDGET_BYTES
    for caption, path in pictures.items():
        content = path.read_bytes()
        if len(content) <= left:
            left -= len(content)
            shown.append(_picture(content, caption))
    return Pictures(shown, len(pictures) - len(shown))


# --- scans ----------------------------------------------------------------------------------------


def scan_table(rows: Iterable[ScanRow]) -> ScanTable:
    """The table of an index; sizes and spacings are told as x, y, z, as viewers do."""
    return _table(
        ScanLine(
            id=row.id, format=row.format, size=_TIMES.join(str(n) for n in (row.size or ())[::-1]),
            spacing=f" {_TIMES} ".join(f"{mm:.2f}" for mm in (row.spacing_mm or ())[::-1]),
            orientation=row.orientation, usable=row.verdict == "usable", reason=row.reason,
        )
        for row in rows
    )  # fmt: skip


def _index_table(path: Path) -> ScanTable | None:
    """The same of an index.csv beside the run, if one was kept there."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as stream:
        return _table(
            ScanLine(
                id=row.get("id") or "", format=row.get("format") or "",
                size=(row.get("size") or "").replace("x", _TIMES),
                spacing=(row.get("spacing_mm") or "").replace("x", f" {_TIMES} "),
                orientation=row.get("orientation") or "",
                usable=row.get("verdict") == "usable", reason=row.get("reason") or "",
            )
            for row in csv.DictReader(stream)
        )  # fmt: skip


def _table(lines: Iterable[ScanLine]) -> ScanTable:
    lines = list(lines)
    usable = [line for line in lines if line.usable]
    refused = [line for line in lines if not line.usable]
    # Numbers differ from scan to scan; the words in front of them are the kind of reason.
    kinds = Counter(re.split(r"[:;(]|\d", line.reason)[0].strip() for line in refused)
    return ScanTable(
        usable[:MAX_TABLE_ROWS], refused[:MAX_TABLE_ROWS], len(usable), len(refused),
        kinds.most_common(),
    )  # fmt: skip


# --- two arms -------------------------------------------------------------------------------------


def read_evaluation(path: Path) -> dict[str, dict[str, float]]:
    """Dice by structure and case, of an evaluation.csv, its folder or the JSON beside it.

    Background and structures without a Dice (absent in both maps) are left out.

    Raises:
        UserError: if there is no such table or it lacks a column.
    """
    table = path / "evaluation.csv" if path.is_dir() else path.with_suffix(".csv")
    if not table.is_file():
        raise UserError(f"{table}: no such table.", "Run `backend evaluate --output` first.")
    scores: dict[str, dict[str, float]] = {}
    with table.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        missing = {"case", "organ", "dice"} - set(reader.fieldnames or ())
        if missing:
            raise UserError(
                f"{table}: column {sorted(missing)[0]} is missing.",
                "Give the evaluation.csv that `backend evaluate` wrote.",
            )
        for row in reader:
            dice = _dice(row["dice"], where=f"{table}, line {reader.line_num}")
            if dice is not None and row.get("value") != "0" and row["organ"] != "background":
                scores.setdefault(row["organ"], {})[row["case"]] = dice
    return scores


def _dice(text: str, *, where: str) -> float | None:
    if text.strip().lower() in ("", "n/a", "na", "nan", "none"):
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{where}: dice {text!r} is no number.", "Mend the table.") from None


@dataclass(frozen=True)
class OrganRow:
    """One structure: mean Dice and cases per arm, mean difference over the cases of both."""

    organ: str
    means: Sequence[float | None]
    counts: Sequence[int]
    difference: float | None
    pairs: int


@dataclass(frozen=True)
class CaseRow:
    """One case of one structure: Dice per arm."""

    case: str
    organ: str
    dice: Sequence[float | None]


@dataclass(frozen=True)
class Comparison:
    """Arms side by side; differences are the first arm minus the second."""

    arms: Sequence[str]
    organs: Sequence[OrganRow]
    cases: Sequence[CaseRow]
    case_means: Sequence[tuple[str, float, float]]
    sentences: Sequence[str]
    charts: Sequence[Chart]


def compare(arms: Mapping[str, Scores]) -> Comparison:
    """Put the scores of arms side by side and say in words what the numbers allow."""
    organs = list(dict.fromkeys(organ for scores in arms.values() for organ in scores))
    means = case_means(*list(arms.values())[:2]) if len(arms) > 1 else []
    chunks = [organs[k : k + charts.MAX_ORGANS] for k in range(0, len(organs), charts.MAX_ORGANS)]
    return Comparison(
        arms=list(arms),
        organs=[_organ_row(organ, list(arms.values())) for organ in organs],
        cases=list(_case_rows(organs, list(arms.values()))),
        case_means=means,
        sentences=verdict(list(arms)[0], list(arms)[1], means) if means else [],
        charts=[Chart(Markup(charts.comparison_chart(arms, part)), wide=True) for part in chunks],
    )


def _organ_row(organ: str, arms: Sequence[Scores]) -> OrganRow:
    values = [scores.get(organ, {}) for scores in arms]
    means = [fmean(v.values()) if v else None for v in values]
    pairs: list[str] = []
    difference = None
    if len(values) > 1:
        pairs = sorted(values[0].keys() & values[1].keys())
        if pairs:
            difference = fmean(values[0][case] - values[1][case] for case in pairs)
    return OrganRow(organ, means, [len(v) for v in values], difference, len(pairs))


def _case_rows(organs: Sequence[str], arms: Sequence[Scores]) -> Iterator[CaseRow]:
    cases = sorted({case for scores in arms for values in scores.values() for case in values})
    for case in cases:
        for organ in organs:
            dice = [scores.get(organ, {}).get(case) for scores in arms]
            if any(value is not None for value in dice):
                yield CaseRow(case, organ, dice)


def case_means(first: Scores, second: Scores) -> list[tuple[str, float, float]]:
    """Per case the mean Dice of both arms, over the structures that both have a Dice for."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for organ in first:
        for case, dice in first[organ].items():
            other = second.get(organ, {}).get(case)
            if other is not None:
                pairs.setdefault(case, []).append((dice, other))
    return [
        (case, fmean(a for a, _ in both), fmean(b for _, b in both))
        for case, both in sorted(pairs.items())
    ]


def verdict(first: str, second: str, means: Sequence[tuple[str, float, float]]) -> list[str]:
    """What the paired case means allow to be said, and no more.

    Args:
        first: name of an arm.
        second: name of the other.
        means: per case its name and the mean Dice of both arms.
    """
    count = len(means)
    a, b = fmean(m[1] for m in means), fmean(m[2] for m in means)
    difference = a - b
    wins = sum(m[1] > m[2] for m in means)
    losses = sum(m[1] < m[2] for m in means)
    sentences = [
        f"Mean Dice over {_plural(count, 'case')}: {a:.3f} {first}, {b:.3f} {second} "
        f"(difference {difference:+.3f})."
    ]
    if abs(difference) < SMALL_DICE:
        sentences.append(f"A difference below {SMALL_DICE} is practically none.")
    elif difference < 0:
        sentences.append(f"In this run the model {first} was the worse one.")
    sentences.append(f"The model {first} was better in {wins} and worse in {losses} of {count}.")
    sentences.append(_chance_sentence(wins, losses))
    sentences.append("Each model was trained once; another seed may turn out otherwise.")
    return sentences


def _chance_sentence(wins: int, losses: int) -> str:
    """How far chance alone would go, by the two-sided sign test."""
    count = wins + losses
    if count < 2:
        return "From this few cases nothing follows for other patients."
    if count < FEWEST_CASES:
        return (
            f"{count} cases are too few to tell an effect from chance: without any effect, all "
            f"{count} would still agree in 1 of {2 ** (count - 1)} such comparisons."
        )
    tail = sum(math.comb(count, k) for k in range(min(wins, losses) + 1)) / 2**count
    return (
        f"Without any effect, a split at least as uneven would still come up in "
        f"{min(1.0, 2 * tail):.1%} of such comparisons (sign test)."
    )


# --- pages ----------------------------------------------------------------------------------------


def write_run_report(run: Path) -> Path:
    """Write `report.html` into a run folder, from what that folder holds and nothing else.

    Returns:
        The path of the report.

    Raises:
        UserError: if `run` is no run folder or one of its files is damaged.
    """
    page = _render("run.html.j2", run=view_run(read_run(run)))
    return _write(run / "report.html", page)


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
    page = _render(
        "demo.html.j2",
        scans=scan_table(scan_rows) if scan_rows else None,
        pretraining=pretraining,
        arms=arms,
        arm_chart=_arms_chart(finetune_runs or {}),
        comparison=compare(scores) if any(scores.values()) else None,
        pictures=_given_pictures(pictures or {}),
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
    return _write(folder / "report.html", page)


def _arms_chart(runs: Mapping[str, Path]) -> Chart | None:
    """Mean validation Dice of all arms over the steps."""
    curves = {name: read_run(path).curves.get("val/dice_mean") for name, path in runs.items()}
    found = [_renamed(c, name) for name, c in curves.items() if c is not None and _has_points(c)]
    if not found:
        return None
    svg = charts.lines_chart(found, y_label="mean validation Dice", wide=True)
    return Chart(Markup(svg), wide=True)


def _render(template: str, **context: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration_text
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(written=written, **context)


def _write(path: Path, page: str) -> Path:
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path
