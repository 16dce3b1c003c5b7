"""Settings of Rubik's cube+."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from backend.settings.common import (
    NUMBER,
    STRICT,
    CountFromZero,
    Fraction,
    NotNegative,
    Width,
    triple,
)
from backend.settings.encoders import UnetConfig
from backend.settings.views import AnyViews, ViewsConfig, refuse_local


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RubikConfig(AnyViews):
    """Rubik's cube+ (Zhu et al., Medical Image Analysis 2020)."""

    name: Literal["rubik"] = "rubik"
    encoder: UnetConfig = UnetConfig(decoder=False)
    gap: CountFromZero = 8
    """Voxels that a cube is smaller than an eighth of the view along each axis; it lies anywhere
    in its eighth, so that neighbours are this far apart on average."""
    permutations: Annotated[int, Field(ge=2, le=5000), NUMBER] = 100
    """Orders of the eight cubes that are told apart (K)."""
    rotate: Fraction = 2 / 3
    """Chance that a cube is turned by 180 degrees, about the one or the other axis."""
    mask: Fraction = 0.5
    """Chance that a cube is masked: half of its voxels, chosen at random, become 0."""
    features: Width = 64
    """Numbers that stand for a cube where the eight are put side by side."""
    weight_order: NotNegative = 1.0
    """Weight of telling the order."""
    weight_rotation: NotNegative = 1.0
    """Weight of telling which cubes are turned, and how."""
    weight_mask: NotNegative = 1.0
    """Weight of telling which cubes are masked."""

    @model_validator(mode="after")
    def _check(self) -> RubikConfig:
        if self.encoder.decoder:
            raise ValueError("encoder.decoder must be false: a decoder would learn nothing")
        if not (self.weight_order or self.weight_rotation or self.weight_mask):
            raise ValueError(
                "weight_order, weight_rotation and weight_mask are all 0: nothing to learn"
            )
        for chance, weight in (("rotate", "weight_rotation"), ("mask", "weight_mask")):
            if getattr(self, weight) and not getattr(self, chance):
                raise ValueError(
                    f"{chance}=0 leaves nothing to tell for {weight}: set {weight}=0 as well"
                )
        return self

    def check_views(self, views: ViewsConfig) -> None:
        """A view must give eight cubes that the encoder takes."""
        refuse_local(self.name, views)
        for n, stride in zip(triple(views.main.size), self.encoder.stride, strict=True):
            edge = n // 2 - self.gap
            # Norms over a single cell of the bottleneck would leave nothing of it.
            if n % 2 or edge < 2 * stride or edge % stride:
                nearest = 2 * (self.gap + stride * max(2, round(edge / stride)))
                raise ValueError(
                    f"a view of {n} voxels with method.gap {self.gap} gives cubes of {edge}, which "
                    f"must be a multiple of {stride} and at least {2 * stride}: try {nearest}"
                )
