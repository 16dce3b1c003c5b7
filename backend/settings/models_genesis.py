"""Settings of Models Genesis."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from backend.settings.common import (
    NUMBER,
    STRICT,
    Fraction,
    triple,
)
from backend.settings.encoders import UnetConfig
from backend.settings.views import ViewsConfig, WindowedViews, refuse_local

_SMALLEST_EDGE = 14


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelsGenesisConfig(WindowedViews):
    """Models Genesis (Zhou et al., Medical Image Analysis 2021)."""

    name: Literal["models_genesis"] = "models_genesis"
    encoder: UnetConfig = UnetConfig()
    shuffle: Fraction = 0.5
    """Chance that voxels are shuffled inside small blocks."""
    blocks: Annotated[int, Field(ge=1, le=100_000), NUMBER] = 10_000
    """Blocks that are shuffled, each up to a tenth of the view's edges."""
    bend: Fraction = 0.9
    """Chance that values go through a random Bezier curve."""
    paint: Fraction = 0.9
    """Chance that a part is painted over with noise."""
    inpaint: Fraction = 0.2
    """Share of painted views in which boxes are painted; in the others all but boxes is."""

    @model_validator(mode="after")
    def _check(self) -> ModelsGenesisConfig:
        if not (self.shuffle or self.bend or self.paint):
            raise ValueError("shuffle, bend and paint are all 0: nothing to undo")
        if not self.encoder.decoder:
            raise ValueError("encoder.decoder must be true: the decoder restores the view")
        return self

    def check_views(self, views: ViewsConfig) -> None:
        """Painted boxes need room."""
        refuse_local(self.name, views)
        if min(triple(views.main.size)) < _SMALLEST_EDGE:
            raise ValueError(
                f"views.main.size {views.main.size} has an edge below {_SMALLEST_EDGE} voxels: "
                "no room for painted boxes"
            )
