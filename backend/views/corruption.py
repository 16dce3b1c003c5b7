"""The corruptions that Models Genesis undoes.

Zhou et al. 2021, doi:10.1016/j.media.2020.101840, sec. 3.2; sizes and chances are those of the
released code where the paper names none. Values lie in [0, 1]. Every draw follows from a sample's
key, and nothing is copied to the host. Shapes: b batch, n blocks, p places in a block, v voxels.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from backend.views.randomness import uniform

_SHUFFLE, _BLOCKS, _ORDER = 601, 602, 603
_BEND, _CURVE = 611, 612
_PAINT, _BOXES, _NOISE = 621, 622, 623

_CURVE_POINTS = 4096
_MARGIN = 3
"""Voxels between a painted box and the border."""
_BOX_COUNT = 5
_NEXT_BOX = 0.95
"""Chance that one more box follows."""

SMALLEST_EDGE = 14
"""Below it boxes that are kept while painting outside have no room."""


def corrupt(
    image: Float[Tensor, "b 1 z y x"],
    keys: Int64[Tensor, " b"],
    *,
    shuffle: float = 0.5,
    bend: float = 0.9,
    paint: float = 0.9,
    inpaint: float = 0.2,
    blocks: int = 10_000,
) -> Float[Tensor, "b 1 z y x"]:
    """Shuffle, bend and paint each sample with the chances given (sec. 3.2 and fig. 3).

    Args:
        image: values in [0, 1].
        keys: one for each sample.
        shuffle: chance of local shuffling.
        bend: chance of a non-linear change of intensity.
        paint: chance of painting.
        inpaint: share of painted samples in which boxes are painted; in the others everything
            but boxes is.
        blocks: how many blocks local shuffling draws.
    """
    shuffled = shuffle_locally(image, keys, probability=shuffle, blocks=blocks)
    bent = bend_intensity(shuffled, keys, probability=bend)
    return paint_boxes(bent, keys, probability=paint, inpaint=inpaint)


def shuffle_locally(
    image: Float[Tensor, "b 1 z y x"],
    keys: Int64[Tensor, " b"],
    *,
    probability: float,
    blocks: int = 10_000,
) -> Float[Tensor, "b 1 z y x"]:
    """Shuffle the voxels inside many small blocks, each with edges up to a tenth of the image's.

    Blocks overlap; what stands in a voxel is a value of the original from the last block over it.
    """
    size = image.shape[2:]
    largest = [max(1, n // 10) for n in size]
    first, edges = _placed_blocks(keys, size, largest, blocks)
    places = torch.cartesian_prod(*(torch.arange(n, device=keys.device) for n in largest))
    places = places.view(-1, 3)  # (p, 3)
    inside = (places < edges.unsqueeze(2)).all(-1)  # (b, n, p)
    voxel = _flat(first.unsqueeze(2) + places, size)  # (b, n, p)
    # A random order of the places in each block: by random scores, places outside last.
    scores = uniform(keys, blocks * len(places), stream=_ORDER).view(inside.shape)
    order = torch.where(inside, scores, 2.0).argsort(dim=-1, stable=True)
    rank = (inside.long().cumsum(-1) - 1).clamp(min=0)
    source = voxel.gather(-1, order.gather(-1, rank)).flatten(1)  # (b, n p)
    # For each voxel the last place of a block that covers it; -1 where none does. Places outside
    # their block write behind the last voxel.
    voxels = math.prod(size)
    target = torch.where(inside, voxel, voxels).flatten(1)
    number = torch.arange(target.shape[1], device=keys.device).expand_as(target)
    last = torch.full((len(keys), voxels + 1), -1, device=keys.device)
    last = last.scatter_reduce(1, target, number, "amax")[:, :-1]
    values = image.flatten(1)
    shuffled = values.gather(1, source.gather(1, last.clamp(min=0)))
    chosen = (uniform(keys, 1, stream=_SHUFFLE) < probability) & (last >= 0)
    return torch.where(chosen, shuffled, values).view_as(image)


def bend_intensity(
    image: Float[Tensor, "b 1 z y x"], keys: Int64[Tensor, " b"], *, probability: float
) -> Float[Tensor, "b 1 z y x"]:
    """Map the values of a sample through a Bezier curve from (0, 0) to (1, 1), or (0, 1) to (1, 0).

    The curve is cubic with two random control points in the unit square, hence monotone; half of
    the curves are turned upside down.
    """
    x, y = bezier_curves(uniform(keys, 4, stream=_CURVE))
    chance, turn = uniform(keys, 2, stream=_BEND).unsqueeze(-1).unbind(1)  # (b, 1) each
    y = torch.where(turn < 0.5, y.flip(1), y)
    values = image.flatten(1).contiguous()
    right = torch.searchsorted(x, values).clamp(1, x.shape[1] - 1)
    x0, x1 = x.gather(1, right - 1), x.gather(1, right)
    y0, y1 = y.gather(1, right - 1), y.gather(1, right)
    share = ((values - x0) / (x1 - x0).clamp(min=1e-12)).clamp(0.0, 1.0)
    bent = y0 + share * (y1 - y0)
    return torch.where(chance < probability, bent, values).view_as(image)


def bezier_curves(
    control: Float[Tensor, "b 4"],
) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t"]]:
    """Points x and y, both rising from 0 to 1, of cubic Bezier curves.

    Args:
        control: the inner control points x1, y1, x2, y2.
    """
    t = torch.linspace(0.0, 1.0, _CURVE_POINTS, device=control.device)
    first, second = 3 * (1 - t).square() * t, 3 * (1 - t) * t.square()
    x1, y1, x2, y2 = control.unsqueeze(-1).unbind(1)
    # Sorted, because rounding may leave neighbours in the wrong order.
    x = (first * x1 + second * x2 + t**3).sort(dim=1).values
    y = (first * y1 + second * y2 + t**3).sort(dim=1).values
    return x, y


def paint_boxes(
    image: Float[Tensor, "b 1 z y x"],
    keys: Int64[Tensor, " b"],
    *,
    probability: float,
    inpaint: float,
) -> Float[Tensor, "b 1 z y x"]:
    """Put uniform noise into up to five boxes, or everywhere but in up to five boxes.

    Boxes that are painted have edges of a sixth to a third of the image's, boxes that are kept of
    three to four sevenths; of the latter there is always one.

    Raises:
        ValueError: if an edge is below `SMALLEST_EDGE`.
    """
    size = image.shape[2:]
    if min(size) < SMALLEST_EDGE:
        raise ValueError(f"edges {tuple(size)} are below {SMALLEST_EDGE}: no room for boxes")
    chance, kind = uniform(keys, 2, stream=_PAINT).unsqueeze(-1).unbind(1)
    inner = kind < inpaint  # (b, 1)
    draws = uniform(keys, _BOX_COUNT * 7, stream=_BOXES).view(-1, _BOX_COUNT, 7)
    exists = draws[..., 6] < _NEXT_BOX
    exists = torch.cat([exists[:, :1] | ~inner, exists[:, 1:]], dim=1).long().cumprod(1).bool()
    covered = torch.ones(len(keys), _BOX_COUNT, 1, 1, 1, dtype=torch.bool, device=keys.device)
    for axis, n in enumerate(size):
        low = torch.where(inner, n // 6, n - 4 * n // 7)
        high = torch.where(inner, n // 3, n - 3 * n // 7)
        edge = low + (draws[..., 2 * axis] * (high - low + 1)).floor().long()  # (b, boxes)
        room = n - edge - 2 * _MARGIN + 1
        first = _MARGIN + (draws[..., 2 * axis + 1] * room).floor().long()
        covered = covered & _span(first, first + edge, n, axis)
    boxes = (covered & exists.view(-1, _BOX_COUNT, 1, 1, 1)).any(1, keepdim=True)
    painted = (boxes == inner.view(-1, 1, 1, 1, 1)) & (chance < probability).view(-1, 1, 1, 1, 1)
    noise = uniform(keys, math.prod(size), stream=_NOISE).view_as(image)
    return torch.where(painted, noise, image)


def _placed_blocks(
    keys: Tensor, size: torch.Size, largest: list[int], blocks: int
) -> tuple[Int64[Tensor, "b n 3"], Int64[Tensor, "b n 3"]]:
    draws = uniform(keys, blocks * 6, stream=_BLOCKS).view(-1, blocks, 6)
    limits = torch.tensor(largest, device=keys.device)
    edges = 1 + (draws[..., :3] * limits).floor().long()
    room = torch.tensor(list(size), device=keys.device) - edges + 1
    return (draws[..., 3:] * room).floor().long(), edges


def _flat(place: Int64[Tensor, "*shape 3"], size: torch.Size) -> Int64[Tensor, "*shape"]:
    # Places outside their block may lie outside the image; they are never read.
    z, y, x = (place[..., axis].clamp(max=n - 1) for axis, n in enumerate(size))
    return (z * size[1] + y) * size[2] + x


def _span(
    first: Int64[Tensor, "b k"], end: Int64[Tensor, "b k"], length: int, axis: int
) -> Bool[Tensor, "b k *axes"]:
    steps = torch.arange(length, device=first.device)
    inside = (steps >= first.unsqueeze(-1)) & (steps < end.unsqueeze(-1))
    shape = [*first.shape, 1, 1, 1]
    shape[2 + axis] = length
    return inside.view(shape)
