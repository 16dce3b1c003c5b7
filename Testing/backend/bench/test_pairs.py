"""Both sides of each row do the same work: a ratio of times says something only then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backend.bench.builders import BUILDERS, built
from backend.bench.catalogue import ROWS
from backend.bench.measure import Pair, peak_growth_mib, saved_mib
from backend.geometry import Geometry, Volume

# MONAI says so as soon as it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodec", "ignore:.*nvImageCodec")
STEPS = (
    "smit",
    "glmae",
    "mae",
    "pgl",
    "trio",
    "tail",
    pytest.param("ranks", marks=pytest.mark.slow),
)


@contextmanager
def small(name: str, folder: Path) -> Iterator[Pair]:
    folder.mkdir(exist_ok=True)
    pair = built(name, size="smallest", device="cpu", folder=folder)
    try:
        yield pair
    finally:
        pair.close()


def both(name: str, folder: Path) -> tuple[Any, Any]:
    with small(name, folder) as pair:
        assert pair.peer is not None
        return pair.ours(), pair.peer()


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:torch.meshgrid")
def test_the_peers_step_has_our_loss_now_and_after_a_step(name: str, tmp_path: Path) -> None:
    with small(name, tmp_path) as pair:
        assert pair.peer is not None
        ours = [pair.ours(), pair.ours()]
        assert [pair.peer(), pair.peer()] == pytest.approx(ours, rel=1e-4)
        assert ours[0] != 0


def test_preprocessing_gives_the_voxels_of_the_peer_at_the_same_places(tmp_path: Path) -> None:
    from backend.bench.data import write_nifti
    from backend.bench.peers.monai_transforms import preprocessing, read
    from backend.data.preprocess import Recipe, preprocess
    from backend.data.readers import read_volume

    grid = Geometry(size=(20, 32, 36), spacing_mm=(1.5, 1.0, 1.2), origin_mm=(5.0, -7.0, 30.0))
    z, y, x = np.meshgrid(*(np.arange(n) for n in grid.size), indexing="ij")
    # A plane in the world: linear interpolation on any grid gives its own values.
    plane = np.stack([z, y, x, np.ones_like(z)], axis=-1) @ grid.affine.T @ [3.0, -2.0, 1.5, -200.0]
    file = write_nifti(Volume(np.rint(plane).astype(np.int16), grid), tmp_path / "scan.nii.gz")
    recipe = Recipe(spacing_mm=(2.0, 1.5, 1.5), body_threshold_hu=-2000)
    ours = preprocess(read_volume([file]), recipe)
    peer = read(file, preprocessing((2.0, 1.5, 1.5), body_threshold_hu=-2000))

    def error(voxels: np.ndarray[Any, Any], affine: np.ndarray[Any, Any]) -> float:
        index = np.stack(
            np.meshgrid(*(np.arange(2, n - 2) for n in voxels.shape), indexing="ij"), axis=-1
        )
        world = index @ affine[:3, :3].T + affine[:3, 3]
        inner = voxels[tuple(slice(2, n - 2) for n in voxels.shape)]
        return float(np.abs(inner - world @ [3.0, -2.0, 1.5] + 200.0).max())

    assert error(ours.voxels, ours.geometry.affine) < 1.5
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    assert error(peer[0].numpy(), to_lps @ peer.affine.numpy()) < 1.5
    # Ours keeps the outer faces of the box, the peer's the centres of its first voxels.
    assert all(abs(a - b) <= 1 for a, b in zip(ours.voxels.shape, peer.shape[:0:-1], strict=True))


@pytest.mark.parametrize("name", ["sample", "sample_plain"])
def test_a_sample_is_made_by_both(tmp_path: Path, name: str) -> None:
    regions, views = both(name, tmp_path)
    assert regions.hu.shape == (1, 1, 40, 40, 40)
    assert [tuple(view.shape) for view in views] == [(1, 32, 32, 32)] * 2
    assert -1000 <= int(regions.hu.min()) < int(regions.hu.max())


@pytest.mark.parametrize("name", ["crop", "crop_plain"])
def test_a_crop_of_both_has_voxels_of_the_scan(tmp_path: Path, name: str) -> None:
    ours, peer = both(name, tmp_path)
    assert ours.shape == peer.shape[1:] == (16, 16, 16)
    assert ours.dtype == np.int16
    assert float(ours.std()) > 0
    assert float(peer.std()) > 0


def test_crops_of_both_forms_of_the_cache_are_the_same_voxels(tmp_path: Path) -> None:
    with small("crop", tmp_path / "a") as packed, small("crop_plain", tmp_path / "b") as plain:
        for _ in range(5):
            np.testing.assert_array_equal(packed.ours(), plain.ours())


def test_resized_and_mirrored_boxes_are_those_of_the_peer(tmp_path: Path) -> None:
    ours, peer = both("geometry", tmp_path)
    torch.testing.assert_close(ours, peer, rtol=1e-4, atol=1e-2)


def test_changed_values_are_those_of_the_peer_but_for_noise_and_border(tmp_path: Path) -> None:
    ours, peer = both("intensity", tmp_path)
    # The peer blurs with the integral of the Gaussian over a voxel, and zeros beyond the border.
    inner = (..., slice(4, -4), slice(4, -4), slice(4, -4))
    assert float((ours - peer)[inner].abs().mean()) < 0.02
    assert float(ours[inner].std()) == pytest.approx(float(peer[inner].std()), rel=0.1)


def test_labels_are_those_of_the_peer(tmp_path: Path) -> None:
    ours, peer = both("segment", tmp_path)
    assert ours.shape == peer.shape
    assert len(np.unique(ours)) > 2
    assert float(np.mean(ours != peer)) < 1e-3


def test_every_row_that_can_be_measured_has_its_builder() -> None:
    assert {row.name for row in ROWS} <= BUILDERS.keys()


def test_saved_activations_are_counted_once_and_without_weights() -> None:
    layer = torch.nn.Linear(256, 256)
    x = torch.rand(1024, 256)
    weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    # tanh keeps its result, the layer its input; both uses of x are one.
    mib = saved_mib(lambda: (layer(x).tanh() + layer(x).tanh()).sum(), besides=weights)
    assert mib == 3.0


@pytest.mark.skipif(peak_growth_mib(lambda: None) is None, reason="no /proc")
def test_the_peak_of_a_process_sees_memory_that_was_given_back() -> None:
    peak = peak_growth_mib(lambda: np.ones(64 << 20, dtype=np.uint8).sum())
    assert peak is not None
    assert 60 < peak < 90
