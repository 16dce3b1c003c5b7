"""What a pretraining run shows of itself lies where it was and says what is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backend.geometry import Geometry, Index3, direction9
from backend.views.crops import Cut, Regions, View, cut_views
from backend.watch import principal_component, view_geometry

WINDOW = (-4000.0, 4000.0)


def oblique(size: Index3) -> Geometry:
    turn = np.deg2rad(25.0)
    c, s = float(np.cos(turn)), float(np.sin(turn))
    return Geometry(
        size=size,
        spacing_mm=(2.5, 1.25, 1.5),
        origin_mm=(-20.0, 35.0, 12.0),
        direction=direction9([c, -s, 0, s, c, 0, 0, 0, 1]),
    )


def positions(geometry: Geometry) -> np.ndarray:
    """World x, y, z of every voxel, shape (*size, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.size), indexing="ij"), axis=-1)
    return index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]


@pytest.mark.parametrize(
    "cut",
    [
        Cut(count=1, size=(8, 12, 10)),
        Cut(count=1, size=(8, 12, 10), scale=(0.6, 1.7)),
        Cut(count=1, size=(9, 7, 16), scale=(0.3, 0.9), relative=True),
        Cut(count=1, size=(10, 10, 10), scale=(0.5, 0.5), relative=True, cubes=True),
    ],
    ids=["copied", "resized", "share of the scan", "cube"],
)
def test_the_grid_of_a_view_is_where_its_voxels_come_from(cut: Cut) -> None:
    region = oblique((20, 24, 26))
    ramps = np.rint(20 * positions(region)).astype(np.int16)
    keys = torch.arange(3, 9)
    for axis in range(3):
        hu = torch.from_numpy(np.ascontiguousarray(ramps[..., axis]))
        regions = Regions(
            hu.expand(len(keys), 1, -1, -1, -1),
            torch.tensor(region.size).expand(len(keys), 3),
            keys,
            torch.zeros(len(keys), 2),
        )
        whole = cut_views(regions, cut, hu_window=WINDOW)[0]
        for number in range(len(keys)):
            view = View(*(part[number : number + 1] for part in whole))
            found = view_geometry(region, view)
            assert found.size == cut.size
            assert found.direction == region.direction
            mm = (view.image[0, 0].double().numpy() * 8000 - 4000) / 20
            # The outermost voxels may lie beyond the centres of the region's, where it is flat.
            inside = (slice(1, -1),) * 3
            error = np.abs(mm - positions(found)[..., axis])[inside]
            assert error.max() < 0.06


def test_a_principal_component_is_that_of_numpy_bright_where_the_map_is_long() -> None:
    generator = np.random.default_rng(4)
    features = generator.normal(size=(1, 6, 3, 4, 5)) * np.arange(1, 7)[:, None, None, None]
    features[0, :, 1] += 8  # one slab has long features
    cells = features[0].reshape(6, -1).T
    centred = cells - cells.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    wanted = centred @ vectors[:, -1]
    wanted *= np.sign((wanted * np.linalg.norm(cells, axis=1)).sum())
    wanted = (wanted - wanted.min()) / np.ptp(wanted)
    found = principal_component(torch.from_numpy(features), (3, 4, 5))
    np.testing.assert_allclose(found, wanted.reshape(3, 4, 5), atol=1e-5)
    assert found[1].mean() > found[[0, 2]].mean()
    turned = principal_component(torch.from_numpy(-features), (3, 4, 5))
    np.testing.assert_allclose(turned, found, atol=1e-5)
    large = principal_component(torch.from_numpy(features), (6, 8, 10))
    assert large.shape == (6, 8, 10)
    assert 0 <= large.min() < large.max() <= 1


def test_features_that_do_not_vary_give_a_picture_without_contrast() -> None:
    found = principal_component(torch.ones(1, 4, 2, 2, 2), (4, 4, 4))
    assert found.shape == (4, 4, 4)
    assert (found == 0).all()
