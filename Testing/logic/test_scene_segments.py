"""Segments of the scene become a labelled set that the backend reads, with nothing shifted."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scene_geometry import (
    NEEDS_MRML,
    ORDERS,
    SHAPE,
    SPACING,
    centres,
    hu,
    ijk_to_ras,
    linear,
    nearest,
    rotation,
)

from backend.data.labelled import check_set, load_labelled_set
from backend.data.readers import read_label
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.scene.structures import Structure, proposed

slicer = pytest.importorskip("slicer", reason=NEEDS_MRML)
segments = import_module("SSLPretrainLogic.scene.segments")

LIVER = "SCT^10200004^Liver"
ENTRY = (
    "Segmentation category and type - 3D Slicer General Anatomy list"
    f"~SCT^123037004^Anatomical Structure~{LIVER}"
    "~^^~Anatomic codes - DICOM master list~^^~^^"
)


def blocks() -> dict[str, np.ndarray]:
    """Two structures without symmetry that touch but do not overlap."""
    one, two = np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=bool)
    one[1:4, 2:5, 1:4] = True
    one[1, 5, 1] = True
    two[2:5, 2:6, 4:7] = True
    return {"Liver": one, "Die Niere": two}


def exported(cases: list[Any], folder: Path, **options: Any) -> Any:
    table = proposed(segments.found_segments(cases), **options)
    return segments.export_set(cases, table, folder)


def case(name: str, volume: Any, *nodes: Any) -> Any:
    return segments.SceneCase(name=name, volume=volume, segmentations=nodes)


def stored(folder: Path, name: str = "case_001") -> np.ndarray:
    return read_label(folder / "labels" / f"{name}.nrrd").voxels


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_label_maps_lie_on_their_image_voxel_for_voxel(
    order: str, oblique: bool, make_volume: Any, make_segmentation: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras(order, oblique=oblique)
    node = make_segmentation(blocks(), matrix)
    done = exported([case("case_001", make_volume(hu(), matrix), node)], tmp_path)
    labelled = load_labelled_set(tmp_path)
    assert [label.name for label in labelled.labels] == ["Die Niere", "Liver"]
    wanted = blocks()["Die Niere"] * 1 + blocks()["Liver"] * 2
    np.testing.assert_array_equal(stored(tmp_path), wanted)
    assert check_set(labelled) == {"case_001": {1: 36, 2: 28}}
    assert done.voxels == {"case_001": {"Die Niere": 36, "Liver": 28}}
    assert done.warnings == ()


def test_segments_drawn_on_another_grid_are_not_shifted(
    make_volume: Any, make_segmentation: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras("LPS")
    # Three times as fine, turned round, and beginning inside the volume.
    fine = matrix @ linear(np.diag((1 / 3, -1 / 3, 1 / 3)), (0.4, 5.2, 0.6))
    mask = hu(5, (12, 15, 18)) > 600
    node = make_segmentation({"tumour": mask}, fine)
    exported([case("case_001", make_volume(hu(), matrix), node)], tmp_path)
    wanted = nearest(mask, fine, centres(SHAPE, matrix))
    assert 20 < wanted.sum() < 100
    np.testing.assert_array_equal(stored(tmp_path), wanted)


def test_transforms_of_volume_and_segmentation_are_followed_each_for_itself(
    make_volume: Any, make_segmentation: Any, make_transform: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras("PIR")
    above = linear(rotation((0.2, -0.3, 0.6)), (4, 5, -6))
    volume = make_volume(hu(), matrix)
    volume.SetAndObserveTransformNodeID(make_transform(above).GetID())
    # The same place in the world by another way: grid and transform differ.
    other = linear(np.diag((-1, 1, 1)), (3, 0, 0))
    node = make_segmentation(blocks(), np.linalg.inv(other) @ above @ matrix)
    node.SetAndObserveTransformNodeID(make_transform(other).GetID())
    exported([case("case_001", volume, node)], tmp_path)
    wanted = blocks()["Die Niere"] * 1 + blocks()["Liver"] * 2
    np.testing.assert_array_equal(stored(tmp_path), wanted)


def test_a_sheared_volume_and_its_segments_come_out_on_one_rectangular_grid(
    make_volume: Any, make_segmentation: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras("RAS")
    matrix[1, 2] = 0.41 * SPACING[2]
    node = make_segmentation({"Liver": blocks()["Liver"]}, matrix)
    done = exported([case("case_001", make_volume(hu(), matrix), node)], tmp_path)
    assert done.warnings == (
        "Case case_001: the volume was interpolated, because its axes are 22.3 degrees off the "
        "right angle.",
    )
    check_set(load_labelled_set(tmp_path))
    label = read_label(tmp_path / "labels" / "case_001.nrrd")
    geometry = label.geometry
    lps = np.array(geometry.direction).reshape(3, 3) * np.array(geometry.spacing_mm[::-1])
    grid = np.diag((-1, -1, 1, 1)) @ linear(lps, geometry.origin_mm)
    wanted = nearest(blocks()["Liver"], matrix, centres(label.voxels.shape, grid))
    np.testing.assert_array_equal(label.voxels, wanted)


def test_segments_follow_their_volume_through_a_transform_that_bends_space(
    bending: Any, make_volume: Any, make_segmentation: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras()
    node = make_segmentation({"Liver": blocks()["Liver"]}, matrix)
    volume = make_volume(hu(), matrix)
    for moved in (node, volume):
        moved.SetAndObserveTransformNodeID(bending.GetID())
    exported([case("case_001", volume, node)], tmp_path)
    grid = import_module("SSLPretrainLogic.scene.volumes").world_grid(volume)[0]
    back = import_module("SSLPretrainLogic.scene.volumes").to_world(volume)
    back.Inverse()
    points = centres(grid.size[::-1], grid.ijk_to_ras)
    came_from = np.apply_along_axis(back.TransformPoint, -1, points)
    wanted = nearest(blocks()["Liver"], matrix, came_from)
    assert wanted.sum() > 10
    # Where a centre falls between two voxels, the last bits of the inverse decide.
    index = (came_from - matrix[:3, 3]) / SPACING
    clear = np.all(np.abs(index - np.floor(index) - 0.5) > 0.01, axis=-1)
    np.testing.assert_array_equal(stored(tmp_path)[clear], wanted[clear])


def test_values_are_the_same_in_all_cases_whatever_the_order_of_segments(
    make_volume: Any, make_segmentation: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras()
    first = make_segmentation(blocks(), matrix)
    turned = dict(reversed(list(blocks().items())))
    second = make_segmentation({name.upper(): mask for name, mask in turned.items()}, matrix)
    third = make_segmentation({"die_niere": blocks()["Die Niere"]}, matrix)
    volume = make_volume(hu(), matrix)
    cases = [case(f"case_{n}", volume, node) for n, node in enumerate((first, second, third))]
    known = [Structure(value=4, name="Milz"), Structure(value=9, name="liver")]
    table = proposed(segments.found_segments(cases), known=known)
    done = segments.export_set(cases, table, tmp_path)
    wanted = blocks()["Liver"] * 9 + blocks()["Die Niere"] * 10
    np.testing.assert_array_equal(stored(tmp_path, "case_0"), wanted)
    np.testing.assert_array_equal(stored(tmp_path, "case_1"), wanted)
    np.testing.assert_array_equal(stored(tmp_path, "case_2"), blocks()["Die Niere"] * 10)
    assert done.voxels["case_2"] == {"Milz": 0, "liver": 0, "Die Niere": 36}
    assert table.missing(segments.found_segments(cases)) == {
        "case_0": ("Milz",),
        "case_1": ("Milz",),
        "case_2": ("Milz", "liver"),
    }


def test_overlapping_structures_are_refused_by_name_unless_they_are_merged(
    make_volume: Any, make_segmentation: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras()
    masks = blocks()
    masks["Die Niere"][2, 2, 2:4] = True
    cases = [case("case_001", make_volume(hu(), matrix), make_segmentation(masks, matrix))]
    table = proposed(segments.found_segments(cases))
    with pytest.raises(LogicError, match="Case case_001: 'Die Niere' overlaps 'Liver' in 2 voxels"):
        segments.export_set(cases, table, tmp_path)
    assert not list(tmp_path.iterdir())
    merged = table.merged(["Liver", "Die Niere"], into="organs")
    segments.export_set(cases, merged, tmp_path)
    np.testing.assert_array_equal(stored(tmp_path) > 0, masks["Liver"] | masks["Die Niere"])
    left_out = table.without("Die Niere")
    segments.export_set(cases, left_out, tmp_path)
    np.testing.assert_array_equal(stored(tmp_path) > 0, masks["Liver"])


def test_cases_that_stay_in_the_folder_keep_their_meaning(
    make_volume: Any, make_segmentation: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras()
    volume = make_volume(hu(), matrix)
    first = case("case_001", volume, make_segmentation(blocks(), matrix))
    exported([first], tmp_path)
    other = case("case_002", volume, make_segmentation({"Aorta": blocks()["Liver"]}, matrix))
    with pytest.raises(LogicError, match="has case case_001, where 1 is 'Die Niere', which the"):
        exported([other], tmp_path)
    before = proposed(segments.found_segments([first])).structures
    exported([other], tmp_path, known=before)
    assert check_set(load_labelled_set(tmp_path)) == {
        "case_001": {1: 36, 2: 28},
        "case_002": {3: 28},
    }
    both = [replace(other, name="case_001"), other]
    exported(both, tmp_path)
    assert check_set(load_labelled_set(tmp_path)) == {"case_001": {1: 28}, "case_002": {1: 28}}


def test_segments_of_several_nodes_count_as_one_set(
    make_volume: Any, make_segmentation: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras()
    nodes = [make_segmentation({name: mask}, matrix) for name, mask in blocks().items()]
    exported([case("case_001", make_volume(hu(), matrix), *nodes)], tmp_path)
    wanted = blocks()["Die Niere"] * 1 + blocks()["Liver"] * 2
    np.testing.assert_array_equal(stored(tmp_path), wanted)


def test_empty_outside_and_cut_segments_are_told(
    make_volume: Any, make_segmentation: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras()
    inside = make_segmentation(blocks(), matrix)
    inside.GetSegmentation().AddEmptySegment("", "Milz")
    away = make_segmentation({"far": np.ones((2, 2, 2))}, linear(shift=(900, 0, 0)) @ matrix)
    cut = make_segmentation({"cut": np.ones((1, 1, 3))}, matrix @ linear(shift=(6, 0, 0)))
    done = exported([case("case_001", make_volume(hu(), matrix), inside, away, cut)], tmp_path)
    assert done.warnings == (
        "Case case_001: segment 'Milz' is empty.",
        "Case case_001: segment 'far' has no voxel inside the volume.",
        "Case case_001: segment 'cut' is cut at the border of the volume.",
    )
    assert done.voxels["case_001"]["Milz"] == 0
    assert done.voxels["case_001"]["cut"] == 2


def test_a_case_without_a_label_is_refused_by_name(
    scene: Any, make_volume: Any, make_segmentation: Any, tmp_path: Path
) -> None:
    volume = make_volume(hu(), ijk_to_ras(), name="Bauch")
    bare = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    good = make_segmentation(blocks(), ijk_to_ras())
    cases = [case("case_001", volume, good), case("case_002", volume, bare)]
    with pytest.raises(LogicError, match="Case case_002: nothing is labelled on volume 'Bauch'"):
        exported(cases, tmp_path)


def test_surfaces_become_voxels_in_a_copy(
    scene: Any, make_volume: Any, make_transform: Any, tmp_path: Path
) -> None:
    import vtk

    matrix = linear(np.diag((1.0, 1.0, 1.5)))
    sphere = vtk.vtkSphereSource()
    sphere.SetRadius(7.0)
    sphere.SetCenter(15.0, 16.0, 17.0)
    sphere.SetThetaResolution(64)
    sphere.SetPhiResolution(64)
    sphere.Update()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    surface = slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()
    node.GetSegmentation().SetSourceRepresentationName(surface)
    node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "ball", (1, 0, 0))
    shift = make_transform(linear(shift=(-3.0, 0.0, 1.5)))
    node.SetAndObserveTransformNodeID(shift.GetID())
    volume = make_volume(np.zeros((24, 32, 30), dtype=np.int16), matrix)
    exported([case("case_001", volume, node)], tmp_path)
    found = centres((24, 32, 30), matrix)[stored(tmp_path) == 1]
    np.testing.assert_allclose(found.mean(axis=0), (12.0, 16.0, 18.5), atol=0.1)
    np.testing.assert_allclose(len(found) * 1.5, 4 / 3 * np.pi * 7**3, rtol=0.05)
    assert not node.GetSegmentation().ContainsRepresentation(segments.LABELMAP)


def test_colours_and_codes_are_kept_and_missing_ones_come_from_the_table(
    make_volume: Any, make_segmentation: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras()
    masks = {"mine": blocks()["Liver"], "spleen": blocks()["Die Niere"]}
    node = make_segmentation(masks, matrix)
    node.GetSegmentation().GetNthSegment(0).SetTerminology(ENTRY)
    exported([case("case_001", make_volume(hu(), matrix), node)], tmp_path)
    mine, spleen = load_labelled_set(tmp_path).labels
    assert (mine.name, mine.color, mine.terminology) == ("mine", (51, 102, 153), ENTRY)
    assert (spleen.name, spleen.color) == ("spleen", (77, 102, 153))
    assert "~SCT^78961009^Spleen~" in spleen.terminology


def test_the_scene_is_not_touched_and_no_file_names_anybody(
    scene: Any, make_volume: Any, make_segmentation: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras()
    volume = make_volume(hu(), matrix, name="Zöllner^Grete")
    node = make_segmentation(blocks(), matrix, name="Zöllner^Grete")
    held = node.GetSegmentation()
    layers = [held.GetNthSegment(n).GetRepresentation(segments.LABELMAP) for n in range(2)]

    def state() -> list[int]:
        return [x.GetMTime() for x in (volume, node, held, *layers)] + [scene.GetNumberOfNodes()]

    before = state()
    folder = tmp_path / "Satz 1 für später"
    exported([case("case_001", volume, node)], folder)
    assert state() == before
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["case_001.nrrd", "case_001.nrrd", "labels.json"]
    assert all(b"Grete" not in path.read_bytes() for path in files)
    content = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    assert content["labels"]["2"]["name"] == "Liver"


@pytest.mark.parametrize("name", ["", "Zöllner^Grete", "../case", "a b", ".hidden", "x" * 101])
def test_names_that_are_no_file_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(LogicError, match="is no name for a case"):
        exported([case(name, None)], tmp_path)


def test_two_cases_may_not_share_a_file(tmp_path: Path) -> None:
    with pytest.raises(LogicError, match="Two cases are named 'CASE_1'"):
        exported([case("case_1", None), case("CASE_1", None)], tmp_path)
