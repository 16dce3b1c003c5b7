"""Label files of the backend become segments on their volume, with names, colours and codes."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scene_geometry import (
    NEEDS_MRML,
    ORDERS,
    SHAPE,
    centres,
    hu,
    ijk_to_ras,
    in_order,
    linear,
    rotation,
    segment_points,
)

from backend.data.label_files import write_labels_file
from backend.data.labels import Label
from backend.data.readers import read_volume
from backend.geometry import Volume
from SSLPretrainLogic.errors import LogicError

slicer = pytest.importorskip("slicer", reason=NEEDS_MRML)
results = import_module("SSLPretrainLogic.scene.results")
volumes = import_module("SSLPretrainLogic.scene.volumes")

LABELS = (
    Label(value=2, name="Leber groß", color=(221, 130, 101), terminology="SCT^10200004^Liver"),
    Label(value=5, name="right kidney", color=(15, 195, 180)),
    Label(value=300, name="absent", color=(1, 2, 3), terminology="99X^1^Absent"),
)
LIVER_ENTRY = (
    "Segmentation category and type - 3D Slicer General Anatomy list"
    "~SCT^123037004^Anatomical Structure~SCT^10200004^Liver"
    "~^^~Anatomic codes - DICOM master list~^^~^^"
)


def wanted_labels(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Label values without symmetry; two structures, one of them in two parts."""
    found = np.zeros(shape, dtype=np.int16)
    found[1:4, 2:5, 1:4] = 2
    found[4, 6, 7] = 2
    found[2:5, 2:6, 4:7] = 5
    return found


def segmented(volume: Any, folder: Path, ending: str = ".nii.gz") -> Path:
    """What the backend would write for a volume: its own reader and writer, known labels."""
    exported = volumes.export_volume(volume, folder / "in.nrrd")
    scan = read_volume([exported.path])
    path = folder / f"out{ending}"
    shape = scan.voxels.shape
    if shape == SHAPE:
        found = wanted_labels()
    else:
        found = np.zeros(shape, dtype=np.int16)
        found[1:-1, 2:-2, 1:-2] = 2
    write_labels_file(path, Volume(found, scan.geometry), LABELS)
    return path


