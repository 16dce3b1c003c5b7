"""Settings of PGL, and of the methods that are PGL with parts left out, swapped or added."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from backend.settings.common import (
    NUMBER,
    STRICT,
    Answers,
    Edges,
    NotNegative,
    OpenFraction,
    Positive,
    TeacherMomentum,
    Temperature,
    Width,
    triple,
)
from backend.settings.encoders import ResnetConfig
from backend.settings.views import AnyViews, Hiding, ViewsConfig, refuse_local


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProjectorConfig:
    """Convolutions of 1³ with batch norm and ReLU between, on the encoder's map (PGL, sec. 3.3)."""

    layers: Annotated[int, Field(ge=1, le=16), NUMBER] = 2
    """Convolutions."""
    hidden: Width = 4096
    """Channels of all but the last."""
    output: Answers = 256
    """Channels that are compared."""
    last_norm: bool = False
    """A batch norm without scale and shift after the last one (MoCo v3, SimSiam, SimCLR)."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after each convolution."""
        return (*[self.hidden] * (self.layers - 1), self.output)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PglConfig(AnyViews):
    """Prior-guided local self-supervision (PGL, Xie et al., arXiv 2011.12640) and relatives."""

    name: Literal[
        "pgl",
        "pgl_no_flip",
        "pgl_no_csalign",
        "pgl_no_align",
        "byol",
        "simsiam",
        "mocov3",
        "pgl_mip",
    ] = "pgl"
    encoder: ResnetConfig = ResnetConfig()
    projector: ProjectorConfig = ProjectorConfig()
    predictor_hidden: Width = 4096
    """Hidden channels of the predictor, which the target does not have."""
    features: Literal["map", "pooled"] = "map"
    """Compare every place of the aligned maps (PGL), or one vector for the view (BYOL)."""
    align_flips: bool = True
    """Mirror maps back before they are compared (FlipAlign, eq. 4)."""
    align_crop_scale: bool = True
    """Compare the part that both views show, resized to the whole map (CSAlign, eqs. 5 to 7)."""
    target: Literal["ema", "online"] = "ema"
    """Whose features are predicted: those of a moving average, or the online network's own without
    gradient (SimSiam)."""
    ema_momentum: TeacherMomentum = (0.996, 1.0)
    """Momentum of the moving average at the first and the last step; cosine between."""
    target_statistics: Literal["running", "batch"] = "running"
    """What the moving average normalises with: the average of the running statistics, or those of
    the batch that it sees (BYOL's code)."""
    loss: Literal["cosine", "info_nce"] = "cosine"
    """Squared distance of vectors of length 1, or telling the own target from others' (MoCo v3)."""
    temperature: Temperature = 0.2
    """Of info_nce."""
    weight_consistency: Positive = 1.0
    """Weight of the comparison, both directions summed."""
    weight_mip: NotNegative = 0.0
    """Weight of predicting hidden voxels; 0: the online network sees everything."""
    mask_ratio: OpenFraction = 0.6
    """Share of cells hidden from the online network."""
    mask_cell: Edges = 16
    """Edges of a hidden cell in voxels."""

    @model_validator(mode="after")
    def _check(self) -> PglConfig:
        if self.loss == "info_nce" and self.features == "map":
            raise ValueError("loss=info_nce compares one vector per view: set features=pooled")
        return self

    @property
    def hiding(self) -> Hiding | None:
        """What the student does not see of a view."""
        return (
            Hiding(self.mask_ratio, self.mask_ratio, triple(self.mask_cell))
            if self.weight_mip
            else None
        )

    @property
    def least_batch(self) -> int:
        """Contrast needs another scan."""
        return 2 if self.loss == "info_nce" else 1

    def check_views(self, views: ViewsConfig) -> None:
        """Two views, and whole cells where some are hidden."""
        check_pair(self.name, views)
        size, cell = triple(views.main.size), triple(self.mask_cell)
        if self.weight_mip and any(n % c for n, c in zip(size, cell, strict=True)):
            raise ValueError(
                f"method.mask_cell {list(cell)} does not divide views.main.size {list(size)}"
            )
        if self.hiding is not None:
            self.hiding.check(views.main, name="views.main")


def check_pair(name: str, views: ViewsConfig) -> None:
    """Refuse views of which there are not two to compare.

    Raises:
        ValueError: with what is wrong.
    """
    if views.main.count != 2:
        raise ValueError(f"views.main.count {views.main.count}: {name} compares 2 views")
    refuse_local(name, views)
