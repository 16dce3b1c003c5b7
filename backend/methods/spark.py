"""Spark: masked pretraining of a U-Net whose encoder does not see what is hidden.

SparK (Tian et al., ICLR 2023, arXiv 2301.03580) brought masked pretraining to convolutions: what is
hidden is 0 at every level of the encoder and enters no statistic, tokens fill the holes before the
decoder. S3D (Wald et al., CVPR 2025, arXiv 2410.23132) does so with a residual-encoder U-Net in 3D
and keeps the decoder as well.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backend.losses.distillation import feature_std
from backend.losses.reconstruction import masked_mse
from backend.losses.terms import Losses
from backend.methods.method import Method, Reconstruction
from backend.models.encoder import build_encoder
from backend.models.resenc import Densifier, ResencBackbone, visible_at
from backend.models.unet import UnetOutput
from backend.settings.spark import SparkConfig
from backend.views.crops import View, ViewSet
from backend.views.masking import random_cells


class _Seen(NamedTuple):
    """A batch of images that went through the network in part.

    Attributes:
        image: the whole of them, (b, 1, z, y, x).
        hidden: true where a voxel was hidden, (b, z, y, x).
        features: what the network made of the rest.
        prediction: voxels, (b, 1, z, y, x).
    """

    image: Tensor
    hidden: Tensor
    features: UnetOutput
    prediction: Tensor


class Spark(Method):
    """The pretext task of SparK and S3D.

    Args:
        config: its settings.
        epochs: length of the run.
    """

    def __init__(self, config: SparkConfig, *, epochs: float) -> None:
        super().__init__(epochs=epochs)
        self.config = config
        self.network = cast(ResencBackbone, build_encoder(asdict(config.encoder)))
        widths = self.network.widths
        self.densifier = Densifier(widths=widths, convolution=config.densify == "convolution")
        self.pixel_head = nn.Conv3d(widths[0], 1, kernel_size=1)
        self.healthy = {"feature_std": (0.05, math.inf)}

    @property
    def encoder(self) -> ResencBackbone:
        """What is kept after pretraining: encoder and decoder."""
        return self.network

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The network, and what only pretraining needs."""
        return {
            "encoder": self.network,
            "densifier": self.densifier,
            "pixel_head": self.pixel_head,
        }

    def forward(self, views: ViewSet, progress: float) -> Losses:  # noqa: ARG002 - nothing changes
        """Squared error over hidden voxels (S3D, sec. 3); each view is a sample of its own."""
        seen = self._see(
            torch.cat([view.image for view in views.main]),
            torch.cat([view.keys for view in views.main]),
        )
        loss = masked_mse(_voxels(seen.prediction), _voxels(seen.image), seen.hidden.flatten(1))
        cells = seen.features.pyramid[-1].detach().flatten(2).transpose(1, 2)
        return Losses(loss, {"reconstruction": loss.detach()}, {"feature_std": feature_std(cells)})

    @torch.no_grad()
    def reconstruct(self, view: View) -> Reconstruction:
        """What is predicted for a view of which a part is seen."""
        seen = self._see(view.image, view.keys)
        return Reconstruction(seen.image, seen.hidden, seen.prediction.float())

    def _see(self, image: Float[Tensor, "b 1 z y x"], keys: Tensor) -> _Seen:
        z, y, x = (n // self.config.mask_cell for n in image.shape[2:])
        visible = ~random_cells(keys, (z, y, x), self.config.mask_ratio).grid
        features = self.network(image, visible, self.densifier)
        hidden = visible_at(visible, image.shape[2:])[:, 0] == 0
        return _Seen(image, hidden, features, self.pixel_head(features.decoded))


def _voxels(image: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b n 1"]:
    return image.flatten(1).unsqueeze(-1)
