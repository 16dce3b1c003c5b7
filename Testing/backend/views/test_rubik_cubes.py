from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.views.rubik import (
    cut_cubes,
    distant_permutations,
    draw_turns,
    make_puzzle,
    turn_layers,
)


def _places(samples: int = 3, edges: tuple[int, int, int] = (12, 16, 20)) -> Tensor:
    """A volume that tells of each voxel where it is, never 0."""
    count = edges[0] * edges[1] * edges[2]
    return (torch.arange(count).float() + 1).view(1, 1, *edges).repeat(samples, 1, 1, 1, 1)


def _orders(count: int = 10) -> Tensor:
    return torch.tensor(distant_permutations(count))


@pytest.mark.parametrize("gap", [0, 2])
def test_each_cube_is_a_copy_of_a_box_inside_its_eighth(gap: int) -> None:
    volume, samples = _places(40), 40
    cubes = cut_cubes(volume, torch.arange(samples), gap=gap)
    edges = (6 - gap, 8 - gap, 10 - gap)
    assert cubes.shape == (samples, 8, *edges)
    starts = set()
    for b, (number, eighth) in itertools.product(
        range(samples), enumerate(itertools.product((0, 1), repeat=3))
    ):
        first = int(cubes[b, number, 0, 0, 0]) - 1
        start = (first // 320, first // 20 % 16, first % 20)
        box = tuple(slice(s, s + e) for s, e in zip(start, edges, strict=True))
        assert torch.equal(cubes[b, number], volume[(b, 0, *box)])
        shift = tuple(s - h * c for s, h, c in zip(start, (6, 8, 10), eighth, strict=True))
        assert all(0 <= s <= gap for s in shift)
        starts.add(shift)
    assert len(starts) == (gap + 1) ** 3


def test_a_puzzle_is_undone_by_what_it_tells_of_itself() -> None:
    volume, keys, orders = _places(30), torch.arange(30), _orders()
    puzzle = make_puzzle(volume, keys, gap=2, orders=orders, rotate=2 / 3, mask=0.5)
    wanted = cut_cubes(volume, keys, gap=2)
    kept = []
    for b, i in itertools.product(range(30), range(8)):
        cube = puzzle.cubes[b, i]
        if puzzle.turned_level[b, i]:
            cube = torch.rot90(cube, 2, (0, 1))  # about x: in the plane of z and y
        if puzzle.turned_upright[b, i]:
            cube = torch.rot90(cube, 2, (1, 2))
        original = wanted[b, orders[puzzle.order[b], i]]
        visible = cube != 0
        assert torch.equal(cube[visible], original[visible])
        assert bool(visible.all()) is not bool(puzzle.masked[b, i])
        kept += [float(visible.float().mean())] if puzzle.masked[b, i] else []
    assert float(np.mean(kept)) == pytest.approx(0.5, abs=0.01)


def test_turns_and_masks_befall_their_share_of_cubes_and_orders_are_equally_likely() -> None:
    keys, orders = torch.arange(2000), _orders(5)
    volume = torch.ones(1, 1, 4, 4, 4).expand(2000, 1, 4, 4, 4)
    puzzle = make_puzzle(volume, keys, gap=0, orders=orders, rotate=2 / 3, mask=0.5)
    assert not (puzzle.turned_level & puzzle.turned_upright).any()
    for happened, share in (
        (puzzle.turned_level, 1 / 3),
        (puzzle.turned_upright, 1 / 3),
        (puzzle.masked, 1 / 2),
    ):
        assert float(happened.float().mean()) == pytest.approx(share, abs=0.02)
    counts = puzzle.order.bincount(minlength=5).tolist()
    assert all(count == pytest.approx(400, abs=80) for count in counts)


def test_orders_are_different_start_with_the_identity_and_lie_far_apart() -> None:
    orders = np.array(distant_permutations(100))
    assert orders[0].tolist() == list(range(8))
    assert (np.sort(orders, axis=1) == np.arange(8)).all()
    distance = (orders[:, None] != orders[None]).sum(-1)[np.triu_indices(100, 1)]
    assert distance.min() == 6
    # Random permutations of eight differ in seven places on average.
    assert distance.mean() > 7.05


def test_orders_are_chosen_greedily_as_a_plain_loop_does() -> None:
    every = list(itertools.permutations(range(8)))
    chosen = [every[0]]

    def rank(candidate: tuple[int, ...]) -> tuple[int, int]:
        distances = [sum(a != b for a, b in zip(candidate, c, strict=True)) for c in chosen]
        return min(distances), sum(distances)

    for _ in range(4):
        following = max(every, key=rank)  # the first of equals
        chosen.append(following)
    assert distant_permutations(5) == tuple(chosen)
    with pytest.raises(ValueError, match="there are 40320"):
        distant_permutations(40_321)


def _turned_by_hand(volume: Tensor, turns: Tensor) -> Tensor:
    result = volume.clone().numpy()
    edge = volume.shape[-1] // turns.shape[-1]
    for b, axis in itertools.product(range(len(result)), range(3)):
        for layer in range(turns.shape[-1]):
            box: list[slice | int] = [b, 0, slice(None), slice(None), slice(None)]
            for depth in range(layer * edge, (layer + 1) * edge):
                box[axis + 2] = depth
                place = tuple(box)
                result[place] = np.rot90(result[place], int(turns[b, axis, layer]))
    return torch.from_numpy(result)


def test_turned_layers_equal_a_loop_over_slices_and_turn_back() -> None:
    volume = _places(5, (6, 6, 6))
    turns = draw_turns(torch.arange(5), layers=3, probability=0.8)
    found = turn_layers(volume, turns)
    assert torch.equal(found, _turned_by_hand(volume, turns))
    assert not torch.equal(found, volume)
    assert torch.equal(turn_layers(found, turns, back=True), volume)


def test_a_layer_stays_with_the_chance_told_and_turns_are_equally_likely() -> None:
    turns = draw_turns(torch.arange(2000), layers=4, probability=0.3)
    assert turns.shape == (2000, 3, 4)
    shares = (turns.flatten().bincount(minlength=4) / turns.numel()).tolist()
    assert shares == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=0.01)
