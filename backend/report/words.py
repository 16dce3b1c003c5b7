"""Numbers as people read them."""

from __future__ import annotations

import math


def duration_text(seconds: float) -> str:
    """Seconds as people say them: "8.2 s", "3 min 05 s", "14 min", "2 h 10 min"."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest:02d} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def number_text(value: float) -> str:
    """Three or four telling digits."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def plural(count: int, word: str) -> str:
    """A count with its noun: "1 case", "1,200 cases"."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
