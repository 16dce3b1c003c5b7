"""Charts of a run as small inline SVG texts that follow the light or dark mode of their page.

Colours are written as CSS variables with a fallback, text stays text, and long curves are binned,
so that a chart has a few kilobytes whatever the length of the run.
"""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7a5195", "#8c6d31")
"""Line colours that stay apart for colour-blind readers (after Okabe and Ito)."""

_INK, _MUTED, _GRID, _FAINT, _CARD = "#1c2530", "#5b6672", "#dfe3e6", "#9aa4ad", "#ffffff"
_VARIABLES = {
    _INK: "ink",
    _MUTED: "muted",
    _GRID: "grid",
    _FAINT: "faint",
    _CARD: "card",
    **{color: f"c{k}" for k, color in enumerate(PALETTE)},
}
_DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))
_WIDE_INCHES, _HALF_INCHES = 8.6, 4.2
MAX_BINS = 200
FEW = 12
"""Up to here every value gets a dot and no median."""

MAX_DOTS = 240
MAX_ORGANS = 24
"""Rows of one comparison chart; callers give longer lists in several charts."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One recorded quantity over the steps at which it was recorded.

    Attributes:
        name: what it is, as the reader shall see it.
        steps: training steps, not falling.
        values: the quantity; what is not finite leaves a gap.
    """

    name: str
    steps: Floats
    values: Floats


@dataclass(frozen=True)
class Bins:
    """A curve in few points: per bin its middle step, and lowest, median and highest value."""

    steps: Floats
    low: Floats
    middle: Floats
    high: Floats
    exact: bool


def binned(curve: Curve, limit: int = MAX_BINS) -> Bins:
    """Sum up the finite points of a curve in at most `limit` bins of equally many points.

    Returns:
        The bins; `exact` says that every point is a bin of its own.
    """
    keep = np.isfinite(curve.values)
    steps, values = curve.steps[keep], curve.values[keep]
    if len(values) <= limit:
        return Bins(steps, values, values, values, exact=True)
    parts = np.array_split(np.arange(len(values)), limit)
    groups = [values[part] for part in parts]
    return Bins(
        np.array([np.median(steps[part]) for part in parts]),
        np.array([group.min() for group in groups]),
        np.array([np.median(group) for group in groups]),
        np.array([group.max() for group in groups]),
        exact=False,
    )


def running_median(values: Floats, window: int) -> Floats:
    """Median of the `window` (odd) values around each one; fewer at both ends."""
    half = window // 2
    spans = [values[max(0, k - half) : k + half + 1] for k in range(len(values))]
    return np.array([np.median(span) for span in spans])


# --- charts over the steps ------------------------------------------------------------------------


