"""Volumes out: a CT of the scene as a file with exactly its voxels, where they really lie."""

from __future__ import annotations

import gzip
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.files import written_whole
from SSLPretrainLogic.scene.grids import (
    Array,
    Grid,
    degrees_of_shear,
    is_rectangular,
    is_usable,
    straightened,
)

ENDING = ".nrrd"
"""NRRD keeps the grid in double precision and left-handed as it is; NIfTI has single floats."""

_AIR_HU = -1024
_INT16 = np.iinfo(np.int16)
_MRML_FOLDER = "TempWrite"
_LONGEST_LINE = 1 << 16


@dataclass(frozen=True, kw_only=True, eq=False)
class WorldImage:
    """A volume without its transforms.

    Attributes:
        voxels: int16 (z, y, x), Hounsfield units.
        grid: where they lie in the world; always rectangular.
        resampled: why the voxels are not those of the node, "" if they are.
    """

    voxels: NDArray[np.int16]
    grid: Grid
    resampled: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportedVolume:
    """A file written from a volume node.

    Attributes:
        path: the file.
        grid: its voxels in the world.
        resampled: see `WorldImage`; to be shown to the user if it is not "".
    """

    path: Path
    grid: Grid
    resampled: str


def export_volume(volume: Any, path: Path) -> ExportedVolume:
    """Write a volume as int16 Hounsfield units, whole or not at all.

    Linear transforms above the node become part of the grid. Where the axes then meet at other
    than right angles, or a transform bends space, the voxels are interpolated on a rectangular
    grid around all of them; `resampled` says so. The node is not changed, and nothing but voxels
    and grid is written: no name, no attributes.

    Args:
        volume: a vtkMRMLScalarVolumeNode.
        path: ends in .nrrd and names no patient; its folder is made.

    Raises:
        LogicError: if the node is no CT volume or the file cannot be written.
    """
    image = world_image(volume)
    write_image(path, image.voxels, image.grid)
    return ExportedVolume(path=path, grid=image.grid, resampled=image.resampled)


def world_image(volume: Any) -> WorldImage:
    """Voxels and grid of a volume as they lie in the world.

    Raises:
        LogicError: if the node is no scalar volume, holds no voxels, values that are no Hounsfield
            units, or has a grid or a transform that cannot be used.
    """
    grid, reason = world_grid(volume)
    voxels = _hounsfield(volume)
    if reason:
        bent = _oriented(voxels, own_grid(volume))
        straight = resampled(bent, grid, to_world(volume), linear=True, background=_air(voxels))
        voxels = np.asarray(np.rint(straight), dtype=np.int16)
    return WorldImage(voxels=voxels, grid=grid, resampled=reason)


def own_grid(volume: Any) -> Grid:
    """The grid of a node below its transforms.

    Raises:
        LogicError: if it has no voxels or does not span space.
    """
    image = volume.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0 or not image.GetPointData().GetScalars():
        raise LogicError(f"Volume {volume.GetName()!r} holds no voxels.", "Load the series again.")
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    grid = image_grid(image, as_array(matrix))
    if not is_usable(grid):
        raise LogicError(
            f"Volume {volume.GetName()!r} has no usable grid: its axes do not span space.",
            "Load the series again.",
        )
    return grid


def world_grid(volume: Any) -> tuple[Grid, str]:
    """The grid that `export_volume` writes, and why it is not the node's own ("" if it is).

    Raises:
        LogicError: if the node is no scalar volume, see also `own_grid`, or its transform flattens
            space.
    """
    _require_scalar(volume)
    own = own_grid(volume)
    transform = to_world(volume)
    matrix = linear_matrix(transform)
    if matrix is None:
        points = np.array([transform.TransformPoint(p) for p in _surface(own)])
        if not np.all(np.isfinite(points)):
            raise _unusable_transform(volume)
        return straightened(own, points), "its transform is not linear"
    moved = own.moved(matrix)
    if not is_usable(moved):
        raise _unusable_transform(volume)
    if is_rectangular(moved):
        return moved, ""
    reason = f"its axes are {degrees_of_shear(moved):.1f} degrees off the right angle"
    return straightened(moved, moved.corners()), reason


