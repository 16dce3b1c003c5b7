"""The panel Segment: real clicks, a real backend, and results that sit where they belong."""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segment_material import ABSENT, LABELS, SPACING_XYZ, Material, make_material

LIMIT_S = 240.0
VOXEL_ML = float(np.prod(SPACING_XYZ)) / 1000
COLORS = {str(label["name"]): label["color"] for label in LABELS}
VALUES = {str(label["name"]): label["value"] for label in LABELS}

MODULE = Path(__file__).resolve().parents[2] / "SSLSegmentation" / "SSLSegmentation.py"


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make_material(tmp_path_factory.mktemp("Modelle ä"))


@pytest.fixture
def project(tmp_path: Path) -> Any:
    from SSLPretrainLogic.project import create_project

    return create_project(tmp_path / "Projekt ä")


def opened(host: Any, window: Any, project: Any) -> Any:
    """The panel in a window with a project and this Python; nothing is asked of it."""
    from SSLPretrainLogic.environments import chosen_interpreter

    window.session.use_project(project)
    window.session.use_interpreter(chosen_interpreter(Path(sys.executable)))
    for name in window.panels:
        getattr(window.ui, f"section{name}").collapsed = name != "Segment"
    host.settle()
    return window.panels["Segment"]


@pytest.fixture
def panel(host: Any, window: Any, project: Any) -> Any:
    return opened(host, window, project)


def choose_model(host: Any, panel: Any, material: Material) -> None:
    host.dialogs.answer("getOpenFileName", str(material.model))
    host.click(panel.ui.segmentModelButton)


def load_scan(slicer: Any, material: Material, name: str = "CT") -> Any:
    return slicer.util.loadVolume(str(material.scan), {"name": name})


def done(host: Any, panel: Any) -> None:
    host.wait_until(lambda: not panel.segmenter.is_busy, limit_s=LIMIT_S)


def masks(slicer: Any, material: Material) -> dict[str, Any]:
    """Where the backend alone puts each structure, by name, on the grid of the scan."""
    node = slicer.util.loadVolume(str(material.labels), {"labelmap": True})
    voxels = slicer.util.arrayFromVolume(node).copy()
    slicer.mrmlScene.RemoveNode(node)
    return {name: voxels == value for name, value in VALUES.items()}


def segments(node: Any) -> dict[str, Any]:
    held = node.GetSegmentation()
    return {held.GetSegment(i).GetName(): (i, held.GetSegment(i)) for i in held.GetSegmentIDs()}


def filled(slicer: Any, node: Any, name: str, volume: Any) -> Any:
    identifier = segments(node)[name][0]
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume) > 0


def cells(panel: Any) -> list[list[str]]:
    table = panel.ui.segmentResultTable
    return [[table.item(r, c).text() for c in range(5)] for r in range(table.rowCount)]


def test_an_empty_panel_says_what_comes_first(window: Any) -> None:
    panel = window.panels["Segment"]
    assert not panel.ui.segmentApplyButton.enabled
    assert "project" in panel.ui.segmentApplyButton.toolTip
    assert panel.ui.segmentModelCombo.currentText == "No model yet"
    assert "Fine-tune" in panel.ui.segmentModelNote.text


def test_a_model_shows_its_structures_and_what_it_was_trained_on(
    host: Any, panel: Any, material: Material, qt: Any
) -> None:
    choose_model(host, panel, material)
    assert panel.ui.segmentModelCombo.currentText == "abdomen"
    told = panel.ui.segmentModelNote.text
    assert "3 × 3 × 4 mm" in told
    assert "learned from 8 scans" in told
    shown = panel.ui.segmentStructuresList
    assert [shown.item(row).text() for row in range(3)] == list(COLORS)
    for row, color in enumerate(COLORS.values()):
        pixel = shown.item(row).icon().pixmap(12, 12).toImage().pixelColor(6, 6)
        assert [pixel.red(), pixel.green(), pixel.blue()] == color
    host.click(panel.ui.segmentNoneButton)
    assert panel.ui.segmentApplyButton.toolTip == "Choose at least one structure."
    shown.item(1).setCheckState(qt.Qt.Checked)
    assert panel.ui.segmentStructuresCount.text == "1 of 3"
    assert panel.ui.segmentApplyButton.toolTip == "Choose a volume first."


