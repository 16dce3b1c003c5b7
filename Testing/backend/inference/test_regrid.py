from itertools import pairwise, permutations, product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from backend.geometry import Geometry, Volume, direction9, reoriented, vec3
from backend.inference import regrid
from backend.inference.regrid import labels_on_grid

VALUES = (0, 3, 7, 250, 4)
A, B = np.cos(0.3), np.sin(0.3)
TILTED = np.array([[A, -B, 0], [B, A, 0], [0, 0, 1]])


def _oriented(order: tuple[int, ...], signs: tuple[int, ...]) -> Geometry:
    """An oblique, anisotropic grid with its axes in the given order and sense."""
    matrix = TILTED[:, list(order)] * np.array(signs)
    return Geometry(
        size=(9, 13, 11),
        spacing_mm=(3.0, 0.9, 1.3),
        origin_mm=(-30.0, 12.5, 7.0),
        direction=direction9(matrix.ravel().tolist()),
    )


def _covering(source: Geometry) -> Geometry:
    """A grid over the inner part of `source`, in LPS-like axis order, as preprocessing makes."""

    lps = reoriented(source, "LPS")
    inner = lps.cropped((1, 2, 1), (lps.size[0] - 2, lps.size[1] - 3, lps.size[2] - 2))
    size = tuple(max(1, round(e / 1.7)) for e in inner.extent_mm)
    return inner.resized((size[0], size[1], size[2]), vec3((1.7, 1.7, 1.7)))


def _logits(size: tuple[int, int, int], seed: int = 0, smooth: float = 1.0) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(size=(len(VALUES), *size))
    return gaussian_filter(noise, (0, smooth, smooth, smooth)).astype(np.float32)


def _reference(logits: NDArray[np.float32], fine: Geometry, coarse: Geometry) -> NDArray[np.int64]:
    """All logits at all voxels, through world coordinates, one class at a time."""
    index = np.indices(fine.size).reshape(3, -1)
    world = fine.affine @ np.vstack([index, np.ones(index.shape[1])])
    places = (np.linalg.inv(coarse.affine) @ world)[:3]
    all_logits = [map_coordinates(c, places, order=1, mode="nearest") for c in logits]
    labels = np.array(VALUES)[np.argmax(all_logits, axis=0)]
    last = np.array(coarse.size)[:, None]
    outside = ((places < -0.5 - 1e-6) | (places > last + 1e-6)).any(axis=0)
    labels[outside] = VALUES[0]
    return labels.reshape(fine.size)


def _slabs(logits: NDArray[np.float32], cuts: tuple[int, ...]) -> list[tuple[int, torch.Tensor]]:
    edges = [0, *cuts, logits.shape[1]]
    return [(a, torch.from_numpy(logits[:, a:b])) for a, b in pairwise(edges) if a < b]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_labels_equal_the_slow_reference_in_all_axis_orders_and_senses(
    order: tuple[int, ...],
) -> None:
    for signs in product((1, -1), repeat=3):
        fine = _oriented(order, signs)
        coarse = _covering(fine)
        logits = _logits(coarse.size)
        found = labels_on_grid(
            _slabs(logits, (1, 2, 5)), from_geometry=coarse, to_geometry=fine, values=VALUES
        )
        assert found.geometry == fine
        assert np.array_equal(found.voxels, _reference(logits, fine, coarse))
        assert len(np.unique(found.voxels)) == len(VALUES)


@pytest.mark.parametrize("smooth", [0.0, 3.0])
def test_downsampling_and_large_planes_equal_the_reference(smooth: float) -> None:
    fine = Geometry(size=(7, 40, 33), spacing_mm=(5.0, 0.7, 0.8))
    coarse = fine.resized((23, 19, 17), vec3((1.5, 1.5, 1.5)))
    logits = _logits(coarse.size, smooth=smooth)
    found = labels_on_grid(
        [(0, torch.from_numpy(logits))], from_geometry=coarse, to_geometry=fine, values=VALUES
    )
    assert np.array_equal(found.voxels, _reference(logits, fine, coarse))


