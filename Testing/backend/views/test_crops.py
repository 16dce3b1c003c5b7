from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from backend.views.crops import (
    Boxes,
    Cut,
    Regions,
    View,
    copied,
    cut_views,
    overlap_share,
    padded,
    random_boxes,
    resampled,
    window_hu,
    zscored,
)

_CT = (-175.0, 250.0)


def _regions(hu: Tensor, *, keys: Tensor | None = None, sizes: Tensor | None = None) -> Regions:
    samples = len(hu)
    if sizes is None:
        sizes = torch.tensor(hu.shape[2:]).expand(samples, 3)
    if keys is None:
        keys = torch.arange(samples)
    return Regions(hu, sizes, keys, torch.tensor([[20.0, 100.0]]).expand(samples, 2))


def _noise(samples: int = 5, edge: int = 13) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (samples, 1, edge, edge + 1, edge + 2)
    return torch.randint(-1000, 1500, shape, generator=generator).to(torch.int16)


def _empty(samples: int, size: tuple[int, int, int]) -> Regions:
    """Many samples that take no memory: only where they are cut is looked at."""
    return _regions(torch.zeros((1, 1, *size), dtype=torch.int16).expand(samples, -1, -1, -1, -1))


def _first(regions: Regions, window: tuple[float, float] = _CT, **cut: Any) -> View:
    return cut_views(regions, Cut(count=1, **cut), hu_window=window)[0]


def _ramps(edge: int, samples: int) -> list[Regions]:
    """Regions whose values name the coordinate along z, y and x."""
    grid = np.indices((edge, edge + 2, edge + 4)).astype(np.int16)
    return [
        _regions(torch.from_numpy(axis).expand(samples, 1, -1, -1, -1).contiguous())
        for axis in grid
    ]


def test_window_maps_its_ends_to_0_and_1_and_clips_beyond() -> None:
    hu = torch.tensor([-1024, -175, 37, 38, 250, 3071], dtype=torch.int16)
    wanted = [min(1.0, max(0.0, (float(v) + 175) / 425)) for v in hu.tolist()]
    found = window_hu(hu, _CT)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.tensor(wanted), atol=1e-7, rtol=0)
    assert found[1] == 0
    assert found[4] == 1
    assert hu.tolist()[0] == -1024  # the source is left as it is


def test_zscores_are_clipped_first_and_relative_to_each_samples_scan() -> None:
    hu = torch.tensor([[-1024, 0, 3071], [-1024, 50, 250]], dtype=torch.int16)
    found = zscored(hu, _CT, torch.tensor([[20.0, 100.0], [50.0, 0.5]]))
    wanted = [[-1.95, -0.2, 2.3], [-225.0, 0.0, 200.0]]  # a deviation below 1 HU counts as 1
    assert torch.allclose(found, torch.tensor(wanted), atol=1e-5)


def test_cuts_equal_numpy_slices_for_every_combination_of_flips() -> None:
    volumes = torch.randn(8, 2, 6, 7, 8, generator=torch.Generator().manual_seed(1))
    starts = torch.tensor([[i % 3, i % 4, i % 4] for i in range(8)])
    flips = torch.tensor(list(itertools.product([False, True], repeat=3)))
    found = copied(volumes, starts, flips, (4, 3, 5)).numpy()
    for b in range(8):
        z, y, x = starts[b].tolist()
        wanted = volumes[b].numpy()[:, z : z + 4, y : y + 3, x : x + 5]
        axes = [axis for axis, flip in enumerate(flips[b].tolist(), start=1) if flip]
        np.testing.assert_array_equal(found[b], np.flip(wanted, axes))


def test_without_resizing_a_view_is_the_windowed_slice_and_nothing_else() -> None:
    hu = _noise()
    view = _first(_regions(hu), size=(6, 5, 7))
    for b, affine in enumerate(view.affine):
        assert torch.equal(affine[:3, :3], torch.eye(3, dtype=torch.float64))
        z, y, x = (int(n) for n in affine[:3, 3])
        wanted = hu[b, :, z : z + 6, y : y + 5, x : x + 7].double()
        wanted = ((wanted + 175) / 425).clamp(0, 1)
        assert torch.allclose(view.image[b].double(), wanted, atol=1e-6)


