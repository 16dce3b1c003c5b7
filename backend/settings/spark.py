"""Settings of Spark (sparse masked pretraining of a residual-encoder U-Net)."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from backend.settings.common import STRICT
from backend.settings.encoders import ResencConfig
from backend.settings.views import AnyViews


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SparkConfig(AnyViews):
    """Spark (sparse masked pretraining of a residual-encoder U-Net)."""

    name: Literal["spark"] = "spark"
    encoder: ResencConfig = ResencConfig()