def to_world(node: Any) -> Any:
    """All transforms above a node as one vtkGeneralTransform, the identity without any."""
    transform = vtk.vtkGeneralTransform()
    if (parent := node.GetParentTransformNode()) is not None:
        parent.GetTransformToWorld(transform)
    return transform


def linear_matrix(transform: Any) -> Array | None:
    """The matrix (4, 4) of a transform, None if it bends space."""
    linear = vtk.vtkTransform()
    if not slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(transform, linear):
        return None
    return as_array(linear.GetMatrix())


def resampled(
    image: Any, grid: Grid, transform: Any, *, linear: bool, background: int = 0
) -> NDArray[np.generic]:
    """An oriented image on another grid, shape (z, y, x) of the grid.

    Args:
        image: a vtkOrientedImageData.
        grid: where values are wanted.
        transform: from the image's space to that of the grid.
        linear: interpolate; otherwise the nearest voxel counts, as for labels.
        background: what lies outside the image.

    Raises:
        LogicError: if VTK cannot do it.
    """
    reference = slicer.vtkOrientedImageData()
    reference.SetDimensions(grid.size)
    reference.SetImageToWorldMatrix(as_matrix(grid.ijk_to_ras))
    found = slicer.vtkOrientedImageData()
    done = slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        image, reference, found, linear, False, transform, background
    )
    if not done or found.GetDimensions() != tuple(grid.size):
        raise LogicError("An image cannot be brought to another grid.", "Harden its transform.")
    return voxels_of(found)


def write_image(path: Path, voxels: NDArray[Any], grid: Grid, *, compress: bool = False) -> None:
    """Write voxels (z, y, x) as NRRD, whole or not at all, and read them back to be sure.

    Raises:
        LogicError: if the name does not end in .nrrd or the file cannot be written.
    """
    if path.suffix.lower() != ENDING:
        raise LogicError(f"{path}: volumes are written as {ENDING}.", f"End the name in {ENDING}.")
    node = slicer.vtkMRMLScalarVolumeNode()
    # The grid belongs to the node; an image in MRML has spacing 1.
    image = vtk.vtkImageData()
    image.SetDimensions(grid.size)
    image.GetPointData().SetScalars(_scalars(voxels))
    node.SetAndObserveImageData(image)
    node.SetIJKToRASMatrix(as_matrix(grid.ijk_to_ras))
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetUseCompression(compress)
    with written_whole(path) as part:
        storage.SetFileName(str(part))
        try:
            if not storage.WriteData(node) or not _holds(part, voxels):
                # VTK does not say why; the system does when it is asked for as much room.
                part.write_bytes(voxels.tobytes())
                raise OSError("it is not what was written")
        finally:
            _clear_up_after_mrml(part)


def _clear_up_after_mrml(path: Path) -> None:
    """Remove what a storage node that fails leaves behind: it writes to a folder beside first."""
    left = path.parent / _MRML_FOLDER / path.name
    with suppress(OSError):
        left.unlink(missing_ok=True)
        left.parent.rmdir()


def image_grid(image: Any, ijk_to_ras: Array) -> Grid:
    """The grid of a vtkImageData whose first voxel may have other indices than 0."""
    extent = image.GetExtent()
    start = np.eye(4)
    start[:3, 3] = extent[::2]
    return Grid(size=tuple(image.GetDimensions()), ijk_to_ras=ijk_to_ras @ start)


def voxels_of(image: Any) -> NDArray[np.generic]:
    """A view of the voxels of a vtkImageData, (z, y, x); keeps the memory alive."""
    scalars = vtk_to_numpy(image.GetPointData().GetScalars())
    view: NDArray[np.generic] = scalars.reshape(image.GetDimensions()[::-1])
    return view


