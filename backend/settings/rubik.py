"""Settings of Rubik's cube+."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from backend.settings.common import STRICT
from backend.settings.encoders import UnetConfig
from backend.settings.views import AnyViews


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RubikConfig(AnyViews):
    """Rubik's cube+."""

    name: Literal["rubik"] = "rubik"
    encoder: UnetConfig = UnetConfig()
