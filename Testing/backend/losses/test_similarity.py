from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from backend.losses.similarity import cosine_distance, info_nce, koleo, nt_xent


def _vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def _cross_entropy(logits: list[float], wanted: int) -> float:
    return math.log(sum(math.exp(v - logits[wanted]) for v in logits))


def test_cosine_distance_is_the_squared_distance_of_unit_vectors_at_each_place() -> None:
    q, z = _vectors(2, 3, 1, 2, 2), _vectors(2, 3, 1, 2, 2, seed=1)
    distances = []
    for b in range(2):
        for y in range(2):
            for x in range(2):
                one, two = q[b, :, 0, y, x].double(), z[b, :, 0, y, x].double()
                one, two = one / one.square().sum().sqrt(), two / two.square().sum().sqrt()
                distances.append(float((one - two).square().sum()))
    assert cosine_distance(q, z).item() == pytest.approx(sum(distances) / 8, rel=1e-5)
    assert cosine_distance(q, 3 * q).item() == pytest.approx(0, abs=1e-6)
    assert cosine_distance(q, -q).item() == pytest.approx(4)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_info_nce_finds_the_own_key_among_all(temperature: float) -> None:
    query, key = _vectors(5, 4), _vectors(5, 4, seed=1)
    wanted = 0.0
    for i in range(5):
        logits = [_cosine(query[i].tolist(), key[j].tolist()) / temperature for j in range(5)]
        wanted += _cross_entropy(logits, i) / 5
    found = info_nce(query, key, temperature).item()
    assert found == pytest.approx(2 * temperature * wanted, rel=1e-5)


def test_no_gradient_reaches_the_keys() -> None:
    query, key = _vectors(3, 4).requires_grad_(), _vectors(3, 4, seed=1).requires_grad_()
    info_nce(query, key, 0.2).backward()
    assert query.grad is not None
    assert key.grad is None


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_finds_the_other_view_among_all_views_but_itself(temperature: float) -> None:
    first, second = _vectors(4, 3), _vectors(4, 3, seed=1)
    every = [*first.tolist(), *second.tolist()]
    wanted = 0.0
    for i in range(8):
        others = [j for j in range(8) if j != i]
        logits = [_cosine(every[i], every[j]) / temperature for j in others]
        wanted += _cross_entropy(logits, others.index((i + 4) % 8)) / 8
    assert nt_xent(first, second, temperature).item() == pytest.approx(wanted, rel=1e-5)
    assert nt_xent(second, first, temperature).item() == pytest.approx(wanted, rel=1e-5)


def test_koleo_is_the_log_distance_to_the_nearest_other_sample() -> None:
    views = _vectors(2, 5, 7).double()
    logs = []
    for view in views:
        unit = [row / row.norm() for row in view]
        for i, mine in enumerate(unit):
            others = [(mine - other).norm() for j, other in enumerate(unit) if j != i]
            logs.append(torch.log(min(others) + 1e-6))
    wanted = -sum(logs) / len(logs)
    torch.testing.assert_close(koleo(views).double(), wanted, atol=1e-5, rtol=0)


def test_koleo_pushes_apart_what_is_almost_alike_and_leaves_one_sample_alone() -> None:
    features = (1 + 1e-3 * _vectors(1, 4, 6)).requires_grad_()
    before = koleo(features)
    before.backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    assert koleo(features.detach() - 1e-7 * features.grad) < before
    assert koleo(_vectors(2, 1, 6)) == 0


def test_losses_stay_full_precision_under_autocast() -> None:
    first, second = _vectors(4, 3), _vectors(4, 3, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [
            cosine_distance(first, second),
            info_nce(first, second, 0.2),
            nt_xent(first, second, 0.2),
        ]
    wanted = [
        cosine_distance(first, second),
        info_nce(first, second, 0.2),
        nt_xent(first, second, 0.2),
    ]
    for value, without in zip(found, wanted, strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, without)