def points_of(value: int, matrix: np.ndarray) -> np.ndarray:
    return in_order(centres(SHAPE, matrix)[wanted_labels() == value])


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_segments_lie_where_the_labels_of_the_volume_are(
    order: str, oblique: bool, make_volume: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras(order, oblique=oblique)
    ending = ".seg.nrrd" if oblique else ".nii.gz"
    volume = make_volume(hu(), matrix)
    done = results.import_labels(segmented(volume, tmp_path, ending), volume)
    for value, name in ((2, "Leber groß"), (5, "right kidney")):
        found = segment_points(done.node, name)
        np.testing.assert_allclose(found, points_of(value, matrix), atol=1e-9)


@pytest.mark.parametrize("ending", [".nii.gz", ".seg.nrrd", ".nrrd", ".mha"])
def test_names_colours_codes_and_status_come_along(
    ending: str, make_volume: Any, tmp_path: Path
) -> None:
    volume = make_volume(hu(), ijk_to_ras())
    done = results.import_labels(segmented(volume, tmp_path, ending), volume)
    held = done.node.GetSegmentation()
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert list(held.GetSegmentIDs()) == ["Leber groß", "right kidney", "absent"]
    assert done.segment_ids == {name: name for name in held.GetSegmentIDs()}
    for index, label in enumerate(LABELS):
        segment = held.GetNthSegment(index)
        assert segment.GetName() == label.name
        color = [round(255 * channel) for channel in segment.GetColor()]
        assert color == list(label.color)
        assert logic.GetSegmentStatus(segment) == logic.InProgress
    liver, kidney, absent = (held.GetNthSegment(n).GetTerminology() for n in range(3))
    assert liver == LIVER_ENTRY
    assert "~SCT^64033007^Kidney~SCT^24028007^Right~" in kidney
    assert "~99X^1^Absent~" in absent
    assert done.empty == ("absent",)
    assert segment_points(done.node, "absent").size == 0


def test_structures_without_a_colour_get_the_usual_one(make_volume: Any, tmp_path: Path) -> None:
    volume = make_volume(hu(), ijk_to_ras())
    path = segmented(volume, tmp_path)
    path.with_name("out.labels.json").write_text(
        '{"labels": {"2": "Leber", "5": "Right_Kidney"}}', encoding="utf-8"
    )
    held = results.import_labels(path, volume).node.GetSegmentation()
    colors = [np.round(255 * np.array(held.GetNthSegment(n).GetColor())) for n in range(2)]
    assert [color.tolist() for color in colors] == [[128, 174, 128], [185, 102, 83]]


def test_a_new_segmentation_stands_beside_its_volume(
    scene: Any, make_volume: Any, tmp_path: Path
) -> None:
    volume = make_volume(hu(), ijk_to_ras("LAS"), name="Bauch 1")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(
        hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Subject"), "Study"
    )
    hierarchy.CreateItem(study, volume)
    node = results.import_labels(segmented(volume, tmp_path), volume).node
    assert node.GetName() == "Bauch 1 segmentation"
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    role = node.GetReferenceImageGeometryReferenceRole()
    assert node.GetNodeReference(role) is volume
    assert node.GetDisplayNode() is not None
    # What is drawn next lies on the voxels of the volume.
    converter = slicer.vtkSegmentationConverter
    text = node.GetSegmentation().GetConversionParameter(
        converter.GetReferenceImageGeometryParameterName()
    )
    geometry = slicer.vtkOrientedImageData()
    assert converter.DeserializeImageGeometry(text, geometry)
    np.testing.assert_allclose(
        volumes.oriented_grid(geometry).ijk_to_ras, ijk_to_ras("LAS"), atol=1e-9
    )
    assert geometry.GetDimensions() == SHAPE[::-1]
    # Structures that do not overlap share one label map.
    assert node.GetSegmentation().GetNumberOfLayers() == 1


def test_the_segmentation_moves_along_with_its_volume(
    make_volume: Any, make_transform: Any, tmp_path: Path
) -> None:
    above = linear(rotation((0.2, -0.3, 0.6)) @ np.diag((1, -1, 1)), (4, 5, -6))
    volume = make_volume(hu(), ijk_to_ras("PIR"))
    transform = make_transform(above)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    node = results.import_labels(segmented(volume, tmp_path), volume).node
    assert node.GetTransformNodeID() == transform.GetID()
    wanted = points_of(5, above @ ijk_to_ras("PIR"))
    np.testing.assert_allclose(segment_points(node, "right kidney"), wanted, atol=1e-9)


def test_a_sheared_volume_gets_its_segments_where_they_are_in_the_world(
    make_volume: Any, make_transform: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras()
    matrix[1, 2] = 1.2
    volume = make_volume(hu(), matrix)
    volume.SetAndObserveTransformNodeID(make_transform(linear(shift=(3, 2, 1))).GetID())
    path = segmented(volume, tmp_path)
    node = results.import_labels(path, volume).node
    assert node.GetParentTransformNode() is None
    grid, reason = volumes.world_grid(volume)
    assert reason
    shape = grid.size[::-1]
    labels = np.zeros(shape, dtype=bool)
    labels[1:-1, 2:-2, 1:-2] = True
    wanted = in_order(centres(shape, grid.ijk_to_ras)[labels])
    np.testing.assert_allclose(segment_points(node, "Leber groß"), wanted, atol=1e-9)


def test_only_chosen_structures_are_taken(make_volume: Any, tmp_path: Path) -> None:
    volume = make_volume(hu(), ijk_to_ras())
    path = segmented(volume, tmp_path)
    done = results.import_labels(path, volume, only=["Right Kidney"], name="Nieren")
    assert list(done.segment_ids) == ["right kidney"]
    assert done.node.GetName() == "Nieren"
    with pytest.raises(LogicError, match=r"has no structure 'Milz'\. It has Leber groß, right"):
        results.import_labels(path, volume, only=["Milz"])


def snapshot(node: Any) -> dict[str, Any]:
    """All that a user sees of every segment."""
    held = node.GetSegmentation()
    found = {}
    for identifier in held.GetSegmentIDs():
        segment = held.GetSegment(identifier)
        points = segment_points(node, segment.GetName()).round(6).tolist()
        found[identifier] = (
            segment.GetName(),
            segment.GetColor(),
            segment.GetTerminology(),
            points,
        )
    return found


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_an_existing_segmentation_keeps_what_is_not_replaced(
    scale: float, make_volume: Any, make_segmentation: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras("LPS")
    volume = make_volume(hu(), matrix)
    # Drawn on the same or a finer grid, overlapping the result in part.
    own = matrix @ linear(np.eye(3) * scale, (0, 0, 0))
    masks = {name: hu(n, SHAPE) > 1500 for n, name in enumerate(("Tumor", "LEBER_GROSS", "x"))}
    masks["leber groß"] = masks.pop("LEBER_GROSS")
    node = make_segmentation(masks, own)
    node.CreateClosedSurfaceRepresentation()
    before = snapshot(node)
    done = results.import_labels(segmented(volume, tmp_path), volume, segmentation=node)
    after = snapshot(node)
    assert done.node is node
    assert done.replaced == ("Leber groß",)
    kept = [key for key, value in before.items() if value[0] in ("Tumor", "x")]
    assert [after[key] for key in kept] == [before[key] for key in kept]
    assert [value[0] for value in after.values()] == [
        "Tumor",
        "x",
        "Leber groß",
        "right kidney",
        "absent",
    ]
    assert list(after)[:3] == list(before)
    for value, name in ((2, "Leber groß"), (5, "right kidney")):
        np.testing.assert_allclose(segment_points(node, name), points_of(value, matrix), atol=1e-9)
    surface = slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()
    assert node.GetSegmentation().ContainsRepresentation(surface)


def test_an_existing_segmentation_may_lie_under_a_transform_of_its_own(
    make_volume: Any, make_segmentation: Any, make_transform: Any, tmp_path: Path
) -> None:
    volume = make_volume(hu(), ijk_to_ras())
    node = make_segmentation({"Tumor": hu() > 1500}, ijk_to_ras())
    node.SetAndObserveTransformNodeID(
        make_transform(linear(rotation((0.1, 0.2, 0.3)), (1, 2, 3))).GetID()
    )
    results.import_labels(segmented(volume, tmp_path), volume, segmentation=node)
    found = segment_points(node, "right kidney")
    np.testing.assert_allclose(found, points_of(5, ijk_to_ras()), atol=1e-9)


def test_the_segment_editor_undoes_it(
    scene: Any, make_volume: Any, make_segmentation: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras()
    volume = make_volume(hu(), matrix)
    node = make_segmentation({"Leber groß": hu() > 1500, "Tumor": hu() < -500}, matrix)
    editor = scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.SetAndObserveSegmentationNode(node)
    editor.SetAndObserveSourceVolumeNode(volume)
    logic = slicer.vtkSlicerSegmentEditorLogic()
    logic.SetMRMLScene(scene)
    logic.SetSegmentEditorNode(editor)
    before = snapshot(node)
    assert logic.SaveStateForUndo()
    results.import_labels(segmented(volume, tmp_path), volume, segmentation=node)
    assert snapshot(node) != before
    logic.Undo()
    assert snapshot(node) == before
    logic.Redo()
    np.testing.assert_allclose(segment_points(node, "Leber groß"), points_of(2, matrix), atol=1e-9)


def test_a_structure_that_is_not_found_empties_the_segment_of_before(
    make_volume: Any, make_segmentation: Any, tmp_path: Path
) -> None:
    volume = make_volume(hu(), ijk_to_ras())
    node = make_segmentation({"absent": hu() > 1500}, ijk_to_ras())
    done = results.import_labels(segmented(volume, tmp_path), volume, segmentation=node)
    assert (done.empty, done.replaced) == (("absent",), ("absent",))
    assert segment_points(node, "absent").size == 0


def count(scene: Any) -> int:
    return int(scene.GetNumberOfNodes())


def test_labels_of_another_volume_are_refused(scene: Any, make_volume: Any, tmp_path: Path) -> None:
    path = segmented(make_volume(hu(), ijk_to_ras()), tmp_path)
    for moved in (linear(shift=(0.3, 0, 0)) @ ijk_to_ras(), ijk_to_ras(oblique=True)):
        other = make_volume(hu(), moved, name="Other")
        nodes = count(scene)
        with pytest.raises(LogicError, match="lies on another grid than volume 'Other'"):
            results.import_labels(path, other)
        assert count(scene) == nodes


def test_values_without_a_name_are_refused(scene: Any, make_volume: Any, tmp_path: Path) -> None:
    volume = make_volume(hu(), ijk_to_ras())
    path = segmented(volume, tmp_path)
    path.with_name("out.labels.json").write_text('{"labels": {"2": "liver"}}', encoding="utf-8")
    nodes = count(scene)
    with pytest.raises(LogicError, match=r"values without a name: \[5\]"):
        results.import_labels(path, volume)
    assert count(scene) == nodes


def test_a_scan_in_place_of_labels_is_refused(make_volume: Any, tmp_path: Path) -> None:
    volume = make_volume(hu(), ijk_to_ras())
    segmented(volume, tmp_path)
    (tmp_path / "out.labels.json").rename(tmp_path / "in.labels.json")
    with pytest.raises(LogicError, match=r"in\.nrrd is no label map"):
        results.import_labels(tmp_path / "in.nrrd", volume)


def test_files_that_are_missing_or_no_labels_are_refused(make_volume: Any, tmp_path: Path) -> None:
    volume = make_volume(hu(), ijk_to_ras())
    path = segmented(volume, tmp_path)
    path.unlink()
    with pytest.raises(LogicError, match="does not exist"):
        results.import_labels(path, volume)
    path.with_name("out.labels.json").unlink()
    with pytest.raises(LogicError, match=r"out\.labels\.json"):
        results.import_labels(path, volume)
    with pytest.raises(LogicError, match="no label file"):
        results.import_labels(tmp_path / "scan.dcm", volume)
    with pytest.raises(LogicError, match=r"in\.labels\.json"):
        results.import_labels(tmp_path / "in.nrrd", volume)


def test_a_segmentation_of_surfaces_is_refused(
    scene: Any, make_volume: Any, tmp_path: Path
) -> None:
    import vtk

    volume = make_volume(hu(), ijk_to_ras())
    sphere = vtk.vtkSphereSource()
    sphere.Update()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Modelle")
    surface = slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()
    node.GetSegmentation().SetSourceRepresentationName(surface)
    node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "ball", (1, 0, 0))
    with pytest.raises(LogicError, match="'Modelle' is made of closed surfaces"):
        results.import_labels(segmented(volume, tmp_path), volume, segmentation=node)


def test_the_volume_is_not_touched(make_volume: Any, tmp_path: Path) -> None:
    volume = make_volume(hu(), ijk_to_ras("RPS"))
    path = segmented(volume, tmp_path)
    before = (volume.GetMTime(), volume.GetImageData().GetMTime())
    results.import_labels(path, volume)
    assert (volume.GetMTime(), volume.GetImageData().GetMTime()) == before
