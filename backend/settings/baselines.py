"""Networks that are trained from scratch, to compare with: MONAI's, with their usual widths."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from backend.settings.common import STRICT, Count, Grid

BaselineName = Literal["segresnet", "unetr", "swinunetr", "dynunet"]

_STRIDES: dict[str, int] = {"segresnet": 8, "unetr": 16, "swinunetr": 32, "dynunet": 32}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BaselineNetworkConfig:
    """The network."""

    kind: BaselineName
    width: Count
    """Channels at full resolution (UNETR: of its decoder)."""
    patch: tuple[Count, Count, Count] | None = None
    """The crop that UNETR's learned positions are made for; null for the others."""
    hidden: Count | None = None
    """Channels of UNETR's tokens; its heads have 64 each. Null for the others."""

    @property
    def stride(self) -> Grid:
        """What the edges of a crop must be multiples of."""
        edge = _STRIDES[self.kind]
        return (edge, edge, edge)

    @model_validator(mode="after")
    def _check(self) -> BaselineNetworkConfig:
        if self.kind == "unetr":
            self._check_unetr()
        elif self.patch is not None or self.hidden is not None:
            raise ValueError(f"patch and hidden belong to unetr: set both to null for {self.kind}")
        divisor = {"segresnet": 8, "swinunetr": 12}.get(self.kind, 1)
        if self.width % divisor:
            raise ValueError(f"width {self.width} of {self.kind} is no multiple of {divisor}")
        return self

    def _check_unetr(self) -> None:
        if self.patch is None or self.hidden is None:
            raise ValueError("unetr needs patch and hidden, e.g. patch=[96,96,96] hidden=768")
        if self.hidden % 64:
            raise ValueError(f"hidden {self.hidden} is no multiple of 64, the width of a head")
        if any(edge % 16 for edge in self.patch):
            raise ValueError(f"patch {list(self.patch)} is no multiple of 16, the edge of a token")


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
