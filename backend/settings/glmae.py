"""Settings of GL-MAE and of MAE3D, which is GL-MAE without teacher and local views."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from backend.settings.common import (
    STRICT,
    Answers,
    Depth,
    HalfOpenFraction,
    NotNegative,
    OpenFraction,
    TeacherMomentum,
    Temperature,
    Width,
    triple,
)
from backend.settings.encoders import VitConfig
from backend.settings.views import AnyViews, Hiding, ViewsConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MaeDecoderConfig:
    """The transformer that predicts voxels from visible tokens; dropped after pretraining."""

    width: Width = 576
    """Channels of a token. The last ones carry no position where it is no multiple of 6."""
    depth: Depth = 8
    """Blocks."""
    heads: Width = 16
    """Attention heads."""

    @model_validator(mode="after")
    def _check(self) -> MaeDecoderConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divided by {self.heads} heads")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProjectorConfig:
    """The three linears on the class token whose outputs student and teacher compare."""

    hidden: Width = 2048
    """Width of the two hidden layers."""
    output: Answers = 512
    """Features that are compared, the K of the softmax."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GlmaeConfig(AnyViews):
    """Global-local masked autoencoder (GL-MAE, Zhuang et al., arXiv 2306.08913)."""

    name: Literal["glmae", "mae3d"] = "glmae"
    encoder: VitConfig = VitConfig()
    decoder: MaeDecoderConfig = MaeDecoderConfig()
    projector: ProjectorConfig = ProjectorConfig()
    mask_ratio: OpenFraction = 0.75
    """Share of patches hidden from the student."""
    reconstruct: Literal["hidden", "all"] = "hidden"
    """Patches that the reconstruction is judged by: those hidden (MAE), or all of them."""
    weight_consistency: NotNegative = 1.0
    """Weight of the global-guided consistency (beta); 0 leaves out teacher and projectors."""
    weight_koleo: NotNegative = 0.0
    """Weight of keeping the scans of a batch apart (KoLeo); it needs weight_consistency."""
    student_temperature: Temperature = 0.1
    teacher_temperature: tuple[Temperature, Temperature] = (0.04, 0.07)
    """Teacher temperature at the start and after its warm-up."""
    teacher_temperature_warmup_epochs: NotNegative = 30
    """Epochs over which the teacher temperature rises linearly."""
    centre_momentum: HalfOpenFraction = 0.9
    """Share of the old centre kept at each step."""
    ema_momentum: TeacherMomentum = (0.996, 1.0)
    """Teacher momentum at the first and the last step; cosine between."""

    @model_validator(mode="after")
    def _check(self) -> GlmaeConfig:
        if self.weight_koleo and not self.weight_consistency:
            raise ValueError(
                f"weight_koleo {self.weight_koleo:g} needs weight_consistency, which is 0"
            )
        return self

    @property
    def hiding(self) -> Hiding:
        """What the student does not see of a view."""
        return Hiding(self.mask_ratio, self.mask_ratio, triple(self.encoder.patch))

    def check_views(self, views: ViewsConfig) -> None:
        """Some patches of each view must be hidden, and some visible."""
        self.hiding.check(views.main, name="views.main")
        if views.local is not None:
            self.hiding.check(views.local, name="views.local")
