"""A student that matches a teacher's distribution over prototypes, and the teacher's centre."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from jaxtyping import Float
from torch import Tensor

from backend.losses.processes import processes, total
from backend.losses.state import StepState


def teacher_distribution(
    logits: Float[Tensor, "*batch k"], centre: Float[Tensor, " k"], temperature: float
) -> Float[Tensor, "*batch k"]:
    """Centred and sharpened softmax (SMIT eq. 3; DINO sec. 3.1), fp32.

    Sharpening alone would collapse to one prototype, centring alone to the uniform distribution;
    together they balance.
    """
    distribution: Tensor = torch.softmax((logits.float() - centre) / temperature, dim=-1)
    return distribution


def cross_entropy(
    target: Float[Tensor, "*batch k"], student_logits: Float[Tensor, "*batch k"], temperature: float
) -> Float[Tensor, "*batch"]:
    """H(p_t, p_s) = -sum_k p_t log p_s (SMIT eqs. 2 and 4), fp32, for each token on its own."""
    log_student = torch.log_softmax(student_logits.float() / temperature, dim=-1)
    return -(target * log_student).sum(dim=-1)


def cross_entropy_of_pairs(
    target: Float[Tensor, "u b k"], student_logits: Float[Tensor, "m b k"], temperature: float
) -> Float[Tensor, ""]:
    """Mean of H(p_t, p_s) over all pairs of a teacher's and a student's view (GL-MAE eq. 8), fp32.

    Views of one sample are paired, u times m of them. H is linear in the target, so the mean of a
    sample's targets stands for all of them.
    """
    mean = target.mean(dim=0).expand_as(student_logits)
    return cross_entropy(mean, student_logits, temperature).mean()


def entropy(distribution: Float[Tensor, "*batch k"]) -> Float[Tensor, ""]:
    """Mean entropy in nats: how sure a teacher is; near log k for long it tells nothing."""
    mean: Tensor = torch.special.entr(distribution).sum(dim=-1).mean()
    return mean


def marginal_entropy(distribution: Float[Tensor, "*batch k"]) -> Float[Tensor, ""]:
    """Entropy in nats of the mean of all: how many answers there are; 0 if it is always one.

    Of the answers in all processes.
    """
    marginal = total(distribution.flatten(0, -2).mean(dim=0)) / processes()
    nats: Tensor = torch.special.entr(marginal).sum()
    return nats


def varied(distribution: Float[Tensor, "*batch k"]) -> bool:
    """Whether there are so many answers that their `marginal_entropy` says something."""
    answers = processes() * distribution.numel() // distribution.shape[-1]
    return answers >= _ANSWERS_AT_LEAST


def feature_std(features: Float[Tensor, "*batch c"]) -> Float[Tensor, ""]:
    """How far features of length 1 spread, fp32: 1 evenly over the sphere, 0 when all are alike.

    Of the features in all processes.
    """
    unit = F.normalize(features.float().flatten(0, -2), dim=-1)
    if processes() == 1:
        # Over all that is there, so that a single feature has the spread 0 and not none.
        deviation = unit.std(dim=0, correction=0)
    else:
        centre = total(unit.mean(dim=0)) / processes()
        deviation = (total((unit - centre).square().mean(dim=0)) / processes()).sqrt()
    spread: Tensor = deviation.mean() * unit.shape[-1] ** 0.5
    return spread


_ANSWERS_AT_LEAST = 8


class Centre(StepState):
    """Running mean of the teacher's logits, over all processes.

    What is observed during a step (in several parts if gradients are accumulated) is applied once
    by `update`, so that the centre of the step does not depend on how it was cut.

    Args:
        size: number of prototypes.
        momentum: share of the old centre kept at each update.
    """

    value: Tensor
    _sum: Tensor
    _count: Tensor

    def __init__(self, size: int, *, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(size))
        self.register_buffer("_sum", torch.zeros(size), persistent=False)
        self.register_buffer("_count", torch.zeros(()), persistent=False)

    @torch.no_grad()
    def observe(self, logits: Float[Tensor, "*batch k"]) -> None:
        """Take the teacher's logits of a part of the batch into account."""
        flat = logits.float().flatten(0, -2)
        self._sum += flat.sum(dim=0)
        self._count += len(flat)

    @torch.no_grad()
    def update(self) -> None:
        """C <- m C + (1 - m) mean of what was observed since the last update, on all processes."""
        observed = total(torch.cat([self._sum, self._count.view(1)]))
        count = observed[-1]
        mean = observed[:-1] / count.clamp(min=1)
        # Nothing observed moves nothing; decided on the device, without waiting for it.
        self.value.lerp_(mean, (1 - self.momentum) * (count > 0))
        self._sum.zero_()
        self._count.zero_()
