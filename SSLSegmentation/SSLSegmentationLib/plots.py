"""The curves of a run as a chart of Slicer: table, series and chart nodes."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from SSLSegmentationLib.curve_plot import COLORS
from SSLSegmentationLib.curves import Curve, Group

_STEP = "step"


class FullPlot:
    """One chart, which follows the group of curves it was shown with."""

    def __init__(self) -> None:
        self._chart: Any = None
        self._table: Any = None
        self._series: list[Any] = []
        self._columns: tuple[str, ...] = ()

    def show(self, group: Group, *, title: str) -> None:
        """Put the chart into the layout of Slicer."""
        if not self.is_there:
            self._make()
        self._columns = ()
        self.update(group, title=title)
        slicer.modules.plots.logic().ShowChartInLayout(self._chart)

    @property
    def is_there(self) -> bool:
        """Whether the chart is in the scene."""
        return self._chart is not None and bool(slicer.mrmlScene.IsNodePresent(self._chart))

    def update(self, group: Group, *, title: str) -> None:
        """Take in new values; nothing happens while no chart is there."""
        if not self.is_there:
            return
        names, columns = _columns(group)
        # One event at the end; otherwise the view would draw each column by itself.
        with slicer.util.NodeModify(self._table):
            slicer.util.updateTableFromArray(self._table, columns, names)
        self._chart.SetTitle(f"{title}: {group.title}")
        self._chart.SetXAxisTitle(_("step"))
        self._chart.SetYAxisLogScale(group.is_logarithmic)
        if self._columns != tuple(names):
            self._make_series(names, [curve.is_smooth for curve in group.curves])
            self._columns = tuple(names)

    def remove(self) -> None:
        """Take all of it out of the scene."""
        for node in (*self._series, self._table, self._chart):
            if node is not None and slicer.mrmlScene.IsNodePresent(node):
                slicer.mrmlScene.RemoveNode(node)
        self._chart = self._table = None
        self._series, self._columns = [], ()

    def _make(self) -> None:
        self.remove()
        self._table = _added("vtkMRMLTableNode", "SSL curves table")
        self._chart = _added("vtkMRMLPlotChartNode", "SSL curves")
        self._chart.SetLegendVisibility(True)

    def _make_series(self, names: list[str], plain: list[bool]) -> None:
        self._chart.RemoveAllPlotSeriesNodeIDs()
        for node in self._series:
            slicer.mrmlScene.RemoveNode(node)
        self._series = []
        for number, name in enumerate(names[1:]):
            node = _added("vtkMRMLPlotSeriesNode", name)
            node.SetAndObserveTableNodeID(self._table.GetID())
            node.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
            node.SetXColumnName(_STEP)
            node.SetYColumnName(name)
            is_points = plain[number]
            circle = slicer.vtkMRMLPlotSeriesNode.MarkerStyleCircle
            node.SetMarkerStyle(
                circle if is_points else slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone
            )
            node.SetLineWidth(2)
            node.SetColor(*_rgb(COLORS[number % len(COLORS)]))
            self._chart.AddAndObservePlotSeriesNodeID(node.GetID())
            self._series.append(node)


def _columns(group: Group) -> tuple[list[str], list[Any]]:
    """Names and arrays of one table; what a step did not record stays as it was before."""
    import numpy as np

    steps = np.unique(np.concatenate([curve.steps for curve in group.curves]))
    columns = [steps.astype(np.float64), *(_held(curve, steps) for curve in group.curves)]
    return [_STEP, *(curve.name for curve in group.curves)], columns


def _held(curve: Curve, steps: Any) -> Any:
    import numpy as np

    at = np.searchsorted(curve.steps, steps, side="right") - 1
    return np.asarray(curve.smoothed())[np.maximum(at, 0)]


def _added(kind: str, name: str) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass(kind, name)
    # A run writes its curves itself; scenes would grow with every one that was looked at.
    node.SetSaveWithScene(False)
    return node


def _rgb(color: str) -> tuple[float, float, float]:
    red, green, blue = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue
