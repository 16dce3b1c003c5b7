from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from backend.losses.alignment import align
from backend.views.crops import Cut, Regions, View, cut_views

_SIZE = (8, 12, 16)
_REGION = (20, 26, 32)
_SAMPLES = 6


def _views(hu: Tensor) -> tuple[View, ...]:
    """Two views of each sample: cut, resized and mirrored at random."""
    regions = Regions(
        hu.to(torch.int16).expand(_SAMPLES, 1, -1, -1, -1),
        torch.tensor(_REGION).expand(_SAMPLES, 3),
        torch.arange(_SAMPLES) + 5,
        torch.tensor([[0.0, 1.0]]).expand(_SAMPLES, 2),
    )
    cut = Cut(count=2, size=_SIZE, scale=(1.1, 1.4), flip_probability=0.5, minimum_overlap=0.1)
    return cut_views(regions, cut, hu_window=(0.0, 100.0))


def _faces(view: View, sample: int) -> tuple[list[float], list[float]]:
    """Low and high faces of a view in the region, from its eight corners."""
    corners = [
        view.affine[sample] @ torch.tensor([*corner, 1.0], dtype=torch.float64)
        for corner in itertools.product(*((-0.5, edge - 0.5) for edge in _SIZE))
    ]
    points = torch.stack(corners)[:, :3]
    return points.amin(0).tolist(), points.amax(0).tolist()


def _place(
    cell: tuple[int, ...], grid: tuple[int, ...], low: list[float], high: list[float]
) -> list[float]:
    """Where a cell of the resized box lies in the region."""
    return [a + (j + 0.5) / n * (b - a) for j, n, a, b in zip(cell, grid, low, high, strict=True)]


def _sampled(features: Tensor, at: list[float]) -> list[float]:
    """Trilinear interpolation of (c, z, y, x), in fp64 over eight neighbours."""
    values = [0.0] * len(features)
    clamped = [min(max(p, 0.0), n - 1.0) for p, n in zip(at, features.shape[1:], strict=True)]
    for corner in itertools.product((0, 1), repeat=3):
        index, weight = [], 1.0
        for p, up, n in zip(clamped, corner, features.shape[1:], strict=True):
            low = min(math.floor(p), n - 1)
            weight *= p - low if up else 1 - (p - low)
            index.append(min(low + up, n - 1))
        for channel in range(len(features)):
            values[channel] += weight * float(features[(channel, *index)])
    return values


@pytest.mark.parametrize("crop_scale", [True, False])
@pytest.mark.parametrize("undo_flips", [True, False])
def test_aligned_maps_equal_a_loop_over_cells_and_corners(
    undo_flips: bool, crop_scale: bool
) -> None:
    view, other = _views(torch.zeros(1, 1, *_REGION))
    grid = (2, 3, 4)
    features = torch.randn(_SAMPLES, 2, *grid, generator=torch.Generator().manual_seed(0))
    found = align(
        features,
        view.affine,
        other.affine,
        view_size=_SIZE,
        undo_flips=undo_flips,
        crop_scale=crop_scale,
    )
    assert found.shape == features.shape
    for sample in range(_SAMPLES):
        low, high = _faces(view, sample)
        if crop_scale:
            theirs = _faces(other, sample)
            low = [max(a, b) for a, b in zip(low, theirs[0], strict=True)]
            high = [min(a, b) for a, b in zip(high, theirs[1], strict=True)]
        inverse = torch.linalg.inv(view.affine[sample])
        for cell in itertools.product(*(range(n) for n in grid)):
            asked = tuple(
                n - 1 - j if not undo_flips and view.affine[sample, a, a] < 0 else j
                for a, (j, n) in enumerate(zip(cell, grid, strict=True))
            )
            place = torch.tensor([*_place(asked, grid, low, high), 1.0], dtype=torch.float64)
            voxel = (inverse @ place)[:3].tolist()
            at = [(v + 0.5) / s * n - 0.5 for v, s, n in zip(voxel, _SIZE, grid, strict=True)]
            if not (undo_flips or crop_scale):
                at = [float(j) for j in cell]
            wanted = _sampled(features[sample].double(), at)
            assert found[(sample, slice(None), *cell)].tolist() == pytest.approx(
                wanted, abs=1e-5
            ), (sample, cell)


