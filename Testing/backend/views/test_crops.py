from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.views.crops import cut, random_view, window_hu


def _regions(samples: int = 5, edge: int = 13) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (samples, 1, edge, edge + 1, edge + 2)
    return torch.randint(-1000, 1500, shape, generator=generator).to(torch.int16)


def test_window_maps_its_ends_to_0_and_1_and_clips_beyond() -> None:
    hu = torch.tensor([-1024, -175, 37, 38, 250, 3071], dtype=torch.int16)
    wanted = [min(1.0, max(0.0, (float(v) + 175) / 425)) for v in hu.tolist()]
    found = window_hu(hu, (-175.0, 250.0))
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.tensor(wanted), atol=1e-7, rtol=0)
    assert found[1] == 0
    assert found[4] == 1
    assert hu.tolist()[0] == -1024  # the source is left as it is


def test_cuts_equal_numpy_slices_for_every_combination_of_flips() -> None:
    volumes = torch.randn(8, 2, 6, 7, 8, generator=torch.Generator().manual_seed(1))
    starts = torch.tensor([[i % 3, i % 4, i % 5] for i in range(8)])
    flips = torch.tensor(list(itertools.product([False, True], repeat=3)))
    found = cut(volumes, starts, flips, 4).numpy()
    for b in range(8):
        z, y, x = starts[b].tolist()
        wanted = volumes[b].numpy()[:, z : z + 4, y : y + 4, x : x + 4]
        axes = [axis for axis, flip in enumerate(flips[b].tolist(), start=1) if flip]
        np.testing.assert_array_equal(found[b], np.flip(wanted, axes))


@pytest.mark.parametrize("flip_probability", [0.0, 0.5, 1.0])
def test_affine_leads_from_a_voxel_of_the_view_to_the_voxel_it_shows(
    flip_probability: float,
) -> None:
    # A ramp whose value names the coordinate: three regions, one for each axis.
    edge = 11
    grid = np.indices((edge, edge, edge)).astype(np.int16)
    keys = torch.arange(30)
    views = [
        random_view(
            torch.from_numpy(grid[axis]).expand(30, 1, -1, -1, -1),
            keys,
            number=1,
            size=5,
            hu_window=(0.0, float(edge)),
            flip_probability=flip_probability,
        )
        for axis in range(3)
    ]
    affine = views[0].affine.numpy()
    shown = np.stack([view.image[:, 0].numpy() * edge for view in views], axis=-1)
    for b in range(30):
        for voxel in itertools.product((0, 2, 4), repeat=3):
            place = affine[b] @ [*voxel, 1.0]
            np.testing.assert_allclose(shown[b][voxel], place[:3], atol=1e-4)
            assert place[3] == 1


def test_flip_probability_is_kept_on_each_axis_alone() -> None:
    keys = torch.arange(3000)
    regions = torch.zeros((1, 1, 2, 2, 2), dtype=torch.int16).expand(3000, -1, -1, -1, -1)
    view = random_view(regions, keys, number=1, size=2, hu_window=(0.0, 1.0), flip_probability=0.3)
    flipped = torch.diagonal(view.affine, dim1=1, dim2=2)[:, :3] < 0
    assert torch.allclose(flipped.double().mean(0), torch.full((3,), 0.3).double(), atol=0.05)
    both = (flipped[:, 0] & flipped[:, 1]).double().mean()
    assert abs(float(both) - 0.09) < 0.03


def test_places_are_spread_over_all_the_room_there_is() -> None:
    regions = torch.zeros((1, 1, 6, 7, 4), dtype=torch.int16).expand(2000, -1, -1, -1, -1)
    view = random_view(regions, torch.arange(2000), number=1, size=4, hu_window=(0.0, 1.0))
    starts = view.affine[:, :3, 3]
    assert [column.unique().tolist() for column in starts.T] == [[0, 1, 2], [0, 1, 2, 3], [0]]
    counts = torch.bincount(starts[:, 1].long()).double()
    assert float(((counts - 500) ** 2 / 500).sum()) < 3 + 6 * (2 * 3) ** 0.5


def test_views_of_a_sample_differ_and_come_again_whatever_the_batch() -> None:
    regions, keys = _regions(), torch.arange(5)
    u, v = (random_view(regions, keys, number=n, size=6, hu_window=(-175.0, 250.0)) for n in (1, 2))
    assert not torch.equal(u.affine, v.affine)
    assert not torch.equal(u.keys, v.keys)
    torch.manual_seed(9)
    again = random_view(regions[3:], keys[3:], number=1, size=6, hu_window=(-175.0, 250.0))
    assert torch.equal(again.image, u.image[3:])
    assert torch.equal(again.affine, u.affine[3:])
    assert torch.equal(again.keys, u.keys[3:])


def test_without_augmentation_a_view_is_the_windowed_slice_and_nothing_else() -> None:
    regions = _regions()
    view = random_view(regions, torch.arange(5), number=2, size=6, hu_window=(-175.0, 250.0))
    for b, affine in enumerate(view.affine):
        z, y, x = (int(n) for n in affine[:3, 3])
        wanted = regions[b, :, z : z + 6, y : y + 6, x : x + 6].double()
        wanted = ((wanted + 175) / 425).clamp(0, 1)
        assert torch.allclose(view.image[b].double(), wanted, atol=1e-6)


def test_intensity_changes_are_one_factor_and_one_offset_per_view_within_their_bounds() -> None:
    regions = _regions(samples=200, edge=6)
    plain, changed = (
        random_view(
            regions,
            torch.arange(200),
            number=1,
            size=6,
            hu_window=(-1000.0, 2000.0),
            intensity_scale=scale,
            intensity_shift=shift,
        ).image.flatten(1)
        for scale, shift in ((0.0, 0.0), (0.2, 0.05))
    )
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 1
    factors, offsets = [], []
    for before, after in zip(plain.double(), changed.double(), strict=True):
        inside = (after > 0) & (after < 1)
        design = torch.stack([before[inside], torch.ones_like(before[inside])], dim=1)
        fit = torch.linalg.lstsq(design, after[inside].unsqueeze(1))
        factors.append(float(fit.solution[0]))
        offsets.append(float(fit.solution[1]))
        assert torch.allclose(design @ fit.solution[:, 0], after[inside], atol=1e-6)
    assert 0.8 <= min(factors) < 0.85
    assert 1.15 < max(factors) <= 1.2
    assert -0.05 <= min(offsets) + 1e-6 < -0.04
    assert 0.04 < max(offsets) - 1e-6 <= 0.05
    assert abs(np.corrcoef(factors, offsets)[0, 1]) < 0.4
