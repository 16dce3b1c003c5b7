"""Losses of supervised segmentation."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from jaxtyping import Float, Int64
from torch import Tensor

from backend.losses.processes import total

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


def dice_binary_cross_entropy(
    logits: Float[Tensor, "b k z y x"], target: Int64[Tensor, "b z y x"]
) -> DiceCE:
    """Soft Dice and binary cross-entropy of each structure on its own (PGL, eq. 11), fp32.

    The logit of a structure is its channel less that of the background, so that the largest
    channel still tells the class of a voxel: a structure wins where its probability is above one
    half and above that of the others. Dice is 1 - (2 sum p y + s) / (sum p + sum y + s), summed
    over the batch of all processes, as in the paper with s = 1e-5.

    Args:
        logits: one channel for each class, background first.
        target: class of each voxel.
    """
    logits = logits.float()
    binary = logits[:, 1:] - logits[:, :1]
    truth = F.one_hot(target, logits.shape[1]).movedim(-1, 1)[:, 1:].to(binary.dtype)
    probability = torch.sigmoid(binary)
    axes = (0, 2, 3, 4)
    overlap = total((probability * truth).sum(axes))
    size = total(probability.sum(axes) + truth.sum(axes))
    dice = 1 - (2 * overlap + _SMOOTH) / (size + _SMOOTH)
    return DiceCE(dice.mean(), F.binary_cross_entropy_with_logits(binary, truth))