def test_a_file_that_is_no_model_is_told_and_changes_nothing(
    host: Any, panel: Any, tmp_path: Path
) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"none")
    host.dialogs.answer("getOpenFileName", str(file), "")
    host.click(panel.ui.segmentModelButton)
    assert "is no safetensors file" in panel.message.text
    host.click(panel.ui.segmentModelButton)
    assert panel.model is None


def test_a_volume_that_is_hardly_a_ct_is_doubted(
    host: Any, panel: Any, material: Material, slicer: Any
) -> None:
    choose_model(host, panel, material)
    node = slicer.util.addVolumeFromArray(np.full((4, 5, 6), 90, np.int16), name="MR")
    panel.ui.segmentVolumeSelector.setCurrentNode(node)
    assert "from 90 to 90, without air" in panel.ui.segmentVolumeNote.text
    assert "4.0-fold" in panel.ui.segmentVolumeNote.text
    panel.ui.segmentVolumeSelector.setCurrentNode(load_scan(slicer, material))
    assert panel.ui.segmentVolumeNote.text == ""


def test_a_volume_without_hounsfield_units_is_refused_with_its_name(
    host: Any, panel: Any, material: Material, slicer: Any, project: Any
) -> None:
    choose_model(host, panel, material)
    node = slicer.util.addVolumeFromArray(np.full((4, 5, 6), 1e6), name="dose")
    panel.ui.segmentVolumeSelector.setCurrentNode(node)
    host.click(panel.ui.segmentApplyButton)
    done(host, panel)
    assert "'dose' has values from 1e+06" in panel.message.text
    assert list((project.folder / "segmenting").iterdir()) == []


def test_apply_fills_a_segmentation_voxel_for_voxel(
    host: Any, panel: Any, material: Material, slicer: Any, project: Any, tmp_path: Path, qt: Any
) -> None:
    choose_model(host, panel, material)
    volume = load_scan(slicer, material, "CT Müller")
    output = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    output.CreateDefaultDisplayNodes()
    output.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for name in ("lesion", "Liver"):
        segment_id = output.GetSegmentation().AddEmptySegment("", name)
        spot = np.zeros(volume.GetImageData().GetDimensions()[::-1], np.uint8)
        spot[9:12, 9:12, 9:12] = name == "lesion"
        slicer.util.updateSegmentBinaryLabelmapFromArray(spot, output, segment_id, volume)
    panel.ui.segmentVolumeSelector.setCurrentNode(volume)
    panel.ui.segmentOutputSelector.setCurrentNode(output)
    assert "replaced, all others stay" in panel.ui.segmentOutputNote.text
    host.click(panel.ui.segmentApplyButton)
    assert panel.ui.segmentApplyButton.text == "Cancel"
    assert panel.ui.segmentProgressGroup.visible
    done(host, panel)
    expected = masks(slicer, material)
    found = segments(output)
    assert set(found) == {"lesion", *VALUES}
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for name, color in COLORS.items():
        segment = found[name][1]
        assert [round(255 * channel) for channel in segment.GetColor()] == color
        assert logic.GetSegmentStatus(segment) == logic.InProgress
    assert "SCT^10200004^Liver" in found["liver"][1].GetTerminology()
    assert "SCT^78961009^Spleen" in found["spleen"][1].GetTerminology()
    for name in ("liver", "spleen"):
        assert np.array_equal(filled(slicer, output, name, volume), expected[name])
    assert filled(slicer, output, "lesion", volume).sum() == 27
    voxels = slicer.util.arrayFromVolume(volume)
    for row in cells(panel):
        mask = expected[row[1]]
        assert row[2:4] == [f"{mask.sum() * VOXEL_ML:.2f}", str(mask.sum())]
        assert row[4] == (f"{voxels[mask].mean():.0f}" if mask.any() else "-")
    assert panel.message.text == f"Not found in CT Müller: {ABSENT}."
    composite = slicer.app.layoutManager().sliceWidget("Red").sliceLogic().GetSliceCompositeNode()
    assert composite.GetBackgroundVolumeID() == volume.GetID()
    assert list((project.folder / "segmenting").iterdir()) == []
    _leaves_by_every_way(host, panel, slicer, qt=qt, file=tmp_path / "out" / "v.csv")


