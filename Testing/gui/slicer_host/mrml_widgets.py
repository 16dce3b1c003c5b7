"""How Slicer's widgets behave that show nodes of a scene."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import shiboken6
import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets

from slicer_host.faults import FAULTS
from slicer_host.standins import Behaviour, emit, listen, strict

_NODE = "currentNodeChanged(vtkMRMLNode*)"
_ANY = "currentNodeChanged(bool)"


class Observations:
    """Observers that keep no widget alive and are quiet once it is gone."""

    def __init__(self) -> None:
        self._tags: list[tuple[Any, int]] = []

    def add(self, source: Any, events: tuple[int, ...], method: Callable[..., Any]) -> None:
        """Call a bound method of a widget, without arguments, at these events of a VTK object."""
        weak = weakref.WeakMethod(method)

        def call(*_: Any) -> None:
            living = weak()
            if living is not None and shiboken6.isValid(living.__self__):
                try:
                    living()
                except Exception as error:
                    FAULTS.add(error)

        self._tags += [(source, source.AddObserver(event, call)) for event in events]

    def clear(self) -> None:
        """End them."""
        for source, tag in self._tags:
            source.RemoveObserver(tag)
        self._tags.clear()


class SlicerWidget(Behaviour):
    """Is told a scene and passes it on."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._host_scene: Any = None

    def setMRMLScene(self, scene: Any) -> None:
        self._host_scene = scene
        self.mrmlSceneChanged.emit(scene)


class MRMLWidget(SlicerWidget):
    """Knows a scene."""

    def mrmlScene(self) -> Any:
        return self._host_scene


_SCENE_EVENTS = (
    slicer.vtkMRMLScene.NodeAddedEvent,
    slicer.vtkMRMLScene.NodeRemovedEvent,
    slicer.vtkMRMLScene.EndCloseEvent,
    slicer.vtkMRMLScene.EndImportEvent,
)


