import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn

from backend.errors import Cancelled, UserError
from backend.inference.sliding import (
    Sliding,
    importance_map,
    sliding_logits,
    stream_logits,
    windows_at_once,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.data.utils import compute_importance_map
    from monai.inferers import sliding_window_inference


def _network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    # Padding makes the output depend on the window's place, as with a real network.
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.GELU(), nn.Conv3d(4, classes, 3, padding=1)
    ).eval()


def _volume(size: tuple[int, int, int]) -> Tensor:
    return torch.rand((1, *size), generator=torch.Generator().manual_seed(1)) * 0.9 + 0.1


@pytest.mark.parametrize("size", [(16, 16, 16), (23, 17, 30), (40, 16, 21), (9, 20, 11), (5, 7, 3)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_logits_equal_those_of_monai_where_there_is_no_air(
    size: tuple[int, int, int], overlap: float
) -> None:
    network, volume = _network(), _volume(size)
    window = (16, 12, 10)
    ours = sliding_logits(
        network, volume, Sliding(window=window, overlap=overlap, batch_size=3), classes=3
    )
    with torch.no_grad():
        theirs = sliding_window_inference(
            volume[None], window, 1, network, overlap=overlap, mode="gaussian", sigma_scale=0.125
        )[0]
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=0)


def test_importance_map_equals_that_of_monai() -> None:
    for window in ((16, 12, 10), (5, 1, 96)):
        theirs = compute_importance_map(window, mode="gaussian", sigma_scale=0.125)
        theirs = theirs.clamp(min=max(float(theirs.min()), 1e-3))
        assert torch.allclose(importance_map(window), theirs.float(), atol=1e-7)


def test_slabs_adjoin_cover_the_volume_once_and_stay_as_they_were_given() -> None:
    network, volume = _network(), _volume((37, 14, 13))
    sliding = Sliding(window=(8, 8, 8))
    slabs = list(stream_logits(network, volume, sliding, classes=3))
    starts = [start for start, _ in slabs]
    assert len(slabs) > 3
    assert starts == [0, *torch.tensor([s.shape[1] for _, s in slabs]).cumsum(0).tolist()[:-1]]
    whole = torch.cat([logits for _, logits in slabs], dim=1)
    assert torch.equal(whole, sliding_logits(network, volume, sliding, classes=3))


def test_windows_of_air_are_not_evaluated_and_become_background() -> None:
    volume = torch.zeros((1, 8, 8, 40))
    volume[..., :6] = 0.5
    seen = []

    def network(windows: Tensor) -> Tensor:
        seen.extend(windows)
        return torch.stack((windows[:, 0] * 0 - 1, windows[:, 0] + 5), dim=1)

    told: list[tuple[int, int]] = []
    logits = sliding_logits(
        network,
        volume,
        Sliding(window=(8, 8, 8), batch_size=2),
        classes=2,
        progress=lambda done, total: told.append((done, total)),
    )
    # Windows begin at 0, 4, 8, ...: those at 0 and 4 hold tissue and reach voxel 11.
    assert len(seen) == 2
    assert (logits[..., :12].argmax(0) == 1).all()
    assert torch.equal(logits[0, ..., 12:], torch.ones(8, 8, 28))
    assert torch.equal(logits[1, ..., 12:], torch.zeros(8, 8, 28))
    assert told[-1] == (9, 9)
    assert told == sorted(told)


def test_no_gradient_is_kept() -> None:
    logits = sliding_logits(_network(), _volume((8, 8, 8)), Sliding(window=(8, 8, 8)), classes=3)
    assert not logits.requires_grad


def test_stopping_on_request_cancels_before_the_next_window() -> None:
    calls = []

    def network(windows: Tensor) -> Tensor:
        calls.append(1)
        return windows

    with pytest.raises(Cancelled):
        sliding_logits(
            network,
            _volume((8, 8, 24)),
            Sliding(window=(8, 8, 8)),
            classes=1,
            should_stop=lambda: len(calls) == 2,
        )
    assert len(calls) == 2


def test_a_wrong_number_of_classes_and_logits_that_are_no_numbers_are_refused() -> None:
    sliding = Sliding(window=(8, 8, 8))
    with pytest.raises(UserError, match="gives 3 classes, but 5"):
        sliding_logits(_network(), _volume((8, 8, 8)), sliding, classes=5)
    with pytest.raises(UserError, match="not numbers"):
        sliding_logits(lambda w: w * float("nan"), _volume((8, 8, 8)), sliding, classes=1)


def test_windows_that_overflow_in_half_precision_are_computed_again_in_float32() -> None:
    layer = nn.Conv3d(1, 2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1e5, 2e5]).reshape(2, 1, 1, 1, 1))
    volume = _volume((8, 8, 8)) + 1
    logits = sliding_logits(
        layer.eval(), volume, Sliding(window=(8, 8, 8), precision="fp16"), classes=2
    )
    assert torch.allclose(logits[1], volume[0] * 2e5, rtol=1e-5)


def test_a_window_that_cannot_slide_is_refused() -> None:
    for change in ({"overlap": 1.0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="cannot slide"):
            Sliding(window=(8, 8, 8), **change)


@pytest.mark.parametrize(
    ("edge", "device", "windows"), [(48, "cpu", 2), (96, "cpu", 1), (48, "meta", 1)]
)
def test_small_windows_go_in_pairs_on_a_processor_alone(
    edge: int, device: str, windows: int
) -> None:
    assert windows_at_once((edge, edge, edge), torch.device(device)) == windows


def test_logits_of_a_window_are_given_up_before_the_next_ones_are_computed() -> None:
    network, alive = _network(), []

    def watched(windows: Tensor) -> Tensor:
        assert [kept for kept in alive if kept() is not None] == []
        logits: Tensor = network(windows)
        alive.append(weakref.ref(logits))
        return logits

    sliding_logits(watched, _volume((12, 12, 16)), Sliding(window=(8, 8, 8)), classes=3)
    assert len(alive) == 12