def smoothed_chart(curve: Curve, *, wide: bool = False, color: int = 0) -> str:
    """A noisy curve: every value (or their range) faint, and a running median on top."""
    with _style():
        figure, ax = _figure(wide=wide, height=2.9 if wide else 2.2)
        bins = binned(curve)
        tint = PALETTE[color % len(PALETTE)]
        if bins.exact:
            ax.plot(bins.steps, bins.middle, color=tint, alpha=0.3, linewidth=0.8)
        else:
            ax.fill_between(bins.steps, bins.low, bins.high, color=tint, alpha=0.18, linewidth=0)
        # A handful of values is shown as it is.
        window = max(3, len(bins.middle) // 15) | 1 if len(bins.middle) > FEW else 1
        smooth = running_median(bins.middle, window)
        ax.plot(bins.steps, smooth, color=tint, linewidth=1.7, **_marker(len(bins.steps)))
        _finish_steps(ax, curve.name, bins.low, bins.high)
        if len(bins.low) and bins.low.min() > 0 and bins.high.max() > 20 * bins.low.min():
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        return inline_svg(figure, f"{curve.name} over training steps")


def lines_chart(
    curves: Sequence[Curve], *, title: str, wide: bool = False, ceiling: float | None = None
) -> str:
    """Curves as they are, for schedules, monitors and speed; a legend if there are several.

    Args:
        curves: at least one.
        title: what they have in common.
        wide: whether the chart takes the whole width of the page.
        ceiling: the highest value that is possible, drawn as a dashed line.
    """
    with _style():
        figure, ax = _figure(wide=wide, height=2.9 if wide else 2.2)
        bins = [binned(curve, MAX_BINS // min(len(curves), 2)) for curve in curves]
        for k, (curve, part) in enumerate(zip(curves, bins, strict=True)):
            color = PALETTE[k % len(PALETTE)]
            if not part.exact:
                ax.fill_between(
                    part.steps, part.low, part.high, color=color, alpha=0.18, linewidth=0
                )
            ax.plot(
                part.steps, part.middle, color=color, linewidth=1.5, label=curve.name,
                linestyle=_DASHES[k // len(PALETTE) % len(_DASHES)], **_marker(len(part.steps)),
            )  # fmt: skip
        _finish_steps(
            ax,
            title,
            np.concatenate([part.low for part in bins]),
            np.concatenate([part.high for part in bins]),
        )
        if ceiling is not None:
            ax.axhline(ceiling, color=_MUTED, linewidth=1, linestyle="dashed", label="ceiling")
        if len(ax.get_legend_handles_labels()[1]) > 1:
            _legend_beside(figure, ax)
        return inline_svg(figure, f"{title} over training steps")


def dice_chart(organs: Sequence[Curve], mean: Curve | None) -> str:
    """Validation Dice: thin lines per structure and a bold one for the mean, from 0 to 1.

    With more structures than can be told apart they become one grey bundle.
    """
    with _style():
        figure, ax = _figure(wide=True, height=3.3)
        many = len(organs) > 2 * len(PALETTE)
        for k, curve in enumerate(organs):
            part = binned(curve, 60)
            ax.plot(
                part.steps, part.middle, linewidth=0.7 if many else 1.2,
                color=_FAINT if many else PALETTE[k % len(PALETTE)], alpha=0.6 if many else 0.95,
                linestyle=_DASHES[k // len(PALETTE) % 2], label=None if many else curve.name,
                **_marker(len(part.steps)),
            )  # fmt: skip
        if mean is not None:
            part = binned(mean, 100)
            ax.plot(
                part.steps, part.middle, color=_INK, linewidth=2.4, label="mean",
                **_marker(len(part.steps)),
            )  # fmt: skip
        # A little more than there can be: a line on the edge would be half hidden by the axis.
        ax.set_ylim(-0.02, 1.02)
        ax.set_title("Dice", loc="left", fontsize=9, color=_INK)
        ax.set_xlabel("step")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        _legend_beside(figure, ax)
        return inline_svg(figure, "Dice of the validation cases over training steps")


def _marker(points: int) -> dict[str, Any]:
    """A dot per point while there are few; a lone point would not show as a line at all."""
    return {"marker": "o", "markersize": 3} if points <= FEW else {}


def _finish_steps(ax: Any, title: str, low: Floats, high: Floats) -> None:
    ax.set_xlabel("step")
    ax.set_title(title, loc="left", fontsize=9, color=_INK)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    tiny = len(high) > 0 and np.abs([low.min(), high.max()]).max() < 1e-3
    ax.yaxis.set_major_formatter(FuncFormatter(_tiny_tick if tiny else lambda v, _: f"{v:,.6g}"))


def _tiny_tick(value: float, _position: int) -> str:
    """1.5e-4 rather than 0.00015."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


# --- panels beside each other ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a panel.

    Attributes:
        name: in the legend, where equal names stand once.
        x: places on the horizontal axis.
        y: the values there.
        low: lower ends of their intervals, NaN where there is none; None: no intervals.
        high: upper ends.
        filled: which points get a full dot, the others a hollow one; None: there are no dots.
        color: number of its colour in the palette; None: ink and dashes, for a control.
    """

    name: str
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None
    filled: Sequence[bool] | None = None
    color: int | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One of several plots on the same axes.

    Attributes:
        title: above it.
        measure: of its vertical axis, which panels of the same row share.
        lines: what it shows.
        zero: whether a line at 0 is drawn.
    """

    title: str
    measure: str
    lines: Sequence[Line]
    zero: bool = False


def panels_chart(
    rows: Sequence[Sequence[Panel]],
    *,
    below: str,
    description: str,
    ticks: Sequence[str] | None = None,
    dots: Mapping[str, bool] = MappingProxyType({}),
) -> str:
    """Panels in rows and columns, and one legend for all of them.

    Args:
        rows: at least one, with as many panels each; those of a row have one scale.
        below: of the horizontal axis, which all share.
        description: what a screen reader says.
        ticks: names of the places 0, 1, ...; None: the places are numbers.
        dots: what the legend calls full (True) and hollow ones.
    """
    with _style():
        columns = len(rows[0])
        figure = Figure(figsize=(_WIDE_INCHES, 0.7 + 1.85 * len(rows)), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        grid = figure.subplots(len(rows), columns, sharex=True, sharey="row", squeeze=False)
        for axes, panels in zip(grid, rows, strict=True):
            axes[0].set_ylabel(panels[0].measure)
            for ax, panel in zip(axes, panels, strict=True):
                _draw_panel(ax, panel)
        for ax in grid[-1]:
            ax.set_xlabel(below)
            if ticks is not None:
                ax.set_xticks(range(len(ticks)), ticks)
                ax.set_xlim(-0.35, len(ticks) - 0.65)
            else:
                ax.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        for name, full in dots.items():
            grid[-1, -1].plot([], [], label=name, linestyle="none", **_dot(_INK, full=full))
        figure.align_ylabels(grid)
        _shared_legend(figure, grid)
        return inline_svg(figure, description)


def _draw_panel(ax: Any, panel: Panel) -> None:
    ax.set_title(panel.title, loc="left", fontsize=9, color=_INK)
    if panel.zero:
        ax.axhline(0, color=_INK, linewidth=1, linestyle=_DASHES[1])
    for line in panel.lines:
        control = line.color is None
        color = PALETTE[(line.color or 0) % len(PALETTE)] if not control else _INK
        ax.plot(
            line.x, line.y, color=color, label=line.name, linestyle=_DASHES[control],
            linewidth=1.5, **(_marker(len(line.x)) if line.filled is None else {}),
        )  # fmt: skip
        if line.low is not None and line.high is not None:
            reach = np.array([line.y - line.low, line.high - line.y])
            ax.errorbar(
                line.x, line.y, yerr=reach, color=color, fmt="none", elinewidth=1.0, capsize=2.5
            )
        if line.filled is not None:
            for x, y, full in zip(line.x, line.y, line.filled, strict=True):
                # A control is compared with nothing, so that it is neither full nor hollow.
                ax.plot(x, y, **(_dot(color, full=full) if not control else _cross(color)))


def _dot(color: str, *, full: bool) -> dict[str, Any]:
    inside = color if full else _CARD
    return {"color": color, "marker": "o", "markersize": 4.5, "markerfacecolor": inside}


def _cross(color: str) -> dict[str, Any]:
    return {"color": color, "marker": "x", "markersize": 4.5}


def _shared_legend(figure: Any, grid: Any) -> None:
    named: dict[str, Any] = {}
    for ax in grid.flat:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    figure.legend(
        named.values(), named.keys(), loc="outside right upper", frameon=False, labelcolor=_INK,
        handlelength=1.8,
    )  # fmt: skip


# --- two arms side by side ------------------------------------------------------------------------

Scores = Mapping[str, Mapping[str, float]]
"""Dice by structure and case."""


def comparison_chart(arms: Mapping[str, Scores], organs: Sequence[str]) -> str:
    """Dice per structure of each arm: the mean as a bar, the cases as dots, pairs joined.

    Args:
        arms: by the arm's name, its scores; the first is drawn above the second.
        organs: the structures to show, from top to bottom, at most `MAX_ORGANS`.
    """
    with _style():
        pitch = 0.2 * max(2, len(arms)) + 0.16
        figure, ax = _figure(wide=True, height=0.95 + pitch * len(organs))
        offsets = np.linspace(-0.19, 0.19, len(arms)) if len(arms) > 1 else np.zeros(1)
        dots = sum(len(scores.get(organ, {})) for scores in arms.values() for organ in organs)
        show_cases = dots <= MAX_DOTS
        if show_cases and len(arms) == 2:
            _join_pairs(ax, list(arms.values()), organs, offsets)
        for k, (name, scores) in enumerate(arms.items()):
            _draw_arm(ax, name, scores, organs, _Place(k, float(offsets[k]), show_cases))
        ax.set_yticks(range(len(organs)), organs)
        ax.tick_params(axis="y", length=0, colors=_INK)
        ax.grid(axis="x")
        ax.grid(axis="y", visible=False)
        ax.set_xlim(-0.01, 1.01)
        ax.set_ylim(len(organs) - 0.45, -0.55)
        ax.set_xlabel("Dice (bar: mean, dots: cases)" if show_cases else "Dice (bar: mean)")
        ax.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(arms), frameon=False,
            borderaxespad=0.2, handlelength=1.0, labelcolor=_INK,
        )  # fmt: skip
        return inline_svg(figure, "Dice per structure: " + " and ".join(arms))


@dataclass(frozen=True)
class _Place:
    """Where and how an arm is drawn."""

    number: int
    offset: float
    show_cases: bool


def _draw_arm(ax: Any, name: str, scores: Scores, organs: Sequence[str], place: _Place) -> None:
    color = PALETTE[place.number % len(PALETTE)]
    rows = [k for k, organ in enumerate(organs) if scores.get(organ)]
    means = [float(np.mean(list(scores[organs[k]].values()))) for k in rows]
    at = np.array(rows, dtype=float) + place.offset
    ax.barh(at, means, height=0.3, color=color, alpha=0.35, linewidth=0, label=name)
    ax.plot(means, at, linestyle="none", marker="|", markersize=9, color=color, markeredgewidth=2.2)
    if place.show_cases:
        points = [(dice, y) for k, y in zip(rows, at, strict=True)
                  for dice in scores[organs[k]].values()]  # fmt: skip
        x, y = np.array(points).reshape(-1, 2).T
        ax.plot(x, y, linestyle="none", marker="o", markersize=3.6, color=color, alpha=0.9)


def _join_pairs(ax: Any, arms: Sequence[Scores], organs: Sequence[str], offsets: Floats) -> None:
    """A thin line between the two results of the same case."""
    first, second = arms
    x: list[float] = []
    y: list[float] = []
    for k, organ in enumerate(organs):
        a, b = first.get(organ, {}), second.get(organ, {})
        for case in sorted(a.keys() & b.keys()):
            x += [a[case], b[case], math.nan]
            y += [k + offsets[0], k + offsets[1], math.nan]
    ax.plot(x, y, color=_FAINT, linewidth=0.6)


# --- from figure to text --------------------------------------------------------------------------


def _style() -> Any:
    """Settings for one chart, put back afterwards."""
    return mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "chart",
            "path.simplify_threshold": 0.2,
            "font.family": ["DejaVu Sans"],
            "font.size": 8.5,
            "text.color": _INK,
            "axes.edgecolor": _FAINT,
            "axes.labelcolor": _MUTED,
            "axes.facecolor": "none",
            "axes.linewidth": 0.7,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.formatter.useoffset": False,
            "grid.color": _GRID,
            "grid.linewidth": 0.6,
            "xtick.color": _MUTED,
            "ytick.color": _MUTED,
            "xtick.major.size": 2.5,
            "ytick.major.size": 2.5,
            "xtick.minor.size": 0,
            "ytick.minor.size": 0,
            "legend.fontsize": 8,
        }
    )


def _figure(*, wide: bool, height: float) -> tuple[Any, Any]:
    width = _WIDE_INCHES if wide else _HALF_INCHES
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    return figure, figure.add_subplot()


def _legend_beside(figure: Any, ax: Any) -> None:
    if ax.get_legend_handles_labels()[1]:
        figure.legend(loc="outside right upper", frameon=False, labelcolor=_INK, handlelength=1.6)


def _shortened(attribute: str) -> str:
    """Coordinates to a hundredth of a point: finer than any screen shows."""
    return re.sub(
        r"-?\d+\.\d{2,}", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), attribute
    )


_CLEANING: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"(?s)^.*?(?=<svg)", ""),
    (r"(?s)<metadata>.*?</metadata>", ""),
    (r"(?s)<style type=.*?</style>", ""),
    (r"(?s)<!--.*?-->", ""),
    (r"<defs>\s*</defs>", ""),
    (r"font: ([\d.]+px) [^;\"]*", r"font-size: \1"),
    (r"font-family: [^;\"]*;? ?", ""),
    (r'\b(?:d|x|y|transform)="[^"]*"', lambda match: _shortened(match[0])),
    (r"\n\s*", " "),
)


def inline_svg(figure: Any, description: str) -> str:
    """A figure as SVG for the body of a page.

    Sizes follow the page, colours follow its variables, and ids are unlike those of other charts.

    Args:
        figure: a matplotlib figure.
        description: what a screen reader says.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    for pattern, replacement in _CLEANING:
        text = re.sub(pattern, replacement, text)
    for color, name in _VARIABLES.items():
        text = text.replace(color, f"var(--{name}, {color})")
    mark = "s" + hashlib.sha256((description + text).encode()).hexdigest()[:8]
    text = re.sub(r'\bid="', f'id="{mark}', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{mark}", text)
    head = f'<svg role="img" aria-label="{html.escape(description)}"'
    return re.sub(r'<svg([^>]*?) width="[^"]*"', rf"{head}\1", _without_height(text), count=1)


def _without_height(text: str) -> str:
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)


def svg_file(text: str) -> str:
    """An inline chart as a file of its own: on white and in fixed colours, for any program."""
    fixed = re.sub(r"var\(--\w+, (#[0-9a-f]{6})\)", r"\1", text)
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    font = "font-family=\"'DejaVu Sans', Verdana, sans-serif\""
    return re.sub(r"<svg([^>]*)>", rf"<svg {font}\1>{ground}", fixed.rstrip(), count=1) + "\n"
