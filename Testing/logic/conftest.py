"""Real MRML without Slicer: a scene as the application makes it, from the package slicer-core."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scene_geometry import NEEDS_MRML


@pytest.fixture
def scene() -> Iterator[Any]:
    """A scene with Slicer's colours, singletons and a subject hierarchy."""
    slicer = pytest.importorskip("slicer", reason=NEEDS_MRML)
    scene = slicer.vtkMRMLScene()
    # Where tests of the window run in the same process, theirs is needed again.
    before = getattr(slicer, "mrmlScene", None)
    slicer.mrmlScene = scene
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    colors = application.GetColorLogic()
    colors.SetMRMLScene(scene)
    colors.AddDefaultColorNodes()
    # Registers what turns surfaces into voxels and back.
    segmentations = slicer.vtkSlicerSegmentationsModuleLogic()
    segmentations.SetMRMLApplicationLogic(application)
    segmentations.SetMRMLScene(scene)
    yield scene
    scene.Clear(True)
    slicer.mrmlScene = before


@pytest.fixture
def make_volume(scene: Any) -> Any:
    """A function that adds a volume node of voxels (z, y, x) with a matrix (4, 4) to the scene."""
    import slicer
    import vtk

    def make(voxels: Any, ijk_to_ras: Any, name: str = "CT") -> Any:
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy(np.asarray(ijk_to_ras, dtype=float).ravel().tolist())
        node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
        slicer.util.updateVolumeFromArray(node, np.asarray(voxels))
        node.SetIJKToRASMatrix(matrix)
        return node

    return make


@pytest.fixture
def make_transform(scene: Any) -> Any:
    """A function that adds a linear transform node (4, 4), below another one if given."""
    import vtk

    def make(array: Any, above: Any = None) -> Any:
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy(np.asarray(array, dtype=float).ravel().tolist())
        node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        node.SetMatrixTransformToParent(matrix)
        if above is not None:
            node.SetAndObserveTransformNodeID(above.GetID())
        return node

    return make


@pytest.fixture
def make_segmentation(scene: Any) -> Any:
    """A function that adds a segmentation of masks (z, y, x) by name, on a grid of its own."""
    import slicer
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    def make(masks: Any, ijk_to_ras: Any, name: str = "Segmentation") -> Any:
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        node.CreateDefaultDisplayNodes()
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy(np.asarray(ijk_to_ras, dtype=float).ravel().tolist())
        for index, (segment_name, mask) in enumerate(masks.items()):
            image = slicer.vtkOrientedImageData()
            image.SetDimensions(mask.shape[::-1])
            values = np.ascontiguousarray(mask, dtype=np.uint8).ravel()
            image.GetPointData().SetScalars(numpy_to_vtk(values, deep=True))
            image.SetImageToWorldMatrix(matrix)
            color = (0.2 + 0.1 * index, 0.4, 0.6)
            node.AddSegmentFromBinaryLabelmapRepresentation(image, segment_name, color)
        return node

    return make


@pytest.fixture
def bending(scene: Any) -> Any:
    """A transform node that moves each corner of a cube by another amount."""
    import vtk

    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for corner in np.ndindex(2, 2, 2):
        point = np.array((-31.5, 12.25, 104.0)) + np.array(corner) * 20.0
        source.InsertNextPoint(point)
        target.InsertNextPoint(point + np.sin(point) * 2.0)
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetBasisToR()
    spline.SetSourceLandmarks(source)
    spline.SetTargetLandmarks(target)
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode")
    node.SetAndObserveTransformToParent(spline)
    return node
