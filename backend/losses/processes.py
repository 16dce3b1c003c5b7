"""The processes that train together, each on its share of a batch.

Losses of one process are averaged over all of them, and with them their gradients. What is no mean
over samples, such as a quotient of sums or the nearest of all samples, needs what the others hold;
here it is fetched. One process alone is its own group, and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """For the time of the block this process is its own group: it asks nothing of the others."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def processes() -> int:
    """How many train together."""
    if _alone or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def gather(mine: Float[Tensor, "b ..."]) -> Float[Tensor, "all ..."]:
    """The samples of all processes in the order of their rank, with gradient to each of them.

    Each must hold equally many.
    """
    if processes() == 1:
        return mine
    parts = [torch.empty_like(mine) for _ in range(processes())]
    dist.all_gather(parts, mine.detach().contiguous())
    parts[rank()] = mine
    everyone = torch.cat(parts)
    if everyone.requires_grad:
        # What the other processes have as gradient for our part belongs to it too.
        hook: Callable[[Callable[[Tensor], Tensor]], object] = everyone.register_hook
        hook(_added)
    return everyone


def total(mine: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """The sum over all processes, with gradient to each of them."""
    if processes() == 1:
        return mine
    apply: Callable[[Tensor], Tensor] = _Total.apply
    return apply(mine)


def mean_of_sums(value: Float[Tensor, ""], count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """A quotient whose mean over all processes is that of the sums over all of them.

    Args:
        value: what is summed here.
        count: how many it is summed over, greater than 0 in all processes together.
    """
    return value * processes() / total(count.detach())


class _Total(torch.autograd.Function):
    """Each process' loss depends on what every process has added."""

    @staticmethod
    def forward(_ctx: object, mine: Tensor) -> Tensor:
        return _added(mine)

    @staticmethod
    def backward(_ctx: object, *gradients: Tensor) -> Tensor:
        return _added(gradients[0])


def _added(mine: Tensor) -> Tensor:
    everyone = mine.detach().clone()
    dist.all_reduce(everyone)
    return everyone
