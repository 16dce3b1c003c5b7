"""Asks frozen features of labelled scans again and again while they are pretrained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from backend.config import PretrainConfig
from backend.data.cache import CachedVolume
from backend.data.intensity import ScanMoments
from backend.data.labels import Label, class_table
from backend.errors import UserError
from backend.geometry import Index3, index3
from backend.probe import NOT_ASKED, LabelledImage, ProbeSettings, linear_probe
from backend.settings.common import triple
from backend.views.crops import window_hu, zscored

if TYPE_CHECKING:
    from backend.engine.loop import Loop

LINEAR = "probe/linear"
"""The key of what is measured, in the record and in status.json."""


class Prober:
    """A linear probe, always on the same voxels, and the encoder that did best in it.

    Args:
        loop: of the run; knows what was best before a run was resumed.
        encoder: gives the network that is kept after pretraining.
        learn: parts of scans that the probe is solved on.
        judge: parts of other scans.
        settings: of the probe.
        keep: writes the encoder as it is.
    """

    def __init__(
        self,
        loop: Loop[Any],
        encoder: Callable[[], nn.Module],
        *,
        learn: Sequence[LabelledImage],
        judge: Sequence[LabelledImage],
        settings: ProbeSettings,
        keep: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._encoder = encoder
        self._learn = learn
        self._judge = judge
        self._settings = settings
        self._keep = keep

    def ask(self, step: int) -> dict[str, float]:
        """Balanced accuracy after so many steps; of equally good encoders the later is kept."""
        self._loop.run.note(message="Probing the features")
        score = linear_probe(self._encoder(), self._learn, self._judge, self._settings)
        best = self._loop.best
        if best is None or score >= best[LINEAR]:
            self._loop.best = {"step": step, LINEAR: score}
            self._keep()
        return {LINEAR: score}


def labelled_windows(
    volumes: Sequence[CachedVolume], labels: Sequence[Label], config: PretrainConfig
) -> list[LabelledImage]:
    """Parts of labelled scans as the encoder sees them; what lies in their middles is asked for.

    Each is as large as a view and centred on a voxel of a structure, of one after the other. In
    whole scans, or near the edges of a part, the place of a voxel would tell its structure to a
    network that is told places. Beyond the end of a scan is air.

    Args:
        volumes: with label maps.
        labels: structures in the order of their classes, 1, 2, ...
        config: of the run: size of a view, values, how many parts.

    Raises:
        UserError: if a scan has no structure left.
    """
    size, table = triple(config.views.main.size), class_table(labels)
    moments = ScanMoments(volumes, config.preprocess)
    middle = tuple(slice(n // 4, n - n // 4) for n in size)
    windows = []
    for number, volume in enumerate(volumes):
        for start in _starts(volume, size, config.probe.windows, number=number):
            hu = torch.from_numpy(volume.read(start, size))
            target = np.full(size, NOT_ASKED, np.int16)
            target[middle] = table[volume.read_label(start, size)][middle]
            windows.append(LabelledImage(_values(hu, moments.of(number), config), target))
    return windows


def _starts(volume: CachedVolume, size: Index3, count: int, *, number: int) -> list[Index3]:
    """Where the parts of a scan begin; together, scans go through all structures."""
    places = volume.foreground
    values = sorted(places)
    if not values:
        raise UserError(
            f"Case {volume.id}: no voxel of a structure is left at the spacing of this run.",
            "Leave the case out of --probe-data, or set a smaller preprocess.spacing_mm.",
        )
    starts = []
    for window in range(number * count, (number + 1) * count):
        voxels = places[values[window % len(values)]]
        chosen = np.random.default_rng([window, 4]).integers(len(voxels))
        centre = voxels[int(chosen)]
        starts.append(index3([int(c) - n // 2 for c, n in zip(centre, size, strict=True)]))
    return starts


def _values(hu: torch.Tensor, moments: tuple[float, float], config: PretrainConfig) -> torch.Tensor:
    window = config.preprocess.hu_window
    if config.preprocess.intensity == "zscore":
        return zscored(hu, window, torch.tensor([moments]))
    return window_hu(hu, window)
