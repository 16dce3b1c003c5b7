"""Settings of Rubik's cube++ (Cub++)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from backend.settings.common import (
    NUMBER,
    STRICT,
    Chance,
    NotNegative,
    Width,
    triple,
)
from backend.settings.encoders import UnetConfig
from backend.settings.views import AnyViews, ViewsConfig, refuse_local


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RubikPpConfig(AnyViews):
    """Rubik's cube++ (Tao et al., MICCAI 2020): undo the turns of a view's layers."""

    name: Literal["rubik_pp"] = "rubik_pp"
    encoder: UnetConfig = UnetConfig()
    layers: Annotated[int, Field(ge=2, le=1024), NUMBER] = 4
    """Layers along each axis; each turns as a whole, as those of the toy."""
    turn: Chance = 0.5
    """Chance of each layer to turn, by 90, 180 or 270 degrees."""
    weight_adversarial: NotNegative = 0.1
    """Weight of deceiving a discriminator that tells restored from original views; 0 leaves the
    discriminator out."""
    discriminator_width: Width = 32
    """Channels of the discriminator's first convolution; doubled by each of the next two."""

    @model_validator(mode="after")
    def _check(self) -> RubikPpConfig:
        if not self.encoder.decoder:
            raise ValueError("encoder.decoder must be true: the decoder restores the view")
        return self

    def check_views(self, views: ViewsConfig) -> None:
        """Layers turn by quarters, so that a view must be a cube of whole layers."""
        refuse_local(self.name, views)
        size = triple(views.main.size)
        if len(set(size)) > 1 or size[0] % self.layers:
            raise ValueError(
                f"views.main.size {views.main.size} must be a cube whose edge is a multiple of "
                f"method.layers {self.layers}"
            )