def _leaves_by_every_way(host: Any, panel: Any, slicer: Any, *, qt: Any, file: Path) -> None:
    host.click(panel.ui.segmentCopyButton)
    lines = qt.QApplication.clipboard().text().splitlines()
    assert lines[0].split("\t") == ["case", "structure", "ml", "voxels", "mean_hu"]
    assert lines[3].split("\t") == ["CT Müller", ABSENT, "0.0000", "0", ""]
    host.dialogs.answer("getSaveFileName", str(file))
    host.click(panel.ui.segmentCsvButton)
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["structure"] for row in rows] == list(VALUES)
    assert rows[0]["voxels"] == cells(panel)[0][3]
    host.click(panel.ui.segmentTableButton)
    table = slicer.util.getNode("Segment volumes")
    assert table.GetCellText(1, 1) == "spleen"
    assert float(table.GetCellText(0, 2)) == pytest.approx(float(rows[0]["ml"]), abs=1e-3)


def test_cancel_stops_the_process_and_loads_nothing(
    host: Any, panel: Any, material: Material, slicer: Any, project: Any
) -> None:
    from SSLPretrainLogic import jobs

    choose_model(host, panel, material)
    panel.ui.segmentVolumeSelector.setCurrentNode(load_scan(slicer, material))
    host.click(panel.ui.segmentApplyButton)
    host.wait_until(lambda: panel.segmenter._job is not None)
    job = panel.segmenter._job
    host.click(panel.ui.segmentApplyButton)
    assert not panel.ui.segmentApplyButton.enabled
    done(host, panel)
    assert not jobs.look(job).is_active
    assert (jobs.minder(job), jobs.command_process(job)) == (None, None)
    assert "Cancelled" in panel.message.text
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert list((project.folder / "segmenting").iterdir()) == []
    assert panel.ui.segmentApplyButton.text == "Apply"


