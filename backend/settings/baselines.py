"""Networks that are trained from scratch, to compare with: MONAI's, with their usual widths."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from backend.settings.common import STRICT, Count, Grid

BaselineName = Literal["segresnet", "unetr", "swinunetr", "dynunet"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BaselineNetworkConfig:
    """The network."""

    kind: BaselineName
    width: Count
    """Channels at full resolution (UNETR: of its decoder)."""
    patch: tuple[Count, Count, Count] | None = None
    """The crop that UNETR's learned positions are made for; null for the others."""

    @property
    def first_width(self) -> int:
        """As that of the encoders."""
        return int(self.width)

    @property
    def stride(self) -> Grid:
        """What the edges of a crop must be multiples of."""
        edge = {"segresnet": 8, "unetr": 16, "swinunetr": 32, "dynunet": 32}[self.kind]
        return (edge, edge, edge)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BaselineConfig:
    """A network that no method pretrains."""

    name: BaselineName
    encoder: BaselineNetworkConfig
