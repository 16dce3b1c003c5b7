"""Curves as a picture that is painted as they grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import qt
from slicer.i18n import tr as _

from SSLSegmentationLib.curves import Curve, Group, Point, decades, number_words, thinned, ticks

COLORS = ("#3a87c8", "#e0762a", "#2f9e5b", "#c9557f", "#8a6fd1", "#a88b1d", "#2aa3a3", "#b0604a")
"""Told apart on light and on dark grounds, by most of the colour-blind too."""

_PLOT_HEIGHT = 130
_MARGIN = 6
_SWATCH = 14
_FAINT, _GRID_ALPHA = 80, 45
_MARK = 5


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """From values to pixels, along one axis."""

    low: float
    high: float
    begin: float
    end: float
    is_logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (self._bent(v) for v in (self.low, self.high, value))
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)

    def back(self, pixel: float) -> float:
        """The value at a pixel, of a plain axis."""
        share = (pixel - self.begin) / ((self.end - self.begin) or 1.0)
        return self.low + share * (self.high - self.low)

    def marks(self, count: int) -> list[float]:
        """Where the axis is labelled."""
        few = decades(self.low, self.high) if self.is_logarithmic else []
        return few if len(few) > 1 else ticks(self.low, self.high, count=count)

    def _bent(self, value: float) -> float:
        return math.log10(value) if self.is_logarithmic else value


class CurvePlot(qt.QWidget):
    """A group of curves with axes and a legend, which tells values under the mouse.

    Attributes:
        hovered_step: where the mouse is, None if it is elsewhere.
    """

    def __init__(self, parent: Any = None) -> None:
        qt.QWidget.__init__(self, parent)
        self._group: Group | None = None
        self._hovered: float | None = None
        self.hovered_step: float | None = None
        self._empty = ""
        self.setMouseTracking(True)
        self.setMinimumHeight(_PLOT_HEIGHT)

    def show_group(self, group: Group | None, *, empty: str) -> None:
        """Show other curves, or the same after they have grown.

        Args:
            group: None if there is nothing yet.
            empty: the sentence that stands there then.
        """
        self._group, self._empty = group, empty
        height = _PLOT_HEIGHT + self._legend_height(qt.QFontMetrics(self.font))
        if self.minimumHeight != height:
            self.setMinimumHeight(height)
        self.update()

    # Qt asks

    def resizeEvent(self, event: Any) -> None:
        """Its width decides how many lines the legend has."""
        self.show_group(self._group, empty=self._empty)

    def mouseMoveEvent(self, event: Any) -> None:
        """Tell the values here."""
        # Qt 5 has only the one, Qt 6 wants only the other.
        point = event.position() if hasattr(event, "position") else event.localPos()
        self._hovered = point.x()
        self.update()

    def leaveEvent(self, event: Any) -> None:
        """Tell the last values again."""
        self._hovered = None
        self.update()

    def paintEvent(self, event: Any) -> None:
        """Draw it all."""
        painter = qt.QPainter(self)
        painter.setRenderHint(qt.QPainter.Antialiasing, True)
        try:
            if self._group is None:
                painter.setPen(self._ink(140))
                painter.drawText(self.rect, qt.Qt.AlignCenter | qt.Qt.TextWordWrap, self._empty)
            else:
                self._paint(painter, self._group)
        finally:
            # PythonQt deletes it late; a painter that lives on locks the widget.
            painter.end()

    # Drawing

    def _paint(self, painter: Any, group: Group) -> None:
        metrics = painter.fontMetrics()
        across, up = self._scales(group, metrics)
        self._paint_axes(painter, across, up)
        painter.setClipRect(
            int(across.begin) - 2,
            int(up.end) - 2,
            int(across.end - across.begin) + 4,
            int(up.begin - up.end) + 4,
        )
        for number, curve in enumerate(group.curves):
            self._paint_curve(painter, curve, number, lambda p: (across(p[0]), up(p[1])))
        painter.setClipping(False)
        self._paint_hover(painter, across, up)
        self._paint_legend(painter, group, self.hovered_step)

    def _paint_hover(self, painter: Any, across: _Scale, up: _Scale) -> None:
        self.hovered_step = None
        if self._hovered is not None and across.begin <= self._hovered <= across.end:
            self.hovered_step = across.back(self._hovered)
            x = int(self._hovered)
            painter.setPen(self._ink(120))
            painter.drawLine(x, int(up.end), x, int(up.begin))

    def _scales(self, group: Group, metrics: Any) -> tuple[_Scale, _Scale]:
        low, high = _range([v for curve in group.curves for v in _shown_range(curve)])
        log = group.is_logarithmic and low > 0
        bottom = _PLOT_HEIGHT - metrics.height() - 4
        up = _Scale(low=low, high=high, begin=bottom, end=metrics.height() + 8, is_logarithmic=log)
        left = 4 + max(metrics.horizontalAdvance(number_words(m)) for m in up.marks(4))
        steps = [s for curve in group.curves for s in (curve.steps[0], curve.steps[-1])]
        first, last = float(min(steps)), float(max(steps))
        across = _Scale(
            low=first, high=max(last, first + 1), begin=left + 4, end=self.width - _MARGIN
        )
        return across, up

    def _paint_axes(self, painter: Any, across: _Scale, up: _Scale) -> None:
        metrics = painter.fontMetrics()
        height = metrics.height()
        for mark in up.marks(4):
            y = int(up(mark))
            painter.setPen(self._ink(_GRID_ALPHA))
            painter.drawLine(int(across.begin), y, int(across.end), y)
            painter.setPen(self._ink(190))
            text = number_words(mark)
            x = int(across.begin) - 4 - metrics.horizontalAdvance(text)
            painter.drawText(x, y + metrics.ascent() // 2 - 1, text)
        step_word = _("step")
        free = int(across.end) - metrics.horizontalAdvance(step_word)
        painter.drawText(free, _PLOT_HEIGHT - metrics.descent(), step_word)
        for mark in across.marks(5):
            text = f"{mark:,.0f}"
            x = int(across(mark)) - metrics.horizontalAdvance(text) // 2
            if mark == int(mark) and x + metrics.horizontalAdvance(text) < free - 4:
                painter.drawText(max(x, 0), _PLOT_HEIGHT - metrics.descent(), text)
        title = _("{what}, logarithmic") if up.is_logarithmic else "{what}"
        painter.drawText(0, height - metrics.descent(), title.format(what=self._axis_title()))

    def _axis_title(self) -> str:
        return "" if self._group is None else self._group.title

    def _paint_curve(
        self, painter: Any, curve: Curve, number: int, place: Callable[[Point], Point]
    ) -> None:
        color = qt.QColor(COLORS[number % len(COLORS)])
        pen = qt.QPen(color)
        pen.setStyle(_style(number))
        if not curve.is_smooth:
            faint = qt.QColor(color.red(), color.green(), color.blue(), _FAINT)
            painter.setPen(faint)
            painter.drawPath(self._path(curve.steps, curve.values, place))
        pen.setWidth(2)
        painter.setPen(pen)
        if len(curve.values) == 1:
            x, y = place((curve.steps[0], curve.values[0]))
            painter.drawEllipse(int(x) - _MARK // 2, int(y) - _MARK // 2, _MARK, _MARK)
        values = curve.values if curve.is_smooth else curve.smoothed()
        painter.drawPath(self._path(curve.steps, values, place))

    def _path(
        self, steps: Sequence[int], values: Sequence[float], place: Callable[[Point], Point]
    ) -> Any:
        path = qt.QPainterPath()
        points = thinned(list(zip(steps, values, strict=True)), columns=max(self.width, 1))
        for number, point in enumerate(map(place, points)):
            (path.lineTo if number else path.moveTo)(*point)
        return path

    # The legend

    def _paint_legend(self, painter: Any, group: Group, step: float | None) -> None:
        metrics = painter.fontMetrics()
        for number, (curve, place) in enumerate(
            zip(group.curves, self._cells(metrics), strict=True)
        ):
            x, y = place
            pen = qt.QPen(qt.QColor(COLORS[number % len(COLORS)]))
            pen.setWidth(2)
            pen.setStyle(_style(number))
            painter.setPen(pen)
            middle = y - metrics.ascent() // 2 + 1
            painter.drawLine(x, middle, x + _SWATCH, middle)
            painter.setPen(self._ink(255))
            value = curve.values[-1] if step is None else curve.at(step)
            painter.drawText(x + _SWATCH + 4, y, _legend_text(curve, value))
        if step is not None:
            text = _("at step {step}").format(step=f"{step:,.0f}")
            x = int(self.width - _MARGIN - metrics.horizontalAdvance(text))
            painter.drawText(x, metrics.height() - metrics.descent(), text)

    def _cells(self, metrics: Any) -> list[tuple[int, int]]:
        """Where the entries stand: side by side as far as there is room."""
        cells: list[tuple[int, int]] = []
        x, y = _MARGIN, _PLOT_HEIGHT + metrics.height()
        for curve in self._group.curves if self._group else ():
            # As wide as the widest value, lest entries jump while the mouse moves.
            text = _legend_text(curve, -0.000888)
            width = _SWATCH + 4 + metrics.horizontalAdvance(text) + 10
            if x > _MARGIN and x + width > self.width:
                x, y = _MARGIN, y + metrics.height() + 2
            cells.append((x, y))
            x += width
        return cells

    def _legend_height(self, metrics: Any) -> int:
        cells = self._cells(metrics)
        return cells[-1][1] - _PLOT_HEIGHT + metrics.descent() + 2 if cells else 0

    def _ink(self, alpha: int) -> Any:
        color = self.palette.color(qt.QPalette.WindowText)
        return qt.QColor(color.red(), color.green(), color.blue(), alpha)


def _style(number: int) -> Any:
    """Lines that share a colour differ in their dashes."""
    return qt.Qt.SolidLine if number < len(COLORS) else qt.Qt.DashLine


def _legend_text(curve: Curve, value: float | None) -> str:
    return curve.name if value is None else f"{curve.name} {number_words(value)}"


def _shown_range(curve: Curve) -> tuple[float, float]:
    """Lowest and highest of what matters: single outliers must not flatten all else."""
    ordered = sorted(curve.values)
    cut = 0 if curve.is_smooth else len(ordered) // 100
    smooth = curve.values if curve.is_smooth else curve.smoothed()
    return min(ordered[cut], *smooth), max(ordered[-1 - cut], *smooth)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
    # Nothing that is never below zero gets an axis that is.
    return (low - room if low < 0 else max(low - room, 0.0 if low == 0 else low * 0.9)), high + room