def test_the_way_slabs_are_cut_changes_nothing() -> None:
    fine = _oriented((0, 1, 2), (1, 1, -1))
    coarse = _covering(fine)
    logits = _logits(coarse.size)
    whole, cut = (
        labels_on_grid(
            _slabs(logits, cuts), from_geometry=coarse, to_geometry=fine, values=VALUES
        ).voxels
        for cuts in ((), tuple(range(1, coarse.size[0])))
    )
    assert np.array_equal(whole, cut)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_few_or_all_voxels_of_a_plane_are_interpolated_to_the_same_labels(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = Geometry(size=(9, 40, 33), spacing_mm=(2.0, 0.7, 0.8))
    coarse = fine.resized((12, 19, 17), vec3((1.5, 1.5, 1.5)))
    # Organs in a large background, with ties of whole numbers on their borders.
    logits = np.round(_logits(coarse.size, smooth=2.0) * 40)
    logits[0] += 4

    def labels() -> NDArray[np.generic]:
        return labels_on_grid(
            [(0, torch.from_numpy(logits))], from_geometry=coarse, to_geometry=fine, values=VALUES
        ).voxels

    usual = labels()
    assert 0 < np.count_nonzero(usual) < usual.size / 2
    monkeypatch.setattr(regrid, "_DENSE_SHARE", share)
    assert np.array_equal(labels(), usual)


def test_classes_without_a_value_of_their_own_are_background_and_push_others_away() -> None:
    fine = Geometry(size=(9, 20, 33), spacing_mm=(2.0, 0.7, 0.8))
    coarse = fine.resized((12, 9, 17), vec3((1.5, 1.5, 1.5)))
    slabs = [(0, torch.from_numpy(_logits(coarse.size)))]
    every, kept = (
        labels_on_grid(slabs, from_geometry=coarse, to_geometry=fine, values=values).voxels
        for values in (VALUES, (0, 0, 7, 0, 0))
    )
    assert np.array_equal(kept, np.where(every == 7, 7, 0))


def test_the_same_grid_gives_the_plain_argmax() -> None:
    grid = _oriented((2, 0, 1), (1, -1, 1))
    logits = _logits(grid.size, smooth=0.0)
    found = labels_on_grid(
        [(0, torch.from_numpy(logits))], from_geometry=grid, to_geometry=grid, values=VALUES
    )
    assert np.array_equal(found.voxels, np.array(VALUES)[logits.argmax(0)])


def test_what_was_cropped_away_is_background() -> None:
    fine = Geometry(size=(6, 6, 6), spacing_mm=(1.0, 1.0, 1.0))
    coarse = fine.cropped((1, 2, 0), (3, 2, 6))
    logits = torch.zeros((2, 3, 2, 6))
    logits[1] = 1
    found = labels_on_grid([(0, logits)], from_geometry=coarse, to_geometry=fine, values=(0, 300))
    expected = np.zeros((6, 6, 6))
    expected[1:4, 2:4] = 300
    # The grid may end half a voxel early, so the centres half a voxel beyond its faces count.
    inside = found.voxels[1:4, 2:4]
    assert (inside == 300).all()
    assert found.voxels.dtype == np.int16
    assert np.array_equal(found.voxels[:1], expected[:1])
    assert np.array_equal(found.voxels[:, :2], expected[:, :2])
    assert np.array_equal(found.voxels[5:], expected[5:])


def test_a_grid_that_ends_half_a_voxel_early_still_labels_the_last_slices() -> None:
    fine = Geometry(size=(12, 4, 4), spacing_mm=(1.0, 1.0, 1.0))
    # 12 mm of 5 mm voxels are 2 (10 mm): the last two slices lie beyond.
    coarse = fine.resized((2, 4, 4), vec3((5.0, 1.0, 1.0)))
    logits = torch.stack((torch.zeros(2, 4, 4), torch.ones(2, 4, 4)))
    found = labels_on_grid([(0, logits)], from_geometry=coarse, to_geometry=fine, values=(0, 1))
    assert (found.voxels == 1).all()


def test_a_single_plane_fills_a_single_slice() -> None:
    grid = Geometry(size=(1, 1, 3), spacing_mm=(1.0, 1.0, 1.0))
    logits = torch.tensor([[0.0, 2.0, 0.0], [1.0, 1.0, 1.0]]).reshape(2, 1, 1, 3)
    found = labels_on_grid([(0, logits)], from_geometry=grid, to_geometry=grid, values=(0, 9))
    assert found.voxels.ravel().tolist() == [9, 0, 9]


def test_rotated_grids_and_slabs_that_do_not_fit_are_refused() -> None:
    straight = Geometry(size=(4, 4, 4), spacing_mm=(1.0, 1.0, 1.0))
    tilted = Geometry(
        size=(4, 4, 4), spacing_mm=(1.0, 1.0, 1.0), direction=direction9(TILTED.ravel().tolist())
    )
    logits = torch.zeros((2, 4, 4, 4))

    def label(slabs: list[tuple[int, torch.Tensor]], target: Geometry) -> Volume:
        return labels_on_grid(slabs, from_geometry=straight, to_geometry=target, values=(0, 1))

    with pytest.raises(ValueError, match="rotated"):
        label([(0, logits)], tilted)
    with pytest.raises(ValueError, match="does not fit"):
        label([(1, logits)], straight)
    with pytest.raises(ValueError, match="end at plane 2 of 4"):
        label([(0, logits[:, :2])], straight)
    with pytest.raises(ValueError, match="does not fit"):
        label([(0, torch.zeros((3, 4, 4, 4)))], straight)