def oriented_grid(image: Any) -> Grid:
    """The grid of a vtkOrientedImageData."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return image_grid(image, as_array(matrix))


def oriented(voxels: NDArray[Any], grid: Grid) -> Any:
    """A vtkOrientedImageData with a copy of voxels (z, y, x)."""
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(grid.size)
    image.GetPointData().SetScalars(_scalars(voxels))
    image.SetImageToWorldMatrix(as_matrix(grid.ijk_to_ras))
    return image


def as_array(matrix: Any) -> Array:
    """A vtkMatrix4x4 as an array (4, 4)."""
    return np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])


def as_matrix(array: Array) -> Any:
    """An array (4, 4) as a vtkMatrix4x4."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(array.ravel().tolist())
    return matrix


def _require_scalar(volume: Any) -> None:
    """Raise for label maps, vector volumes, and nothing at all."""
    if volume is None:
        raise LogicError("No volume is chosen.", "Choose a CT volume.")
    if volume.GetClassName() != "vtkMRMLScalarVolumeNode":
        raise LogicError(
            f"{volume.GetName()!r} is no CT volume but a {volume.GetNodeTagName()}.",
            "Choose a scalar volume.",
        )


def _hounsfield(volume: Any) -> NDArray[np.int16]:
    """The voxels of a scalar volume as int16 (z, y, x).

    Raises:
        LogicError: see `world_image`.
    """
    _require_scalar(volume)
    named = repr(volume.GetName())
    image = volume.GetImageData()
    if image.GetPointData().GetScalars().GetNumberOfComponents() != 1:
        raise LogicError(f"Volume {named} has colours, not Hounsfield units.", "Choose a CT.")
    values = voxels_of(image)
    low, high = float(np.min(values)), float(np.max(values))
    # Not-a-number fails every comparison.
    if not (low >= _INT16.min and high <= _INT16.max):
        raise LogicError(
            f"Volume {named} has values from {low:g} to {high:g}, which are no Hounsfield units.",
            "Choose a CT, or rescale the volume to Hounsfield units.",
        )
    return np.asarray(values if values.dtype == np.int16 else np.rint(values), dtype=np.int16)


def _air(voxels: NDArray[np.int16]) -> int:
    """What stands for outside the scan: its darkest value, which is air or padding in a CT."""
    return min(_AIR_HU, int(voxels.min()))


def _oriented(voxels: NDArray[np.int16], grid: Grid) -> Any:
    """As `oriented`, in floats: VTK cuts interpolated whole numbers off instead of rounding."""
    return oriented(voxels.astype(np.float32), grid)


def _surface(grid: Grid, *, samples: int = 9) -> list[list[float]]:
    """Points all over the outside of a grid in space."""
    steps = np.linspace(0.0, 1.0, samples)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    outside = cube[np.any((cube == 0) | (cube == 1), axis=1)]
    indices = outside * (np.asarray(grid.size) - 1)
    points: list[list[float]] = (
        indices @ grid.ijk_to_ras[:3, :3].T + grid.ijk_to_ras[:3, 3]
    ).tolist()
    return points


def _scalars(voxels: NDArray[Any]) -> Any:
    """A VTK array with a copy of its own."""
    return numpy_to_vtk(np.ascontiguousarray(voxels).ravel(), deep=True)


def _holds(path: Path, voxels: NDArray[Any]) -> bool:
    """Whether an NRRD file of one's own machine holds these voxels."""
    with path.open("rb") as file:
        header = b"".join(iter(lambda: file.readline(_LONGEST_LINE).strip(b"\r\n"), b""))
        with gzip.open(file) if b"encoding: gzip" in header else file as stream:
            return all(stream.read(plane.nbytes) == plane.tobytes() for plane in voxels)


def _unusable_transform(volume: Any) -> LogicError:
    return LogicError(
        f"The transform of volume {volume.GetName()!r} flattens space or has no end.",
        "Correct the transform or take the volume out of it.",
    )
