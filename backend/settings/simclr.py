"""Settings of SimCLR."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from backend.settings.common import (
    STRICT,
    Temperature,
)
from backend.settings.encoders import ResnetConfig
from backend.settings.pgl import ProjectorConfig, check_pair
from backend.settings.views import AnyViews, ViewsConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SimclrConfig(AnyViews):
    """SimCLR (Chen et al., ICML 2020, arXiv 2002.05709)."""

    name: Literal["simclr"] = "simclr"
    encoder: ResnetConfig = ResnetConfig()
    projector: ProjectorConfig = ProjectorConfig(hidden=2048, output=128, last_norm=True)
    temperature: Temperature = 0.1
    """Sharpness of telling views apart (tau)."""

    @property
    def least_batch(self) -> int:
        """Contrast needs another scan."""
        return 2

    def check_views(self, views: ViewsConfig) -> None:
        """Two views."""
        check_pair(self.name, views)
