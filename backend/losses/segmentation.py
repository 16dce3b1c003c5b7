"""Losses of supervised segmentation."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from jaxtyping import Float, Int64
from torch import Tensor

_SMOOTH = 1e-5


class DiceCE(NamedTuple):
    """The two terms; the loss is their sum."""

    dice: Tensor
    ce: Tensor


def dice_cross_entropy(
    logits: Float[Tensor, "b k z y x"], target: Int64[Tensor, "b z y x"]
) -> DiceCE:
    """Soft Dice (squared denominators, all classes) and cross-entropy, both in fp32.

    As in SMIT's released fine-tuning: softmax, one-hot target, mean over samples and classes of
    1 - (2 sum p y + s) / (sum p² + sum y² + s), s = 1e-5. Checked against MONAI's `DiceCELoss`.

    Args:
        logits: one channel for each class, background first.
        target: class of each voxel.
    """
    logits = logits.float()
    probability = torch.softmax(logits, dim=1)
    truth = F.one_hot(target, logits.shape[1]).movedim(-1, 1).to(probability.dtype)
    axes = (2, 3, 4)
    overlap = (probability * truth).sum(axes)
    size = probability.square().sum(axes) + truth.sum(axes)
    dice = 1 - (2 * overlap + _SMOOTH) / (size + _SMOOTH)
    return DiceCE(dice.mean(), F.cross_entropy(logits, target))
