"""Rubik's cube++ (Cub++): turn the layers of a view back.

Tao et al., MICCAI 2020, arXiv 2007.08826. Layers of the volume turn as a whole, as those of the
toy; a U-Net restores the original, and a discriminator demands that the result looks like one.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from backend.losses.distillation import feature_std
from backend.losses.terms import Losses
from backend.methods.method import Method, Reconstruction
from backend.models.encoder import build_encoder
from backend.models.unet import UnetBackbone
from backend.settings.rubik_pp import RubikPpConfig
from backend.views.crops import View, ViewSet
from backend.views.rubik import draw_turns, turn_layers


class Discriminator(nn.Module):
    """Tells original from restored volumes, one verdict for each part of them.

    Args:
        width: channels of the first convolution; doubled by each of the next two.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for level in range(3):
            after = width * 2**level
            layers += [nn.Conv3d(before, after, kernel_size=4, stride=2, padding=1)]
            layers += [nn.LeakyReLU(0.2)]
            before = after
        self.layers = nn.Sequential(*layers, nn.Conv3d(before, 1, kernel_size=1))

    def forward(self, volume: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b 1 z8 y8 x8"]:
        """Logits, positive for original."""
        logits: Tensor = self.layers(volume)
        return logits


class RubikPp(Method):
    """The pretext task of Cub++.

    Args:
        config: its settings.
        epochs: length of the run.
    """

    def __init__(self, config: RubikPpConfig, *, epochs: float) -> None:
        super().__init__(epochs=epochs)
        self.config = config
        self.network = cast(UnetBackbone, build_encoder(asdict(config.encoder)))
        self.pixel_head = nn.Conv3d(self.network.widths[0], 1, kernel_size=1)
        self.discriminator = (
            Discriminator(width=config.discriminator_width) if config.weight_adversarial else None
        )
        self.healthy = {"feature_std": (0.05, math.inf)}

    @property
    def encoder(self) -> UnetBackbone:
        """What is kept after pretraining: encoder and decoder."""
        return self.network

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The network, the layer that makes voxels, and the discriminator if there is one."""
        parts: dict[str, nn.Module] = {"encoder": self.network, "pixel_head": self.pixel_head}
        if self.discriminator is not None:
            parts["discriminator"] = self.discriminator
        return parts

    def forward(self, views: ViewSet, progress: float) -> Losses:  # noqa: ARG002 - nothing changes
        """Squared error over all voxels and the adversarial game; each view is a sample."""
        image = torch.cat([view.image for view in views.main])
        keys = torch.cat([view.keys for view in views.main])
        features = self.network(self._turned(image, keys))
        restored = self.pixel_head(features.decoded).float()
        terms = {"restoration": functional.mse_loss(restored, image.float())}
        total = terms["restoration"]
        if self.discriminator is not None:
            terms |= adversarial_losses(self.discriminator, restored, image)
            # The two never share a parameter: see `adversarial_losses`.
            total = total + self.config.weight_adversarial * terms["adversarial"]
            total = total + terms["discriminator"]
        cells = features.bottleneck.detach().flatten(2).transpose(1, 2)
        detached = {name: term.detach() for name, term in terms.items()}
        return Losses(total, detached, {"feature_std": feature_std(cells)})

    @torch.no_grad()
    def reconstruct(self, view: View) -> Reconstruction:
        """What is restored of a view with turned layers; `hidden` is where they changed it."""
        shown = self._turned(view.image, view.keys)
        restored = self.pixel_head(self.network(shown).decoded).float()
        return Reconstruction(view.image, (shown != view.image)[:, 0], restored, shown)

    def _turned(self, image: Tensor, keys: Tensor) -> Tensor:
        turns = draw_turns(keys, layers=self.config.layers, probability=self.config.turn)
        return turn_layers(image, turns)


def adversarial_losses(
    discriminator: nn.Module,
    restored: Float[Tensor, "b 1 z y x"],
    original: Float[Tensor, "b 1 z y x"],
) -> dict[str, Tensor]:
    """Both sides of the game (Goodfellow et al. 2014, sec. 3, the form that does not saturate).

    Each side learns from its own loss alone, as with two optimisers: the discriminator's loss is
    cut off from the restored volume, the restorer's goes through weights that take no gradient.

    Returns:
        "adversarial", for the restorer, and "discriminator".
    """
    fixed = {name: p.detach() for name, p in discriminator.named_parameters()}
    deceived = torch.func.functional_call(discriminator, fixed, (restored,)).float()
    on_restored = discriminator(restored.detach()).float()
    on_original = discriminator(original).float()
    # softplus(-x) is the cross-entropy of "original", softplus(x) that of "restored".
    told = functional.softplus(on_restored).mean() + functional.softplus(-on_original).mean()
    return {"adversarial": functional.softplus(-deceived).mean(), "discriminator": told / 2}
