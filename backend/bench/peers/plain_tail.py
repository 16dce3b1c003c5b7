"""What follows a backward pass where nothing is fused: AdamW as it comes, a teacher by a loop."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def plain_optimizer(
    parameters: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW with PyTorch's own defaults, one group."""
    learned = [p for p in parameters if p.requires_grad]
    return torch.optim.AdamW(learned, lr=learning_rate, weight_decay=weight_decay)


@torch.no_grad()
def plain_follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """theta_t <- m theta_t + (1 - m) theta_s, one parameter after the other."""
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.mul_(momentum).add_(theirs.detach() * (1 - momentum))
