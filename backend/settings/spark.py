"""Settings of Spark: masked pretraining of a U-Net that does not see what is hidden."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from backend.settings.common import (
    STRICT,
    Edge,
    OpenFraction,
    triple,
)
from backend.settings.encoders import ResencConfig
from backend.settings.views import AnyViews, Hiding, ViewsConfig, refuse_local


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SparkConfig(AnyViews):
    """Sparse masked pretraining of a residual-encoder U-Net (SparK 2023; S3D, CVPR 2025)."""

    name: Literal["spark"] = "spark"
    encoder: ResencConfig = ResencConfig()
    mask_ratio: OpenFraction = 0.75
    """Share of cells hidden from the network."""
    mask_cell: Edge = 16
    """Edge of a masked cell in voxels."""
    densify: Literal["convolution", "token"] = "convolution"
    """What fills hidden places before the decoder: a token after a norm and before a convolution
    (SparK), or the token alone."""

    @model_validator(mode="after")
    def _check(self) -> SparkConfig:
        if len(self.encoder.widths) < 2:
            raise ValueError(
                f"encoder.widths {list(self.encoder.widths)} must name two levels or more"
            )
        return self

    @property
    def hiding(self) -> Hiding:
        """What the student does not see of a view."""
        return Hiding(self.mask_ratio, self.mask_ratio, triple(self.mask_cell))

    def check_views(self, views: ViewsConfig) -> None:
        """Cells must fill a view, fit the network's levels, and not all be hidden."""
        refuse_local(self.name, views)
        size = triple(views.main.size)
        if any(n % self.mask_cell for n in size):
            raise ValueError(
                f"views.main.size {views.main.size} is no multiple of "
                f"method.mask_cell {self.mask_cell}"
            )
        for n, stride in zip(size, self.encoder.stride, strict=True):
            cells, coarsest = n // self.mask_cell, n // stride
            if max(cells, coarsest) % min(cells, coarsest):
                raise ValueError(
                    f"method.mask_cell {self.mask_cell} and the encoder's stride {stride} do not "
                    f"divide each other in a view of {n} voxels"
                )
        self.hiding.check(views.main, name="views.main")
