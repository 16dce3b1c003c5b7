"""Mean and deviation of whole scans, for methods that see values relative to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backend.config import PreprocessConfig
from backend.data.cache import CachedVolume

Moments = tuple[float, float]
"""Mean and standard deviation."""


def clipped_moments(hu: NDArray[np.int16], window: tuple[float, float]) -> Moments:
    """Mean and deviation of a preprocessed scan's HU, clipped to the window."""
    clipped = np.clip(hu, *window)
    return float(clipped.mean(dtype=np.float64)), float(clipped.std(dtype=np.float64))


class ScanMoments:
    """Moments of cached scans, computed when first asked for.

    Args:
        volumes: the scans.
        settings: whether values are seen relative to their scan, and the window.
    """

    def __init__(self, volumes: Sequence[CachedVolume], settings: PreprocessConfig) -> None:
        self._volumes = volumes
        self._settings = settings
        self._known: dict[int, Moments] = {}

    def of(self, sample: int) -> Moments:
        """Those of one scan; (0, 1) where nothing asks for them."""
        if self._settings.intensity == "window":
            return 0.0, 1.0
        if sample not in self._known:
            whole = self._volumes[sample].read_all()
            self._known[sample] = clipped_moments(whole, self._settings.hu_window)
        return self._known[sample]
