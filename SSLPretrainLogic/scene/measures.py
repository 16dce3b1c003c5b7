"""What a volume is known by, and the mean value of a segment on it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import slicer

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.scene.grids import inverse
from SSLPretrainLogic.scene.volumes import (
    linear_matrix,
    oriented_grid,
    own_grid,
    to_world,
    voxels_of,
    world_grid,
)

_DECIMALS = 3
_WHOLE = 1e-3
"""Lattices that are farther apart than this part of a voxel are two."""


def fingerprint(volume: Any) -> str:
    """The same for equal voxels at an equal place, whatever the node is called.

    Raises:
        LogicError: if the node is no scalar volume or holds no voxels.
    """
    grid, _ = world_grid(volume)
    voxels = np.ascontiguousarray(voxels_of(volume.GetImageData()))
    place = np.round(grid.ijk_to_ras, _DECIMALS) + 0.0
    return f"{zlib.crc32(voxels.data):08x}-{zlib.crc32(place.tobytes()):08x}"


def find_volume(volumes: Iterable[Any], wanted: str) -> Any:
    """The first volume with a fingerprint, None if there is none."""
    return next((volume for volume in volumes if _fingerprint(volume) == wanted), None)


def _fingerprint(volume: Any) -> str:
    try:
        return fingerprint(volume)
    except LogicError:
        return ""


def mean_of(volume: Any, segmentation: Any, segment_id: str) -> float | None:
    """Mean value of a volume's voxels in a segment.

    Returns:
        None if it has no voxel, or its voxels are not those of the volume.
    """
    image, matrix = _labelmap(segmentation, segment_id), linear_matrix(to_world(segmentation))
    below = linear_matrix(to_world(volume))
    if image is None or matrix is None or below is None:
        return None
    grid, whole = oriented_grid(image).moved(matrix), own_grid(volume).moved(below)
    step = inverse(whole.ijk_to_ras) @ grid.ijk_to_ras
    first = np.rint(step[:3, 3]).astype(int)
    apart = np.abs(step - np.eye(4))
    apart[:3, 3] = np.abs(step[:3, 3] - first)
    last = first + grid.size
    if np.max(apart) > _WHOLE or np.any(first < 0) or np.any(last > whole.size):
        return None
    box = tuple(slice(a, b) for a, b in zip(first[::-1], last[::-1], strict=True))
    values = voxels_of(volume.GetImageData())[box][voxels_of(image).astype(bool)]
    return float(values.mean()) if values.size else None


def _labelmap(segmentation: Any, segment_id: str) -> Any:
    """The voxels of one segment alone, None if it has none."""
    image = slicer.vtkOrientedImageData()
    if not segmentation.GetBinaryLabelmapRepresentation(segment_id, image):
        return None
    return image if image.GetNumberOfPoints() else None
