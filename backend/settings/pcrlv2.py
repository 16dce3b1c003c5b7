"""Settings of PCRLv2."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from backend.settings.common import STRICT
from backend.settings.encoders import UnetConfig
from backend.settings.views import AnyViews


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Pcrlv2Config(AnyViews):
    """PCRLv2."""

    name: Literal["pcrlv2"] = "pcrlv2"
    encoder: UnetConfig = UnetConfig()
