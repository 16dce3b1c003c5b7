"""Settings of PGL and its relatives."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from backend.settings.common import STRICT
from backend.settings.encoders import ResnetConfig
from backend.settings.views import AnyViews


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PglConfig(AnyViews):
    """PGL and its relatives."""

    name: Literal[
        "pgl",
        "pgl_no_flip",
        "pgl_no_csalign",
        "pgl_no_align",
        "byol",
        "simsiam",
        "mocov3",
        "pgl_mip",
    ] = "pgl"
    encoder: ResnetConfig = ResnetConfig()
