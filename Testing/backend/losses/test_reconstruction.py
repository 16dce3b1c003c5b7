from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from backend.losses.reconstruction import masked_l1, masked_mse


def _case() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(4, 1, 3, 4, 2, generator=generator)
    target = torch.rand(4, 1, 3, 4, 2, generator=generator)
    # Samples hide different numbers of voxels: a mean of means would be another number.
    share = torch.tensor([0.1, 0.9, 0.5, 0.3]).view(-1, 1, 1, 1)
    return prediction, target, torch.rand(4, 3, 4, 2, generator=generator) < share


def test_masked_l1_is_one_quotient_over_both_views_and_the_batch() -> None:
    prediction, target, mask = _case()
    above, below = 0.0, 0.0
    for b, z, y, x in itertools.product(range(4), range(3), range(4), range(2)):
        if mask[b, z, y, x]:
            above += abs(float(prediction[b, 0, z, y, x]) - float(target[b, 0, z, y, x]))
            below += 1
    found = masked_l1(prediction, target, mask)
    assert float(found) == pytest.approx(above / (below + 1e-5), rel=1e-6)
    per_sample = [float(masked_l1(prediction[[b]], target[[b]], mask[[b]])) for b in range(4)]
    assert abs(sum(per_sample) / 4 - float(found)) > 1e-3


def test_visible_voxels_do_not_enter() -> None:
    prediction, target, mask = _case()
    changed = torch.where(mask.unsqueeze(1), prediction, prediction + 100)
    assert torch.equal(masked_l1(changed, target, mask), masked_l1(prediction, target, mask))


def test_gradient_is_the_sign_of_the_error_over_the_number_of_hidden_voxels() -> None:
    prediction, target, mask = _case()
    prediction.requires_grad_()
    masked_l1(prediction, target, mask).backward()
    wanted = (prediction.detach() - target).sign() * mask.unsqueeze(1) / (mask.sum() + 1e-5)
    assert prediction.grad is not None
    assert torch.allclose(prediction.grad, wanted, atol=1e-7)


def test_nothing_hidden_is_no_loss_and_half_precision_is_summed_in_full() -> None:
    prediction, target, mask = _case()
    assert float(masked_l1(prediction, target, torch.zeros_like(mask))) == 0
    assert masked_l1(prediction.bfloat16(), target.bfloat16(), mask).dtype == torch.float32


def test_masked_mse_is_the_mean_over_views_of_the_mean_over_hidden_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(3, 5, 4, generator=generator)
    target = torch.rand(3, 5, 4, generator=generator)
    hidden = [(0, 3), (1, 2), (3, 4)]
    mask = torch.zeros(3, 5, dtype=torch.bool)
    wanted = 0.0
    for view, patches in enumerate(hidden):
        for patch in patches:
            mask[view, patch] = True
            for voxel in range(4):
                error = float(prediction[view, patch, voxel]) - float(target[view, patch, voxel])
                wanted += error**2 / 4 / 2 / 3
    assert float(masked_mse(prediction, target, mask)) == pytest.approx(wanted, rel=1e-6)
    seen = torch.where(mask.unsqueeze(-1), prediction, prediction + 100)
    assert torch.equal(masked_mse(seen, target, mask), masked_mse(prediction, target, mask))
    assert masked_mse(prediction.bfloat16(), target, mask).dtype == torch.float32
