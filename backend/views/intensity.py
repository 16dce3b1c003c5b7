"""Changes of a view's values, in a batch on the device (PGL, sec. 3.2: T3 to T6).

Every sample draws from its own key whether it is changed and how much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from backend.views.randomness import normal, uniform

_NOISE, _NOISE_VALUES, _BLUR, _BRIGHTNESS, _GAMMA = 11, 12, 13, 14, 15
_BLUR_RADIUS = 6
"""Voxels; three deviations of the widest blur there is (2)."""

Range = tuple[float, float]


class Changes(NamedTuple):
    """Which changes are made, and within which bounds.

    Attributes:
        noise: chance of Gaussian noise; its variance is drawn from `noise_variance`.
        blur: chance of a Gaussian blur; its deviation in voxels is drawn from `blur_sigma`.
        brightness: chance of a factor from `brightness_factor`; the range of values stays.
        gamma: chance of an exponent from `gamma_exponent`, on values scaled to 0..1 and back.
    """

    noise: float = 0.0
    noise_variance: Range = (0.0, 0.1)
    blur: float = 0.0
    blur_sigma: Range = (0.5, 1.0)
    brightness: float = 0.0
    brightness_factor: Range = (0.75, 1.25)
    gamma: float = 0.0
    gamma_exponent: Range = (0.7, 1.5)


def changed(
    image: Float[Tensor, "b 1 z y x"], keys: Int64[Tensor, " b"], changes: Changes
) -> Float[Tensor, "b 1 z y x"]:
    """All changes that are asked for, one after the other."""
    c = changes
    if c.noise:
        image = noisy(image, keys, probability=c.noise, variance=c.noise_variance)
    if c.blur:
        image = blurred(image, keys, probability=c.blur, sigma=c.blur_sigma)
    if c.brightness:
        image = brightened(image, keys, probability=c.brightness, factor=c.brightness_factor)
    if c.gamma:
        image = gamma_changed(image, keys, probability=c.gamma, exponent=c.gamma_exponent)
    return image


def noisy(
    image: Float[Tensor, "b 1 z y x"],
    keys: Int64[Tensor, " b"],
    *,
    probability: float,
    variance: Range,
) -> Float[Tensor, "b 1 z y x"]:
    """Add Gaussian noise of a variance drawn for each sample."""
    chosen, amount = _drawn(keys, _NOISE, probability, variance)
    added = normal(keys, image[0].numel(), stream=_NOISE_VALUES).view_as(image)
    size = torch.where(chosen, amount.sqrt(), 0.0)
    return added.mul_(_per_sample(size)).add_(image)


def blurred(
    image: Float[Tensor, "b 1 z y x"],
    keys: Int64[Tensor, " b"],
    *,
    probability: float,
    sigma: Range,
) -> Float[Tensor, "b 1 z y x"]:
    """Blur with a Gaussian of a deviation drawn for each sample; edges are continued."""
    chosen, amount = _drawn(keys, _BLUR, probability, sigma)
    radius = min(_BLUR_RADIUS, math.ceil(3 * sigma[1]))
    steps = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (steps / amount.unsqueeze(1)).square())
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    if image.device.type == "cpu":
        drawn = zip(image, kernel.tolist(), chosen.tolist(), strict=True)
        return torch.stack([_summed(x, weights) if c else x for x, weights, c in drawn])
    b = len(image)
    x = image.transpose(0, 1)  # each sample is a channel with a kernel of its own
    for axis in range(3):
        shape, padding = [1, 1, 1], [0, 0, 0, 0, 0, 0]
        shape[axis] = 2 * radius + 1
        padding[4 - 2 * axis : 6 - 2 * axis] = [radius, radius]
        x = F.conv3d(F.pad(x, padding, mode="replicate"), kernel.view(b, 1, *shape), groups=b)
    return torch.where(_per_sample(chosen), x.transpose(0, 1), image)


def _summed(x: Float[Tensor, "1 z y x"], weights: Sequence[float]) -> Float[Tensor, "1 z y x"]:
    """Weighted sums of neighbours along each axis; edges are continued.

    A processor does this several times faster than a convolution with one channel.
    """
    radius = len(weights) // 2
    for axis in (1, 2, 3):
        sides = [0] * 6
        sides[6 - 2 * axis : 8 - 2 * axis] = [radius, radius]
        wide = F.pad(x.unsqueeze(0), sides, mode="replicate")[0]
        total = wide.narrow(axis, 0, x.shape[axis]) * weights[0]
        for step, weight in enumerate(weights[1:], start=1):
            total.add_(wide.narrow(axis, step, x.shape[axis]), alpha=weight)
        x = total
    return x


def brightened(
    image: Float[Tensor, "b 1 z y x"],
    keys: Int64[Tensor, " b"],
    *,
    probability: float,
    factor: Range,
) -> Float[Tensor, "b 1 z y x"]:
    """Multiply by a factor drawn for each sample, and clip to the range the values had."""
    chosen, amount = _drawn(keys, _BRIGHTNESS, probability, factor)
    low, high = _range(image)
    scaled = (image * _per_sample(amount)).clamp_(low, high)
    return torch.where(_per_sample(chosen), scaled, image)


def gamma_changed(
    image: Float[Tensor, "b 1 z y x"],
    keys: Int64[Tensor, " b"],
    *,
    probability: float,
    exponent: Range,
) -> Float[Tensor, "b 1 z y x"]:
    """Raise the values, scaled to 0..1 and back, to a power drawn for each sample."""
    chosen, amount = _drawn(keys, _GAMMA, probability, exponent)
    low, high = _range(image)
    width = (high - low).clamp(min=1e-7)
    # No value leaves 0..1: rounding keeps the order of differences and of quotients.
    raised = (image - low).div_(width).pow_(_per_sample(amount))
    raised.mul_(width).add_(low)
    return torch.where(_per_sample(chosen), raised, image)


def _drawn(
    keys: Int64[Tensor, " b"], stream: int, probability: float, bounds: Range
) -> tuple[Bool[Tensor, " b"], Float[Tensor, " b"]]:
    chance, place = uniform(keys, 2, stream=stream).unbind(1)
    low, high = bounds
    return chance < probability, low + (high - low) * place


def _range(image: Tensor) -> tuple[Tensor, Tensor]:
    return image.amin(dim=(1, 2, 3, 4), keepdim=True), image.amax(dim=(1, 2, 3, 4), keepdim=True)


def _per_sample(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1, 1)
