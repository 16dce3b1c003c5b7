"""Settings of Rubik's cube++ (Cub++)."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from backend.settings.common import STRICT
from backend.settings.encoders import UnetConfig
from backend.settings.views import AnyViews


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RubikPpConfig(AnyViews):
    """Rubik's cube++ (Cub++)."""

    name: Literal["rubik_pp"] = "rubik_pp"
    encoder: UnetConfig = UnetConfig()