@pytest.mark.parametrize(
    "cut",
    [
        {},
        {"flip_probability": 0.5},
        {"flip_probability": 0.5, "scale": (0.6, 1.6)},
        {"flip_probability": 0.5, "scale": (0.3, 0.9), "relative": True},
        {"flip_probability": 1.0, "scale": (0.5, 0.8), "relative": True, "cubes": True},
    ],
)
def test_affine_leads_from_a_voxel_of_the_view_to_what_it_shows(cut: dict[str, Any]) -> None:
    samples, edge = 12, 11
    ramps = _ramps(edge, samples)
    scale = float(edge + 4)
    views = [_first(ramp, (0.0, scale), size=(5, 6, 4), **cut) for ramp in ramps]
    shown = np.stack([view.image[:, 0].numpy() * scale for view in views], axis=-1)
    affine = views[0].affine.numpy()
    assert affine.dtype == np.float64
    for b, z, y, x in itertools.product(range(samples), range(5), range(6), range(4)):
        place = affine[b] @ [z, y, x, 1.0]
        # The edge continues beyond the centres of the outermost voxels.
        inside = np.clip(place[:3], 0, [edge - 1, edge + 1, edge + 3])
        np.testing.assert_allclose(shown[b, z, y, x], inside, atol=1e-4)
        assert place[3] == 1


def test_resized_boxes_equal_linear_interpolation_of_scipy() -> None:
    volume = torch.randn(3, 1, 7, 8, 9, generator=torch.Generator().manual_seed(2))
    start = torch.tensor([[0.0, 1.3, 2.0], [0.5, 0.0, 4.25], [3.0, 2.0, 0.0]]).double()
    extent = torch.tensor([[7.0, 4.4, 3.0], [5.5, 8.0, 4.75], [4.0, 6.0, 9.0]]).double()
    flip = torch.tensor([[False, True, False], [True, False, True], [False] * 3])
    size = (5, 8, 6)
    sizes = torch.tensor([7, 8, 9]).expand(3, 3)
    found = resampled(volume, sizes, Boxes(start, extent), flip, size)
    for b in range(3):
        axes = []
        for axis, edge in enumerate(size):
            steps = np.arange(edge, dtype=float)
            steps = edge - 1 - steps if flip[b, axis] else steps
            step = float(extent[b, axis]) / edge
            axes.append(float(start[b, axis]) - 0.5 + (steps + 0.5) * step)
        places = np.meshgrid(*axes, indexing="ij")
        wanted = map_coordinates(volume[b, 0].double().numpy(), places, order=1, mode="nearest")
        np.testing.assert_allclose(found[b, 0].numpy(), wanted, atol=1e-5)


def test_resized_boxes_equal_those_of_simpleitk() -> None:
    volume = torch.randn(1, 1, 9, 10, 11, generator=torch.Generator().manual_seed(3))
    start, extent, size = (2.0, 1.0, 3.0), (5.0, 7.5, 6.0), (8, 5, 6)
    boxes = Boxes(torch.tensor([start]).double(), torch.tensor([extent]).double())
    no_flip = torch.zeros(1, 3, dtype=torch.bool)
    found = resampled(volume, torch.tensor([[9, 10, 11]]), boxes, no_flip, size)
    source = SimpleITK.GetImageFromArray(volume[0, 0].double().numpy())
    spacing = [e / n for e, n in zip(extent, size, strict=True)]
    origin = [s - 0.5 + d / 2 for s, d in zip(start, spacing, strict=True)]
    wanted = SimpleITK.Resample(
        source,
        size[::-1],
        SimpleITK.Transform(),
        SimpleITK.sitkLinear,
        origin[::-1],
        spacing[::-1],
        (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    )
    np.testing.assert_allclose(found[0, 0].numpy(), SimpleITK.GetArrayFromImage(wanted), atol=1e-5)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 1.0)])
def test_what_pads_a_smaller_sample_is_never_seen(scale: tuple[float, float]) -> None:
    small = torch.full((5, 6, 7), 30, dtype=torch.int16)
    large = torch.full((9, 9, 9), 50, dtype=torch.int16)
    hu, sizes = padded([small, large])
    assert hu.shape == (2, 1, 9, 9, 9)
    assert sizes.tolist() == [[5, 6, 7], [9, 9, 9]]
    assert int((hu[0] == 30).sum()) == 5 * 6 * 7
    assert torch.equal(hu[0, 0, :5, :6, :7], small)
    for key in range(20):
        regions = _regions(hu, keys=torch.tensor([key, key]), sizes=sizes)
        relative = scale != (1.0, 1.0)
        view = _first(regions, (0.0, 100.0), size=(4, 4, 4), scale=scale, relative=relative)
        assert torch.allclose(view.image[0], torch.tensor(0.3))
        assert torch.allclose(view.image[1], torch.tensor(0.5))


def test_samples_of_one_size_become_a_batch_as_they_are() -> None:
    volumes = [torch.arange(24, dtype=torch.int16).view(2, 3, 4) + 100 * n for n in range(3)]
    hu, sizes = padded(volumes)
    assert torch.equal(hu[:, 0], torch.stack(volumes))
    assert sizes.tolist() == [[2, 3, 4]] * 3


