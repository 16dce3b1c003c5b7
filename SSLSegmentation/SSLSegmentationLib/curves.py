"""What a run has recorded, sorted into curves and groups of curves; no Qt and no files."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from slicer.i18n import tr as _

from SSLPretrainLogic.probes import PROBE

_SMOOTH_SHARE = 50
"""A smoothed point is the mean of so small a part of the curve: one fiftieth."""
_MOST = 8000
"""Points of a curve; when it gets longer, each then is the mean of twice as many records."""

_SPREAD = 20.0
"""Curves whose sizes differ by more than this need a logarithmic axis."""

Point = tuple[float, float]


@dataclass(kw_only=True)
class Curve:
    """One recorded quantity.

    Attributes:
        key: as metrics.jsonl calls it.
        steps: where it was recorded.
        values: what was recorded, finite; means where there is very much.
        stride: records per point.
    """

    key: str
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    stride: int = 1
    _pending: list[float] = field(default_factory=list)

    def append(self, step: int, value: float) -> None:
        """Take in a record; drawing stays quick however many there are."""
        self._pending.append(value)
        if len(self._pending) < self.stride:
            return
        self.steps.append(step)
        self.values.append(sum(self._pending) / self.stride)
        self._pending.clear()
        if len(self.values) >= _MOST:
            pairs = zip(self.values[::2], self.values[1::2], strict=True)
            self.steps, self.values = self.steps[1::2], [(a + b) / 2 for a, b in pairs]
            self.stride *= 2

    @property
    def name(self) -> str:
        """Short, for a legend."""
        return self.key.rpartition("/")[2].replace("_", " ")

    def smoothed(self) -> list[float]:
        """Running mean; the values themselves where they are few."""
        count = len(self.values)
        half = max(count // _SMOOTH_SHARE, 1) // 2
        sums = [0.0, *accumulate(self.values)]
        edges = [(max(i - half, 0), min(i + half + 1, count)) for i in range(count)]
        return [(sums[end] - sums[begin]) / (end - begin) for begin, end in edges]

    @property
    def is_smooth(self) -> bool:
        """Whether there are too few values to smooth them."""
        return len(self.values) < 2 * _SMOOTH_SHARE

    def at(self, step: float) -> float | None:
        """The value recorded next to a step, None before the first."""
        if not self.steps:
            return None
        after = min(bisect_left(self.steps, step), len(self.steps) - 1)
        before = max(after - 1, 0)
        nearest = min((before, after), key=lambda i: abs(self.steps[i] - step))
        return self.values[nearest]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Curves that are shown together."""

    key: str
    title: str
    curves: tuple[Curve, ...]

    @property
    def is_logarithmic(self) -> bool:
        """Whether sizes differ too much for a plain axis."""
        sizes = [sorted(curve.values)[len(curve.values) // 2] for curve in self.curves]
        positive = all(min(curve.values) > 0 for curve in self.curves)
        return positive and bool(sizes) and max(sizes) > _SPREAD * min(sizes)


class Book:
    """All curves of a run, by key."""

    def __init__(self) -> None:
        self._curves: dict[str, Curve] = {}

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take in new records; what is no finite number is passed over."""
        for record in records:
            step = record["step"]
            for key, value in record.items():
                if _is_number(value) and key not in _NOT_SHOWN:
                    curve = self._curves.setdefault(key, Curve(key=key))
                    curve.append(step, float(value))

    def clear(self) -> None:
        """Forget everything."""
        self._curves.clear()

    def groups(self) -> tuple[Group, ...]:
        """What can be shown, the loss first."""
        found: dict[str, list[Curve]] = {}
        for curve in self._curves.values():
            found.setdefault(_group_key(curve.key), []).append(curve)
        titles = _titles()
        order = {key: place for place, key in enumerate(titles)}
        return tuple(
            Group(key=key, title=titles.get(key, key), curves=tuple(found[key]))
            for key in sorted(found, key=lambda key: order.get(key, len(order)))
        )


_RANK = "probe/feature_rank"
_ALONE = frozenset({"loss/total", PROBE, _RANK})
_NOT_SHOWN = frozenset({"step", "epoch", "time_s"})


def _titles() -> dict[str, str]:
    """The groups in the order of the choice."""
    return {
        "loss/total": _("Loss"),
        PROBE: _("Linear probe (labelled scans)"),
        "loss": _("Loss terms"),
        "val/dice": _("Dice per structure (validation)"),
        "val": _("Other validation scores"),
        "monitor": _("Health monitors"),
        "probe": _("Errors on held-out scans"),
        _RANK: _("Rank of the features"),
        "lr": _("Learning rate"),
        "gradient_norm": _("Size of the gradient"),
        "temperature": _("Temperatures"),
        "ema_momentum": _("Momentum of the teacher"),
        "volumes_per_s": _("Volumes per second"),
        "memory_mb": _("Memory (MB)"),
    }


def _group_key(key: str) -> str:
    # Some ten directions beside shares and errors below 1 would press those to the floor.
    if key in _ALONE:
        return key
    return "val/dice" if key.startswith("val/dice") else key.partition("/")[0]


def _is_number(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def thinned(points: Sequence[Point], *, columns: int) -> list[Point]:
    """Points that draw the same line: per column only the lowest and the highest.

    Args:
        points: in the order of x.
        columns: pixels across.
    """
    if len(points) <= 2 * columns:
        return list(points)
    kept: list[Point] = []
    for column in range(columns):
        begin = column * len(points) // columns
        piece = points[begin : (column + 1) * len(points) // columns]
        extremes = {min(piece, key=lambda p: p[1]), max(piece, key=lambda p: p[1])}
        kept += sorted(extremes)
    return [points[0], *kept[1:-1], points[-1]]


def ticks(low: float, high: float, *, count: int) -> list[float]:
    """Round numbers between two others, about so many."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Marks for a logarithmic axis: powers of ten, with 2 and 5 between where these are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    parts = (1, 2, 5) if last - first <= 2 else (1,)
    marks = [m * 10.0**p for p in range(first, last + 1) for m in parts]
    return [mark for mark in marks if low <= mark <= high]


def number_words(value: float) -> str:
    """A number with as many digits as one reads."""
    if value == 0:
        return "0"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.1e}"
