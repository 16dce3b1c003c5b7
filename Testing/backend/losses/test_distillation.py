from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from backend.losses.distillation import (
    Centre,
    cross_entropy,
    cross_entropy_of_pairs,
    entropy,
    feature_std,
    marginal_entropy,
    teacher_distribution,
    varied,
)


def _softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def _logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_teacher_distribution_is_centred_then_sharpened() -> None:
    logits, centre = _logits(2, 3, 7), _logits(7, seed=1) * 0.1
    found = teacher_distribution(logits, centre, 0.04)
    for b in range(2):
        for i in range(3):
            shifted = [
                (x - c) / 0.04 for x, c in zip(logits[b, i].tolist(), centre.tolist(), strict=True)
            ]
            assert torch.allclose(found[b, i], torch.tensor(_softmax(shifted)), atol=1e-5)


def test_cross_entropy_equals_plain_loops_for_each_token() -> None:
    target, student = torch.softmax(_logits(2, 3, 7), -1), _logits(2, 3, 7, seed=1)
    found = cross_entropy(target, student, 0.1)
    assert found.shape == (2, 3)
    for b in range(2):
        for i in range(3):
            q = _softmax([x / 0.1 for x in student[b, i].tolist()])
            wanted = -sum(p * math.log(x) for p, x in zip(target[b, i].tolist(), q, strict=True))
            assert float(found[b, i]) == pytest.approx(wanted, rel=1e-4)


def test_losses_are_full_precision_whatever_comes_in() -> None:
    logits = _logits(2, 5).bfloat16()
    distribution = teacher_distribution(logits, torch.zeros(5), 0.04)
    assert distribution.dtype == torch.float32
    assert cross_entropy(distribution, logits, 0.1).dtype == torch.float32


def test_cross_entropy_is_least_where_the_student_agrees_and_its_gradient_vanishes_there() -> None:
    target = torch.softmax(_logits(4, 6).double(), -1).float()
    student = (target.log() * 0.1).requires_grad_()
    loss = cross_entropy(target, student, 0.1).mean()
    loss.backward()
    assert loss.item() == pytest.approx(float(entropy(target)), rel=1e-5)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-5


def test_entropy_ranges_from_0_to_log_of_the_number_of_prototypes() -> None:
    assert float(entropy(torch.eye(5)[:3])) == 0
    assert float(entropy(torch.full((2, 3, 8), 1 / 8))) == pytest.approx(math.log(8))


def test_marginal_entropy_tells_one_answer_to_all_from_an_answer_to_each() -> None:
    sure_and_different = torch.eye(5).view(5, 1, 5)
    assert float(marginal_entropy(sure_and_different)) == pytest.approx(math.log(5))
    assert float(marginal_entropy(torch.eye(5)[:1].expand(3, 4, 5))) == 0
    assert [varied(torch.ones(2, n, 5)) for n in (3, 4)] == [False, True]


def test_centre_follows_the_mean_over_batch_and_tokens() -> None:
    centre = Centre(4, momentum=0.9)
    wanted = [0.0] * 4
    for step in range(3):
        logits = _logits(2, 5, 4, seed=step)
        centre.observe(logits)
        centre.update()
        for k in range(4):
            mean = sum(float(logits[b, i, k]) for b in range(2) for i in range(5)) / 10
            wanted[k] = 0.9 * wanted[k] + 0.1 * mean
        assert torch.allclose(centre.value, torch.tensor(wanted), atol=1e-6)


def test_centre_does_not_depend_on_how_a_step_is_cut_even_unevenly() -> None:
    logits = _logits(6, 5, 4)
    whole, parts = Centre(4, momentum=0.9), Centre(4, momentum=0.9)
    whole.observe(logits)
    for part in (logits[:1], logits[1:4], logits[4:]):
        parts.observe(part)
    whole.update()
    parts.update()
    assert torch.allclose(whole.value, parts.value, atol=1e-7)


def test_what_is_observed_counts_only_once() -> None:
    centre = Centre(3, momentum=0.5)
    centre.observe(torch.ones(2, 3))
    centre.update()
    assert centre.value.tolist() == [0.5] * 3
    centre.observe(torch.full((4, 3), 3.0))
    centre.update()
    assert centre.value.tolist() == [1.75] * 3


def test_a_step_without_observation_leaves_the_centre_as_it_is() -> None:
    centre = Centre(3, momentum=0.5)
    centre.observe(torch.ones(2, 3))
    centre.update()
    centre.update()
    assert centre.value.tolist() == [0.5] * 3


def test_only_the_value_of_a_centre_is_saved() -> None:
    assert list(Centre(3, momentum=0.9).state_dict()) == ["value"]


def test_every_teacher_view_guides_every_student_view_of_its_sample() -> None:
    target, student = torch.softmax(_logits(2, 3, 7), -1), _logits(5, 3, 7, seed=1)
    wanted = 0.0
    for b in range(3):
        for u in range(2):
            for m in range(5):
                q = _softmax([x / 0.1 for x in student[m, b].tolist()])
                pairs = zip(target[u, b].tolist(), q, strict=True)
                wanted -= sum(p * math.log(x) for p, x in pairs) / (2 * 5 * 3)
    found = cross_entropy_of_pairs(target, student, 0.1)
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_feature_std_is_1_on_the_whole_sphere_and_0_at_one_point() -> None:
    assert float(feature_std(_logits(50, 40, 16))) == pytest.approx(1, abs=0.02)
    assert float(feature_std(torch.ones(5, 3, 16))) == pytest.approx(0, abs=1e-6)
    one = feature_std(_logits(1, 16).bfloat16())
    assert float(one) == 0
    assert one.dtype == torch.float32
