from __future__ import annotations

import math
from collections import deque

import pytest
import torch
from torch import Tensor

from backend.losses.queue import KeyQueue, queue_nce


def _vectors(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def _unit(values: list[float]) -> list[float]:
    length = math.sqrt(sum(v * v for v in values))
    return [v / length for v in values]


def test_the_last_keys_stay_and_the_oldest_make_room_whatever_the_parts_of_a_step() -> None:
    queue = KeyQueue(5, 3)
    kept = deque((_unit(row) for row in queue.keys.tolist()), maxlen=5)
    seed = 0
    for step in ([2], [1, 2], [5], [], [3, 3, 1], [4]):
        for part in step:
            seed += 1
            keys = _vectors(part, 3, seed)
            before = queue.keys.clone()
            queue.observe(keys)
            assert torch.equal(queue.keys, before)
            kept.extend(_unit(row) for row in keys.tolist())
        queue.update()
        # The place of the next key is that of the oldest one.
        oldest_first = queue.keys.roll(-int(queue.position), dims=0).double()
        assert torch.allclose(oldest_first, torch.tensor(list(kept)).double(), atol=1e-6), step


def test_keys_and_place_are_part_of_the_state_and_what_goes_on_from_it_is_the_same() -> None:
    queue, other = KeyQueue(5, 3), KeyQueue(5, 3)
    queue.observe(_vectors(3, 3, 1))
    queue.update()
    other.load_state_dict(queue.state_dict())
    for one in (queue, other):
        one.observe(_vectors(4, 3, 2))
        one.update()
    assert torch.equal(queue.keys, other.keys)
    assert int(queue.position) == int(other.position) == 2


def test_contrast_equals_the_equation_and_only_the_query_learns() -> None:
    query, key, others = _vectors(3, 4, 1), _vectors(3, 4, 2), _vectors(6, 4, 3)
    others = torch.nn.functional.normalize(others, dim=1)
    query.requires_grad_()
    key.requires_grad_()
    found = queue_nce(query, key, others, 0.2)
    wanted = 0.0
    for q, k in zip(query.tolist(), key.tolist(), strict=True):
        q, k = _unit(q), _unit(k)
        own = math.exp(sum(a * b for a, b in zip(q, k, strict=True)) / 0.2)
        rest = [
            math.exp(sum(a * b for a, b in zip(q, o, strict=True)) / 0.2) for o in others.tolist()
        ]
        wanted -= math.log(own / (own + sum(rest))) / 3
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    found.backward()
    assert query.grad is not None
    assert key.grad is None


def test_under_autocast_the_contrast_stays_full_precision() -> None:
    query, key, others = _vectors(3, 64, 1), _vectors(3, 64, 2), _vectors(50, 64, 3)
    wanted = queue_nce(query, key, others, 0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = queue_nce(query, key, others, 0.2)
    assert torch.equal(found, wanted)
