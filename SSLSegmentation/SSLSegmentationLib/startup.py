"""What the module gives to others when Slicer has started."""

from __future__ import annotations


def register() -> None:
    """Register all of it; each part is quick and touches no network."""
