from __future__ import annotations

import math
import warnings

import pytest
import torch

from backend.losses.segmentation import dice_binary_cross_entropy, dice_cross_entropy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.losses import DiceCELoss


@pytest.mark.parametrize("classes", [2, 5])
def test_dice_and_cross_entropy_equal_those_of_monai(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, classes, 5, 6, 7, generator=generator, requires_grad=True)
    # The last class never occurs: its term comes from the smoothing alone.
    target = torch.randint(classes - 1, (3, 5, 6, 7), generator=generator)
    reference = DiceCELoss(
        softmax=True, to_onehot_y=True, squared_pred=True, smooth_nr=1e-5, smooth_dr=1e-5
    )
    ours = dice_cross_entropy(logits, target)
    theirs = reference(logits, target.unsqueeze(1))
    assert torch.allclose(ours.dice + ours.ce, theirs, atol=1e-6)
    assert torch.allclose(ours.ce, torch.nn.functional.cross_entropy(logits, target))
    (mine,) = torch.autograd.grad(ours.dice + ours.ce, logits, retain_graph=True)
    (others,) = torch.autograd.grad(theirs, logits)
    assert torch.allclose(mine, others, atol=1e-7)


def test_a_certain_and_right_answer_costs_nothing_and_a_wrong_one_a_whole_dice() -> None:
    target = torch.randint(3, (2, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    truth = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    right = dice_cross_entropy(50 * truth, target)
    assert float(right.dice) == pytest.approx(0, abs=1e-5)
    assert float(right.ce) == pytest.approx(0, abs=1e-5)
    wrong = dice_cross_entropy(50 * truth.roll(1, 1), target)
    assert float(wrong.dice) == pytest.approx(1, abs=1e-5)
    assert float(wrong.ce) == pytest.approx(50, rel=1e-4)


def test_half_precision_logits_are_judged_in_full_precision() -> None:
    target = torch.zeros((1, 4, 4, 4), dtype=torch.int64)
    loss = dice_cross_entropy(torch.zeros(1, 2, 4, 4, 4, dtype=torch.bfloat16), target)
    assert loss.dice.dtype == loss.ce.dtype == torch.float32
    # p = 1/2 everywhere: class 0 has 1 - 2*(n/2)/(n/4+n), class 1 (nearly) 1 - 0/(n/4).
    assert float(loss.dice) == pytest.approx((1 - 1 / 1.25 + 1) / 2, abs=1e-5)


def _dice_and_bce_by_loop(logits: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """PGL, eq. 11, one structure and one voxel at a time, in float64."""
    values, classes = logits.double().movedim(1, -1).flatten(0, -2), logits.shape[1]
    labels = target.flatten().tolist()
    dices, entropies = [], []
    for structure in range(1, classes):
        overlap = predicted = true = 0.0
        for voxel, label in zip(values.tolist(), labels, strict=True):
            p = 1 / (1 + math.exp(voxel[0] - voxel[structure]))
            y = float(label == structure)
            overlap, predicted, true = overlap + p * y, predicted + p, true + y
            entropies.append(-(y * math.log(p) + (1 - y) * math.log(1 - p)))
        dices.append(1 - (2 * overlap + 1e-5) / (predicted + true + 1e-5))
    return sum(dices) / len(dices), sum(entropies) / len(entropies)


@pytest.mark.parametrize("classes", [2, 5])
def test_dice_and_binary_cross_entropy_equal_those_of_a_loop(classes: int) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(2, classes, 3, 4, 5, generator=generator)
    # The last structure never occurs.
    target = torch.randint(max(classes - 1, 2), (2, 3, 4, 5), generator=generator)
    found = dice_binary_cross_entropy(logits, target)
    wanted = _dice_and_bce_by_loop(logits, target)
    assert (found.dice.item(), found.ce.item()) == pytest.approx(wanted, rel=1e-5)
    half = dice_binary_cross_entropy(logits.bfloat16(), target)
    assert half.dice.dtype == half.ce.dtype == torch.float32


def test_the_largest_channel_is_the_class_that_binary_cross_entropy_learns() -> None:
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(4, (1, 4, 4, 4), generator=generator)
    logits = torch.randn(1, 4, 4, 4, 4, generator=generator, requires_grad=True)
    # A structure wins where it is likelier than not and likelier than the others.
    likely = torch.sigmoid(logits[:, 1:] - logits[:, :1])
    best = likely.max(dim=1)
    assert torch.equal(torch.where(best.values > 0.5, best.indices + 1, 0), logits.argmax(dim=1))
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(dice_binary_cross_entropy(logits, target)).backward()
        optimizer.step()
    assert torch.equal(logits.argmax(dim=1), target)
