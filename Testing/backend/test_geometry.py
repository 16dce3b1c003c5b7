from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name everybody uses
from numpy.typing import NDArray

from backend.geometry import (
    Direction,
    Geometry,
    Volume,
    axes_to,
    direction9,
    orientation_code,
    reorient,
    reoriented,
)

_CODES = [
    "".join(letters)
    for letters in itertools.product("LRAPIS", repeat=3)
    if sorted("LPS".find(c) if c in "LPS" else "RAI".find(c) for c in letters) == [0, 1, 2]
]


def _oblique(seed: int = 0) -> Direction:
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return direction9(matrix.ravel().tolist())


def _geometry(direction: Direction) -> Geometry:
    return Geometry(
        size=(4, 5, 6),
        spacing_mm=(2.5, 0.7, 0.9),
        origin_mm=(-10.0, 20.0, 300.0),
        direction=direction,
    )


def _direction_of(code: str) -> Direction:
    return direction9(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(code))


def _as_itk(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.voxels)
    g = volume.geometry
    image.SetSpacing(g.spacing_mm[::-1])
    image.SetOrigin(g.origin_mm)
    image.SetDirection(g.direction)
    return image


def _voxels() -> NDArray[np.int16]:
    return np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


@pytest.mark.parametrize("direction", [_direction_of("LPS"), _direction_of("SAR"), _oblique()])
def test_world_positions_equal_those_of_itk(direction: Direction) -> None:
    geometry = _geometry(direction)
    image = _as_itk(Volume(_voxels(), geometry))
    for z, y, x in [(0, 0, 0), (3, 4, 5), (1.5, -2.25, 7.0)]:
        wanted = image.TransformContinuousIndexToPhysicalPoint((x, y, z))
        assert geometry.world((z, y, x)) == pytest.approx(wanted)


@pytest.mark.parametrize("code", _CODES)
def test_orientation_codes_equal_those_of_itk(code: str) -> None:
    assert len(_CODES) == 48
    assert orientation_code(_direction_of(code)) == code


def test_oblique_grids_have_a_valid_code() -> None:
    turned = [math.cos(0.3), -math.sin(0.3), 0, math.sin(0.3), math.cos(0.3), 0, 0, 0, 1]
    assert orientation_code(turned) == "LPS"
    for seed in range(50):
        assert orientation_code(_oblique(seed)) in _CODES


@pytest.mark.parametrize("target", _CODES)
@pytest.mark.parametrize("source", ["LPS", "RAS", "SLA"])
def test_reorienting_equals_that_of_itk(source: str, target: str) -> None:
    volume = Volume(_voxels(), _geometry(_direction_of(source)))
    ours = reorient(volume, target)
    theirs = sitk.DICOMOrient(_as_itk(volume), target)
    np.testing.assert_array_equal(ours.voxels, sitk.GetArrayFromImage(theirs))
    assert ours.geometry.spacing_mm[::-1] == pytest.approx(theirs.GetSpacing())
    assert ours.geometry.origin_mm == pytest.approx(theirs.GetOrigin())
    assert ours.geometry.direction == pytest.approx(theirs.GetDirection())
    assert ours.geometry.orientation == target


@pytest.mark.parametrize("seed", range(5))
def test_every_voxel_stays_where_it_was_when_an_oblique_volume_is_reoriented(seed: int) -> None:
    volume = Volume(_voxels(), _geometry(_oblique(seed)))
    turned = reorient(volume, "LPS")
    for index in itertools.product(*(range(n) for n in volume.geometry.size)):
        (place,) = np.argwhere(turned.voxels == volume.voxels[index])
        assert turned.geometry.world(place) == pytest.approx(volume.geometry.world(index))
    back = reorient(turned, volume.geometry.orientation)
    np.testing.assert_array_equal(back.voxels, volume.voxels)
    assert back.geometry.matches(volume.geometry, tolerance_mm=1e-9)


@pytest.mark.parametrize("code", ["LPX", "LRS", "LP", "LPSS", "", "lps"])
def test_what_is_no_orientation_is_refused(code: str) -> None:
    with pytest.raises(ValueError, match="no orientation"):
        axes_to("LPS", code)


def test_cropping_moves_the_origin_and_may_leave_the_grid() -> None:
    geometry = _geometry(_oblique())
    cropped = geometry.cropped((2, -3, 1), (2, 9, 3))
    assert cropped.size == (2, 9, 3)
    assert cropped.world((0, 4, 1)) == pytest.approx(geometry.world((2, 1, 2)))


def test_resizing_keeps_the_outer_face_of_the_first_voxel() -> None:
    geometry = _geometry(_oblique())
    resized = geometry.resized((2, 10, 4), (5.0, 0.35, 1.35))
    assert resized.extent_mm == pytest.approx(geometry.extent_mm)
    for corner in itertools.product((0.0, 1.0), repeat=3):
        ours = [c * n - 0.5 for c, n in zip(corner, resized.size, strict=True)]
        theirs = [c * n - 0.5 for c, n in zip(corner, geometry.size, strict=True)]
        assert resized.world(ours) == pytest.approx(geometry.world(theirs))


def test_grids_match_by_size_and_corners_within_the_tolerance() -> None:
    geometry = _geometry(_oblique())
    assert geometry.matches(geometry)
    assert geometry.matches(geometry.cropped((0, 0, 0), geometry.size))
    assert not geometry.matches(geometry.cropped((0, 0, 0), (4, 5, 5)))
    assert not geometry.matches(geometry.cropped((0, 0, 1), geometry.size))
    coarser = geometry.resized(geometry.size, (2.5, 0.7, 0.9 + 0.02 / 5 + 1e-3))
    assert not geometry.matches(coarser, tolerance_mm=0.02)
    assert geometry.matches(coarser, tolerance_mm=0.1)


def test_volume_of_a_voxel_is_told_in_millilitres() -> None:
    assert _geometry(_oblique()).voxel_ml == pytest.approx(2.5 * 0.7 * 0.9 / 1000)


def test_an_array_that_does_not_fit_its_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Volume(_voxels().transpose(2, 1, 0), _geometry(_oblique()))


def test_reoriented_grid_fits_the_reoriented_array() -> None:
    geometry = _geometry(_direction_of("SLA"))
    assert (
        reoriented(geometry, "LPS").size
        == reorient(Volume(_voxels(), geometry), "LPS").voxels.shape
    )
