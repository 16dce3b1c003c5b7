"""A volume of the scene and the file written from it are the same voxels at the same places."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from scene_geometry import (
    NEEDS_MRML,
    ORDERS,
    SHAPE,
    SPACING,
    centres,
    hu,
    ijk_to_ras,
    linear,
    rotation,
)

from SSLPretrainLogic.errors import LogicError

slicer = pytest.importorskip("slicer", reason=NEEDS_MRML)
volumes = import_module("SSLPretrainLogic.scene.volumes")

LPS = np.diag((-1.0, -1.0, 1.0))
NAME = "Zöllner^Grete 1950-01-01"


def corners_of_file(image: SimpleITK.Image) -> np.ndarray:
    """World coordinates (RAS) of the corner voxels, as an independent reader has them."""
    ends = [(0, n - 1) for n in image.GetSize()]
    return np.array(
        [
            LPS @ image.TransformIndexToPhysicalPoint((i, j, k))
            for k in ends[2]
            for j in ends[1]
            for i in ends[0]
        ]
    )


def corners(shape: tuple[int, ...], matrix: np.ndarray) -> np.ndarray:
    return centres(shape, matrix)[:: shape[0] - 1, :: shape[1] - 1, :: shape[2] - 1].reshape(8, 3)


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_the_file_has_the_voxels_and_the_grid_of_the_node(
    order: str, oblique: bool, make_volume: Any, tmp_path: Path
) -> None:
    matrix = ijk_to_ras(order, oblique=oblique)
    done = volumes.export_volume(make_volume(hu(), matrix), tmp_path / "case.nrrd")
    image = SimpleITK.ReadImage(str(done.path))
    assert image.GetPixelIDTypeAsString() == "16-bit signed integer"
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), hu())
    np.testing.assert_allclose(corners_of_file(image), corners(SHAPE, matrix), atol=1e-9)
    np.testing.assert_allclose(image.GetSpacing(), SPACING)
    assert done.resampled == ""


def test_half_of_the_orders_are_left_handed() -> None:
    signs = [np.linalg.det(ijk_to_ras(order)[:3, :3]) > 0 for order in ORDERS]
    assert sum(signs) == 4


def test_transforms_above_the_node_become_part_of_the_grid(
    make_volume: Any, make_transform: Any, tmp_path: Path
) -> None:
    outer = linear(rotation((0.1, 0.7, -0.4)), (5, -6, 7))
    inner = linear(np.diag((-1, 1, 1)), (1, 2, 3))
    volume = make_volume(hu(), ijk_to_ras("LPS"))
    node = make_transform(inner, above=make_transform(outer))
    volume.SetAndObserveTransformNodeID(node.GetID())
    done = volumes.export_volume(volume, tmp_path / "case.nrrd")
    image = SimpleITK.ReadImage(str(done.path))
    wanted = corners(SHAPE, outer @ inner @ ijk_to_ras("LPS"))
    np.testing.assert_allclose(corners_of_file(image), wanted, atol=1e-9)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), hu())


def test_the_node_and_the_scene_are_not_touched_and_the_file_names_nobody(
    scene: Any, make_volume: Any, make_transform: Any, tmp_path: Path
) -> None:
    volume = make_volume(hu(), ijk_to_ras("LAS"), name=NAME)
    volume.SetAttribute("DICOM.instanceUIDs", "1.2.840.99")
    volume.SetAndObserveTransformNodeID(make_transform(linear(shift=(1, 2, 3))).GetID())
    before = (volume.GetMTime(), volume.GetImageData().GetMTime(), scene.GetNumberOfNodes())
    done = volumes.export_volume(volume, tmp_path / "case.nrrd")
    after = (volume.GetMTime(), volume.GetImageData().GetMTime(), scene.GetNumberOfNodes())
    assert after == before
    content = done.path.read_bytes()
    for told in ("Zöllner", "Grete", "1950", "1.2.840.99", "CT"):
        assert told.encode() not in content.split(b"\n\n")[0]


def test_paths_may_have_blanks_and_any_letters(make_volume: Any, tmp_path: Path) -> None:
    path = tmp_path / "Bilder für später" / "症例 1.nrrd"
    volumes.export_volume(make_volume(hu(), ijk_to_ras()), path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))), hu())


def sheared() -> np.ndarray:
    """A gantry tilt: planes are shifted along y by half their distance."""
    matrix = ijk_to_ras("RAS", oblique=True)
    matrix[:3, 2] += 0.5 * SPACING[2] * matrix[:3, 1] / SPACING[1]
    return matrix


GRADIENT = np.array((11.0, -7.0, 5.0))


def ramp(points: np.ndarray) -> np.ndarray:
    """A field that linear interpolation reproduces."""
    return points @ GRADIENT


def test_a_sheared_volume_is_interpolated_on_a_rectangular_grid_around_all_of_it(
    make_volume: Any,
) -> None:
    voxels = np.rint(ramp(centres(SHAPE, sheared()))).astype(np.int16)
    image = volumes.world_image(make_volume(voxels, sheared()))
    assert image.resampled == "its axes are 26.6 degrees off the right angle"
    axes = image.grid.ijk_to_ras[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.diag(SPACING**2), atol=1e-9)
    points = centres(image.voxels.shape, image.grid.ijk_to_ras)
    back = np.linalg.inv(sheared())
    index = points @ back[:3, :3].T + back[:3, 3]
    size = np.array(SHAPE[::-1])
    inside = np.all((index > 0) & (index < size - 1), axis=-1)
    assert inside.sum() > 100
    # Half a unit for rounding the ramp, half for rounding the result.
    assert np.abs(image.voxels - ramp(points))[inside].max() <= 1.0
    far = np.any((index < -0.6) | (index > size - 0.4), axis=-1)
    assert np.all(image.voxels[far] == -1024)
    # All of the scan lies inside: its corners are within the new grid.
    back = np.linalg.inv(image.grid.ijk_to_ras)
    found = corners(SHAPE, sheared()) @ back[:3, :3].T + back[:3, 3]
    assert found.min() > -1e-6
    assert np.all(found.max(axis=0) < np.array(image.grid.size) - 1 + 1e-6)


def test_a_transform_that_shears_does_as_a_sheared_volume(
    make_volume: Any, make_transform: Any
) -> None:
    voxels = np.rint(ramp(centres(SHAPE, sheared()))).astype(np.int16)
    wanted = volumes.world_image(make_volume(voxels, sheared()))
    volume = make_volume(voxels, ijk_to_ras())
    tilt = make_transform(sheared() @ np.linalg.inv(ijk_to_ras()))
    volume.SetAndObserveTransformNodeID(tilt.GetID())
    found = volumes.world_image(volume)
    np.testing.assert_allclose(found.grid.ijk_to_ras, wanted.grid.ijk_to_ras, atol=1e-9)
    assert np.abs(found.voxels.astype(int) - wanted.voxels).max() <= 1


def test_a_transform_that_bends_space_is_followed(bending: Any, make_volume: Any) -> None:
    matrix = ijk_to_ras()
    voxels = np.rint(ramp(centres(SHAPE, matrix))).astype(np.int16)
    volume = make_volume(voxels, matrix)
    volume.SetAndObserveTransformNodeID(bending.GetID())
    image = volumes.world_image(volume)
    assert image.resampled == "its transform is not linear"
    points = centres(image.voxels.shape, image.grid.ijk_to_ras).reshape(-1, 3)
    there = volumes.to_world(volume)
    there.Inverse()
    came_from = np.array([there.TransformPoint(point) for point in points])
    assert np.abs(came_from - points).max() > 0.5
    back = np.linalg.inv(matrix)
    index = came_from @ back[:3, :3].T + back[:3, 3]
    inside = np.all((index > 0) & (index < np.array(SHAPE[::-1]) - 1), axis=-1)
    assert inside.sum() > 50
    # VTK inverts the spline up to a small part of a millimetre.
    assert np.abs(image.voxels.ravel() - ramp(came_from))[inside].max() <= 1.2


def test_real_values_are_rounded_and_16_bits_kept(make_volume: Any) -> None:
    voxels = np.array([-1000.4, -0.6, 0.4, 3071.5], dtype=np.float32).reshape(1, 2, 2)
    image = volumes.world_image(make_volume(voxels, ijk_to_ras()))
    assert image.voxels.dtype == np.int16
    assert image.voxels.ravel().tolist() == [-1000, -1, 0, 3072]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.array([0, 40000], dtype=np.int32), "40000"),
        (np.array([0, np.nan], dtype=np.float32), "nan"),
    ],
)
def test_values_that_are_no_hounsfield_units_are_refused(
    values: Any, told: str, make_volume: Any
) -> None:
    volume = make_volume(values.reshape(1, 1, 2), ijk_to_ras(), name="Dose")
    with pytest.raises(LogicError, match=f"'Dose' has values from .*{told}.* no Hounsfield"):
        volumes.world_image(volume)


def test_other_nodes_are_refused_by_name(scene: Any, make_volume: Any) -> None:
    from vtk.util.numpy_support import numpy_to_vtk

    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Organs")
    with pytest.raises(LogicError, match="'Organs' is no CT volume but a LabelMapVolume"):
        volumes.world_image(node)
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Nothing")
    with pytest.raises(LogicError, match="'Nothing' holds no voxels"):
        volumes.world_image(empty)
    photo = make_volume(hu(), ijk_to_ras(), name="Photo")
    pixels = numpy_to_vtk(np.zeros((hu().size, 3), dtype=np.uint8), deep=True)
    photo.GetImageData().GetPointData().SetScalars(pixels)
    with pytest.raises(LogicError, match="'Photo' has colours, not Hounsfield units"):
        volumes.world_image(photo)
    with pytest.raises(LogicError, match="No volume is chosen"):
        volumes.world_image(None)


def test_a_flat_grid_is_refused(make_volume: Any) -> None:
    matrix = ijk_to_ras()
    matrix[:3, 2] = matrix[:3, 1]
    with pytest.raises(LogicError, match="'CT' has no usable grid"):
        volumes.world_image(make_volume(hu(), matrix))


def test_a_failure_leaves_the_old_file_and_no_rest(make_volume: Any, tmp_path: Path) -> None:
    volume = make_volume(hu(), ijk_to_ras())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LogicError, match="a file stands where a folder should be"):
        volumes.export_volume(volume, tmp_path / "file" / "case.nrrd")
    (tmp_path / "case.nrrd").mkdir()
    with pytest.raises(LogicError, match=r"case\.nrrd: Is a directory"):
        volumes.export_volume(volume, tmp_path / "case.nrrd")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case.nrrd", "file"]
    with pytest.raises(LogicError, match=r"written as \.nrrd"):
        volumes.export_volume(volume, tmp_path / "case.nii.gz")
