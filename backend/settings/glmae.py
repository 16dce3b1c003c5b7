"""Settings of GL-MAE and MAE3D."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from backend.settings.common import STRICT
from backend.settings.encoders import VitConfig
from backend.settings.views import AnyViews


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GlmaeConfig(AnyViews):
    """GL-MAE and MAE3D."""

    name: Literal["glmae", "mae3d"] = "glmae"
    encoder: VitConfig = VitConfig()
