"""Pictures of a benchmark: what more labels bring, what the pretraining adds, how it is learnt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TypeVar

import numpy as np

from backend.benchmark.grid import RANDOM, control_name
from backend.benchmark.plan import Metric
from backend.benchmark.statistics import Estimate
from backend.benchmark.summary import METRIC_NAMES, Finding
from backend.benchmark.tables import FROZEN, Row
from backend.charts import Floats, Line, Panel, panels_chart
from backend.report.words import plural

CONTROL = "random weights"
"""Of whatever network; it is the one of the panel."""

_COLUMNS = 3
_APART = 0.07
"""Of the distance between two ticks: side by side, or intervals would hide each other."""

T = TypeVar("T")


def efficiency_pictures(
    found: Sequence[Finding], *, metric: Metric, order: Sequence[str]
) -> dict[str, str]:
    """By file name, for each mode: the measure and the gain over the number of labelled scans.

    Args:
        found: what the benchmark found.
        metric: what was tested.
        order: names of all starts; each has one colour in all pictures.
    """
    made = {}
    for mode, members in _by_mode(found, [f.mode for f in found]):
        counts = sorted({f.labels for f in members})
        for number, networks in _few(dict.fromkeys(f.network for f in members)):
            columns = [[f for f in members if f.network == network] for network in networks]
            rows = [[_level_panel(of, counts, metric, order) for of in columns]]
            if any(f.against is not None for f in members):
                rows.append([_gain_panel(of, counts, metric, order) for of in columns])
            name = METRIC_NAMES[metric]
            made[_file("efficiency", mode, number)] = panels_chart(
                rows,
                below="labelled scans",
                dots={"difference shown": True, "not shown": False},
                ticks=[str(count) for count in counts],
                description=f"{name} over the number of labelled scans, {mode}: "
                f"{', '.join(networks)}",
            )
    return made


def convergence_pictures(rows: Sequence[Row], *, order: Sequence[str]) -> dict[str, str]:
    """By file name, for each mode: validation Dice over the steps, the mean over seeds.

    Args:
        rows: of `curves.csv`.
        order: names of all starts; each has one colour in all pictures.
    """
    made = {}
    ordered = sorted(rows, key=lambda row: order.index(row["start"]))
    for mode, members in _by_mode(ordered, [row["mode"] for row in ordered]):
        counts = sorted({int(row["labels"]) for row in members})
        for number, networks in _few(dict.fromkeys(row["network"] for row in members)):
            panels = [
                [_curves_panel(members, network, count, order) for network in networks]
                for count in counts
            ]
            made[_file("convergence", mode, number)] = panels_chart(
                panels,
                below="step",
                description=f"Dice of the validation scans over the steps, {mode}: "
                f"{', '.join(networks)}",
            )
    return made


def _by_mode(found: Sequence[T], modes: Sequence[str]) -> Iterator[tuple[str, list[T]]]:
    for mode in dict.fromkeys(modes):
        yield mode, [item for item, own in zip(found, modes, strict=True) if own == mode]


def _few(names: Mapping[str, None]) -> Iterator[tuple[int, list[str]]]:
    """As many as one picture shows side by side, numbered from 1."""
    listed = list(names)
    for start in range(0, len(listed), _COLUMNS):
        yield start // _COLUMNS + 1, listed[start : start + _COLUMNS]


def _file(kind: str, mode: str, number: int) -> str:
    return f"{kind}_{mode.replace(' ', '-')}{f'_{number}' if number > 1 else ''}.svg"


def _level_panel(
    found: Sequence[Finding], counts: Sequence[int], metric: Metric, order: Sequence[str]
) -> Panel:
    network = found[0].network
    lines = [
        _within(_line([(f, f.mean) for f in of], counts, order, beside=beside))
        for of, beside in _starts(found)
    ]
    title = f"network {network}{_mode(found[0].mode)}"
    return Panel(title=title, measure=METRIC_NAMES[metric], lines=lines)


def _within(line: Line) -> Line:
    """Its intervals as far as a measure can be: from 0 to 1."""
    ends = [None if end is None else np.clip(end, 0, 1) for end in (line.low, line.high)]
    return replace(line, low=ends[0], high=ends[1])


def _gain_panel(
    found: Sequence[Finding], counts: Sequence[int], metric: Metric, order: Sequence[str]
) -> Panel:
    compared = [f for f in found if f.against is not None]
    lines = [
        _line([(f, f.against) for f in of if f.against], counts, order, beside=beside)
        for of, beside in _starts(compared)
    ]
    return Panel(title="", measure=f"{METRIC_NAMES[metric]} gained", lines=lines, zero=True)


def _mode(mode: str) -> str:
    """What a title says of it: nothing of the usual one."""
    return ", encoder frozen" if mode == FROZEN else ""


def _starts(found: Sequence[Finding]) -> Iterator[tuple[list[Finding], float]]:
    """The findings of each start, and how far beside the tick they are drawn."""
    names = list(dict.fromkeys(f.start for f in found))
    for place, name in enumerate(names):
        yield [f for f in found if f.start == name], _APART * (place - (len(names) - 1) / 2)


def _line(
    points: Sequence[tuple[Finding, Estimate]],
    counts: Sequence[int],
    order: Sequence[str],
    *,
    beside: float,
) -> Line:
    finding = points[0][0]
    return Line(
        name=_name(finding.start, finding.network),
        x=np.array([counts.index(f.labels) + beside for f, _ in points]),
        y=np.array([of.mean for _, of in points]),
        low=_known([of.low for _, of in points]),
        high=_known([of.high for _, of in points]),
        filled=[f.against is None or f.shown for f, _ in points],
        color=_color(finding.start, finding.network, order),
    )


def _known(values: Sequence[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values])


def _name(start: str, network: str) -> str:
    return CONTROL if start == control_name(network) else start


def _color(start: str, network: str, order: Sequence[str]) -> int | None:
    """Number of a start among those that are no controls; None for a control."""
    if start == control_name(network):
        return None
    return sum(not name.startswith(f"{RANDOM} ") for name in order[: order.index(start)])


def _curves_panel(rows: Sequence[Row], network: str, count: int, order: Sequence[str]) -> Panel:
    points: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["network"] == network and int(row["labels"]) == count:
            of_start = points.setdefault(row["start"], {})
            of_start.setdefault(int(row["step"]), []).append(float(row["dice"]))
    lines = [
        Line(
            name=_name(start, network),
            x=np.array(sorted(of_start), dtype=np.float64),
            y=np.array([fmean(of_start[step]) for step in sorted(of_start)]),
            color=_color(start, network, order),
        )
        for start, of_start in points.items()
    ]
    return Panel(
        title=f"{network}, {plural(count, 'labelled scan')}{_mode(rows[0]['mode'])}",
        measure="Dice (validation)",
        lines=lines,
    )
