"""How a number changes over a run, told as progress in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` at 0 to `end` at 1 along half a cosine, e.g. the teacher's momentum."""
    return end - (end - start) * (math.cos(math.pi * min(1.0, max(0.0, progress))) + 1) / 2


def linear_warmup(
    start: float, end: float, progress: float, *, share: float, delay: float = 0.0
) -> float:
    """From `start` to `end` over `share` of the run, beginning at `delay`; constant around it."""
    if share <= 0:
        return end if progress >= delay else start
    done = min(1.0, max(0.0, (progress - delay) / share))
    return start + (end - start) * done


def halving(progress: float, *, every: float) -> float:
    """1, halved each time another `every` of the run has passed."""
    return float(0.5 ** math.floor(progress / every + 1e-9))


def polynomial(progress: float, *, power: float = 0.9) -> float:
    """(1 - progress)^power, the fall of nnU-Net's and DeepLab's learning rate."""
    return float((1.0 - min(1.0, max(0.0, progress))) ** power)


def warmed_up(
    peak: float, step: int, *, total: int, warmup: float, fall: Callable[[float], float]
) -> float:
    """Learning rate of a step (counted from 0): linear to `peak`, then falling.

    Args:
        peak: the highest value, reached at the end of the warm-up.
        step: which step.
        total: steps in all.
        warmup: share of the steps that rise.
        fall: from progress after the warm-up, in [0, 1], to a factor on `peak`.
    """
    rising = warmup * total
    if step < rising:
        return peak * min(1.0, (step + 1) / rising)
    return peak * fall((step - rising) / max(1.0, total - rising))
