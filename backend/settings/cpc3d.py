"""Settings of CPC-3D."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from backend.settings.common import (
    NUMBER,
    STRICT,
    Chance,
    CountFromZero,
    Edge,
    Fraction,
    Width,
    triple,
)
from backend.settings.encoders import UnetConfig
from backend.settings.views import AnyViews, ViewsConfig

_ENCODER = UnetConfig(widths=(16, 32, 64, 128, 256), decoder=False)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Cpc3dConfig(AnyViews):
    """3D contrastive predictive coding (Taleb et al., NeurIPS 2020)."""

    name: Literal["cpc3d"] = "cpc3d"
    encoder: UnetConfig = _ENCODER
    patch: Edge = 32
    """Edge of a patch in voxels."""
    step: Edge = 16
    """Voxels from one patch to the next; half of `patch`: neighbours overlap by half."""
    patches_per_side: Annotated[int, Field(ge=3, le=64), NUMBER] = 5
    """Patches along each axis of the grid."""
    skipped_rows: CountFromZero = 1
    """Rows between the context and the first that is predicted; so many as overlap with it."""
    code: Width = 1024
    """Length of a patch's code."""
    context: Width = 256
    """Width of the recurrent network over the patches of the context."""
    negatives: Annotated[int, Field(ge=1, le=10_000), NUMBER] = 1
    """Wrong continuations that each context is told apart from."""
    flip_probability: Fraction = 0.5
    """Chance that a patch is mirrored along z, each for itself."""
    patch_kept: Chance = 0.875
    """Share of a patch's edge that is seen, at a random place; the rest is set to 0."""
    dot_divisor: Annotated[float, Field(ge=1e-2, le=1e5), NUMBER] | None = None
    """Divisor of the dot products; null: the length of the code, as the released code's mean."""

    @property
    def context_rows(self) -> int:
        """Rows of the grid, from the first, that the context is made of."""
        return self.patches_per_side // 2

    @property
    def predicted_rows(self) -> int:
        """Rows of the grid, to the last, that are predicted."""
        return self.patches_per_side - self.context_rows - self.skipped_rows

    @property
    def extent(self) -> int:
        """Edge in voxels of what the grid of patches covers."""
        return self.patch + (self.patches_per_side - 1) * self.step

    @model_validator(mode="after")
    def _check(self) -> Cpc3dConfig:
        if self.encoder.decoder:
            raise ValueError("CPC trains no decoder: set method.encoder.decoder=false")
        stride = self.encoder.stride[0]
        if self.patch % stride:
            raise ValueError(f"patch {self.patch} is no multiple of the encoder's stride {stride}")
        if self.patch == stride and self.encoder.norm == "instance":
            raise ValueError(
                f"patch {self.patch} leaves a single cell at the encoder's coarsest level, which "
                f"encoder.norm=instance turns into nothing: set patch={2 * stride}"
            )
        if self.predicted_rows < 1:
            raise ValueError(
                f"skipped_rows {self.skipped_rows} leave no row to predict of "
                f"patches_per_side {self.patches_per_side}"
            )
        return self

    def check_views(self, views: ViewsConfig) -> None:
        """Refuse views that the method cannot learn from.

        Raises:
            ValueError: with what is wrong and what would do.
        """
        if views.main.count != 1 or views.local is not None:
            raise ValueError("CPC takes one view: set views.main.count=1, views.local=null")
        if min(triple(views.main.size)) < self.extent:
            raise ValueError(
                f"views.main.size {min(triple(views.main.size))} is smaller than the grid of "
                f"patches: take {self.extent} or more"
            )
