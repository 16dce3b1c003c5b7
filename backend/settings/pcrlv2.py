"""Settings of PCRLv2."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from backend.settings.common import (
    STRICT,
    BlurSigma,
    CountFromZero,
    Edges,
    Factors,
    Fraction,
    NoiseVariance,
    NotNegative,
    Positive,
    triple,
)
from backend.settings.encoders import UnetConfig
from backend.settings.views import ViewsConfig, WindowedViews


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Pcrlv2Config(WindowedViews):
    """PCRLv2 (Zhou et al., IEEE TPAMI 2023)."""

    name: Literal["pcrlv2"] = "pcrlv2"
    encoder: UnetConfig = UnetConfig()
    skips: bool = False
    """Whether the decoder sees the encoder's finer maps while pretraining (paper: no)."""
    intermediate_epochs: Positive = 240
    """Epochs over which the weight of the intermediate reconstruction falls from 1 to 0."""
    blur_probability: Fraction = 1.0
    blur_sigma: BlurSigma = (0.01, 2.0)
    """Standard deviation in voxels of the blur that spoils a view."""
    noise_probability: Fraction = 1.0
    noise_variance: NoiseVariance = (0.0, 0.0625)
    gamma_probability: Fraction = 1.0
    gamma: Factors = (0.74, 1.35)
    """Exponent on the values of a view, scaled to 0..1 and back."""
    swaps: CountFromZero = 100
    """Pairs of cells that change places in a main view."""
    swap_cell: Edges = (4, 4, 8)
    """Edges of such a cell in voxels, (z, y, x)."""
    weight_restore: NotNegative = 1.0
    weight_global: NotNegative = 1.0
    """Weight of the comparison of the two main views."""
    weight_local: NotNegative = 1.0
    """Weight of the comparison of local views with main ones."""
    weight_intermediate: NotNegative = 1.0
    """Weight of the reconstruction at a drawn scale, before it falls (beta)."""

    @model_validator(mode="after")
    def _check(self) -> Pcrlv2Config:
        if not self.encoder.decoder:
            raise ValueError("encoder.decoder must be true: scales of the decoder are compared")
        if len(self.encoder.widths) < 2:
            raise ValueError(
                f"encoder.widths {list(self.encoder.widths)} must name two levels or more"
            )
        weights = [name for name in asdict(self) if name.startswith("weight_")]
        if not any(getattr(self, name) for name in weights):
            raise ValueError(f"{', '.join(weights)} are all 0: nothing to learn")
        return self

    def check_views(self, views: ViewsConfig) -> None:
        """Refuse views that the method cannot learn from.

        Raises:
            ValueError: with what is wrong and what would do.
        """
        if views.main.count != 2:
            raise ValueError("PCRLv2 compares two main views: set views.main.count=2")
        cells = 1
        for edge, cell in zip(triple(views.main.size), triple(self.swap_cell), strict=True):
            if edge % cell:
                raise ValueError(
                    f"views.main.size {edge} is no multiple of method.swap_cell {cell}"
                )
            cells *= edge // cell
        if 2 * self.swaps > cells:
            raise ValueError(
                f"method.swaps={self.swaps} needs {2 * self.swaps} cells, a view has {cells}"
            )
