"""Rubik's cube+: tell how eight cubes of a view were reordered, turned and masked.

Zhu et al., Medical Image Analysis 2020, doi:10.1016/j.media.2020.101746. One encoder sees each cube
on its own; what it says of all eight is put side by side.
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
from backend.methods.method import Method
from backend.models.encoder import build_encoder
from backend.models.unet import UnetBackbone
from backend.settings.rubik import RubikConfig
from backend.views.crops import ViewSet
from backend.views.rubik import CUBES, Puzzle, distant_permutations, make_puzzle


class RubikHead(nn.Module):
    """From the features of eight cubes to logits of what was done to them.

    Args:
        width: channels of the encoder's coarsest map.
        features: numbers that stand for a cube.
        orders: permutations that are told apart.
    """

    def __init__(self, width: int, *, features: int, orders: int) -> None:
        super().__init__()
        self.cube = nn.Linear(width, features)
        self.order = nn.Linear(CUBES * features, orders)
        self.turned_level = nn.Linear(CUBES * features, CUBES)
        self.turned_upright = nn.Linear(CUBES * features, CUBES)
        self.masked = nn.Linear(CUBES * features, CUBES)

    def forward(self, cubes: Float[Tensor, "b 8 width"]) -> dict[str, Tensor]:
        """Logits by the name of what they tell: order (b, k), the others (b, 8)."""
        together = functional.relu(self.cube(cubes)).flatten(1)
        names = ("order", "turned_level", "turned_upright", "masked")
        return {name: self.get_submodule(name)(together).float() for name in names}


class Rubik(Method):
    """The pretext task of Rubik's cube+.

    Args:
        config: its settings.
        epochs: length of the run.
    """

    orders: Tensor

    def __init__(self, config: RubikConfig, *, epochs: float) -> None:
        super().__init__(epochs=epochs)
        self.config = config
        self.network = cast(UnetBackbone, build_encoder(asdict(config.encoder)))
        self.head = RubikHead(
            self.network.bottleneck_width, features=config.features, orders=config.permutations
        )
        chosen = torch.tensor(distant_permutations(config.permutations))
        self.register_buffer("orders", chosen, persistent=False)
        self.healthy = {"feature_std": (0.05, math.inf)}

    @property
    def encoder(self) -> UnetBackbone:
        """What is kept after pretraining: the way down of the U-Net."""
        return self.network

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Encoder and head."""
        return {"encoder": self.network, "head": self.head}

    def forward(self, views: ViewSet, progress: float) -> Losses:  # noqa: ARG002 - nothing changes
        """The weighted sum of three losses (sec. 3); each view is a puzzle of its own."""
        c = self.config
        image = torch.cat([view.image for view in views.main])
        keys = torch.cat([view.keys for view in views.main])
        puzzle = make_puzzle(
            image, keys, gap=c.gap, orders=self.orders, rotate=c.rotate, mask=c.mask
        )
        features = self._features(puzzle)
        logits = self.head(features)
        terms = puzzle_losses(logits, puzzle)
        weights = {
            "order": c.weight_order,
            "rotation": c.weight_rotation,
            "mask": c.weight_mask,
        }
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        right = (logits["order"].argmax(dim=1) == puzzle.order).float().mean()
        monitors = {"feature_std": feature_std(features.detach()), "order_accuracy": right}
        return Losses(total, {name: term.detach() for name, term in terms.items()}, monitors)

    def _features(self, puzzle: Puzzle) -> Float[Tensor, "b 8 c"]:
        # Eight branches that share all weights are one network on eight times the batch.
        cubes = puzzle.cubes.flatten(0, 1).unsqueeze(1)
        coarsest = self.network.encode(cubes)[-1]
        return coarsest.float().mean(dim=(2, 3, 4)).view(-1, CUBES, coarsest.shape[1])


def puzzle_losses(logits: dict[str, Tensor], puzzle: Puzzle) -> dict[str, Tensor]:
    """Cross-entropy of the order; binary cross-entropies of turns (both axes) and masks, fp32.

    Binary ones are means over cubes.
    """
    binary = {
        name: functional.binary_cross_entropy_with_logits(
            logits[name].float(), getattr(puzzle, name).float()
        )
        for name in ("turned_level", "turned_upright", "masked")
    }
    return {
        "order": functional.cross_entropy(logits["order"].float(), puzzle.order),
        "rotation": binary["turned_level"] + binary["turned_upright"],
        "mask": binary["masked"],
    }
