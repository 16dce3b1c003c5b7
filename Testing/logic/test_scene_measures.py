"""Volumes are known again by what they hold, and means are those counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

GRID = np.diag([-2.0, -3.0, 4.0, 1.0])
TURNED = np.array([[0, 3.0, 0, 7], [-2.0, 0, 0, 5], [0, 0, 4.0, -9], [0, 0, 0, 1]])


@pytest.fixture
def voxels() -> Any:
    return np.random.default_rng(3).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)


def labelled(tmp_path: Path, voxels: Any, grid: Any, value: int = 1) -> Path:
    """A label file on the grid of a volume, with one structure where the volume is positive."""
    from SSLPretrainLogic.scene.grids import Grid
    from SSLPretrainLogic.scene.structures import Structure, write_labels
    from SSLPretrainLogic.scene.volumes import write_image

    labels = (voxels > 0).astype(np.int16) * value
    labels[0] = labels[-1] = 0
    path = tmp_path / "x.nrrd"
    write_image(path, labels, Grid(size=voxels.shape[::-1], ijk_to_ras=np.asarray(grid, float)))
    write_labels(tmp_path / "x.labels.json", (Structure(value=value, name="bright"),))
    return path


def test_a_volume_is_found_by_its_voxels_and_its_place(make_volume: Any, voxels: Any) -> None:
    from SSLPretrainLogic.scene.measures import find_volume, fingerprint

    first, moved = make_volume(voxels, GRID), make_volume(voxels, TURNED)
    other = make_volume(voxels + 1, GRID)
    assert len({fingerprint(node) for node in (first, moved, other)}) == 3
    wanted = fingerprint(moved)
    assert find_volume((first, other, moved), wanted) is moved
    assert find_volume((first, other), wanted) is None


def test_a_transform_changes_what_a_volume_is_known_by(
    make_volume: Any, make_transform: Any, voxels: Any
) -> None:
    from SSLPretrainLogic.scene.measures import fingerprint

    node = make_volume(voxels, GRID)
    before = fingerprint(node)
    shift = np.eye(4)
    shift[0, 3] = 5
    node.SetAndObserveTransformNodeID(make_transform(shift).GetID())
    assert fingerprint(node) != before
    assert fingerprint(make_volume(voxels, shift @ GRID)) == fingerprint(node)


@pytest.mark.parametrize("grid", [GRID, TURNED], ids=["straight", "turned"])
def test_the_mean_of_a_segment_is_that_of_its_voxels(
    grid: Any, make_volume: Any, make_transform: Any, voxels: Any, tmp_path: Path
) -> None:
    from SSLPretrainLogic.scene.measures import mean_of
    from SSLPretrainLogic.scene.results import import_labels

    node = make_volume(voxels, grid)
    found = import_labels(labelled(tmp_path, voxels, grid), node)
    inner = voxels[1:-1]
    expected = float(inner[inner > 0].mean())
    identifier = found.segment_ids["bright"]
    assert mean_of(node, found.node, identifier) == pytest.approx(expected)
    shift = np.eye(4)
    shift[0, 3] = 1.0
    node.SetAndObserveTransformNodeID(make_transform(shift).GetID())
    assert mean_of(node, found.node, identifier) is None


def test_a_segment_without_voxels_has_no_mean(make_volume: Any, voxels: Any) -> None:
    import slicer

    from SSLPretrainLogic.scene.measures import mean_of

    node = make_volume(voxels, GRID)
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    identifier = segmentation.GetSegmentation().AddEmptySegment("", "nothing")
    assert mean_of(node, segmentation, identifier) is None