def test_volumes_of_the_scene_are_segmented_but_for_a_bad_one_and_one_that_moved(
    host: Any, panel: Any, material: Material, slicer: Any, project: Any
) -> None:
    choose_model(host, panel, material)
    first, second = (load_scan(slicer, material, name) for name in ("first", "second"))
    # Not the same series, for who reads it; to the network air is air.
    slicer.util.arrayFromVolume(second)[0, 0, 0] -= 1
    slicer.util.addVolumeFromArray(np.full((4, 5, 6), 1e6), name="dose")
    load_scan(slicer, material, "left out")
    host.click(panel.ui.segmentBatchSection)
    listed = panel.ui.segmentBatchList
    assert [listed.item(r).text() for r in range(4)] == ["first", "second", "dose", "left out"]
    listed.item(3).setCheckState(host.python("qt").Qt.Unchecked)
    assert panel.ui.segmentBatchButton.text == "Segment 3 volumes"
    host.click(panel.ui.segmentBatchButton)
    host.wait_until(lambda: panel.segmenter._job is not None)
    assert panel.segmenter._job.title == "Segment 3 volumes with abdomen"
    second.SetOrigin(0.0, 0.0, 0.0)
    done(host, panel)
    expected = masks(slicer, material)["liver"]
    assert "'dose' has values" in panel.message.text
    assert [row[0] for row in cells(panel)] == ["first"] * 3
    (node,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert node.GetName() == "first segmentation"
    assert np.array_equal(filled(slicer, node, "liver", first), expected)
    kept = project.folder / "segmenting"
    assert "second was changed or removed meanwhile" in panel.message.text
    assert str(next(kept.rglob("volume_2.seg.nrrd"))) in panel.message.text
    panel.ui.segmentShow3DBox.checked = True
    host.click(panel.ui.segmentLoadButton)
    late = slicer.util.getNode("CT volume_2 segmentation")
    back = late.GetNodeReference(late.GetReferenceImageGeometryReferenceRole())
    assert back is not second
    assert np.array_equal(filled(slicer, late, "liver", back), expected)
    assert late.GetSegmentation().ContainsRepresentation("Closed surface")
    assert list(kept.iterdir()) == []
    assert not panel.ui.segmentWaitingGroup.visible


def test_a_folder_is_segmented_while_the_module_is_closed_and_offered_afterwards(
    host: Any, panel: Any, material: Material, slicer: Any, project: Any, tmp_path: Path
) -> None:
    choose_model(host, panel, material)
    source, output = tmp_path / "Aufnahmen ü", tmp_path / "Ergebnisse"
    for name in ("one", "two"):
        (source / name).mkdir(parents=True)
        shutil.copy(material.scan, source / f"{name}/{name}.nrrd")
    # One voxel differs: the same series twice would be read once.
    with (source / "two" / "two.nrrd").open("rb+") as stream:
        stream.seek(-1, 2)
        stream.write(b"\0")
    (source / "bad.nrrd").write_bytes(b"NRRD0004\nno more")
    for row in (0, 2):
        panel.ui.segmentStructuresList.item(row).setCheckState(host.python("qt").Qt.Unchecked)
    host.click(panel.ui.segmentBatchSection)
    host.click(panel.ui.segmentBatchFolderRadio)
    panel.ui.segmentBatchInputEdit.currentPath = str(source)
    panel.ui.segmentBatchOutputEdit.currentPath = str(source / "in it")
    assert "outside" in panel.ui.segmentBatchButton.toolTip
    panel.ui.segmentBatchOutputEdit.currentPath = str(output)
    host.click(panel.ui.segmentBatchButton)
    job = panel.segmenter._job
    assert job.title == "Segment a folder with abdomen"
    assert panel.ui.segmentBatchButton.text == "Cancel"
    assert not panel.ui.segmentApplyButton.enabled
    assert "cancel it" in panel.ui.segmentApplyButton.toolTip
    host.unload(slicer.modules.sslsegmentation)
    module = host.load(MODULE)
    host.panel = host.show(module)
    again = opened(host, module.widgetRepresentation().self().window, project)
    assert again.ui.segmentApplyButton.text == "Cancel"
    assert again.segmenter._job.folder == job.folder
    done(host, again)
    assert "abdomen" in again.ui.segmentWaitingLabel.text
    host.click(again.ui.segmentLoadButton)
    assert [row[:2] for row in cells(again)] == [["one", "spleen"], ["two", "spleen"]]
    assert int(cells(again)[0][3]) == int(masks(slicer, material)["spleen"].sum())
    assert "bad.nrrd: unreadable" in again.message.text
    assert str(output) in again.message.text
    assert (output / "one.seg.nrrd").is_file()
    assert (output / "volumes.csv").is_file()
    assert not again.ui.segmentWaitingGroup.visible


@pytest.mark.usefixtures("panel")
def test_what_was_not_found_in_a_folder_is_one_sentence() -> None:
    from SSLPretrainLogic.tasks import Row
    from SSLSegmentationLib.segmenter import missing_in_folder

    voxels = {"one": {"liver": 7, "aorta": 0}, "two": {"liver": 0, "aorta": 0}}
    rows = [
        Row(case=case, structure=name, ml=0.0, voxels=count, mean_hu=None, color=None)
        for case, counts in voxels.items()
        for name, count in counts.items()
    ]
    assert missing_in_folder(rows) == ["Not found: aorta in 2 of 2 scans, liver in 1 of 2 scans."]
    assert missing_in_folder(rows[:1]) == []


def test_a_result_that_waits_can_be_discarded(
    host: Any, panel: Any, project: Any, window: Any
) -> None:
    from dataclasses import replace

    from SSLPretrainLogic import tasks
    from SSLPretrainLogic.project import open_project
    from SSLPretrainLogic.tasks import Case

    task = tasks.new_task(project, model="abdomen")
    task = replace(task, job="gone", cases=(Case(name="volume_1", fingerprint="x"),))
    tasks.keep(project, task)
    task.output.mkdir()
    task.label_file(task.cases[0]).write_bytes(b"not whole")
    window.session.project = None
    window.session.use_project(open_project(project.folder))
    host.settle()
    host.click(panel.ui.segmentLoadButton)
    assert "volume_1" in panel.message.text
    assert task.folder.exists()
    host.click(panel.ui.segmentDiscardButton)
    assert not task.folder.exists()
    assert not panel.ui.segmentWaitingGroup.visible
