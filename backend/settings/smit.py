"""Settings of SMIT and of what is SMIT with terms left out or parts swapped."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from backend.settings.common import (
    STRICT,
    Count,
    Fraction,
    HalfOpenFraction,
    NotNegative,
    OpenFraction,
    Positive,
)
from backend.settings.encoders import SwinConfig
from backend.settings.views import AnyViews, ViewsConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HeadConfig:
    """The projection head of DINO that SMIT puts on patch and class tokens."""

    hidden: Count = 2048
    """Width of the two hidden layers."""
    bottleneck: Count = 256
    """Width that is normalised to length 1 before the prototypes."""
    prototypes: Count = 8192
    """Number of prototypes, the K of the softmax."""
    shared: bool = False
    """One head for patch and class tokens instead of two."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SmitConfig(AnyViews):
    """Self-distilled masked image transformer (SMIT, Jiang et al., MICCAI 2022)."""

    name: Literal["smit", "mip", "simmim", "fullrec", "ml_mip", "ibot", "dino"] = "smit"
    encoder: SwinConfig = SwinConfig()
    head: HeadConfig = HeadConfig()
    tokens: Literal["before_last_stage", "last_stage"] = "before_last_stage"
    """Which tokens are distilled: the input of the last stage (released code) or its output."""
    class_token: Literal["mean", "attention"] = "mean"
    """Mean of the tokens, or two class-attention blocks (the authors' later choice)."""
    mask_ratio: OpenFraction = 0.7
    """Share of cells hidden from the student."""
    mask_cell: Count = 16
    """Edge of a masked cell in voxels."""
    weight_mip: NotNegative = 1.0
    """Weight of masked image prediction."""
    weight_mpd: NotNegative = 0.1
    """Weight of masked patch token distillation (lambda_MPD)."""
    weight_itd: NotNegative = 0.1
    """Weight of image token distillation (lambda_ITD)."""
    student_temperature: Positive = 0.1
    teacher_temperature: tuple[Positive, Positive] = (0.04, 0.07)
    """Teacher temperature at the start and after its warm-up."""
    teacher_temperature_warmup_epochs: NotNegative = 30
    """Epochs over which the teacher temperature rises linearly."""
    patch_temperature_delay_epochs: NotNegative = 0
    """Epochs by which the patch tokens' warm-up starts later (released code: 30)."""
    centre_momentum: HalfOpenFraction = 0.9
    """Share of the old centre kept at each step."""
    ema_momentum: tuple[Fraction, Fraction] = (0.996, 1.0)
    """Teacher momentum at the first and the last step; cosine between."""
    freeze_prototypes_epochs: NotNegative = 1
    """Epochs during which the prototypes do not learn."""

    @model_validator(mode="after")
    def _check(self) -> SmitConfig:
        if not (self.weight_mip or self.weight_mpd or self.weight_itd):
            raise ValueError("weight_mip, weight_mpd and weight_itd are all 0: nothing to learn")
        if not self.weight_mip and self.tokens == "before_last_stage":
            raise ValueError(
                "without masked image prediction (weight_mip=0) the last stage learns nothing; "
                "set tokens=last_stage as well"
            )
        return self

    def check_views(self, views: ViewsConfig) -> None:
        """Two views, cut into the cells that distilled tokens stand for."""
        if views.main.count != 2:
            raise ValueError(f"views.main.count {views.main.count}: {self.name} compares 2 views")
        if self.mask_cell != self.encoder.token_stride:
            raise ValueError(
                f"method.mask_cell {self.mask_cell} must be what a distilled token stands for, "
                f"{self.encoder.token_stride} voxels"
            )
