"""Where scans come from: dropped folders, Slicer's DICOM database, volumes of the scene."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic.errors import LogicError
from SSLSegmentationLib.pick_dialog import Choice
from SSLSegmentationLib.stepwise import Steps

_VOLUME = "vtkMRMLScalarVolumeNode"
_DRAGGED = (qt.QEvent.DragEnter, qt.QEvent.DragMove)


class DropFilter(qt.QObject):
    """Takes files and folders that are dropped onto the widgets it is installed on.

    Args:
        dropped: is given their paths.
    """

    def __init__(self, dropped: Callable[[list[Path]], None]) -> None:
        qt.QObject.__init__(self)
        self._dropped = dropped

    def eventFilter(self, _watched: Any, event: Any) -> bool:
        """Qt asks whether an event ends here."""
        kind = event.type()
        if kind not in (*_DRAGGED, qt.QEvent.Drop) or not event.mimeData().hasUrls():
            return False
        event.acceptProposedAction()
        if kind == qt.QEvent.Drop:
            self._dropped([Path(url.toLocalFile()) for url in event.mimeData().urls()])
        return True


def dicom_database() -> Any:
    """Slicer's DICOM database.

    Raises:
        LogicError: if it is closed or empty.
    """
    database = getattr(slicer, "dicomDatabase", None)
    if database is None or not database.isOpen:
        raise LogicError(
            _("Slicer's DICOM database is not open."),
            _("Open the module DICOM once, or add the folder of the scans."),
        )
    if not database.patients():
        raise LogicError(
            _("Slicer's DICOM database is empty."),
            _("Import scans in the module DICOM, or add their folder."),
        )
    return database


def dicom_choices(database: Any) -> Iterator[Choice]:
    """The CT series of the database, by patient."""
    for patient in database.patients():
        # DICOM puts ^ between the parts of a name.
        name = database.nameForPatient(patient).replace("^", " ").strip() or _("Unnamed patient")
        for study in database.studiesForPatient(patient):
            date = _date(database.fieldForStudy("StudyDate", study))
            for uid in database.seriesForStudy(study):
                if database.fieldForSeries("Modality", uid) == "CT":
                    text = database.descriptionForSeries(uid) or _("No description")
                    yield Choice(text=text, detail=date, value=uid, group=name)


def _date(told: str) -> str:
    """20240311 as 2024-03-11; anything else stays."""
    plain = len(told) == 8 and told.isdigit()
    return f"{told[:4]}-{told[4:6]}-{told[6:]}" if plain else told


def dicom_folders(database: Any, uids: Iterable[str]) -> Steps:
    """The folders of some series; one series per step."""
    folders: dict[Path, None] = {}
    for uid in uids:
        folders |= {Path(file).parent: None for file in database.filesForSeries(uid)}
        yield False
    return list(folders)


def volume_choices() -> list[Choice]:
    """The CT volumes of the scene; those of other kinds cannot be exported.

    Raises:
        LogicError: if there is none.
    """
    nodes = [n for n in slicer.util.getNodesByClass(_VOLUME) if n.GetClassName() == _VOLUME]
    if not nodes:
        raise LogicError(_("No volume is loaded."), _("Load CT volumes first, or add a folder."))
    return [Choice(text=node.GetName(), detail=_size(node), value=node) for node in nodes]


def _size(node: Any) -> str:
    image = node.GetImageData()
    return "×".join(map(str, image.GetDimensions())) if image is not None else _("no voxels")


def copied_volumes(
    nodes: Sequence[Any], folder: Path, *, progress: Callable[[int, int], None]
) -> Steps:
    """Write volumes into a folder, one per step; all of them or none.

    Returns what was interpolated, and why.

    Args:
        nodes: scalar volumes.
        folder: of the files, which get numbers, as names of nodes may tell patients.
        progress: is given the number of the next one and how many there are.
    """
    from SSLPretrainLogic.scene.volumes import export_volume

    told: list[str] = []
    written: list[Path] = []
    try:
        for number, node in enumerate(nodes, start=1):
            progress(number, len(nodes))
            yield True
            exported = export_volume(node, _free_path(folder))
            written.append(exported.path)
            if exported.resampled:
                told.append(f"{node.GetName()}: {exported.resampled}")
    except (GeneratorExit, LogicError):
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return told


def _free_path(folder: Path) -> Path:
    number = 1
    while (path := folder / f"volume-{number:03d}.nrrd").exists():
        number += 1
    return path
