"""A teacher that follows its student as a moving average."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def teacher_of(student: ModuleT) -> ModuleT:
    """A copy with the same weights, in evaluation mode, that no gradient reaches."""
    teacher = copy.deepcopy(student)
    teacher.eval()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """theta_t <- m theta_t + (1 - m) theta_s (SMIT, sec. 2, online teacher update).

    Running statistics, where a network has them, are averaged alike; counters are copied.
    """
    old: list[Tensor] = list(teacher.parameters())
    new: list[Tensor] = [p.detach() for p in student.parameters()]
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        if mine.is_floating_point():
            old.append(mine)
            new.append(theirs)
        else:
            mine.copy_(theirs)
    torch._foreach_lerp_(old, new, 1.0 - momentum)
