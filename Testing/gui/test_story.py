"""The whole way in one go: from a folder of DICOM to a segmentation, by mouse and keyboard."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from story import FINETUNE_STEPS, ORGANS, TRAINING, Names, Story

pytestmark = pytest.mark.early

LEAST_DICE = 0.6
NAMES = Names(
    project="Projekt ä mit Leber",
    archive="Archiv ö",
    run="Lauf-eins",
    model="Organe",
    patient="Neuer Patient ß",
)
CODES = {
    "liver": "SCT^10200004^Liver",
    "spleen": "SCT^78961009^Spleen",
    "aorta": "SCT^15825003^Aorta",
}


def test_from_a_folder_of_dicom_to_a_segmentation_of_a_new_patient(
    host: Any, tmp_path: Path
) -> None:
    story = Story(host, tmp_path, names=NAMES, python=Path(sys.executable))
    story.open()
    story.make_project()
    story.set_up()
    assert story.ui("Setup").setupTestButton.enabled
    story.unfold("Data")
    story.scan()
    assert story.ui("Data").dataFound.text == (
        f"{len(TRAINING)} series: 3 usable, 0 refused. Go on with 3. Pretrain."
    )
    story.load_and_draw()
    _pretrain_across_a_restart(story)
    _finetune(story)
    volume = story.load_new_patient()
    story.unfold("Segment")
    story.segment()
    _check_segmentation(story, volume)


def _pretrain_across_a_restart(story: Story) -> None:
    """It is seen to get on, goes on while the module is closed, is stopped and resumed."""
    story.unfold("Pretrain")
    story.choose_pretraining()
    story.start_pretraining()
    story.wait_for_step(story.wait_for_step(1) + 1)
    assert story.run.runStateLabel.text == "Pretrain: Running"
    story.close()
    story.open()
    assert story.window.ui.projectName.toolTip == str(story.project)
    story.unfold("Pretrain")
    assert story.run.runStateLabel.text == "Pretrain: Running"
    story.wait_for_step(story.run.runProgressBar.value + 1)
    story.host.click(story.run.runStopButton)
    story.wait_for_state("Stopped")
    assert 0 < story.run.runProgressBar.value < story.pretrain_steps
    story.host.click(story.run.runResumeButton)
    story.wait_for_state("Done")
    assert story.run.runProgressBar.value == story.pretrain_steps
    assert "Go on with 4. Fine-tune" in story.ui("Pretrain").pretrainNext.text
    assert _steps(story.project / "runs" / NAMES.run) == list(range(1, story.pretrain_steps + 1))


def _steps(run: Path) -> list[int]:
    """At which steps the loss was written down: each once, also after a restart."""
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [record["step"] for record in map(json.loads, lines) if "loss/total" in record]


def _finetune(story: Story) -> None:
    story.unfold("Finetune")
    story.choose_finetuning()
    assert story.ui("Finetune").finetuneDevice.currentText == "cpu"
    story.finetune()
    told = json.loads((story.project / "runs" / NAMES.model / "config.json").read_text("utf-8"))
    assert told["request"]["init"] == str(story.project / "runs" / NAMES.run)
    status = json.loads((story.project / "runs" / NAMES.model / "status.json").read_text("utf-8"))
    assert status["step"] == FINETUNE_STEPS


def _check_segmentation(story: Story, volume: Any) -> None:
    """Names, colours and codes are right, each organ is where it is, on the volume's own grid."""
    util = story.slicer.util
    node = util.getNodesByClass("vtkMRMLSegmentationNode")[-1]
    role = node.GetReferenceImageGeometryReferenceRole()
    assert node.GetNodeReference(role).GetID() == volume.GetID()
    held = node.GetSegmentation()
    found = {held.GetSegment(i).GetName(): i for i in held.GetSegmentIDs()}
    assert set(found) == set(ORGANS)
    dice = {}
    for organ, identifier in found.items():
        segment = held.GetSegment(identifier)
        assert CODES[organ] in segment.GetTerminology()
        assert tuple(round(255 * channel) for channel in segment.GetColor()) == ORGANS[organ]
        mask = util.arrayFromSegmentBinaryLabelmap(node, identifier, volume) > 0
        assert np.array_equal(_on_its_own_grid(story, node, identifier, volume), mask)
        dice[organ] = _dice(mask, story.new_patient.mask(organ))
    assert np.mean(list(dice.values())) >= LEAST_DICE, dice


def _on_its_own_grid(story: Story, node: Any, identifier: str, volume: Any) -> Any:
    """The voxels of a segment as they are stored; their grid must be that of the volume."""
    from vtk import vtkMatrix4x4
    from vtk.util.numpy_support import vtk_to_numpy

    stored = story.slicer.vtkOrientedImageData()
    node.GetBinaryLabelmapRepresentation(identifier, stored)
    expected, own = vtkMatrix4x4(), vtkMatrix4x4()
    volume.GetIJKToRASMatrix(expected)
    stored.GetImageToWorldMatrix(own)
    matrix = story.slicer.util.arrayFromVTKMatrix
    assert np.array_equal(matrix(own), matrix(expected))
    whole = np.zeros(volume.GetImageData().GetDimensions()[::-1], bool)
    x0, x1, y0, y1, z0, z1 = stored.GetExtent()
    flat = vtk_to_numpy(stored.GetPointData().GetScalars())
    whole[z0 : z1 + 1, y0 : y1 + 1, x0 : x1 + 1] = flat.reshape(
        z1 - z0 + 1, y1 - y0 + 1, x1 - x0 + 1
    )
    return whole


def _dice(found: Any, real: Any) -> float:
    return float(2 * np.count_nonzero(found & real) / (found.sum() + real.sum()))
