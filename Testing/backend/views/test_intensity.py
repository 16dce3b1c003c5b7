from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from backend.views.intensity import (
    Changes,
    blurred,
    brightened,
    changed,
    gamma_changed,
    noisy,
)

_Change = Callable[[Tensor, Tensor, float], Tensor]

_CHANGES: dict[str, _Change] = {
    "noise": lambda x, k, p: noisy(x, k, probability=p, variance=(0.01, 0.1)),
    "blur": lambda x, k, p: blurred(x, k, probability=p, sigma=(0.5, 1.0)),
    "brightness": lambda x, k, p: brightened(x, k, probability=p, factor=(0.75, 0.9)),
    "gamma": lambda x, k, p: gamma_changed(x, k, probability=p, exponent=(1.2, 1.5)),
}


def _image(samples: int, edge: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(samples, 1, edge, edge + 1, edge + 2, generator=generator) * 3 - 1


def _is_changed(after: Tensor, before: Tensor) -> Tensor:
    return (after != before).flatten(1).any(1)


@pytest.mark.parametrize("change", _CHANGES.values(), ids=_CHANGES)
def test_samples_are_changed_as_often_as_asked_and_the_others_stay_bit_for_bit(
    change: _Change,
) -> None:
    image, keys = _image(1000, 3), torch.arange(1000)
    share = float(_is_changed(change(image, keys, 0.3), image).double().mean())
    assert abs(share - 0.3) < 6 * (0.3 * 0.7 / 1000) ** 0.5
    assert not bool(_is_changed(change(image, keys, 0.0), image).any())
    assert bool(_is_changed(change(image, keys, 1.0), image).all())


@pytest.mark.parametrize("change", _CHANGES.values(), ids=_CHANGES)
def test_a_change_follows_from_the_samples_key_alone(change: _Change) -> None:
    image, keys = _image(5), torch.arange(5) + 7
    together = change(image, keys, 1.0)
    torch.manual_seed(4)
    torch.rand(3)
    # Convolutions of other batch sizes may add up in another order.
    assert torch.allclose(change(image[2:4], keys[2:4], 1.0), together[2:4], atol=1e-6)
    assert not torch.allclose(change(image, keys + 1, 1.0), together, atol=1e-4)


def test_noise_has_mean_0_the_variance_drawn_and_a_normal_shape() -> None:
    image, keys = torch.zeros(200, 1, 12, 12, 12), torch.arange(200)
    added = noisy(image, keys, probability=1.0, variance=(0.0, 0.1)).flatten(1).double()
    variance = added.var(1)
    assert 0 <= float(variance.min()) < 0.01
    assert 0.09 < float(variance.max()) < 0.11
    assert abs(float(variance.mean()) - 0.05) < 6 * 0.1 / 12**0.5 / 200**0.5
    unit = added / variance.sqrt().unsqueeze(1)
    voxels = unit.numel()
    assert abs(float(unit.mean())) < 6 / voxels**0.5
    assert abs(float((unit**3).mean())) < 6 * (15 / voxels) ** 0.5
    assert abs(float((unit**4).mean()) - 3) < 6 * (96 / voxels) ** 0.5
    between = torch.corrcoef(unit[:20]).fill_diagonal_(0)
    assert float(between.abs().max()) < 6 / 12**1.5


def test_noise_of_an_odd_number_of_voxels_reaches_the_last_one() -> None:
    added = noisy(torch.zeros(50, 1, 3, 3, 3), torch.arange(50), probability=1.0, variance=(1, 1))
    assert 0.5 < float(added[:, 0, 2, 2, 2].double().var()) < 2


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.0, 2.0])
def test_blur_equals_that_of_scipy(sigma: float) -> None:
    image = _image(3, 9)
    found = blurred(image, torch.arange(3), probability=1.0, sigma=(sigma, sigma))
    for b in range(3):
        wanted = gaussian_filter(
            image[b, 0].double().numpy(), sigma, mode="nearest", radius=int(np.ceil(3 * sigma))
        )
        np.testing.assert_allclose(found[b, 0].numpy(), wanted, atol=1e-5)


