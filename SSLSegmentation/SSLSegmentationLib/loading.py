"""From the files of a task into the scene."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import slicer

from SSLPretrainLogic import tasks
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.tasks import Case, Row, Task

_SCALAR = "vtkMRMLScalarVolumeNode"


def volume_of(case: Case, *, node_id: str = "") -> Any:
    """The volume of a case, if it is in the scene as it was when it was segmented; None if not.

    Args:
        case: whose volume is wanted.
        node_id: of the volume, where it is known; it is asked first.
    """
    from SSLPretrainLogic.scene.measures import find_volume

    likely = slicer.mrmlScene.GetNodeByID(node_id) if node_id else None
    others = slicer.util.getNodesByClass(_SCALAR)
    return find_volume(([likely] if likely is not None else []) + others, case.fingerprint)


def read_volume(task: Task, case: Case) -> Any:
    """The volume of a case as it was, read into the scene.

    Raises:
        LogicError: if its file is gone or cannot be read.
    """
    path = task.input / f"{case.name}.nrrd"
    if not path.is_file():
        raise LogicError(f"{path}: is not there any more.", "Load the volume first.")
    try:
        return slicer.util.loadVolume(str(path), {"name": f"CT {case.name}"})
    except RuntimeError as error:
        raise LogicError(f"{path}: cannot be read.", "Load the volume first.") from error


def load_case(
    task: Task, case: Case, volume: Any, *, output: Any, show_3d: bool
) -> tuple[tuple[Row, ...], Any]:
    """Bring the segmentation of a case into the scene.

    Args:
        task: that is done.
        case: one of its cases.
        volume: its volume, in the scene.
        output: a segmentation to write into, None makes a new one.
        show_3d: whether surfaces are made.

    Returns:
        A row for each structure, and the segmentation node.

    Raises:
        LogicError: if it cannot be imported; then nothing is changed.
    """
    from SSLPretrainLogic.scene.measures import mean_of
    from SSLPretrainLogic.scene.results import import_labels

    surface = slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()
    had_3d = output is not None and output.GetSegmentation().ContainsRepresentation(surface)
    counted = tasks.case_rows(task, case, name=volume.GetName())
    found = import_labels(task.label_file(case), volume, segmentation=output)
    if show_3d or had_3d:
        found.node.CreateClosedSurfaceRepresentation()
    rows = []
    for row in counted:
        segment_id = found.segment_ids[row.structure]
        color = found.node.GetSegmentation().GetSegment(segment_id).GetColor()
        red, green, blue = (round(255 * channel) for channel in color)
        mean = mean_of(volume, found.node, segment_id)
        rows.append(replace(row, mean_hu=mean, color=(red, green, blue)))
    return tuple(rows), found.node


def show(volume: Any) -> None:
    """Show a volume in the slice views; its segmentations are shown on it."""
    slicer.util.setSliceViewerLayers(background=volume)


def hide(segmentation: Any) -> None:
    """Show a segmentation no more; it would lie over another volume."""
    segmentation.GetDisplayNode().SetVisibility(False)
