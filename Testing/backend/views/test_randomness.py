from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from backend.views.randomness import (
    _uniform_by_numpy,
    _uniform_by_torch,
    derive_key,
    derive_keys,
    integers,
    normal,
    uniform,
)

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15

_KEYS = [0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF, -987654321]


def _mixed(z: int) -> int:
    """The output function of SplitMix64, in whole numbers without width."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _signed(z: int) -> int:
    return z - 2**64 if z >> 63 else z


def test_reference_is_splitmix64_as_published() -> None:
    # The first outputs for seed 1234567 that implementations of SplitMix64 are checked against.
    state, outputs = 1234567, []
    for _ in range(3):
        state = (state + _GOLDEN) & _MASK
        outputs.append(_mixed(state))
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("stream", [0, 1, 101, 2**40 + 7])
def test_uniform_numbers_equal_those_of_whole_number_arithmetic(stream: int) -> None:
    wanted = []
    for key in _KEYS:
        state = _mixed((key + _mixed(stream)) & _MASK)
        outputs = [_mixed((state + i * _GOLDEN) & _MASK) for i in range(1, 6)]
        wanted.append([(o >> 40) / 2**24 for o in outputs])
    found = uniform(torch.tensor(_KEYS), 5, stream=stream)
    assert found.dtype == torch.float32
    assert found.tolist() == wanted  # 24 bits fit an fp32: equal, not close


def test_derived_keys_equal_those_of_whole_number_arithmetic() -> None:
    wanted = [_signed(_mixed((key + _mixed(3)) & _MASK)) for key in _KEYS]
    assert derive_keys(torch.tensor(_KEYS), 3).tolist() == wanted


def test_key_of_several_numbers_depends_on_each_and_on_their_order() -> None:
    keys = [derive_key(*parts) for parts in [(0,), (0, 0), (1, 2), (2, 1), (1, 3), (-1, 2), ()]]
    assert len(set(keys)) == len(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert derive_key(1, 2) == keys[2]


def test_numbers_lie_in_the_unit_interval_and_are_spread_evenly() -> None:
    numbers = uniform(torch.arange(4000), 16, stream=5).double()
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = torch.histc(numbers, bins=64, min=0, max=1)
    expected = numbers.numel() / 64
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 63) < 6 * math.sqrt(2 * 63)


def test_neighbouring_keys_and_streams_give_uncorrelated_numbers() -> None:
    keys = torch.arange(4000)
    rows = torch.stack(
        [
            uniform(keys, 1, stream=1)[:, 0],
            uniform(keys + 1, 1, stream=1)[:, 0],
            uniform(keys, 1, stream=2)[:, 0],
            uniform(keys, 2, stream=1)[:, 1],
        ]
    )
    off_diagonal = torch.corrcoef(rows.double()) - torch.eye(4, dtype=torch.float64)
    assert float(off_diagonal.abs().max()) < 6 / math.sqrt(4000)


def test_more_numbers_begin_with_the_same_ones() -> None:
    keys = torch.tensor(_KEYS)
    assert torch.equal(uniform(keys, 9, stream=4)[:, :3], uniform(keys, 3, stream=4))


def test_whole_numbers_reach_every_value_below_the_bound_and_none_above() -> None:
    found = integers(torch.arange(600), 7, 3, stream=1)
    assert sorted(found.unique().tolist()) == list(range(7))
    bounds = torch.tensor([1, 2, 33])
    found = integers(torch.arange(2000), bounds, 3, stream=1)
    assert [column.unique().tolist() for column in found.T] == [[0], [0, 1], list(range(33))]


def test_numbers_made_chunk_by_chunk_are_those_of_the_formula() -> None:
    keys = torch.tensor([5, -(2**62), 2**63 - 1])
    numbers = uniform(keys, 40_000, stream=9)
    states = derive_keys(keys, 9)
    for place in (0, 1, 10_921, 10_922, 10_923, 39_999):
        for row, state in enumerate(states.tolist()):
            mixed = _mixed((state + (place + 1) * _GOLDEN) & _MASK)
            assert float(numbers[row, place]) == (mixed >> 40) * 2.0**-24


@pytest.mark.parametrize(("keys", "count"), [(0, 3), (1, 1), (3, 0), (7, 4681 * 2 + 1), (40000, 2)])
def test_numbers_in_parts_and_all_at_once_are_the_same(keys: int, count: int) -> None:
    first = derive_keys(torch.arange(keys) * 7919 - 3, 9).unsqueeze(1)
    whole = _uniform_by_torch(first, count)
    assert whole.shape == (keys, count)
    parts = _uniform_by_numpy(first.numpy().view(np.uint64), count)
    assert torch.equal(torch.from_numpy(parts), whole)


@pytest.mark.parametrize("count", [1, 6, 1001])
def test_normal_numbers_are_those_of_box_and_muller(count: int) -> None:
    keys, half = torch.arange(3), (count + 1) // 2
    first, second = uniform(keys, 2 * half, stream=4).split(half, dim=1)
    radius, angle = (-2 * torch.log1p(-first)).sqrt(), 2 * math.pi * second
    wanted = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
    assert torch.equal(normal(keys, count, stream=4), wanted)