def test_a_ramp_of_coordinates_agrees_after_flips_crops_and_resizes_on_all_axes() -> None:
    grid = tuple(n // 2 for n in _SIZE)
    compared = 0
    for axis, edge in enumerate(_REGION):
        ramp = torch.arange(edge).view(*(-1 if a == axis else 1 for a in range(3)))
        views = _views(ramp.expand(1, 1, *_REGION))
        flips = views[0].affine[:, axis, axis] * views[1].affine[:, axis, axis] < 0
        assert 0 < int(flips.sum()) < _SAMPLES
        maps = [functional.avg_pool3d(view.image * 100, 2) for view in views]
        aligned = [
            align(maps[i], views[i].affine, views[1 - i].affine, view_size=_SIZE)[:, 0]
            for i in (0, 1)
        ]
        for sample in range(_SAMPLES):
            faces = [_faces(view, sample) for view in views]
            low = [max(f[0][a] for f in faces) for a in range(3)]
            high = [min(f[1][a] for f in faces) for a in range(3)]
            # Half a cell from a view's face the outermost cell is continued: nothing to compare.
            half = [(f[1][axis] - f[0][axis]) / grid[axis] / 2 for f in faces]
            # The region's own edge is continued as well.
            first = max(0.5, *(f[0][axis] + h for f, h in zip(faces, half, strict=True)))
            last = min(edge - 1.5, *(f[1][axis] - h for f, h in zip(faces, half, strict=True)))
            for cell in itertools.product(*(range(n) for n in grid)):
                wanted = _place(cell, grid, low, high)[axis]
                if first <= wanted <= last:
                    compared += 1
                    assert abs(float(aligned[0][sample][cell]) - wanted) < 1e-4
                    assert abs(float(aligned[1][sample][cell]) - wanted) < 1e-4
    assert compared > 3 * _SAMPLES * math.prod(grid) / 2


def _affine(start: float, step: float) -> Tensor:
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, 3] = start
    affine[range(3), range(3)] = step
    return affine.unsqueeze(0)


def test_equal_views_keep_their_maps_and_mirrored_ones_are_mirrored_back() -> None:
    features = torch.randn(1, 2, 2, 3, 4)
    plain, mirrored = _affine(3.0, 2.0), _affine(3.0, 2.0)
    for axis, edge in enumerate(_SIZE):
        mirrored[0, axis, axis], mirrored[0, axis, 3] = -2.0, 3.0 + 2.0 * (edge - 1)
    same = align(features, plain, plain, view_size=_SIZE)
    assert torch.allclose(same, features, atol=1e-6)
    back = align(features, mirrored, plain, view_size=_SIZE)
    assert torch.allclose(back, features.flip(2, 3, 4), atol=1e-6)
    kept = align(features, mirrored, plain, view_size=_SIZE, undo_flips=False)
    assert torch.allclose(kept, features, atol=1e-6)


def test_views_apart_from_each_other_give_the_cells_where_they_are_nearest() -> None:
    features = torch.arange(4.0).view(1, 1, 1, 1, 4).expand(1, 1, 4, 4, 4)
    near, far = _affine(0.0, 1.0), _affine(100.0, 1.0)
    assert torch.equal(
        align(features, near, far, view_size=(8, 8, 8)), torch.full_like(features, 3)
    )
    assert torch.equal(align(features, far, near, view_size=(8, 8, 8)), torch.zeros_like(features))


def test_alignment_stays_full_precision_under_autocast() -> None:
    view, other = _views(torch.zeros(1, 1, *_REGION))
    features = torch.randn(_SAMPLES, 2, 2, 3, 4)
    wanted = align(features, view.affine, other.affine, view_size=_SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = align(features, view.affine, other.affine, view_size=_SIZE)
    assert torch.equal(found, wanted)
