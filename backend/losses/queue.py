"""Keys of earlier samples, for contrast with more samples than a batch holds.

He et al. 2020 (MoCo), arXiv 1911.05722, sec. 3.2. The queue is the same on all processes: what each
of them has seen during a step goes into it in the order of their rank.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from backend.losses.precision import full_precision
from backend.losses.processes import gather
from backend.losses.state import StepState


class KeyQueue(StepState):
    """The last keys that were seen; the oldest make room.

    It begins with random ones, as published. What is observed during a step (in several parts if
    gradients are accumulated) is taken in once by `update`, so that a sample is never contrasted
    with itself.

    Args:
        size: how many keys.
        width: length of a key.

    Attributes:
        keys: vectors of length 1, (size, width).
        position: where the next key goes, a whole number.
    """

    keys: Tensor
    position: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("keys", functional.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self._seen: list[Tensor] = []

    @torch.no_grad()
    def observe(self, keys: Float[Tensor, "b width"]) -> None:
        """Take the keys of a part of the batch into account."""
        self._seen.append(functional.normalize(keys.detach().float(), dim=1))

    def forget(self) -> None:
        """See `StepState`."""
        self._seen.clear()

    @torch.no_grad()
    def update(self) -> None:
        """Let what was observed since the last update, on all processes, replace the oldest keys.

        Every process must have observed equally many keys.
        """
        if not self._seen:
            return
        size = len(self.keys)
        # Of more keys than there is room for, the last ones stay.
        new = gather(torch.cat(self._seen))[-size:]
        places = (self.position + torch.arange(len(new), device=new.device)) % size
        self.keys.index_copy_(0, places, new)
        self.position.copy_((self.position + len(new)) % size)
        self._seen.clear()


def queue_nce(
    query: Float[Tensor, "b c"],
    key: Float[Tensor, "b c"],
    others: Float[Tensor, "n c"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Find the own key among it and those of other samples (MoCo, eq. 1), fp32.

    Args:
        query: vectors that learn.
        key: the same samples seen by the teacher; no gradient goes there.
        others: vectors of length 1.
        temperature: tau.
    """
    with full_precision(query.device.type):
        q = functional.normalize(query.float(), dim=1)
        k = functional.normalize(key.detach().float(), dim=1)
        own = (q * k).sum(dim=1, keepdim=True)
        logits = torch.cat([own, q @ others.float().T], dim=1) / temperature
        first = torch.zeros(len(q), dtype=torch.int64, device=q.device)
        return functional.cross_entropy(logits, first)
