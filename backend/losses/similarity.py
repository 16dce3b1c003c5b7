"""How alike the features of two views are, on their own or among those of other samples.

All in fp32. Where samples are told apart from others, the others are those of all processes, each
of which must hold equally many.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from backend.losses.precision import full_precision
from backend.losses.processes import gather, rank


def cosine_distance(
    prediction: Float[Tensor, "b c *space"], target: Float[Tensor, "b c *space"]
) -> Float[Tensor, ""]:
    """Mean of ||q - z||² = 2 - 2 cos between vectors of length 1 (PGL, eq. 8; BYOL, eq. 2).

    Args:
        prediction: one vector along axis 1 for each sample and place.
        target: the vectors wanted there.
    """
    q = functional.normalize(prediction.float(), dim=1)
    z = functional.normalize(target.float(), dim=1)
    return 2 - 2 * (q * z).sum(dim=1).mean()


def info_nce(
    query: Float[Tensor, "b c"], key: Float[Tensor, "b c"], temperature: float
) -> Float[Tensor, ""]:
    """Find the own key among all keys (MoCo v3, Chen et al. 2021, eq. 1 and alg. 1).

    As there the cross-entropy is scaled by 2 tau, so that tau does not set the step length.

    Args:
        query: vectors that learn.
        key: the same samples seen by the target; no gradient goes there.
        temperature: tau.
    """
    keys = gather(_unit(key.detach()))
    own = rank() * len(query) + torch.arange(len(query), device=query.device)
    with full_precision(query.device.type):
        logits = _unit(query) @ keys.T / temperature
        return 2 * temperature * functional.cross_entropy(logits, own)


def nt_xent(
    first: Float[Tensor, "b c"], second: Float[Tensor, "b c"], temperature: float
) -> Float[Tensor, ""]:
    """Find the other view among all views of all samples (SimCLR, Chen et al. 2020, eq. 1).

    Gradients reach the views as queries and as the others of every query, also of those on other
    processes; averaged over processes they are those of one process with the whole batch.

    Args:
        first: one view of each sample.
        second: the other, in the same order.
        temperature: tau.
    """
    ours = torch.stack([_unit(first), _unit(second)], dim=1)  # (b, 2, c): views side by side
    everyone = gather(ours).flatten(0, 1)
    ours = ours.flatten(0, 1)
    index = torch.arange(len(ours), device=ours.device)
    here = rank() * len(ours) + index
    other = rank() * len(ours) + (index ^ 1)
    with full_precision(ours.device.type):
        logits = ours @ everyone.T / temperature
        itself = here.unsqueeze(1) == torch.arange(len(everyone), device=ours.device)
        return functional.cross_entropy(logits.masked_fill(itself, float("-inf")), other)


def koleo(features: Float[Tensor, "*views b c"]) -> Float[Tensor, ""]:
    """Minus the mean log distance to the nearest other sample, on the unit sphere, fp32.

    Kozachenko-Leonenko estimate of the differential entropy (Sablayrolles et al. 2019,
    arXiv 1806.03198, eq. 4; DINOv2, arXiv 2304.07193, sec. 4): it grows without bound where
    samples are all alike. One sample has no neighbour and counts 0.

    Args:
        features: of a batch, each view's samples among themselves and those of all processes.
    """
    ours = functional.normalize(features.float(), dim=-1)
    everyone = gather(ours.movedim(-2, 0)).movedim(0, -2)
    if everyone.shape[-2] < _NEIGHBOURS_AT_LEAST:
        return ours.sum() * 0.0
    with full_precision(ours.device.type), torch.no_grad():
        alike = ours @ everyone.transpose(-1, -2)
        first = rank() * ours.shape[-2]
        alike.diagonal(offset=first, dim1=-2, dim2=-1).fill_(-_NEVER_NEAREST)
        nearest = alike.argmax(dim=-1, keepdim=True).expand_as(ours)
    # The distance itself is not taken from the product: it would be noise where it is small.
    distance = (ours - everyone.gather(-2, nearest)).norm(dim=-1)
    crowding: Tensor = -(distance + _SMALLEST_DISTANCE).log().mean()
    return crowding


_NEIGHBOURS_AT_LEAST = 2
_NEVER_NEAREST = 2.0
_SMALLEST_DISTANCE = 1e-6


def _unit(vectors: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
    return functional.normalize(vectors.float(), dim=-1)
