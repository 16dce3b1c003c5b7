"""SimCLR (Chen et al., ICML 2020, arXiv 2002.05709) on the encoder and views of PGL.

Two views of a scan become one vector each. A view has to find the other view of its scan among the
views of all scans of the batch.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import cast

import torch
from torch import Tensor, nn

from backend.losses.distillation import feature_std
from backend.losses.similarity import nt_xent
from backend.losses.terms import Losses
from backend.methods.method import Method
from backend.models.encoder import build_encoder
from backend.models.heads import ConvProjector
from backend.models.resnet import ResnetEncoder
from backend.settings.simclr import SimclrConfig
from backend.views.crops import ViewSet


class Simclr(Method):
    """The pretext task of SimCLR.

    Args:
        config: its settings.
        epochs: length of the run.
    """

    def __init__(self, config: SimclrConfig, *, epochs: float) -> None:
        super().__init__(epochs=epochs)
        self.config = config
        self.healthy = {"feature_std": (0.05, math.inf)}
        self.backbone = cast(ResnetEncoder, build_encoder(asdict(config.encoder)))
        p = config.projector
        self.projector = ConvProjector(
            self.backbone.bottleneck_width, p.widths, last_norm=p.last_norm
        )

    @property
    def encoder(self) -> ResnetEncoder:
        """What is kept after pretraining; the projector is thrown away (sec. 2.1)."""
        return self.backbone

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Encoder f and projector g."""
        return {"encoder": self.backbone, "projector": self.projector}

    def forward(self, views: ViewSet, progress: float) -> Losses:
        """Losses of a batch of two views of each sample.

        Args:
            views: the two are the main ones.
            progress: nothing here depends on it.
        """
        del progress
        image = torch.cat([view.image for view in views.main])
        pooled = self.backbone(image).bottleneck.mean((2, 3, 4), keepdim=True)
        vectors: Tensor = self.projector(pooled).flatten(1)
        first, second = vectors.chunk(2)
        loss = nt_xent(first, second, self.config.temperature)
        monitors = {"feature_std": feature_std(vectors.detach())}
        return Losses(loss, {"contrast": loss.detach()}, monitors)
