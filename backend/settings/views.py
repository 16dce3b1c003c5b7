"""Settings of the views that a pretext method compares."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from backend.cells import hidden_count
from backend.settings.common import (
    NUMBER,
    RISING,
    STRICT,
    BlurSigma,
    Edges,
    Factors,
    Fraction,
    Grid,
    HalfOpenFraction,
    NoiseVariance,
    triple,
)

# A cut of less than a hundredth of an edge is a voxel or none.
_Share = Annotated[float, Field(ge=0.01, le=100), NUMBER]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ViewConfig:
    """How views of one kind are cut from a scan and changed."""

    count: Annotated[int, Field(ge=1, le=64), NUMBER] = 2
    """Views of each scan."""
    size: Edges = 96
    """Edges of a view, as the network sees it."""
    scale: Annotated[tuple[_Share, _Share], RISING] = (1.0, 1.0)
    """What is cut before it is resized to `size`, drawn for each view: where views.region is set
    this many times `size`, else this share of the scan's extent along each axis."""
    flip_probability: Fraction = 0.0
    """Chance to mirror a view along each axis."""
    intensity_scale: HalfOpenFraction = 0.0
    """A view's values are multiplied by a factor in 1 +- this."""
    intensity_shift: HalfOpenFraction = 0.0
    """A number in +- this is added to a view's values (after windowing to 0..1)."""
    noise_probability: Fraction = 0.0
    noise_variance: NoiseVariance = (0.0, 0.1)
    """Variance of Gaussian noise that is added."""
    blur_probability: Fraction = 0.0
    blur_sigma: BlurSigma = (0.5, 1.0)
    """Standard deviation of a Gaussian blur, in voxels of the view."""
    brightness_probability: Fraction = 0.0
    brightness: Factors = (0.75, 1.25)
    """Factor on the values, which stay within the range they had."""
    gamma_probability: Fraction = 0.0
    gamma: Factors = (0.7, 1.5)
    """Exponent on the values, scaled to 0..1 and back."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ViewsConfig:
    """The views of one scan that a pretext method compares."""

    region: Edges | None = 128
    """Edges of the part of the scan that its views are cut from; null: the whole scan."""
    main: ViewConfig = ViewConfig()
    """The views that every method has; "global" where there are local ones too."""
    local: ViewConfig | None = None
    """Smaller views beside them, for methods that compare both."""
    minimum_overlap: Fraction = 0.0
    """Least share of the smaller cut that two main views have in common."""
    isotropic_first: bool = False
    """With region null: cut cubes, their edge a share of the scan's shortest extent, instead of
    boxes of the scan's own proportions. Needs a spacing (preprocess.spacing_mm)."""

    @model_validator(mode="after")
    def _check(self) -> ViewsConfig:
        for name, view in (("main", self.main), ("local", self.local)):
            if view is not None:
                self._check_fits(name, view)
        if self.isotropic_first and self.region is not None:
            raise ValueError("isotropic_first needs region=null")
        return self

    def _check_fits(self, name: str, view: ViewConfig) -> None:
        if self.region is None:
            if view.scale[1] > 1:
                raise ValueError(f"{name}.scale {view.scale[1]:g} is more than the whole scan")
            return
        region = triple(self.region)
        for edge, room in zip(triple(view.size), region, strict=True):
            if edge * view.scale[1] > room:
                largest = f"{edge} voxels times {view.scale[1]:g}"
                raise ValueError(f"{name}: a cut of {largest} is larger than region {room}")


class Hiding(NamedTuple):
    """What a method hides of a view.

    Attributes:
        low: least share of cells.
        high: largest share of cells.
        cell: edges of a cell in voxels (z, y, x).
    """

    low: float
    high: float
    cell: Grid

    def check(self, view: ViewConfig, *, name: str) -> None:
        """Refuse to hide nothing, or all, of a view.

        Raises:
            ValueError: with the ratio and the cells there are.
        """
        cells = math.prod(n // c for n, c in zip(triple(view.size), self.cell, strict=True))
        hidden = hidden_count(cells, self.high)
        if not 0 < hidden < cells:
            what = "hides all" if hidden else "hides none of"
            raise ValueError(
                f"method.mask_ratio {self.high:g} {what} {cells} cells of {name}.size {view.size}"
            )


def refuse_local(name: str, views: ViewsConfig) -> None:
    """Refuse local views where a method would not look at them.

    Raises:
        ValueError: if there are some.
    """
    if views.local is not None:
        raise ValueError(f"{name} has no use for local views: leave views.local out")


class AnyViews:
    """What the settings of a method inherit."""

    @property
    def hiding(self) -> Hiding | None:
        """What is hidden of each view; None if the method hides no cells."""
        return None

    @property
    def least_batch(self) -> int:
        """Scans that a part of a batch must have: two, if scans are told from each other."""
        return 1

    @property
    def needs_window(self) -> bool:
        """Whether values must lie in 0..1 (preprocess.intensity=window)."""
        return False

    def check_views(self, views: ViewsConfig) -> None:
        """Refuse views that the method cannot learn from.

        Raises:
            ValueError: with what is wrong and what would do.
        """


class WindowedViews(AnyViews):
    """What the settings of a method inherit whose ways to spoil a view are made for 0..1."""

    @property
    def needs_window(self) -> bool:
        """Always."""
        return True
