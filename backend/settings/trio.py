"""Settings of the Swin UNETR trio."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from backend.settings.common import STRICT
from backend.settings.encoders import SwinConfig
from backend.settings.views import AnyViews


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrioConfig(AnyViews):
    """the Swin UNETR trio."""

    name: Literal["swinunetr_trio"] = "swinunetr_trio"
    encoder: SwinConfig = SwinConfig()
