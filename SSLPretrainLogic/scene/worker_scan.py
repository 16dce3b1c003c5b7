"""What the worker is told of a scene: its scan as a file, and the box of it that is wanted."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.scene.grids import Array, Grid, inverse, placed
from SSLPretrainLogic.scene.volumes import (
    as_array,
    linear_matrix,
    oriented_grid,
    to_world,
    world_grid,
    world_image,
)

_TOUCHES_MM = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """A volume of the scene as a file for the worker.

    Attributes:
        told: the field "array" of a request.
        grid: of its voxels in the world.
        resampled: why these are not the volume's own, "" if they are.
    """

    told: dict[str, Any]
    grid: Grid
    resampled: str


class Scans:
    """Keeps the file of the volume that was last asked for: it is written, and read, only once.

    Args:
        place: folder for it, e.g. that of temporary files.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._key: object = None
        self._scan: Scan | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def of(self, volume: Any) -> Generator[bool, None, Scan]:
        """The file of a volume as it is now, written a little at a time.

        Raises:
            LogicError: if the node is no CT volume, see `scene.volumes.world_image`, or is changed
                meanwhile.
            OSError: if it cannot be written.
        """
        key = _stamp(volume)
        if self._scan is None or key is None or key != self._key:
            self.forget()
            self._folder = tempfile.TemporaryDirectory(prefix="SSLSegmentation-", dir=self._place)
            scan = yield from _written(volume, Path(self._folder.name) / "scan.raw")
            if _stamp(volume) != key:
                gone = volume.GetScene() is None
                what = "removed" if gone else "moved or changed"
                raise LogicError(
                    f"Volume {volume.GetName()!r} was {what} meanwhile.",
                    "No segment was changed. Apply again.",
                )
            self._scan, self._key = scan, key
        return self._scan

    def forget(self) -> None:
        """Remove the file."""
        self._scan = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """A box of voxels, and within it the voxels that count.

    Attributes:
        start: first voxel along (i, j, k).
        size: voxels along (i, j, k).
        to_box: (4, 4) from the world to a box around 0; None if all voxels count.
        half: half the edges of that box, in millimetres.
    """

    start: tuple[int, int, int]
    size: tuple[int, int, int]
    to_box: Array | None = None
    half: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def told(self) -> dict[str, list[int]]:
        """The field "region" of a request."""
        return {"start": list(self.start[::-1]), "size": list(self.size[::-1])}

    def cropped(self, grid: Grid) -> Grid:
        """The part of the scan's grid that is labelled."""
        matrix = grid.ijk_to_ras.copy()
        matrix[:3, 3] = placed(matrix, np.array([self.start], dtype=float))[0]
        return Grid(size=self.size, ijk_to_ras=matrix)

    def inside(self, grid: Grid) -> NDArray[np.bool_] | None:
        """Which voxels (z, y, x) of the cropped grid count, None if all of them do."""
        if self.to_box is None:
            return None
        matrix = self.to_box @ grid.ijk_to_ras
        k, j, i = np.ogrid[tuple(slice(n) for n in grid.size[::-1])]
        counts = np.ones(grid.size[::-1], dtype=bool)
        for row, half in zip(matrix[:3], self.half, strict=True):
            counts &= np.abs(row[0] * i + row[1] * j + row[2] * k + row[3]) <= half + _TOUCHES_MM
        return counts


def whole(grid: Grid) -> Region:
    """All of a scan."""
    return Region(start=(0, 0, 0), size=grid.size)


def inside_roi(roi: Any, grid: Grid) -> Region:
    """The part of a scan inside a vtkMRMLMarkupsROINode, turned as it may be.

    Raises:
        LogicError: if the ROI is outside the scan, or bent by its transform.
    """
    named = repr(roi.GetName())
    matrix = linear_matrix(to_world(roi))
    if matrix is None:
        what = f"ROI {named} is under a transform that bends space."
        raise LogicError(what, "Take it out of the transform.")
    to_world_matrix = matrix @ as_array(roi.GetObjectToNodeMatrix())
    half = np.asarray(roi.GetSize(), dtype=float) / 2
    signs = np.array(np.meshgrid((-1, 1), (-1, 1), (-1, 1))).reshape(3, -1).T
    if (found := _box(placed(to_world_matrix, signs * half), grid)) is None:
        what = f"ROI {named} holds no voxel of the volume."
        raise LogicError(what, "Draw it on the structure.")
    start, size = found
    edges = (float(half[0]), float(half[1]), float(half[2]))
    return Region(start=start, size=size, to_box=inverse(to_world_matrix), half=edges)