class NodeComboBox(Behaviour):
    """Chooses a node of some classes. Without a scene it stays empty."""

    _host_defaults: ClassVar[dict[str, Any]] = {
        "addEnabled": True,
        "removeEnabled": True,
        "noneDisplay": "None",
        "showChildNodeTypes": True,
        "selectNodeUponCreation": True,
    }

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._host_combo = QtWidgets.QComboBox()
        policy = QtWidgets.QSizePolicy.Policy
        self._host_combo.setSizePolicy(policy.Ignored, policy.Fixed)
        self.setSizePolicy(policy.Expanding, policy.Fixed)
        layout.addWidget(self._host_combo)
        self._host_scene: Any = None
        self._host_ids: list[str] = []
        self._host_last = ""
        self._host_attributes: dict[tuple[str, str], Any] = {}
        self._host_observed, self._host_named = Observations(), Observations()
        listen(self._host_combo.currentIndexChanged, self._host_chosen)

    def setMRMLScene(self, scene: Any) -> None:
        self._host_observed.clear()
        self._host_scene = scene
        if scene is not None:
            self._host_observed.add(scene, _SCENE_EVENTS, self._host_refresh)
        self._host_refresh()

    def mrmlScene(self) -> Any:
        return self._host_scene

    def _host_refresh(self) -> None:
        kept = self._host_last
        before, self._host_ids = self._host_ids, [n.GetID() for n in self._host_nodes()]
        self._host_named.clear()
        self._host_combo.blockSignals(True)
        self._host_combo.clear()
        if self.noneEnabled:
            self._host_combo.addItem(self.noneDisplay)
        for node in self._host_nodes():
            self._host_combo.addItem(node.GetName())
            self._host_named.add(node, (vtk.vtkCommand.ModifiedEvent,), self._host_rename)
        # Slicer chooses the first node by itself where "none" is no choice.
        first = "" if self.noneEnabled or not self._host_ids else self._host_ids[0]
        self._host_select(kept if kept in self._host_ids else first)
        self._host_combo.blockSignals(False)
        for added in set(self._host_ids) - set(before):
            self.nodeAdded.emit(self._host_scene.GetNodeByID(added))
        self._host_chosen()

    def _host_rename(self) -> None:
        for row, node in enumerate(self._host_nodes(), start=int(self.noneEnabled)):
            if self._host_combo.itemText(row) != node.GetName():
                self._host_combo.setItemText(row, node.GetName())

    def _host_nodes(self) -> list[Any]:
        found: dict[str, Any] = {}
        for kind in self.nodeTypes if self._host_scene is not None else ():
            for index in range(self._host_scene.GetNumberOfNodesByClass(kind)):
                node = self._host_scene.GetNthNodeByClass(index, kind)
                if self._host_shows(node, kind):
                    found.setdefault(node.GetID(), node)
        return list(found.values())

    def _host_shows(self, node: Any, kind: str) -> bool:
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        if any(node.IsA(hidden) for hidden in self.hideChildNodeTypes):
            return False
        if not self.showChildNodeTypes and node.GetClassName() != kind:
            return False
        return all(
            node.GetAttribute(name) is not None and value in (None, node.GetAttribute(name))
            for (wanted, name), value in self._host_attributes.items()
            if node.IsA(wanted)
        )

    def _host_select(self, node_id: str) -> None:
        row = self._host_ids.index(node_id) + int(self.noneEnabled) if node_id else -1
        self._host_combo.setCurrentIndex(row if node_id else (0 if self.noneEnabled else -1))

    def _host_chosen(self, *_: Any) -> None:
        chosen = self.currentNodeID
        if chosen != self._host_last:
            self._host_last = chosen
            node = self.currentNode()
            emit(self, _NODE, node)
            emit(self, _ANY, node is not None)
            self.currentNodeIDChanged.emit(chosen)

    def _host_read_currentNodeID(self) -> str:
        row = self._host_combo.currentIndex - int(self.noneEnabled)
        return self._host_ids[row] if 0 <= row < len(self._host_ids) else ""

    def _host_write_currentNodeID(self, node_id: str) -> None:
        self._host_select(node_id if node_id in self._host_ids else "")

    _host_read_currentNodeId = _host_read_currentNodeID
    _host_write_currentNodeId = _host_write_currentNodeID

    def _host_write_noneEnabled(self, _: bool) -> None:
        self._host_refresh()

    _host_write_noneDisplay = _host_write_noneEnabled
    _host_write_nodeTypes = _host_write_noneEnabled
    _host_write_showHidden = _host_write_noneEnabled
    _host_write_showChildNodeTypes = _host_write_noneEnabled
    _host_write_hideChildNodeTypes = _host_write_noneEnabled

    def addAttribute(self, kind: str, name: str, value: Any = None) -> None:
        self._host_attributes[kind, name] = value
        self._host_refresh()

    def removeAttribute(self, kind: str, name: str) -> None:
        self._host_attributes.pop((kind, name), None)
        self._host_refresh()

    def currentNode(self) -> Any:
        chosen = self.currentNodeID
        return self._host_scene.GetNodeByID(chosen) if chosen else None

    def setCurrentNode(self, node: Any) -> None:
        self.currentNodeID = node if isinstance(node, str) else node.GetID() if node else ""

    def setCurrentNodeID(self, node_id: str) -> None:
        self.currentNodeID = node_id or ""

    def setCurrentNodeIndex(self, index: int) -> None:
        self.currentNodeID = self._host_ids[index]

    def nodeCount(self) -> int:
        return len(self._host_ids)

    def nodeFromIndex(self, index: int) -> Any:
        return self._host_scene.GetNodeByID(self._host_ids[index])

    def addNode(self, kind: str = "") -> Any:
        kind = kind or self.nodeTypes[0]
        name = self._host_scene.GenerateUniqueName(self.baseName or kind.removeprefix("vtkMRML"))
        node = self._host_scene.AddNewNodeByClass(kind, name)
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self) -> None:
        node = self.currentNode()
        if node is not None:
            self.nodeAboutToBeRemoved.emit(node)
            self._host_scene.RemoveNode(node)


