"""Views of a part of a scan, cut in a batch on the device, each with the affine that made it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int16, Int64
from torch import Tensor

from backend.views.randomness import derive_keys, integers, uniform

_STARTS, _FLIPS, _SCALE, _SHIFT = 1, 2, 3, 4


class View(NamedTuple):
    """One view of each sample of a batch.

    Attributes:
        image: values in [0, 1], (b, 1, z, y, x).
        affine: from a voxel (z, y, x, 1) of the view to a voxel of the region, (b, 4, 4) fp64.
        keys: what the randomness of this view follows from, (b).
    """

    image: Float[Tensor, "b 1 z y x"]
    affine: Float[Tensor, "b 4 4"]
    keys: Int64[Tensor, " b"]


def window_hu(hu: Int16[Tensor, "*shape"], window: tuple[float, float]) -> Float[Tensor, "*shape"]:
    """Hounsfield units as fp32, the window's ends at 0 and 1, clipped beyond."""
    low, high = window
    return ((hu.to(torch.float32) - low) / (high - low)).clamp_(0.0, 1.0)


def random_view(  # noqa: PLR0913 - each is one setting of the view
    regions: Int16[Tensor, "b 1 rz ry rx"],
    keys: Int64[Tensor, " b"],
    *,
    number: int,
    size: int,
    hu_window: tuple[float, float],
    flip_probability: float = 0.0,
    intensity_scale: float = 0.0,
    intensity_shift: float = 0.0,
) -> View:
    """Cut view `number` of each region: a cube at a random place, maybe mirrored.

    Args:
        regions: Hounsfield units.
        keys: one for each sample; the view follows from key and number alone.
        number: which of a sample's views.
        size: edge in voxels, at most that of the region.
        hu_window: Hounsfield units that become 0 and 1.
        flip_probability: chance to mirror along each axis.
        intensity_scale: values are multiplied by a factor in 1 +- this.
        intensity_shift: a number in +- this is added; the result is clipped to [0, 1].
    """
    view_keys = derive_keys(keys, number)
    room = torch.tensor([n - size + 1 for n in regions.shape[2:]], device=keys.device)
    start = integers(view_keys, room, 3, stream=_STARTS)
    flip = uniform(view_keys, 3, stream=_FLIPS) < flip_probability
    image = window_hu(cut(regions, start, flip, size), hu_window)
    if intensity_scale:
        spread = uniform(view_keys, 1, stream=_SCALE) * 2 - 1
        image = image * (1 + intensity_scale * spread).view(-1, 1, 1, 1, 1)
    if intensity_shift:
        spread = uniform(view_keys, 1, stream=_SHIFT) * 2 - 1
        image = image + (intensity_shift * spread).view(-1, 1, 1, 1, 1)
    if intensity_scale or intensity_shift:
        image = image.clamp(0.0, 1.0)
    return View(image, _affine(start, flip, size), view_keys)


def cut(
    volumes: Tensor, start: Int64[Tensor, "b 3"], flip: Bool[Tensor, "b 3"], size: int
) -> Tensor:
    """Cubes of `size` from (b, c, z, y, x) at `start` (b, 3), mirrored where `flip` (b, 3) says.

    One gather for the whole batch; nothing is copied to the host.
    """
    steps = torch.arange(size, device=volumes.device)
    offset = torch.where(flip.unsqueeze(-1), size - 1 - steps, steps)  # (b, 3, size)
    index = start.unsqueeze(-1) + offset
    b = torch.arange(len(volumes), device=volumes.device).view(-1, 1, 1, 1, 1)
    c = torch.arange(volumes.shape[1], device=volumes.device).view(1, -1, 1, 1, 1)
    z = index[:, 0].view(-1, 1, size, 1, 1)
    y = index[:, 1].view(-1, 1, 1, size, 1)
    x = index[:, 2].view(-1, 1, 1, 1, size)
    return volumes[b, c, z, y, x]


def _affine(
    start: Int64[Tensor, "b 3"], flip: Bool[Tensor, "b 3"], size: int
) -> Float[Tensor, "b 4 4"]:
    affine = torch.zeros(len(start), 4, 4, dtype=torch.float64, device=start.device)
    sign = torch.where(flip, -1.0, 1.0).double()
    affine[:, [0, 1, 2], [0, 1, 2]] = sign
    affine[:, :3, 3] = torch.where(flip, start + size - 1, start).double()
    affine[:, 3, 3] = 1.0
    return affine
