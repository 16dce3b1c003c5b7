"""Pretext methods, one readable file each, and the table of them."""

from __future__ import annotations

from backend.config import MethodConfig
from backend.methods.smit import Smit


def build_method(config: MethodConfig, *, epochs: float) -> Smit:
    """The method of its settings; `epochs` is the length that its schedules refer to."""
    return Smit(config, epochs=epochs)