def test_each_sample_is_blurred_with_a_deviation_of_its_own_within_the_bounds() -> None:
    image = torch.zeros(300, 1, 13, 13, 13)
    image[:, :, 6, 6, 6] = 1
    found = blurred(image, torch.arange(300), probability=1.0, sigma=(0.5, 1.0))[:, 0].double()
    offset = torch.arange(13).double() - 6
    width = (found.sum((2, 3)) * offset.square()).sum(1).sqrt()
    assert torch.allclose(found.sum((1, 2, 3)), torch.ones(300).double(), atol=1e-5)
    assert 0.45 < float(width.min()) < 0.55
    assert 0.95 < float(width.max()) < 1.0


def test_brightness_is_one_factor_clipped_to_the_range_that_was() -> None:
    image = _image(300)
    found = brightened(image, torch.arange(300), probability=1.0, factor=(0.75, 1.25))
    factors = []
    for before, after in zip(image.double(), found.double(), strict=True):
        low, high = float(before.min()), float(before.max())
        inside = (after > low + 1e-6) & (after < high - 1e-6) & (before.abs() > 0.1)
        ratio = after[inside] / before[inside]
        assert float(ratio.std()) < 1e-5
        factors.append(float(ratio.mean()))
        wanted = (before * factors[-1]).clamp(low, high)
        assert torch.allclose(after, wanted, atol=1e-4)
    assert 0.75 <= min(factors) < 0.77
    assert 1.23 < max(factors) <= 1.25


def test_gamma_is_one_exponent_on_values_scaled_to_0_and_1_and_back() -> None:
    image = _image(300)
    found = gamma_changed(image, torch.arange(300), probability=1.0, exponent=(0.7, 1.5))
    exponents = []
    for before, after in zip(image.double(), found.double(), strict=True):
        low, width = float(before.min()), float(before.max() - before.min())
        a, b = (before - low) / width, (after - low) / width
        assert float(b.min()) == pytest.approx(0, abs=1e-6)
        assert float(b.max()) == pytest.approx(1, abs=1e-6)
        inside = (a > 0.05) & (a < 0.95)
        power = b[inside].log() / a[inside].log()
        exponents.append(float(power.mean()))
        assert torch.allclose(b, a ** exponents[-1], atol=1e-4)
    assert 0.7 <= min(exponents) < 0.73
    assert 1.47 < max(exponents) <= 1.5


def test_an_image_of_one_value_stays_finite() -> None:
    image = torch.full((4, 1, 5, 5, 5), 0.3)
    everything = Changes(noise=1.0, blur=1.0, brightness=1.0, gamma=1.0)
    assert bool(changed(image, torch.arange(4), everything).isfinite().all())
    assert torch.allclose(
        changed(image, torch.arange(4), Changes(blur=1.0, gamma=1.0)), image, atol=1e-6
    )


def test_changes_come_one_after_the_other_and_none_is_made_unasked() -> None:
    image, keys = _image(6), torch.arange(6)
    assert changed(image, keys, Changes()) is image
    every = Changes(noise=0.6, blur=0.6, brightness=0.6, gamma=0.6)
    wanted = noisy(image, keys, probability=0.6, variance=every.noise_variance)
    wanted = blurred(wanted, keys, probability=0.6, sigma=every.blur_sigma)
    wanted = brightened(wanted, keys, probability=0.6, factor=every.brightness_factor)
    wanted = gamma_changed(wanted, keys, probability=0.6, exponent=every.gamma_exponent)
    assert torch.equal(changed(image, keys, every), wanted)


def test_which_changes_a_sample_gets_are_independent() -> None:
    image, keys = _image(2000, 2), torch.arange(2000)
    made = torch.stack(
        [_is_changed(change(image, keys, 0.5), image) for change in _CHANGES.values()]
    )
    apart = torch.corrcoef(made.double()).fill_diagonal_(0)
    assert float(apart.abs().max()) < 6 / 2000**0.5