def around_segment(segmentation: Any, identifier: str, grid: Grid, *, margin_mm: float) -> Region:
    """The box of a scan around what a segment holds.

    Raises:
        LogicError: if it holds nothing, or lies outside the scan.
    """
    named = repr(segmentation.GetSegmentation().GetSegment(identifier).GetName())
    image = slicer.vtkOrientedImageData()
    extent = [0] * 6
    segmentation.GetBinaryLabelmapRepresentation(identifier, image)
    effective = slicer.vtkOrientedImageDataResample.CalculateEffectiveExtent
    if image.GetNumberOfPoints() == 0 or not effective(image, extent):
        what = f"Segment {named} is empty: there is nothing to go around."
        raise LogicError(what, "Paint a little of it first, or take the whole volume.")
    image.SetExtent(extent)
    transform = to_world(segmentation)
    corners = np.array([transform.TransformPoint(p) for p in oriented_grid(image).corners()])
    if (found := _box(corners, grid, margin_mm=margin_mm)) is None:
        what = f"Segment {named} lies outside the volume."
        raise LogicError(what, "Choose the volume that it was drawn on.")
    start, size = found
    return Region(start=start, size=size)


def is_grid_of(grid: Grid, volume: Any) -> bool:
    """Whether a volume still lies where a scan was made from it."""
    try:
        now, _reason = world_grid(volume)
    except LogicError:
        return False
    return now.size == grid.size and bool(np.allclose(now.ijk_to_ras, grid.ijk_to_ras))


def _box(
    points: Array, grid: Grid, *, margin_mm: float = 0.0
) -> tuple[tuple[int, int, int], tuple[int, int, int]] | None:
    """First voxel and size of the box of voxels around points, None if it is empty."""
    indices = placed(inverse(grid.ijk_to_ras), points)
    margin = margin_mm / grid.spacing_mm + _TOUCHES_MM
    first = np.ceil(indices.min(axis=0) - margin).astype(int).clip(0)
    last = np.minimum(np.floor(indices.max(axis=0) + margin).astype(int), np.array(grid.size) - 1)
    size = last - first + 1
    if np.any(size < 1):
        return None
    return (
        (int(first[0]), int(first[1]), int(first[2])),
        (int(size[0]), int(size[1]), int(size[2])),
    )


def _stamp(volume: Any) -> object:
    """What changes with voxels or place of a volume; None if that cannot be told."""
    if volume.GetScene() is None:
        return None
    matrix = linear_matrix(to_world(volume))
    image = volume.GetImageData()
    if matrix is None or image is None:
        return None
    grid, _reason = world_grid(volume)
    return volume.GetID(), image.GetMTime(), grid.size, grid.ijk_to_ras.tobytes()


def _written(volume: Any, path: Path) -> Generator[bool, None, Scan]:
    # What was told before is seen, since this takes a while.
    yield True
    image = world_image(volume)
    with path.open("wb") as file:
        for plane in image.voxels:
            file.write(np.ascontiguousarray(plane).data)
            yield False
    # The worker speaks LPS: x and y the other way round.
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.grid.ijk_to_ras
    spacing = image.grid.spacing_mm
    told = {
        "file": str(path),
        "dtype": "int16",
        "size": list(image.voxels.shape),
        "spacing_mm": spacing[::-1].tolist(),
        "origin_mm": matrix[:3, 3].tolist(),
        "direction": (matrix[:3, :3] / spacing).ravel().tolist(),
    }
    return Scan(told=told, grid=image.grid, resampled=image.resampled)
