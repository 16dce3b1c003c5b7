"""Settings of PCRL."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from backend.settings.common import (
    NUMBER,
    STRICT,
    BlurSigma,
    Count,
    Fraction,
    HalfOpenFraction,
    NotNegative,
    Temperature,
    Width,
    triple,
)
from backend.settings.encoders import UnetConfig
from backend.settings.views import ViewsConfig, WindowedViews

SMALLEST_EDGE = 14
"""Below it painted boxes have no room in a view."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PcrlConfig(WindowedViews):
    """Preservational contrastive representation learning (PCRL, Zhou et al., ICCV 2021)."""

    name: Literal["pcrl"] = "pcrl"
    encoder: UnetConfig = UnetConfig()
    projection: Width = 128
    """Length of the vectors that are compared, and width of the layer before them."""
    condition: Width = 256
    """Hidden width of what turns a transformation into weights of channels."""
    queue: Count = 16_384
    """Vectors of earlier scans that a scan is told apart from."""
    temperature: Temperature = 0.2
    ema_momentum: HalfOpenFraction = 0.999
    """Share of the teacher that stays at each step."""
    restore: Literal["clean", "seen"] = "clean"
    """What is reconstructed: the view before it was spoilt, or after (released code)."""
    blur_probability: Fraction = 1.0
    blur_sigma: BlurSigma = (0.01, 2.0)
    """Standard deviation in voxels of the blur that spoils a view, drawn for each one."""
    shuffle_probability: Fraction = 0.5
    """Chance that voxels are shuffled within small blocks of a view."""
    shuffle_blocks: Annotated[int, Field(ge=1, le=100_000), NUMBER] = 10_000
    paint_probability: Fraction = 0.9
    """Chance that boxes of a view, or all but boxes, are painted over with noise."""
    inpaint_share: Fraction = 0.2
    """Share of the painted views in which the boxes are painted."""
    weight_contrast: NotNegative = 1.0
    weight_own: NotNegative = 0.2
    """Weight of the reconstruction of the own view, transformed."""
    weight_other: NotNegative = 0.2
    """Weight of the reconstruction of the other view from the teacher's features (code: 0)."""
    weight_mixup: NotNegative = 0.2
    """Weight of the reconstruction of both views from mixed features."""
    weight_mixed: NotNegative = 0.4
    """Weight of the two reconstructions of mixed images, taken together."""

    @model_validator(mode="after")
    def _check(self) -> PcrlConfig:
        if not self.encoder.decoder:
            raise ValueError("encoder.decoder must be true: the decoder reconstructs")
        weights = [name for name in asdict(self) if name.startswith("weight_")]
        if not any(getattr(self, name) for name in weights):
            raise ValueError(f"{', '.join(weights)} are all 0: nothing to learn")
        return self

    @property
    def least_batch(self) -> int:
        """With one scan an image would be mixed with itself."""
        return 2

    def check_views(self, views: ViewsConfig) -> None:
        """Refuse views that the method cannot learn from.

        Raises:
            ValueError: with what is wrong and what would do.
        """
        z, y, x = triple(views.main.size)
        if views.main.count != 2 or views.local is not None:
            raise ValueError("PCRL compares two views: set views.main.count=2, views.local=null")
        if y != x:
            raise ValueError(f"views.main.size [{z}, {y}, {x}]: quarter turns need y = x")
        if self.paint_probability and min(z, y) < SMALLEST_EDGE:
            raise ValueError(
                f"views.main.size {min(z, y)} leaves painted boxes no room: "
                f"take {SMALLEST_EDGE} or more, or method.paint_probability=0"
            )
