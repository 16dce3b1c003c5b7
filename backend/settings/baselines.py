"""Networks that are trained from scratch, to compare with: MONAI's, with their usual widths."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from backend.settings.common import (
    STRICT,
    Count,
    Edge,
    Grid,
    Width,
)

BaselineName = Literal["segresnet", "unetr", "swinunetr", "dynunet"]

_STRIDES: dict[str, int] = {"segresnet": 8, "unetr": 16, "swinunetr": 32, "dynunet": 32}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BaselineNetworkConfig:
    """The network."""

    kind: BaselineName
    width: Width
    """Channels at full resolution (UNETR: of its decoder)."""
    patch: tuple[Edge, Edge, Edge] | None = None
    """The crop that UNETR's learned positions are made for; null for the others."""
    hidden: Width | None = None
    """Channels of UNETR's tokens; its heads have 64 each. Null for the others."""
    window: Count | None = None
    """Edge of Swin UNETR's attention windows in tokens; null for the others."""

    @property
    def stride(self) -> Grid:
        """What the edges of a crop must be multiples of."""
        edge = _STRIDES[self.kind]
        return (edge, edge, edge)

    def check_crop(self, crop: Grid) -> None:
        """Refuse a training crop that the network cannot take.

        Args:
            crop: its edges (z, y, x), multiples of the stride.

        Raises:
            ValueError: with the crop that would do.
        """
        if self.patch is not None and crop != self.patch:
            raise ValueError(
                f"crop {list(crop)} is not what unetr's positions are made for: set "
                f"method.encoder.patch={list(crop)}, or crop={list(self.patch)}"
            )
        least = [2 * edge for edge in self.stride]
        if self.patch is None and any(n < m for n, m in zip(crop, least, strict=True)):
            raise ValueError(
                f"crop {list(crop)} is too small: {self.kind} halves it to single cells; its "
                f"edges must be {least[0]} or more"
            )

    @property
    def first_width(self) -> int:
        """Channels at full resolution."""
        return self.width

    @model_validator(mode="after")
    def _check(self) -> BaselineNetworkConfig:
        for name, kind in (("patch", "unetr"), ("hidden", "unetr"), ("window", "swinunetr")):
            given = getattr(self, name) is not None
            if given != (kind == self.kind):
                told = f"is needed by {kind}" if not given else f"belongs to {kind}: set it to null"
                raise ValueError(f"{name} {told}")
        divisor = {"segresnet": 8, "swinunetr": 12}.get(self.kind, 1)
        if self.width % divisor:
            raise ValueError(f"width {self.width} of {self.kind} is no multiple of {divisor}")
        if self.hidden is not None and self.hidden % 64:
            raise ValueError(f"hidden {self.hidden} is no multiple of 64, the width of a head")
        if self.patch is not None and any(edge % 16 for edge in self.patch):
            raise ValueError(f"patch {list(self.patch)} is no multiple of 16, the edge of a token")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BaselineConfig:
    """A network that no method pretrains."""

    name: BaselineName
    encoder: BaselineNetworkConfig

    @model_validator(mode="after")
    def _check(self) -> BaselineConfig:
        if self.encoder.kind != self.name:
            raise ValueError(f"encoder.kind {self.encoder.kind} differs from the name {self.name}")
        return self
