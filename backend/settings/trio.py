"""Settings of Swin UNETR's pretraining by three tasks."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from backend.settings.common import (
    STRICT,
    Chance,
    Fraction,
    NotNegative,
    Temperature,
    Width,
    triple,
)
from backend.settings.encoders import SwinConfig
from backend.settings.views import AnyViews, ViewsConfig

_SWIN_UNETR = SwinConfig(
    embed_dim=48,
    depths=(2, 2, 2, 2),
    heads=(3, 6, 12, 24),
    window=7,
    qkv_bias=True,
    drop_path=0.0,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrioConfig(AnyViews):
    """Rotation, contrast and reconstruction (Swin UNETR, Tang et al., CVPR 2022)."""

    name: Literal["swinunetr_trio"] = "swinunetr_trio"
    encoder: SwinConfig = _SWIN_UNETR
    tokens: Literal["corner", "pooled"] = "corner"
    """What the heads of rotation and contrast see: the first and the second token of the coarsest
    map, as in the released code, or both the mean of all."""
    decoder: Literal["vae", "deconv", "linear"] = "vae"
    """Convolutions with interpolation, transposed convolutions, or one linear layer."""
    contrast_width: Width = 512
    """Length of the vectors that are contrasted."""
    contrast_temperature: Temperature = 0.5
    cut_out: Chance = 0.3
    """Largest share of a view behind boxes of noise, and once more of another sample's content."""
    cut_out_edges: tuple[Fraction, Fraction] = (0.05, 0.25)
    """Edges of a box as shares of the view's."""
    weight_rotation: NotNegative = 1.0
    """Weight of telling how often a view was turned."""
    weight_contrast: NotNegative = 1.0
    """Weight of telling views of one crop from those of others."""
    weight_reconstruction: NotNegative = 1.0
    """Weight of restoring the view without its cut-outs."""

    @model_validator(mode="after")
    def _check(self) -> TrioConfig:
        if not (self.weight_rotation or self.weight_contrast or self.weight_reconstruction):
            raise ValueError(
                "weight_rotation, weight_contrast and weight_reconstruction are all 0: "
                "nothing to learn"
            )
        low, high = self.cut_out_edges
        if low >= high:
            raise ValueError(f"cut_out_edges must rise, not {list(self.cut_out_edges)}")
        stride = self.encoder.stride[0]
        if self.decoder != "linear" and stride & (stride - 1):
            raise ValueError(
                f"decoder={self.decoder} doubles the grid, but the stride {stride} is no power of 2"
            )
        return self

    @property
    def least_batch(self) -> int:
        """Contrast needs another scan."""
        return 2

    def check_views(self, views: ViewsConfig) -> None:
        """One crop of each scan, square in the axial plane, of which two versions are made."""
        if views.main.count != 1 or views.local is not None:
            raise ValueError(
                f"views.main.count must be 1, without views.local: {self.name} makes both versions "
                "that it compares from one crop"
            )
        _, y, x = triple(views.main.size)
        if y != x:
            raise ValueError(f"views.main.size {views.main.size}: quarter turns need equal y and x")
        if max(triple(views.main.size)) <= self.encoder.stride[0]:
            raise ValueError(
                f"views.main.size {views.main.size} gives one token; the heads need two or more"
            )
        low, high = (int(share * min(triple(views.main.size))) for share in self.cut_out_edges)
        if low < 1 or high <= low:
            raise ValueError(
                f"method.cut_out_edges {list(self.cut_out_edges)} are less than a voxel of "
                f"views.main.size {views.main.size}"
            )