class CheckableNodeComboBox(NodeComboBox):
    """Chooses several nodes."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._host_checked: set[str] = set()

    def check(self, node: Any) -> None:
        self.setCheckState(node, QtCore.Qt.CheckState.Checked)

    def uncheck(self, node: Any) -> None:
        self.setCheckState(node, QtCore.Qt.CheckState.Unchecked)

    def setCheckState(self, node: Any, state: QtCore.Qt.CheckState) -> None:
        before = set(self._host_checked)
        change = set.add if state == QtCore.Qt.CheckState.Checked else set.discard
        change(self._host_checked, node.GetID())
        if before != self._host_checked:
            self.checkedNodesChanged.emit()

    def checkState(self, node: Any) -> QtCore.Qt.CheckState:
        state = QtCore.Qt.CheckState
        return state.Checked if node.GetID() in self._host_checked else state.Unchecked

    def checkedNodes(self) -> list[Any]:
        return [n for n in self._host_nodes() if n.GetID() in self._host_checked]

    def uncheckedNodes(self) -> list[Any]:
        return [n for n in self._host_nodes() if n.GetID() not in self._host_checked]

    def allChecked(self) -> bool:
        return not self.uncheckedNodes()

    def noneChecked(self) -> bool:
        return not self.checkedNodes()


def _segments(node: Any) -> Iterator[tuple[str, Any]]:
    segmentation = node.GetSegmentation() if node is not None else None
    for segment_id in segmentation.GetSegmentIDs() if segmentation else ():
        yield segment_id, segmentation.GetSegment(segment_id)


_SEGMENT_EVENTS = (
    slicer.vtkSegmentation.SegmentAdded,
    slicer.vtkSegmentation.SegmentRemoved,
    slicer.vtkSegmentation.SegmentModified,
    slicer.vtkSegmentation.SegmentsOrderModified,
)


class SegmentsTableView(MRMLWidget):
    """The segments of a node with their colours, as a list in which several can be selected."""

    _host_defaults: ClassVar[dict[str, Any]] = {
        "headerVisible": True,
        "jumpToSelectedSegmentEnabled": True,
    }

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._host_node: Any = None
        self._host_hidden: list[str] = []
        self._host_observed = Observations()
        self._host_table = strict("QTableWidget")(0, 1)
        self._host_table.setHorizontalHeaderLabels(["Name"])
        self._host_table.horizontalHeader().setStretchLastSection(True)
        self._host_table.verticalHeader().hide()
        self._host_table.setSelectionBehavior(QtWidgets.QTableWidget.SelectionBehavior.SelectRows)
        self._host_table.setEditTriggers(QtWidgets.QTableWidget.EditTrigger.NoEditTriggers)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._host_table)
        listen(self._host_table.selectionModel().selectionChanged, self._host_selected)

    def _host_selected(self, new: Any, old: Any) -> None:
        self.selectionChanged.emit(new, old)

    def setSegmentationNode(self, node: Any) -> None:
        self._host_observed.clear()
        self._host_node = node
        if node is not None:
            self._host_observed.add(node.GetSegmentation(), _SEGMENT_EVENTS, self._host_refresh)
        self._host_refresh()

    def segmentationNode(self) -> Any:
        return self._host_node

    def _host_refresh(self) -> None:
        kept = self.selectedSegmentIDs()
        shown = [(i, s) for i, s in _segments(self._host_node) if i not in self._host_hidden]
        self._host_table.setRowCount(len(shown))
        for row, (segment_id, segment) in enumerate(shown):
            item = QtWidgets.QTableWidgetItem(segment.GetName())
            item.setData(QtCore.Qt.ItemDataRole.UserRole, segment_id)
            item.setIcon(_swatch(segment.GetColor()))
            self._host_table.setItem(row, 0, item)
        self.setSelectedSegmentIDs(kept)

    def displayedSegmentIDs(self) -> list[str]:
        rows = range(self._host_table.rowCount)
        return [self._host_table.item(r, 0).data(QtCore.Qt.ItemDataRole.UserRole) for r in rows]

    def _host_read_segmentCount(self) -> int:
        return self._host_table.rowCount

    def selectedSegmentIDs(self) -> list[str]:
        rows = {i.row() for i in self._host_table.selectedIndexes()}
        return [s for row, s in enumerate(self.displayedSegmentIDs()) if row in rows]

    def setSelectedSegmentIDs(self, segment_ids: list[str]) -> None:
        flag = QtCore.QItemSelectionModel.SelectionFlag
        self._host_table.clearSelection()
        for row, segment_id in enumerate(self.displayedSegmentIDs()):
            if segment_id in segment_ids:
                index = self._host_table.model().index(row, 0)
                self._host_table.selectionModel().select(index, flag.Select | flag.Rows)

    def clearSelection(self) -> None:
        self._host_table.clearSelection()

    def setHideSegments(self, segment_ids: list[str]) -> None:
        self._host_hidden = list(segment_ids)
        self._host_refresh()

    def hideSegments(self) -> list[str]:
        return self._host_hidden

    def rowForSegmentID(self, segment_id: str) -> int:
        shown = self.displayedSegmentIDs()
        return shown.index(segment_id) if segment_id in shown else -1

    def segmentIDForRow(self, row: int) -> str:
        return self.displayedSegmentIDs()[row]

    def tableWidget(self) -> Any:
        return self._host_table

    def _host_write_headerVisible(self, shown: bool) -> None:
        self._host_table.horizontalHeader().setVisible(shown)


def _swatch(color: tuple[float, float, float]) -> QtGui.QIcon:
    picture = QtGui.QPixmap(14, 14)
    picture.fill(QtGui.QColor.fromRgbF(*color))
    return QtGui.QIcon(picture)


class SegmentSelector(MRMLWidget):
    """Chooses a segmentation, and one or several of its segments."""

    _host_defaults: ClassVar[dict[str, Any]] = {"segmentationNodeSelectorVisible": True}

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._host_nodes = slicer.qMRMLNodeComboBox()
        self._host_nodes.nodeTypes = ["vtkMRMLSegmentationNode"]
        self._host_nodes.addEnabled = False
        self._host_segments = QtWidgets.QComboBox()
        self._host_selected: list[str] = []
        self._host_observed = Observations()
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._host_nodes)
        layout.addWidget(self._host_segments)
        self._host_nodes.connect(_NODE, self._host_other)
        listen(self._host_segments.currentIndexChanged, self._host_chosen)

    def setMRMLScene(self, scene: Any) -> None:
        self._host_nodes.setMRMLScene(scene)
        super().setMRMLScene(scene)

    def _host_other(self, node: Any) -> None:
        self._host_observed.clear()
        if node is not None:
            self._host_observed.add(node.GetSegmentation(), _SEGMENT_EVENTS, self._host_refresh)
        self._host_refresh()
        emit(self, _NODE, node)
        emit(self, _ANY, node is not None)

    def _host_refresh(self) -> None:
        kept = self.currentSegmentID()
        self._host_segments.blockSignals(True)
        self._host_segments.clear()
        if self.noneEnabled:
            self._host_segments.addItem("None", "")
        for segment_id, segment in _segments(self.currentNode()):
            self._host_segments.addItem(segment.GetName(), segment_id)
        self._host_segments.setCurrentIndex(max(self._host_segments.findData(kept), 0))
        self._host_segments.blockSignals(False)
        if self.currentSegmentID() != kept:
            self._host_chosen()

    def _host_chosen(self, *_: Any) -> None:
        self.currentSegmentChanged.emit(self.currentSegmentID())

    def _host_write_noneEnabled(self, enabled: bool) -> None:
        self._host_nodes.noneEnabled = enabled
        self._host_refresh()

    def _host_write_segmentationNodeSelectorVisible(self, shown: bool) -> None:
        self._host_nodes.visible = shown

    def _host_write_multiSelection(self, several: bool) -> None:
        self._host_segments.visible = not several

    def currentNode(self) -> Any:
        return self._host_nodes.currentNode()

    def currentNodeID(self) -> str:
        return self._host_nodes.currentNodeID

    def setCurrentNode(self, node: Any) -> None:
        self._host_nodes.setCurrentNode(node)

    def setCurrentNodeID(self, node_id: str) -> None:
        self._host_nodes.setCurrentNodeID(node_id)

    def currentSegmentID(self) -> str:
        return self._host_segments.currentData or ""

    def setCurrentSegmentID(self, segment_id: str) -> None:
        self._host_segments.setCurrentIndex(self._host_segments.findData(segment_id))

    def segmentIDs(self) -> list[str]:
        return [segment_id for segment_id, _ in _segments(self.currentNode())]

    def selectedSegmentIDs(self) -> list[str]:
        return [s for s in self._host_selected if s in self.segmentIDs()]

    def setSelectedSegmentIDs(self, segment_ids: list[str]) -> None:
        self._host_selected = list(segment_ids)
        self.segmentSelectionChanged.emit(self.selectedSegmentIDs())


class TableView(MRMLWidget):
    """The cells of a table node."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._host_node: Any = None
        self._host_observed = Observations()
        self._host_model = QtGui.QStandardItemModel(self)
        self.setModel(self._host_model)

    def setMRMLTableNode(self, node: Any) -> None:
        self._host_observed.clear()
        self._host_node = node
        if node is not None:
            self._host_observed.add(node, (vtk.vtkCommand.ModifiedEvent,), self._host_refresh)
        self._host_refresh()

    def mrmlTableNode(self) -> Any:
        return self._host_node

    def _host_refresh(self) -> None:
        node, model = self._host_node, self._host_model
        columns = range(node.GetNumberOfColumns()) if node is not None else range(0)
        rows = range(node.GetNumberOfRows()) if node is not None else range(0)
        model.clear()
        model.setHorizontalHeaderLabels([node.GetColumnName(c) for c in columns])
        for row in rows:
            model.appendRow([QtGui.QStandardItem(node.GetCellText(row, c)) for c in columns])


BEHAVIOURS: dict[str, type[Behaviour]] = {
    "qMRMLCheckableNodeComboBox": CheckableNodeComboBox,
    "qMRMLNodeComboBox": NodeComboBox,
    "qMRMLSegmentSelectorWidget": SegmentSelector,
    "qMRMLSegmentsTableView": SegmentsTableView,
    "qMRMLTableView": TableView,
    "qMRMLWidget": MRMLWidget,
    "qSlicerWidget": SlicerWidget,
}
