"""Models Genesis: restore a view that was shuffled, bent and painted.

Zhou et al., Medical Image Analysis 2021, doi:10.1016/j.media.2020.101840. Shuffling teaches
texture and borders, bending appearance, painting context (sec. 3.2); one network undoes them all.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.losses.distillation import feature_std
from backend.losses.terms import Losses
from backend.methods.method import Method, Reconstruction
from backend.models.encoder import build_encoder
from backend.models.unet import UnetBackbone
from backend.settings.models_genesis import ModelsGenesisConfig
from backend.views.corruption import bend_intensity, paint_boxes, shuffle_locally
from backend.views.crops import View, ViewSet


class ModelsGenesis(Method):
    """The pretext task of Models Genesis.

    Args:
        config: its settings.
        epochs: length of the run.
    """

    def __init__(self, config: ModelsGenesisConfig, *, epochs: float) -> None:
        super().__init__(epochs=epochs)
        self.config = config
        self.network = cast(UnetBackbone, build_encoder(asdict(config.encoder)))
        self.pixel_head = nn.Conv3d(self.network.widths[0], 1, kernel_size=1)
        self.healthy = {"feature_std": (0.05, math.inf)}

    @property
    def encoder(self) -> UnetBackbone:
        """What is kept after pretraining: encoder and decoder."""
        return self.network

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The network, and the layer that makes voxels."""
        return {"encoder": self.network, "pixel_head": self.pixel_head}

    def forward(self, views: ViewSet, progress: float) -> Losses:  # noqa: ARG002 - nothing changes
        """Squared error over all voxels (sec. 3.1); each view is a sample of its own."""
        image = torch.cat([view.image for view in views.main])
        keys = torch.cat([view.keys for view in views.main])
        shown = paint_boxes(
            self._texture(image, keys),
            keys,
            probability=self.config.paint,
            inpaint=self.config.inpaint,
        )
        features = self.network(shown)
        loss = functional.mse_loss(self._restored(features.decoded), image.float())
        cells = features.bottleneck.detach().flatten(2).transpose(1, 2)
        return Losses(loss, {"restoration": loss.detach()}, {"feature_std": feature_std(cells)})

    @torch.no_grad()
    def reconstruct(self, view: View) -> Reconstruction:
        """What is restored of a spoilt view; `hidden` is what was painted, which always is some."""
        before = self._texture(view.image, view.keys)
        shown = paint_boxes(before, view.keys, probability=1.0, inpaint=self.config.inpaint)
        restored = self._restored(self.network(shown).decoded)
        return Reconstruction(view.image, (shown != before)[:, 0], restored, shown)

    def _texture(self, image: Tensor, keys: Tensor) -> Tensor:
        c = self.config
        shuffled = shuffle_locally(image, keys, probability=c.shuffle, blocks=c.blocks)
        return bend_intensity(shuffled, keys, probability=c.bend)

    def _restored(self, decoded: Tensor) -> Tensor:
        # The published network ends in a sigmoid, as its views lie in [0, 1].
        return torch.sigmoid(self.pixel_head(decoded).float())
