"""The layout and its views: real nodes and logic of slices and plots, without any picture."""

from __future__ import annotations

from typing import Any

import slicer

from slicer_host.mrml_widgets import MRMLWidget
from slicer_host.standins import Behaviour

SLICES = {"Red": "Axial", "Green": "Coronal", "Yellow": "Sagittal"}


class SliceWidget(MRMLWidget):
    """A slice view: its real logic, which holds node, background, foreground and label."""

    _host_kept = True

    def _host_show(self, name: str) -> None:
        self._host_logic = slicer.vtkMRMLSliceLogic()
        self._host_logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        self._host_logic.SetMRMLScene(slicer.mrmlScene)
        node = self._host_logic.AddSliceNode(name)
        node.SetOrientation(SLICES[name])
        slicer.app.applicationLogic().GetSliceLogics().AddItem(self._host_logic)

    def sliceLogic(self) -> Any:
        return self._host_logic

    def mrmlSliceNode(self) -> Any:
        return self._host_logic.GetSliceNode()

    def fitSliceToBackground(self) -> None:
        self._host_logic.FitSliceToBackground()


class PlotWidget(MRMLWidget):
    """A plot view: its real node, which says which chart it shows."""

    _host_kept = True

    def _host_show(self) -> None:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLPlotViewNode")
        node.UnRegister(None)
        node.SetSingletonTag("PlotView1")  # a closed scene keeps it
        self._host_node = slicer.mrmlScene.AddNode(node)

    def mrmlPlotViewNode(self) -> Any:
        return self._host_node


class LayoutManager(Behaviour):
    """Which views are shown. The number of the layout is kept, nothing is laid out."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._host_slices: dict[str, Any] = {}
        self._host_plots: list[Any] = []

    def _host_start(self) -> None:
        """Make the slices; Slicer has them from the beginning."""
        for name in SLICES:
            self._host_slices[name] = slicer.qMRMLSliceWidget()
            self._host_slices[name]._host_show(name)

    def _host_write_layout(self, layout: int) -> None:
        self.layoutChanged.emit(layout)

    def setLayout(self, layout: int) -> None:
        self.layout = layout

    def sliceViewNames(self) -> list[str]:
        return list(SLICES)

    def sliceWidget(self, name: str) -> Any:
        return self._host_slices.get(name)

    def mrmlSliceLogics(self) -> Any:
        return slicer.app.applicationLogic().GetSliceLogics()

    def plotWidget(self, index: int) -> Any:
        while len(self._host_plots) <= index:
            self._host_plots.append(slicer.qMRMLPlotWidget())
            self._host_plots[-1]._host_show()
        return self._host_plots[index]

    def _host_read_plotViewCount(self) -> int:
        return len(self._host_plots)

    def _host_read_threeDViewCount(self) -> int:
        return 0

    def resetSliceViews(self) -> None:
        for widget in self._host_slices.values():
            widget.sliceLogic().FitSliceToAll()

    def resetThreeDViews(self) -> None:
        """There is no 3D view."""

    def mrmlScene(self) -> Any:
        return slicer.mrmlScene

    def pauseRender(self) -> None:
        """Nothing is drawn."""

    def resumeRender(self) -> None:
        """Nothing is drawn."""


BEHAVIOURS: dict[str, type[Behaviour]] = {
    "qMRMLLayoutManager": LayoutManager,
    "qMRMLPlotWidget": PlotWidget,
    "qMRMLSliceWidget": SliceWidget,
}
