"""Settings of PCRL."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from backend.settings.common import STRICT
from backend.settings.encoders import UnetConfig
from backend.settings.views import AnyViews


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PcrlConfig(AnyViews):
    """PCRL."""

    name: Literal["pcrl"] = "pcrl"
    encoder: UnetConfig = UnetConfig()
