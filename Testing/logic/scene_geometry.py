"""Grids for the tests, and the analytic answer of where voxels lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NEEDS_MRML = "slicer-core is not installed: pip install slicer-core==5.12.4.0"

SHAPE = (6, 7, 8)
"""(z, y, x), all different, so that no two axes can be swapped unseen."""

SPACING = np.array((0.7, 1.3, 2.9))
ORIGIN = np.array((-31.5, 12.25, 104.0))

ORDERS = ("RAS", "LPS", "LAS", "RPS", "PIR", "SLA", "ASL", "IRP")
"""Where i, j and k point to; four of the eight are left-handed."""

_DIRECTIONS = dict(zip("RLASPI", (*np.eye(3)[[0, 0, 1, 2, 1, 2]],), strict=True))
_BACKWARD = set("LPI")


def ijk_to_ras(order: str = "RAS", *, oblique: bool = False) -> NDArray[np.float64]:
    """An anisotropic grid; oblique ones lie at an odd angle to all axes."""
    columns = [_DIRECTIONS[c] * (-1 if c in _BACKWARD else 1) for c in order]
    turn = rotation((0.3, -0.5, 0.2)) if oblique else np.eye(3)
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.stack(columns, axis=1) * SPACING
    matrix[:3, 3] = ORIGIN
    return matrix


def rotation(angles: tuple[float, float, float]) -> NDArray[np.float64]:
    """Turns around x, y and z one after the other, in radians."""
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        one = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        one[i, i] = one[j, j] = np.cos(angle)
        one[j, i], one[i, j] = np.sin(angle), -np.sin(angle)
        turn = one @ turn
    return turn


def linear(
    matrix3: Any = ((1, 0, 0), (0, 1, 0), (0, 0, 1)), shift: Any = (0, 0, 0)
) -> NDArray[np.float64]:
    """A matrix (4, 4) of a 3x3 matrix and a shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = matrix3
    matrix[:3, 3] = shift
    return matrix


def centres(shape: tuple[int, ...], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the centre of each voxel lies, (z, y, x, 3)."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return np.stack((i, j, k), axis=-1) @ matrix[:3, :3].T + matrix[:3, 3]


def nearest(
    mask: NDArray[Any], matrix: NDArray[np.float64], points: NDArray[np.float64]
) -> NDArray[Any]:
    """What a mask (z, y, x) with its grid holds at points (..., 3); 0 outside of it."""
    back = np.linalg.inv(matrix)
    ijk = np.rint(points @ back[:3, :3].T + back[:3, 3]).astype(int)
    size = np.array(mask.shape[::-1])
    inside = np.all((ijk >= 0) & (ijk < size), axis=-1)
    i, j, k = np.moveaxis(np.clip(ijk, 0, size - 1), -1, 0)
    return np.where(inside, mask[k, j, i], 0)


def hu(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> NDArray[np.int16]:
    """Voxels without any symmetry."""
    return np.random.default_rng(seed).integers(-1024, 3000, shape).astype(np.int16)


def segment_points(node: Any, name: str) -> NDArray[np.float64]:
    """World coordinates of all voxels of a segment, read from MRML alone, sorted, (n, 3)."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    segmentation = node.GetSegmentation()
    segment = segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName(name))
    image = segment.GetRepresentation("Binary labelmap")
    if image is None or image.GetNumberOfPoints() == 0:
        return np.zeros((0, 3))
    values = vtk_to_numpy(image.GetPointData().GetScalars())
    values = values.reshape(image.GetDimensions()[::-1])
    found = np.argwhere(values == segment.GetLabelValue())[:, ::-1] + image.GetExtent()[::2]
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    array = np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])
    points = found @ array[:3, :3].T + array[:3, 3]
    if (parent := node.GetParentTransformNode()) is not None:
        transform = vtk.vtkGeneralTransform()
        parent.GetTransformToWorld(transform)
        points = np.array([transform.TransformPoint(p) for p in points])
    return in_order(points)


def in_order(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, 3) sorted, so that sets of them can be compared."""
    keys = np.round(points, 4)
    return points[np.lexsort(keys.T)]