def test_places_are_spread_over_all_the_room_there_is() -> None:
    view = _first(_empty(2000, (6, 7, 4)), size=(4, 4, 4))
    starts = view.affine[:, :3, 3]
    assert [column.unique().tolist() for column in starts.T] == [[0, 1, 2], [0, 1, 2, 3], [0]]
    counts = torch.bincount(starts[:, 1].long()).double()
    assert float(((counts - 500) ** 2 / 500).sum()) < 3 + 6 * (2 * 3) ** 0.5


@pytest.mark.parametrize("cubes", [False, True])
def test_shares_of_the_whole_scan_are_drawn_evenly_and_boxes_stay_inside(cubes: bool) -> None:
    size = torch.tensor([20.0, 30.0, 40.0]).double()
    sizes = torch.tensor([20, 30, 40]).expand(2000, 3)
    cut = Cut(count=1, size=(8, 8, 8), scale=(0.5, 0.9), relative=True, cubes=cubes)
    start, extent = random_boxes(torch.arange(2000), sizes, cut)
    assert bool((start >= 0).all())
    assert bool((start + extent <= size + 1e-9).all())
    shares = extent / (size.amin() if cubes else size)
    # One share for all axes: the scan's proportions, or a cube.
    assert torch.allclose(shares, shares[:, :1].expand(-1, 3))
    assert 0.5 <= float(shares.min()) < 0.51
    assert 0.89 < float(shares.max()) <= 0.9
    assert abs(float(shares[:, 0].mean()) - 0.7) < 6 * 0.4 / 12**0.5 / 2000**0.5
    room = start[:, 2] / (size - extent)[:, 2]
    assert abs(float(room.mean()) - 0.5) < 6 / 12**0.5 / 2000**0.5


def test_scale_of_a_region_is_times_the_size_of_the_view() -> None:
    cut = Cut(count=1, size=(4, 8, 6), scale=(1.1, 1.4))
    sizes = torch.tensor([12, 12, 12]).expand(500, 3)
    extent = random_boxes(torch.arange(500), sizes, cut).extent
    factor = extent / torch.tensor([4.0, 8.0, 6.0]).double()
    assert torch.allclose(factor, factor[:, :1].expand(-1, 3))
    assert 1.1 <= float(factor.min()) < 1.11
    assert 1.39 < float(factor.max()) <= 1.4


def test_overlap_is_the_common_volume_as_a_share_of_the_smaller_box() -> None:
    a = Boxes(torch.zeros(3, 3).double(), torch.tensor([[4.0, 4.0, 4.0]]).expand(3, 3).double())
    b = Boxes(
        torch.tensor([[2.0, 0.0, 0.0], [4.0, 0.0, 0.0], [1.0, 1.0, 3.0]]).double(),
        torch.tensor([[4.0, 4.0, 8.0], [4.0, 4.0, 4.0], [2.0, 2.0, 2.0]]).double(),
    )
    assert overlap_share(a, b).tolist() == [0.5, 0.0, 0.5]
    assert overlap_share(b, a).tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("minimum", [0.1, 0.6])
def test_all_later_views_overlap_the_first_as_much_as_asked(minimum: float) -> None:
    cut = Cut(count=3, size=(4, 4, 4), scale=(1.0, 1.5), minimum_overlap=minimum)
    views = cut_views(_empty(300, (20, 20, 20)), cut, hu_window=_CT)
    step = [view.affine.diagonal(dim1=1, dim2=2)[:, :3] for view in views]
    boxes = [
        Boxes(view.affine[:, :3, 3] + 0.5 - s / 2, 4 * s)
        for view, s in zip(views, step, strict=True)
    ]
    shares = torch.stack([overlap_share(boxes[0], box) for box in boxes[1:]])
    assert bool((shares >= minimum - 1e-9).all())
    assert float(shares.std()) > 0.05  # drawn, not always the same
    free = cut_views(
        _empty(300, (20, 20, 20)), Cut(count=3, size=(4, 4, 4), scale=(1.0, 1.5)), hu_window=_CT
    )
    assert torch.equal(free[0].affine, views[0].affine)  # the first one is as free as without


def test_where_no_place_drawn_overlaps_enough_the_centres_meet() -> None:
    sizes = torch.tensor([400, 400, 400]).expand(50, 3)
    small = Cut(count=1, size=(4, 4, 4), scale=(1.0, 1.01), minimum_overlap=0.99)
    first = random_boxes(torch.arange(50), sizes, small)
    second = random_boxes(torch.arange(50, 100), sizes, small, beside=first)
    middle = [box.start + box.extent / 2 for box in (first, second)]
    assert torch.allclose(middle[0], middle[1], atol=0.05)


