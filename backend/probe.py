"""What frozen features know: a linear map from them to the structure at a voxel, and their rank.

Nothing is fine-tuned. For the map, features are read at single voxels of a few labelled scans, a
ridge regression onto the structures is solved, and judged on voxels of other scans. Structures
count alike, however large they are, so that guessing gives 1 / structures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from backend.models.encoder import feature_maps

NOT_ASKED = -1
"""The target of voxels that are not read."""


class LabelledImage(NamedTuple):
    """A scan as the encoder sees it, with the class of each voxel (0: background).

    Attributes:
        image: (z, y, x); edges are multiples of the encoder's stride.
        target: whole numbers, (z, y, x); `NOT_ASKED` where a voxel is not read.
    """

    image: Float[Tensor, "z y x"]
    target: NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How a probe is made.

    Attributes:
        voxels: read of each class and scan, at most.
        ridge: weight of the penalty, relative to the mean variance of the features.
        deepest: read the coarsest map alone, instead of all maps.
        seed: which voxels are read.
    """

    voxels: int = 200
    ridge: float = 1e-2
    deepest: bool = False
    seed: int = 0


def linear_probe(
    encoder: nn.Module,
    learn: Sequence[LabelledImage],
    judge: Sequence[LabelledImage],
    settings: ProbeSettings,
) -> float:
    """Share of voxels whose class a linear map of frozen features tells, mean over classes.

    Nothing random is drawn but from the settings' own seed.

    Args:
        encoder: gives maps of features, on any device; each of its modules is left in its mode.
        learn: scans that the linear map is solved on.
        judge: scans that it is judged on; classes that none of them has do not count.
        settings: see `ProbeSettings`.
    """
    with _evaluating(encoder), torch.no_grad():
        known = _samples(encoder, learn, settings)
        asked = _samples(encoder, judge, settings)
    return _balanced_accuracy(_solve(*known, asked[0], ridge=settings.ridge), asked[1])


def effective_rank(features: Float[Tensor, "n c"]) -> float:
    """How many directions features spread over: RankMe (Garrido et al., arXiv 2210.02885, eq. 1).

    The exponential of the entropy of their singular values as shares, from 1 (all lie on a line, or
    are nothing) to the smaller of n and c (all directions alike); so it compares only with what was
    computed of as many features. Features are not centred, as there: all alike have rank 1.
    """
    values = torch.linalg.svdvals(features.double().cpu())
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


@contextmanager
def _evaluating(encoder: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _samples(
    encoder: nn.Module, scans: Sequence[LabelledImage], settings: ProbeSettings
) -> tuple[Float[Tensor, "n c"], Int64[Tensor, " n"]]:
    device = next(encoder.parameters()).device
    features, classes = [], []
    for number, (image, target) in enumerate(scans):
        rng = np.random.default_rng([settings.seed, number])
        places = _places(target, settings.voxels, rng)
        maps = feature_maps(encoder, image[None, None].to(device))
        kept = maps[-1:] if settings.deepest else maps
        features.append(torch.cat([_at(m, places, image.shape) for m in kept], dim=1))
        classes.append(torch.from_numpy(target[tuple(places.T)].astype(np.int64)))
    return torch.cat(features), torch.cat(classes)


def _places(
    target: NDArray[np.integer], voxels: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Voxels (n, 3), as many of each class."""
    chosen = []
    for value in np.setdiff1d(target, NOT_ASKED):
        found = np.argwhere(target == value)
        chosen.append(found[rng.permutation(len(found))[:voxels]])
    return np.concatenate(chosen)


def _at(
    features: Float[Tensor, "1 c z y x"], places: NDArray[np.int64], size: Sequence[int]
) -> Float[Tensor, "n c"]:
    """Features at voxels of the image, interpolated between the cells of the map."""
    # grid_sample wants (x, y, z) from -1 to 1 between the outer faces.
    faces = torch.tensor([size[2], size[1], size[0]], dtype=torch.float32)
    grid = (torch.from_numpy(places[:, ::-1].copy()).float() + 0.5) / faces * 2 - 1
    read = F.grid_sample(
        features.float().cpu(),
        grid.view(1, 1, 1, -1, 3),
        padding_mode="border",
        align_corners=False,
    )
    return read.view(features.shape[1], -1).T


def _solve(
    known: Float[Tensor, "n c"],
    classes: Int64[Tensor, " n"],
    asked: Float[Tensor, "m c"],
    *,
    ridge: float,
) -> Int64[Tensor, " m"]:
    """Classes of `asked` by ridge regression onto one-hot classes, classes weighing alike."""
    known, asked = known.double(), asked.double()
    mean, deviation = known.mean(dim=0), known.std(dim=0).clamp(min=1e-8)
    known, asked = ((x - mean) / deviation for x in (known, asked))
    target = F.one_hot(classes, int(classes.max()) + 1).double()
    weight = (1 / target.sum(dim=0).clamp(min=1))[classes].unsqueeze(1)
    weight = weight / weight.sum()
    offset = (weight * target).sum(dim=0)
    gram = known.T @ (weight * known)
    gram += ridge * torch.eye(len(gram), dtype=torch.float64) * gram.diagonal().mean()
    linear = torch.linalg.solve(gram, known.T @ (weight * (target - offset)))
    found: Tensor = (asked @ linear + offset).argmax(dim=1)
    return found


def _balanced_accuracy(found: Int64[Tensor, " m"], wanted: Int64[Tensor, " m"]) -> float:
    shares = [float((found[wanted == c] == c).double().mean()) for c in torch.unique(wanted)]
    return sum(shares) / len(shares)
