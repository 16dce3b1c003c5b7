"""PGL: prior-guided local self-supervision (Xie et al., arXiv 2011.12640), and its relatives.

Two views of a scan go through an online and a target network. From how the views were cut and
mirrored follows which places of their feature maps show the same tissue; there the online network,
with one more block, predicts the target's features. The target is the online network's moving
average.

By settings alone this is also BYOL (one pooled vector per view, Grill et al. 2020), SimSiam (the
target is the online network itself, Chen & He 2021), MoCo v3 (the own target is told from those of
other scans, Chen et al. 2021), PGL without an alignment, and PGL with masked image prediction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backend.losses.alignment import align
from backend.losses.distillation import feature_std
from backend.losses.reconstruction import masked_l1
from backend.losses.similarity import cosine_distance, info_nce
from backend.losses.terms import Losses
from backend.methods.method import Method, Reconstruction
from backend.methods.teacher import teacher_of
from backend.models.encoder import build_encoder
from backend.models.heads import ConvProjector, PixelHead
from backend.models.resnet import ResnetEncoder
from backend.models.swin import upsample_cells
from backend.settings.common import triple
from backend.settings.pgl import PglConfig
from backend.views.crops import View, ViewSet
from backend.views.masking import random_cells


class PglBranch(nn.Module):
    """Encoder and projector: what online and target path both have."""

    def __init__(self, config: PglConfig) -> None:
        super().__init__()
        self.encoder = cast(ResnetEncoder, build_encoder(asdict(config.encoder)))
        self.pooled = config.features == "pooled"
        p = config.projector
        self.projector = ConvProjector(
            self.encoder.bottleneck_width, p.widths, last_norm=p.last_norm
        )

    def project(self, bottleneck: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b k pz py px"]:
        """What is compared (eq. 3), at each place or, pooled, at one."""
        if self.pooled:
            bottleneck = bottleneck.mean((2, 3, 4), keepdim=True)
        projected: Tensor = self.projector(bottleneck)
        return projected


class Pgl(Method):
    """The pretext task of PGL and of its relatives.

    Args:
        config: its settings.
        epochs: length of the run.
    """

    student: PglBranch
    teacher: PglBranch | None

    def __init__(self, config: PglConfig, *, epochs: float) -> None:
        super().__init__(epochs=epochs, ema_momentum=config.ema_momentum)
        self.config = config
        self.healthy = {"feature_std": (0.05, math.inf)}
        self.student = PglBranch(config)
        self.teacher = teacher_of(self.student) if config.target == "ema" else None
        output = config.projector.output
        self.predictor = ConvProjector(output, (config.predictor_hidden, output))
        encoder = self.student.encoder
        self.pixel_head = (
            PixelHead(encoder.bottleneck_width, stride=encoder.stride)
            if config.weight_mip
            else None
        )

    @property
    def encoder(self) -> ResnetEncoder:
        """What is kept after pretraining: the online encoder (sec. 3.1)."""
        return self.student.encoder

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Encoder and heads of the online path."""
        parts: dict[str, nn.Module] = {
            "encoder": self.student.encoder,
            "projector": self.student.projector,
            "predictor": self.predictor,
        }
        return parts if self.pixel_head is None else {**parts, "pixel_head": self.pixel_head}

    def train(self, mode: bool = True) -> Pgl:
        """As for any method; with `target_statistics=batch` the target's batch norms train too."""
        super().train(mode)
        if self.teacher is not None and self.config.target_statistics == "batch":
            for module in self.teacher.modules():
                if isinstance(module, _BatchNorm):
                    module.train(mode)
        return self

    def forward(self, views: ViewSet, progress: float) -> Losses:
        """Losses of a batch of two views of each sample.

        Args:
            views: the two are the main ones.
            progress: nothing here depends on it.
        """
        del progress
        c = self.config
        both = _stacked(views.main)
        hidden = self._hidden(both)
        bottleneck = self.student.encoder(_without(both.image, hidden)).bottleneck
        projected = self.student.project(bottleneck)
        predicted = self.predictor(self._aligned(projected, both))
        wanted = self._aligned(self._target(both.image, projected), both)
        term = "local" if c.features == "map" else "global"
        terms = {term: self._consistency(predicted, wanted)}
        total = c.weight_consistency * terms[term]
        if self.pixel_head is not None and hidden is not None:
            terms["mip"] = masked_l1(self.pixel_head(bottleneck), both.image, hidden)
            total = total + c.weight_mip * terms["mip"]
        monitors = {"feature_std": feature_std(wanted.movedim(1, -1))}
        return Losses(total, {name: value.detach() for name, value in terms.items()}, monitors)

    @torch.no_grad()
    def reconstruct(self, view: View) -> Reconstruction | None:
        """What the online network predicts where voxels are hidden; None if none ever are."""
        hidden = self._hidden(_stacked([view]))
        if self.pixel_head is None or hidden is None:
            return None
        features = self.student.encoder(_without(view.image, hidden))
        return Reconstruction(view.image, hidden, self.pixel_head(features.bottleneck).float())

    def _hidden(self, both: _Stacked) -> Bool[Tensor, "b z y x"] | None:
        if self.pixel_head is None:
            return None
        size = both.image.shape[2:]
        z, y, x = (n // c for n, c in zip(size, triple(self.config.mask_cell), strict=True))
        return upsample_cells(random_cells(both.keys, (z, y, x), self.config.mask_ratio).grid, size)

    @torch.no_grad()
    def _target(self, image: Tensor, projected: Tensor) -> Float[Tensor, "b k pz py px"]:
        if self.teacher is None:
            return projected.detach()
        return self.teacher.project(self.teacher.encoder(image).bottleneck)

    def _aligned(self, features: Tensor, both: _Stacked) -> Tensor:
        """Eqs. 4 to 7: each view's map where both views are."""
        if self.student.pooled:
            return features
        z, y, x = both.image.shape[2:]
        return align(
            features,
            both.affine,
            _other_view(both.affine),
            view_size=(z, y, x),
            undo_flips=self.config.align_flips,
            crop_scale=self.config.align_crop_scale,
        )

    def _consistency(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Eqs. 8 and 9: each view predicts the other's target; the two directions are summed."""
        wanted = _other_view(target)
        if self.config.loss == "cosine":
            # The mean over both directions is half of their sum.
            return 2 * cosine_distance(predicted, wanted)
        return torch.stack(
            [
                info_nce(query.flatten(1), key.flatten(1), self.config.temperature)
                for query, key in zip(predicted.chunk(2), wanted.chunk(2), strict=True)
            ]
        ).sum()


class _Stacked(NamedTuple):
    """Views as one batch, the first view of all samples before the second."""

    image: Float[Tensor, "2*b 1 z y x"]
    affine: Float[Tensor, "2*b 4 4"]
    keys: Tensor


def _stacked(views: Sequence[View]) -> _Stacked:
    return _Stacked(*(torch.cat(parts) for parts in zip(*views, strict=True)))


def _other_view(stacked: Tensor) -> Tensor:
    """The same samples in the other view."""
    return stacked.roll(len(stacked) // 2, dims=0)


def _without(image: Tensor, hidden: Tensor | None) -> Tensor:
    """Hidden voxels are 0: the scan's mean after z-scores, air in a window."""
    return image if hidden is None else image.masked_fill(hidden.unsqueeze(1), 0.0)