def test_flip_probability_is_kept_on_each_axis_alone() -> None:
    view = _first(_empty(3000, (2, 2, 2)), size=(2, 2, 2), flip_probability=0.3)
    flipped = torch.diagonal(view.affine, dim1=1, dim2=2)[:, :3] < 0
    assert torch.allclose(flipped.double().mean(0), torch.full((3,), 0.3).double(), atol=0.05)
    both = (flipped[:, 0] & flipped[:, 1]).double().mean()
    assert abs(float(both) - 0.09) < 0.03


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 1.0)])
def test_views_of_a_sample_differ_and_come_again_whatever_the_batch(
    scale: tuple[float, float],
) -> None:
    hu, keys = _noise(), torch.arange(5)
    cut = Cut(count=2, size=(6, 6, 6), scale=scale, flip_probability=0.5)
    u, v = cut_views(_regions(hu, keys=keys), cut, hu_window=_CT)
    assert not torch.equal(u.affine, v.affine)
    assert not torch.equal(u.keys, v.keys)
    torch.manual_seed(9)
    again = cut_views(_regions(hu[3:], keys=keys[3:]), cut, hu_window=_CT)[0]
    assert torch.equal(again.image, u.image[3:])
    assert torch.equal(again.affine, u.affine[3:])
    assert torch.equal(again.keys, u.keys[3:])


def test_local_views_draw_on_their_own_and_leave_the_main_ones_as_they_are() -> None:
    regions, cut = _regions(_noise()), Cut(count=2, size=(6, 6, 6))
    main = cut_views(regions, cut, hu_window=_CT)
    local = cut_views(regions, cut, hu_window=_CT, local=True)
    more = cut_views(regions, Cut(count=3, size=(6, 6, 6)), hu_window=_CT)
    assert all(torch.equal(a.image, b.image) for a, b in zip(main, more, strict=False))
    keys = torch.cat([view.keys for view in (*more, *local)])
    assert len(keys.unique()) == 5 * 5


def test_intensity_changes_are_one_factor_and_one_offset_per_view_within_their_bounds() -> None:
    regions = _regions(_noise(samples=200, edge=6))
    plain, changed = (
        _first(
            regions, (-1000.0, 2000.0), size=(6, 6, 6), intensity_scale=scale, intensity_shift=shift
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


def test_zscored_views_are_relative_to_the_scan_and_not_clipped_after_changes() -> None:
    regions = _regions(_noise())
    cut = Cut(count=1, size=(6, 6, 6))
    plain = cut_views(regions, cut, hu_window=_CT, zscore=True)[0].image
    windowed = cut_views(regions, cut, hu_window=_CT)[0].image
    assert torch.allclose(plain, (windowed * 425 - 175 - 20) / 100, atol=1e-5)
    shifted = Cut(count=1, size=(6, 6, 6), intensity_shift=0.5)
    moved = cut_views(regions, shifted, hu_window=_CT, zscore=True)[0].image - plain
    spread = moved.flatten(1).amax(1) - moved.flatten(1).amin(1)
    assert float(spread.max()) < 1e-5  # one offset for all voxels, also at the ends


def test_only_the_box_is_read_and_its_values_are_those_of_the_plain_formula() -> None:
    hu = _noise(2, 13)
    sizes = torch.tensor([[13, 13, 13], [11, 12, 13]])
    boxes = Boxes(
        torch.tensor([[2.5, 0.0, 4.0], [1.0, 3.25, 0.0]], dtype=torch.float64),
        torch.tensor([[7.0, 13.0, 6.5], [9.5, 8.0, 5.0]], dtype=torch.float64),
    )
    flip = torch.tensor([[True, False, False], [False, False, True]])
    found = resampled(hu, sizes, boxes, flip, (5, 6, 7))
    for sample, size in enumerate(sizes):
        x = hu[sample].float()
        for axis, edge in enumerate((5, 6, 7)):
            steps = torch.arange(edge, dtype=torch.float64)
            steps = steps.flip(0) if flip[sample, axis] else steps
            step = boxes.extent[sample, axis] / edge
            at = boxes.start[sample, axis] - 0.5 + (steps + 0.5) * step
            at = at.clamp(min=0).clamp(max=float(size[axis]) - 1)
            low = at.floor().long()
            share = (at - low).float().view(-1, *[1] * (2 - axis))
            below = x.index_select(axis + 1, low)
            above = x.index_select(axis + 1, (low + 1).clamp(max=int(size[axis]) - 1))
            x = below + (above - below) * share
        assert torch.equal(found[sample], x)
