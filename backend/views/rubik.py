"""What the Rubik's cube methods do to a volume: cut, reorder, turn and mask cubes; turn layers.

Zhu et al. 2020, doi:10.1016/j.media.2020.101746 (Rubik's cube+), and Tao et al. 2020, arXiv
2007.08826 (layers). Shapes: b batch, m = 8 cubes in (z, y, x) order. Every draw follows from a
sample's key, and nothing is copied to the host.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from backend.views.randomness import integers, uniform

_PLACE, _ORDER, _ROTATE, _MASK, _VOXELS = 641, 642, 643, 644, 645
_LAYERS, _QUARTERS = 651, 652

CUBES = 8
_VISIBLE = 0.5
"""Share of a masked cube's voxels that stay."""


class Puzzle(NamedTuple):
    """Eight cubes of each volume, spoilt, and what was done to them.

    Attributes:
        cubes: (b, 8, z, y, x); cube i stood at place `orders[order][i]` in the volume.
        order: number of the permutation, (b).
        turned_level: cubes turned about the x axis, (b, 8).
        turned_upright: cubes turned about the z axis, (b, 8).
        masked: cubes of which voxels are missing, (b, 8).
    """

    cubes: Float[Tensor, "b 8 z y x"]
    order: Int64[Tensor, " b"]
    turned_level: Bool[Tensor, "b 8"]
    turned_upright: Bool[Tensor, "b 8"]
    masked: Bool[Tensor, "b 8"]


def make_puzzle(
    image: Float[Tensor, "b 1 z y x"],
    keys: Int64[Tensor, " b"],
    *,
    gap: int,
    orders: Int64[Tensor, "k 8"],
    rotate: float,
    mask: float,
) -> Puzzle:
    """Cut eight cubes, put them into another order, turn some and mask some.

    Args:
        image: edges are even.
        keys: one for each sample.
        gap: see `cut_cubes`.
        orders: permutations to choose from, each equally often.
        rotate: chance of a cube to be turned by 180 degrees, about x or z equally often.
        mask: chance of a cube to lose half of its voxels.
    """
    cubes = cut_cubes(image, keys, gap=gap)
    order = integers(keys, len(orders), 1, stream=_ORDER)[:, 0]
    sample = torch.arange(len(keys), device=keys.device).unsqueeze(1)
    cubes = cubes[sample, orders[order]]
    chance = uniform(keys, CUBES, stream=_ROTATE)
    level, upright = chance < rotate / 2, (chance >= rotate / 2) & (chance < rotate)
    cubes = torch.where(_per_cube(level), cubes.flip(2, 3), cubes)
    cubes = torch.where(_per_cube(upright), cubes.flip(3, 4), cubes)
    masked = uniform(keys, CUBES, stream=_MASK) < mask
    drawn = uniform(keys, cubes[0].numel(), stream=_VOXELS).view_as(cubes)
    cubes = cubes * ~(_per_cube(masked) & (drawn >= _VISIBLE))
    return Puzzle(cubes, order, level, upright, masked)


def cut_cubes(
    image: Float[Tensor, "b 1 z y x"], keys: Int64[Tensor, " b"], *, gap: int
) -> Float[Tensor, "b 8 z2 y2 x2"]:
    """One cube from each eighth of a volume, `gap` voxels smaller, at a random place in it.

    Cubes that touched could be joined by their borders alone, so that nothing would be learnt.
    """
    halves = [n // 2 for n in image.shape[2:]]
    edges = [n - gap for n in halves]
    shift = integers(keys, gap + 1, CUBES * 3, stream=_PLACE).view(-1, CUBES, 3)
    corner = torch.tensor(list(product((0, 1), repeat=3)), device=keys.device)
    corner = corner * torch.tensor(halves, device=keys.device)
    first = corner + shift  # (b, 8, 3)
    z, y, x = (
        (first[..., axis, None] + torch.arange(edge, device=keys.device)).view(
            -1, CUBES, *[edge if a == axis else 1 for a in range(3)]
        )
        for axis, edge in enumerate(edges)
    )
    sample = torch.arange(len(keys), device=keys.device).view(-1, 1, 1, 1, 1)
    cubes: Tensor = image[sample, 0, z, y, x]
    return cubes


@lru_cache(maxsize=8)
def distant_permutations(count: int) -> tuple[tuple[int, ...], ...]:
    """Orders of eight cubes that differ from each other in as many places as possible.

    Greedy, after Noroozi & Favaro 2016, sec. 3.2: the identity first, then always the permutation
    whose smallest Hamming distance to those chosen is largest; among equals that with the largest
    sum of distances, then the first in lexicographic order. So the list is the same everywhere.

    Raises:
        ValueError: if there are not so many.
    """
    every = np.array(list(permutations(range(CUBES))), dtype=np.int8)
    if not 1 <= count <= len(every):
        raise ValueError(f"{count} orders of {CUBES} cubes are asked for, there are {len(every)}")
    chosen = [0]
    nearest = np.full(len(every), CUBES + 1, dtype=np.int64)
    total = np.zeros(len(every), dtype=np.int64)
    while len(chosen) < count:
        distance = (every != every[chosen[-1]]).sum(axis=1)
        nearest = np.minimum(nearest, distance)
        total += distance
        # One number that compares first the nearest, then the sum; those chosen have nearest 0.
        chosen.append(int(np.argmax(nearest * (CUBES * count + 1) + total * (nearest > 0))))
    return tuple(tuple(int(i) for i in every[c]) for c in chosen)


def draw_turns(
    keys: Int64[Tensor, " b"], *, layers: int, probability: float
) -> Int64[Tensor, "b 3 layers"]:
    """Quarter turns, 0 to 3, of each layer along each axis."""
    count = 3 * layers
    quarters = 1 + integers(keys, 3, count, stream=_QUARTERS)
    moved = uniform(keys, count, stream=_LAYERS) < probability
    return torch.where(moved, quarters, 0).view(-1, 3, layers)


def turn_layers(
    volume: Float[Tensor, "b 1 n n n"],
    turns: Int64[Tensor, "b 3 layers"],
    *,
    back: bool = False,
) -> Float[Tensor, "b 1 n n n"]:
    """Turn the layers of a volume as those of the toy: along z, then along y, then along x.

    Args:
        volume: cubes whose edge is a multiple of the number of layers.
        turns: quarter turns of each layer along each axis.
        back: undo them instead.
    """
    axes = (2, 1, 0) if back else (0, 1, 2)
    for axis in axes:
        plane = [a + 2 for a in range(3) if a != axis]
        quarters = -turns[:, axis] % 4 if back else turns[:, axis]
        per_voxel = quarters.repeat_interleave(volume.shape[2] // turns.shape[2], dim=1)
        shape = [len(volume), 1, 1, 1, 1]
        shape[axis + 2] = volume.shape[2]
        per_voxel = per_voxel.view(shape)
        # A turn of a layer leaves it in its plane, so the whole volume can turn and layers be
        # taken from the result.
        turned = [torch.rot90(volume, times, plane) for times in (1, 2, 3)]
        for times, other in enumerate(turned, start=1):
            volume = torch.where(per_voxel == times, other, volume)
    return volume


def _per_cube(chosen: Bool[Tensor, "b 8"]) -> Bool[Tensor, "b 8 1 1 1"]:
    return chosen.view(*chosen.shape, 1, 1, 1)
