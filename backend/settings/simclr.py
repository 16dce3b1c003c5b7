"""Settings of SimCLR."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from backend.settings.common import STRICT
from backend.settings.encoders import ResnetConfig
from backend.settings.views import AnyViews


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SimclrConfig(AnyViews):
    """SimCLR."""

    name: Literal["simclr"] = "simclr"
    encoder: ResnetConfig = ResnetConfig()
