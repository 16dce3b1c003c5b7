"""Numbers as people read them."""

from __future__ import annotations

import math


def number_text(value: float) -> str:
    """Three or four telling digits."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def plural(count: int, word: str) -> str:
    """A count with its noun: "1 case", "1,200 cases"."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
