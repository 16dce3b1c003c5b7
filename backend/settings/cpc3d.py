"""Settings of CPC-3D."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from backend.settings.common import STRICT
from backend.settings.encoders import ResnetConfig
from backend.settings.views import AnyViews


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Cpc3dConfig(AnyViews):
    """CPC-3D."""

    name: Literal["cpc3d"] = "cpc3d"
    encoder: ResnetConfig = ResnetConfig()
