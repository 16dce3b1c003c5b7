"""Which segmentations of the scene are learnt from, and on which volume each of them lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from SSLSegmentationLib.signals import Signal

if TYPE_CHECKING:
    from SSLPretrainLogic.scene.segments import SceneCase

_NAME, _VOLUME = range(2)
_LATER_MS = 100
"""Loading a scene adds many nodes at once: the list is made anew when it is quiet."""

_ROWS_AT_MOST = 6
_HEAD_MARGIN, _ROW_MARGIN = 8, 12


class CaseList(VTKObservationMixin):
    """A row per segmentation, checked where it is learnt from, with its volume to choose.

    What the user chose stays when the scene changes; all else is proposed.

    Attributes:
        changed: emitted without values when the cases or their segments are others.
    """

    def __init__(self, table: Any) -> None:
        super().__init__()
        self.changed = Signal()
        self._table = table
        self._nodes: list[Any] = []
        self._selectors: list[Any] = []
        self._unchecked: set[str] = set()
        self._chosen: set[str] = set()
        self._filling = False
        self._later = qt.QTimer()
        self._later.setSingleShot(True)
        self._later.interval = _LATER_MS
        self._later.connect("timeout()", self.refresh)
        spread_columns(table, [_("Segmentation"), _("Volume")], stretched=(_NAME, _VOLUME))
        table.connect("itemChanged(QTableWidgetItem*)", self._on_checked)
        scene = slicer.mrmlScene
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent):
            self.addObserver(scene, event, self._on_scene)
        self.refresh()

    @property
    def is_empty(self) -> bool:
        """Whether the scene has no segmentation."""
        return not self._nodes

    def cases(self) -> tuple[SceneCase, ...]:
        """The checked ones; segmentations on the same volume are one case."""
        if self.is_empty:
            return ()
        from SSLPretrainLogic.scene.segments import SceneCase

        together: dict[str, list[Any]] = {}
        for node, volume in self._checked():
            if volume is not None:
                together.setdefault(volume.GetID(), []).append(node)
        return tuple(
            SceneCase(
                name=f"case_{number:03d}",
                volume=slicer.mrmlScene.GetNodeByID(volume_id),
                segmentations=tuple(nodes),
            )
            for number, (volume_id, nodes) in enumerate(together.items(), start=1)
        )

    def volumes(self) -> dict[str, str]:
        """Names of the cases to names of their volumes."""
        return {case.name: case.volume.GetName() for case in self.cases()}

    def problem(self) -> str:
        """Why one cannot learn from these, "" if one can."""
        checked = self._checked()
        if self.is_empty:
            return _("The scene has no segmentation: load or draw one.")
        if not checked:
            return _("No segmentation is checked.")
        for node, volume in checked:
            if volume is None:
                what = _("{name}: choose the volume that it lies on.")
                return what.format(name=node.GetName())
            if not node.GetSegmentation().GetNumberOfSegments():
                return _("{name} has no segments: uncheck it.").format(name=node.GetName())
        return ""

    def refresh(self) -> None:
        """Show the scene as it is."""
        self._filling = True
        found = [n for n in _nodes("vtkMRMLSegmentationNode") if not n.GetHideFromEditors()]
        if found != self._nodes:
            self._rebuild(found)
        for row, node in enumerate(found):
            self._table.item(row, _NAME).setText(node.GetName())
            if node.GetID() not in self._chosen:
                self._selectors[row].setCurrentNode(proposed_volume(node))
        self._filling = False
        self.changed.emit()

    def forget(self) -> None:
        """Let go of all nodes."""
        self._unchecked.clear()
        self._chosen.clear()
        self._rebuild([])
        self.changed.emit()

    def cleanup(self) -> None:
        """Hear of the scene no more."""
        self._later.stop()
        self.removeObservers()

    def _checked(self) -> list[tuple[Any, Any]]:
        return [
            (node, self._selectors[row].currentNode())
            for row, node in enumerate(self._nodes)
            if self._table.item(row, _NAME).checkState() == qt.Qt.Checked
        ]

    def _rebuild(self, nodes: list[Any]) -> None:
        self.removeObservers(self._on_node)
        self._nodes = nodes
        self._table.setRowCount(len(nodes))
        self._selectors = [self._add(row, node) for row, node in enumerate(nodes)]
        fit_height(self._table, rows=_ROWS_AT_MOST)

    def _add(self, row: int, node: Any) -> Any:
        events = (
            vtk.vtkCommand.ModifiedEvent,
            slicer.vtkSegmentation.SegmentAdded,
            slicer.vtkSegmentation.SegmentRemoved,
            slicer.vtkSegmentation.SegmentModified,
        )
        for event in events:
            self.addObserver(node, event, self._on_node)
        item = qt.QTableWidgetItem(node.GetName())
        item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
        off = node.GetID() in self._unchecked
        item.setCheckState(qt.Qt.Unchecked if off else qt.Qt.Checked)
        item.setToolTip(_("Checked: its segments are learnt from"))
        self._table.setItem(row, _NAME, item)
        selector = self._volume_selector(node.GetID())
        self._table.setCellWidget(row, _VOLUME, selector)
        return selector

    def _volume_selector(self, node_id: str) -> Any:
        selector = slicer.qMRMLNodeComboBox()
        selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        selector.hideChildNodeTypes = ["vtkMRMLLabelMapVolumeNode"]
        selector.noneEnabled = True
        selector.noneDisplay = _("Choose…")
        selector.addEnabled = selector.removeEnabled = selector.renameEnabled = False
        selector.setMRMLScene(slicer.mrmlScene)

        def chosen() -> None:
            self._show_tip(selector)
            if not self._filling:
                # A volume that was removed is no choice: another one is proposed.
                there = selector.currentNode() is not None
                (self._chosen.add if there else self._chosen.discard)(node_id)
                self.changed.emit()

        self._show_tip(selector)
        selector.connect("currentNodeChanged(vtkMRMLNode*)", chosen)
        return selector

    def _show_tip(self, selector: Any) -> None:
        """Say the whole name, for which the column may be too narrow."""
        volume = selector.currentNode()
        tip = _("The CT volume that this segmentation lies on")
        selector.toolTip = tip if volume is None else f"{tip}: {volume.GetName()}"

    def _on_checked(self, item: Any) -> None:
        if self._filling or item.column() != _NAME:
            return
        node_id = self._nodes[item.row()].GetID()
        checked = item.checkState() == qt.Qt.Checked
        (self._unchecked.discard if checked else self._unchecked.add)(node_id)
        self.changed.emit()

    def _on_scene(self, caller: Any = None, event: Any = None) -> None:
        self._later.start()

    def _on_node(self, caller: Any = None, event: Any = None) -> None:
        self._later.start()


def proposed_volume(segmentation: Any) -> Any:
    """The volume that a segmentation was most likely made on, None if nothing says.

    It is the one that the segmentation refers to, else one of exactly its geometry, else the only
    one in its study, else the only one in the scene.
    """
    referred = segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())
    if referred is not None:
        return referred
    volumes = [
        volume
        for volume in _nodes("vtkMRMLScalarVolumeNode")
        if not volume.IsA("vtkMRMLLabelMapVolumeNode") and not volume.GetHideFromEditors()
    ]
    geometry = _geometry(segmentation)
    for group in (
        [v for v in volumes if geometry and _volume_geometry(v) == geometry],
        [v for v in volumes if _study(v) == _study(segmentation) != 0],
        volumes,
    ):
        if len(group) == 1:
            return group[0]
    return None


def _nodes(kind: str) -> list[Any]:
    scene = slicer.mrmlScene
    return [scene.GetNthNodeByClass(n, kind) for n in range(scene.GetNumberOfNodesByClass(kind))]


def _geometry(segmentation: Any) -> str:
    name = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    return str(segmentation.GetSegmentation().GetConversionParameter(name) or "")


def _volume_geometry(volume: Any) -> str:
    if volume.GetImageData() is None:
        return ""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    image = volume.GetImageData()
    return str(slicer.vtkSegmentationConverter.SerializeImageGeometry(matrix, image))


def _study(node: Any) -> int:
    """The item above a node in the subject hierarchy, 0 where that is the scene itself."""
    tree = slicer.mrmlScene.GetSubjectHierarchyNode()
    item = tree.GetItemByDataNode(node) if tree is not None else 0
    parent = tree.GetItemParent(item) if item else 0
    return 0 if tree is None or parent == tree.GetSceneItemID() else int(parent)


def spread_columns(table: Any, titles: list[str], *, stretched: tuple[int, ...]) -> None:
    """Give a table its columns: some share the width, the others are as wide as their content."""
    table.setColumnCount(len(titles))
    table.setHorizontalHeaderLabels(titles)
    header = table.horizontalHeader()
    for column in range(len(titles)):
        wide = column in stretched
        mode = qt.QHeaderView.Stretch if wide else qt.QHeaderView.ResizeToContents
        header.setSectionResizeMode(column, mode)
    header.setHighlightSections(False)
    header.setFixedHeight(table.fontMetrics().height() + _HEAD_MARGIN)
    table.verticalHeader().hide()
    table.verticalHeader().setDefaultSectionSize(table.fontMetrics().height() + _ROW_MARGIN)


def fit_height(table: Any, *, rows: int) -> None:
    """Make a table as high as its content, up to a number of rows; more are scrolled."""
    heights = [table.rowHeight(row) for row in range(min(table.rowCount, rows))]
    head = table.fontMetrics().height() + _HEAD_MARGIN
    table.setFixedHeight(head + sum(heights) + 2 * table.frameWidth)
