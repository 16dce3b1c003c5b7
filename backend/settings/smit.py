"""Settings of SMIT and of what is SMIT with terms left out or parts swapped."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from backend.settings.common import (
    STRICT,
    Answers,
    Chance,
    Count,
    HalfOpenFraction,
    NotNegative,
    TeacherMomentum,
    Temperature,
    triple,
)
from backend.settings.encoders import SwinConfig
from backend.settings.views import AnyViews, Hiding, ViewsConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HeadConfig:
    """The projection head of DINO that SMIT puts on patch and class tokens."""

    hidden: Count = 2048
    """Width of the two hidden layers."""
    bottleneck: Count = 256
    """Width that is normalised to length 1 before the prototypes."""
    prototypes: Answers = 8192
    """Number of prototypes, the K of the softmax."""
    shared: bool = False
    """One head for patch and class tokens instead of two."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SmitConfig(AnyViews):
    """Self-distilled masked image transformer (SMIT, Jiang et al., MICCAI 2022) and relatives.

    mip, simmim, fullrec and ml_mip are its image prediction alone; ibot and dino its distillation.
    """

    name: Literal["smit", "mip", "simmim", "fullrec", "ml_mip", "ibot", "dino"] = "smit"
    encoder: SwinConfig = SwinConfig()
    head: HeadConfig = HeadConfig()
    tokens: Literal["before_last_stage", "last_stage"] = "before_last_stage"
    """Which tokens are distilled: the input of the last stage (released code) or its output."""
    class_token: Literal["mean", "attention"] = "mean"
    """Mean of the tokens, or two class-attention blocks (the authors' later choice)."""
    kept: Literal["student", "teacher"] = "student"
    """Whose encoder goes on to fine-tuning (SMIT: the student's; DINO, iBOT: the teacher's)."""
    masking: Literal["random", "block"] = "random"
    """Hidden cells are scattered, or form boxes (iBOT)."""
    mask_ratio: HalfOpenFraction = 0.7
    """Share of cells hidden from the student; 0: none."""
    mask_ratio_spread: HalfOpenFraction = 0.0
    """The share is drawn for each view from mask_ratio +- this."""
    masked_views: Chance = 1.0
    """Chance that cells of a view are hidden at all."""
    mask_cell: Count = 16
    """Edge of a masked cell in voxels."""
    pixel_decoder: Literal["linear", "deconv"] = "linear"
    """One linear layer, or transposed convolutions that each double the grid (ML-MIP)."""
    loss_on: Literal["hidden", "all"] = "hidden"
    """Voxels whose prediction counts."""
    weight_mip: NotNegative = 1.0
    """Weight of masked image prediction."""
    weight_mpd: NotNegative = 0.1
    """Weight of masked patch token distillation (lambda_MPD)."""
    weight_itd: NotNegative = 0.1
    """Weight of image token distillation (lambda_ITD)."""
    weight_koleo: NotNegative = 0.0
    """Weight of keeping the image tokens of a batch apart (KoLeo); it needs weight_itd."""
    student_temperature: Temperature = 0.1
    teacher_temperature: tuple[Temperature, Temperature] = (0.04, 0.07)
    """Teacher temperature at the start and after its warm-up."""
    teacher_temperature_warmup_epochs: NotNegative = 30
    """Epochs over which the teacher temperature rises linearly."""
    patch_temperature_delay_epochs: NotNegative = 0
    """Epochs by which the patch tokens' warm-up starts later (released code: 30)."""
    centre_momentum: HalfOpenFraction = 0.9
    """Share of the old centre kept at each step."""
    ema_momentum: TeacherMomentum = (0.996, 1.0)
    """Teacher momentum at the first and the last step; cosine between."""
    freeze_prototypes_epochs: NotNegative = 1
    """Epochs during which the prototypes do not learn."""

    @model_validator(mode="after")
    def _check(self) -> SmitConfig:
        if not (self.weight_mip or self.distils):
            raise ValueError("weight_mip, weight_mpd and weight_itd are all 0: nothing to learn")
        if self.weight_koleo and not self.weight_itd:
            raise ValueError(f"weight_koleo {self.weight_koleo:g} needs weight_itd, which is 0")
        if not self.weight_mip and self.tokens == "before_last_stage":
            raise ValueError(
                "without masked image prediction (weight_mip=0) the last stage learns nothing; "
                "set tokens=last_stage as well"
            )
        if self.kept == "teacher" and not self.distils:
            raise ValueError(
                "kept=teacher, but without distillation (weight_mpd=0, weight_itd=0) there is none"
            )
        self._check_mask()
        stride = self.encoder.stride[0]
        if self.pixel_decoder == "deconv" and stride & (stride - 1):
            raise ValueError(
                f"pixel_decoder=deconv doubles the grid, but the stride {stride} is no power of 2"
            )
        return self

    def _check_mask(self) -> None:
        low, high = self.mask_range
        if low < 0 or high >= 1:
            raise ValueError(
                f"mask_ratio {self.mask_ratio:g} +- mask_ratio_spread {self.mask_ratio_spread:g} "
                "leaves [0, 1)"
            )
        needs_mask = {
            "weight_mpd": bool(self.weight_mpd),
            "weight_mip": bool(self.weight_mip) and self.loss_on == "hidden",
        }
        for weight, needed in needs_mask.items():
            if needed and not high:
                raise ValueError(f"mask_ratio=0 hides nothing that {weight} could be learned from")

    @property
    def distils(self) -> bool:
        """Whether there is a teacher."""
        return bool(self.weight_mpd or self.weight_itd)

    @property
    def mask_range(self) -> tuple[float, float]:
        """Least and largest share of cells that is hidden."""
        # Rounded, because 0.3 - 0.1 is less than 0.2 in floating point.
        low, high = (self.mask_ratio + s * self.mask_ratio_spread for s in (-1, 1))
        return round(low, 9), round(high, 9)

    @property
    def hiding(self) -> Hiding | None:
        """What the student does not see of a view."""
        return Hiding(*self.mask_range, triple(self.mask_cell)) if self.mask_range[1] else None

    def check_views(self, views: ViewsConfig) -> None:
        """Two views or more where they are compared, cut into whole masked cells."""
        if self.weight_itd and views.main.count < 2:
            raise ValueError(
                f"views.main.count {views.main.count}: {self.name} compares 2 views or more"
            )
        if views.local is not None and not self.weight_itd:
            raise ValueError(
                "views.local serves image token distillation alone, and weight_itd is 0"
            )
        if self.mask_range[1]:
            self._check_cells(views)

    def _check_cells(self, views: ViewsConfig) -> None:
        cell = self.mask_cell
        if self.weight_mpd and cell != self.encoder.token_stride:
            raise ValueError(
                f"method.mask_cell {cell} must be what a distilled token stands for, "
                f"{self.encoder.token_stride} voxels"
            )
        if cell % self.encoder.patch:
            raise ValueError(
                f"method.mask_cell {cell} is no multiple of encoder.patch {self.encoder.patch}"
            )
        if any(edge % cell for edge in triple(views.main.size)):
            raise ValueError(
                f"views.main.size {views.main.size} is no multiple of method.mask_cell {cell}"
            )
        if self.hiding is not None:
            self.hiding.check(views.main, name="views.main")
