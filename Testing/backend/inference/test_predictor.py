from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_network import ARCHITECTURE
from torch import Tensor, nn

from backend.errors import ResourceError, UserError
from backend.geometry import Geometry, Volume, direction9
from backend.inference.predictor import (
    Predictor,
    intensity_tensor,
    load_predictor,
    told_as_resource_error,
)
from backend.models.segmentation import build_segmentation
from backend.weights import WeightsHeader, save_weights


def _header(**changes: object) -> WeightsHeader:
    values: dict[str, object] = {
        "kind": "segmentation",
        "method": "smit",
        "preset": "tiny",
        "preprocessing": {
            "spacing_mm": [2.0, 1.5, 1.5],
            "orientation": "LPS",
            "hu_window": [-175, 250],
            "intensity": "window",
            "body_margin_mm": 4.0,
            "body_threshold_hu": -350,
        },
        "architecture": ARCHITECTURE,
        "labels": (
            {"value": 7, "name": "soft", "color": [1, 2, 3], "terminology": ""},
            {"value": 3, "name": "bright", "color": [4, 5, 6], "terminology": ""},
        ),
    }
    return WeightsHeader(**(values | changes))  # type: ignore[arg-type]


class Brightness(nn.Module):
    """Class 1 wins from 0.3 on, class 2 from 0.7 on: an answer known without a network."""

    def forward(self, windows: Tensor) -> Tensor:
        return torch.cat((windows * 0, 2 * windows - 0.6, 4 * windows - 2.0), dim=1)


def _scan(direction: np.ndarray, spacing: tuple[float, float, float]) -> Volume:
    """Air with a warm block and a bright core, off centre in all axes."""
    voxels = np.full((24, 40, 36), -1000, dtype=np.int16)
    voxels[4:20, 6:34, 5:25] = 40
    voxels[8:15, 10:22, 9:20] = 240
    return Volume(
        voxels,
        Geometry(
            size=voxels.shape,
            spacing_mm=spacing,
            origin_mm=(-120.0, 33.0, 410.0),
            direction=direction9(direction.ravel().tolist()),
        ),
    )


TURNS = [
    np.eye(3),
    np.diag([-1.0, -1.0, 1.0]),
    np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, -1.0]]),
]


@pytest.mark.parametrize("direction", TURNS, ids=["LPS", "RAS", "sagittal", "oblique"])
def test_labels_lie_on_the_scan_voxel_for_voxel_at_its_own_spacing(direction: np.ndarray) -> None:
    scan = _scan(direction, (1.5, 1.5, 1.5))
    settings = _header().preprocessing | {"spacing_mm": [1.5, 1.5, 1.5]}
    predictor = Predictor(
        network=Brightness(),
        header=_header(preprocessing=settings),
        device=torch.device("cpu"),
    )
    found = predictor.segment(scan)
    expected = np.zeros(scan.voxels.shape)
    expected[scan.voxels == 40] = 7
    expected[scan.voxels == 240] = 3
    assert found.geometry == scan.geometry
    assert found.voxels.dtype == np.uint8
    assert np.array_equal(found.voxels, expected)


@pytest.mark.parametrize("direction", TURNS, ids=["LPS", "RAS", "sagittal", "oblique"])
def test_labels_follow_the_scan_through_anisotropic_resampling(direction: np.ndarray) -> None:
    scan = _scan(direction, (3.0, 0.9, 1.2))
    predictor = Predictor(network=Brightness(), header=_header(), device=torch.device("cpu"))
    found = predictor.segment(scan).voxels
    bright, expected = found == 3, scan.voxels == 240
    overlap = 2 * (bright & expected).sum() / (bright.sum() + expected.sum())
    assert overlap > 0.9
    # A shift by one voxel would show in the centre of mass.
    shift = np.argwhere(bright).mean(0) - np.argwhere(expected).mean(0)
    assert np.abs(shift).max() < 0.25


def test_windowing_is_linear_between_its_ends_and_clipped_beyond() -> None:
    voxels = np.array([[[-2000, -100, 0, 100, 3000]]], dtype=np.int16)
    expected = torch.tensor([[[[0.0, 0.0, 0.5, 1.0, 1.0]]]])
    settings = {"hu_window": [-100, 100], "intensity": "window"}
    seen = intensity_tensor(voxels, settings)
    assert torch.allclose(seen.image, expected)
    assert seen.air == 0


