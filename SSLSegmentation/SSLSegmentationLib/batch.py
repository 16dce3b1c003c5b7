"""The folded part of the panel *Segment*: many scans at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.files import surely
from SSLSegmentationLib.check_list import CheckList, Entry
from SSLSegmentationLib.segmenter import Choice, Segmenter
from SSLSegmentationLib.session import Session

_SCALAR = "vtkMRMLScalarVolumeNode"
_EVENTS = ("NodeAddedEvent", "NodeRemovedEvent", "EndImportEvent", "EndCloseEvent")


class Batch:
    """Volumes of the scene, or a whole folder.

    Args:
        ui: the widgets of the panel.
        session: remembers the folders.
        changed: called when something else is chosen.
    """

    def __init__(self, ui: Any, *, session: Session, changed: Callable[[], None]) -> None:
        self.ui = ui
        self._session = session
        self._changed = changed
        self._volumes = CheckList(ui.segmentBatchList)
        self._left_out: set[str] = set()
        ui.segmentBatchInputEdit.currentPath = session.setting("segmentBatchInput")
        ui.segmentBatchOutputEdit.currentPath = session.setting("segmentBatchOutput")
        ui.segmentBatchList.connect("itemChanged(QListWidgetItem*)", self._on_chosen)
        ui.segmentBatchSceneRadio.connect("toggled(bool)", self._on_kind)
        for edit in (ui.segmentBatchInputEdit, ui.segmentBatchOutputEdit):
            edit.connect("currentPathChanged(QString)", changed)
        # Nodes come and go, and are renamed, without a word to this list.
        ui.segmentBatchSection.connect("contentsCollapsed(bool)", self.refresh)
        scene = slicer.mrmlScene
        self._tags = [scene.AddObserver(getattr(scene, name), self.refresh) for name in _EVENTS]
        self._on_kind()

    def cleanup(self) -> None:
        """Hear of the scene no more."""
        for tag in self._tags:
            slicer.mrmlScene.RemoveObserver(tag)
        self._tags.clear()

    def refresh(self, *_: Any) -> None:
        """Show the volumes that are in the scene."""
        if self.ui.segmentBatchSection.collapsed:
            return
        nodes = [
            node
            for node in slicer.util.getNodesByClass(_SCALAR)
            if node.GetClassName() == _SCALAR and not node.GetHideFromEditors()
        ]
        entries = [Entry(key=node.GetID(), text=node.GetName()) for node in nodes]
        chosen = {entry.key for entry in entries} - self._left_out
        self._volumes.show(entries, chosen=chosen)
        # Unfolding shows all that is folded in.
        self._on_kind()

    @property
    def is_of_scene(self) -> bool:
        """Whether volumes of the scene are segmented, and no folder."""
        return bool(self.ui.segmentBatchSceneRadio.checked)

    @property
    def count(self) -> int:
        """How many volumes are chosen."""
        return len(self._volumes.chosen)

    def missing(self) -> str:
        """What is missing before it can start, as a sentence; "" if nothing is."""
        if self.is_of_scene:
            if not self._volumes.keys:
                return _("There is no volume in the scene. Load one first.")
            return "" if self.count else _("Choose at least one volume.")
        source, output = self._folders()
        if not str(self.ui.segmentBatchInputEdit.currentPath):
            return _("Choose the folder of the scans.")
        if not surely(source.is_dir):
            return _("{path} is no folder.").format(path=source)
        if not str(self.ui.segmentBatchOutputEdit.currentPath):
            return _("Choose a folder for the results.")
        if output.is_relative_to(source):
            return _("Choose a folder for the results outside that of the scans.")
        return ""

    def start(self, segmenter: Segmenter, choice: Choice, *, show_3d: bool) -> None:
        """Begin.

        Raises:
            LogicError: if something is missing, or it cannot be started.
        """
        if missing := self.missing():
            raise LogicError(missing)
        if self.is_of_scene:
            found = (slicer.mrmlScene.GetNodeByID(key) for key in self._volumes.chosen)
            volumes = [node for node in found if node is not None]
            segmenter.segment_volumes(choice, volumes, show_3d=show_3d)
            return
        source, output = self._folders()
        self._session.remember("segmentBatchInput", str(source))
        self._session.remember("segmentBatchOutput", str(output))
        overwrite = bool(self.ui.segmentBatchOverwriteBox.checked)
        segmenter.segment_folder(choice, source, output=output, overwrite=overwrite)

    def _folders(self) -> tuple[Path, Path]:
        edits = (self.ui.segmentBatchInputEdit, self.ui.segmentBatchOutputEdit)
        source, output = (_whole(str(edit.currentPath)) for edit in edits)
        return source, output

    def _on_chosen(self, *_: Any) -> None:
        self._left_out = set(self._volumes.keys) - set(self._volumes.chosen)
        self._changed()

    def _on_kind(self, *_: Any) -> None:
        self.ui.segmentBatchList.visible = self.is_of_scene
        self.ui.segmentBatchFolders.visible = not self.is_of_scene
        self._changed()


def _whole(text: str) -> Path:
    path = Path(text)
    # A home of nobody is taken as the name of a folder.
    with suppress(RuntimeError):
        path = path.expanduser()
    return path.absolute()