def test_z_scores_have_mean_0_and_deviation_1_over_the_clipped_scan() -> None:
    voxels = np.random.default_rng(1).integers(-900, 900, (5, 6, 7)).astype(np.int16)
    found, air = intensity_tensor(voxels, {"hu_window": [-500, 800], "intensity": "zscore"})
    clipped = np.clip(voxels.astype(np.float64), -500, 800)
    wanted = (clipped - clipped.mean()) / clipped.std()
    assert found.shape == (1, 5, 6, 7)
    assert air == float(found.min()) < -1
    np.testing.assert_allclose(found[0].numpy(), wanted, atol=1e-5)
    # A scan without any contrast is 0, not a division by 0.
    flat = np.full((2, 3, 4), 7, dtype=np.int16)
    seen = intensity_tensor(flat, {"hu_window": [0, 9], "intensity": "zscore"})
    assert not seen.image.any()
    assert seen.air == -7


class DarkTissue(nn.Module):
    """Class 1 wherever there is more than air, which z-scores lie below 0 like most tissue."""

    def forward(self, windows: Tensor) -> Tensor:
        return torch.cat((windows * 0, 20 * (windows + 0.9), windows * 0 - 9), dim=1)


@pytest.mark.parametrize("size", [(24, 40, 36), (10, 40, 36)], ids=["large", "small"])
def test_tissue_darker_than_the_mean_is_seen_in_z_scores(size: tuple[int, int, int]) -> None:
    voxels = np.full(size, -1000, dtype=np.int16)
    voxels[:, :6] = -100  # fat, in windows of which nothing is above the mean
    voxels[:, 20:] = 200
    geometry = Geometry(size=size, spacing_mm=(1.0, 1.0, 1.0))
    settings = _header().preprocessing | {"spacing_mm": [1.0] * 3, "intensity": "zscore"}
    image, air = intensity_tensor(voxels, settings)
    fat = float(image[0, 0, 0, 0])
    assert air < -0.9 < fat < 0
    predictor = Predictor(
        network=DarkTissue(),
        header=_header(preprocessing=settings | {"body_margin_mm": 99.0}),
        device=torch.device("cpu"),
    )
    found = predictor.segment(Volume(voxels, geometry)).voxels
    np.testing.assert_array_equal(found, np.where(voxels > -1000, 7, 0))


def test_a_saved_network_gives_the_labels_it_gave_before(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = build_segmentation(ARCHITECTURE).eval()
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "model.safetensors"
    save_weights(file, network.state_dict(), _header())
    scan = _scan(np.eye(3), (2.0, 1.5, 1.5))
    before = Predictor(network=network, header=_header(), device=torch.device("cpu"))
    loaded = load_predictor(tmp_path, device="cpu")
    found = loaded.segment(scan).voxels
    assert np.array_equal(found, before.segment(scan).voxels)
    assert len(np.unique(found)) > 1
    assert [label.name for label in loaded.labels] == ["soft", "bright"]


def test_weights_that_do_not_fill_the_network_are_refused(tmp_path: Path) -> None:
    tensors = build_segmentation(ARCHITECTURE).state_dict()
    file = tmp_path / "model.safetensors"
    save_weights(file, {k: v for k, v in tensors.items() if not k.startswith("out")}, _header())
    with pytest.raises(UserError, match="nothing was loaded"):
        load_predictor(file, device="cpu")
    alone = {k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("encoder.")}
    architecture = {"encoder": ARCHITECTURE["encoder"]}
    save_weights(file, alone, _header(kind="encoder", architecture=architecture))
    with pytest.raises(UserError, match="Fine-tune first"):
        load_predictor(file, device="cpu")


def test_running_out_of_memory_says_what_to_lower() -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you")):
        with (
            pytest.raises(ResourceError, match=r"Lower the batch size \(now 4\)"),
            told_as_resource_error(4, torch.device("cpu")),
        ):
            raise error
    with (
        pytest.raises(RuntimeError, match="shapes"),
        told_as_resource_error(4, torch.device("cpu")),
    ):
        raise RuntimeError("shapes differ")
