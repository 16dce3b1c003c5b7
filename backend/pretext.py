"""A pretext method with what it learns from: parts of cached scans, and their views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from backend.config import PretrainConfig
from backend.data.cache import CachedVolume
from backend.data.intensity import Moments, ScanMoments
from backend.data.stream import Position, random_start
from backend.geometry import Index3, index3
from backend.losses.terms import Losses
from backend.methods.method import Method
from backend.settings.common import triple
from backend.settings.views import ViewConfig, ViewsConfig
from backend.views.crops import Cut, Regions, ViewSet, cut_views, padded
from backend.views.intensity import Changes
from backend.views.randomness import derive_key


class Sample(NamedTuple):
    """Part of a scan, or a whole one.

    Attributes:
        hu: its voxels (z, y, x).
        position: which scan, and the how-manieth time.
        moments: mean and deviation of the whole scan, where values are relative to them.
    """

    hu: NDArray[np.int16]
    position: Position
    moments: Moments


class Reader:
    """Random parts of cached scans, each following from seed, epoch and sample alone.

    Args:
        volumes: the scans.
        config: of the run: how large the parts are (or the whole scan), and the seed.
    """

    def __init__(self, volumes: Sequence[CachedVolume], config: PretrainConfig) -> None:
        self.volumes = volumes
        self.seed = config.train.seed
        region = config.views.region
        self._size: Index3 | None = None if region is None else triple(region)
        self._moments = ScanMoments(volumes, config.preprocess)

    def read(self, position: Position) -> Sample:
        """The part of a sample that is seen in an epoch."""
        volume = self.volumes[position.sample]
        if self._size is None:
            return Sample(volume.read_all(), position, self._moments.of(position.sample))
        rng = np.random.default_rng([self.seed, position.epoch, position.sample, 1])
        start = random_start(volume.geometry.size, self._size, rng)
        return self._sample(position, start, self._size)

    def middle(self, number: int) -> tuple[Sample, Index3]:
        """The part in the middle of a scan, and where it begins: the same at every step."""
        volume, position = self.volumes[number], Position(number, 0)
        if self._size is None:
            return self.read(position), (0, 0, 0)
        pairs = zip(volume.geometry.size, self._size, strict=True)
        start = index3([(n - r) // 2 for n, r in pairs])
        return self._sample(position, start, self._size), start

    def _sample(self, position: Position, start: Index3, size: Index3) -> Sample:
        voxels = self.volumes[position.sample].read(start, size)
        return Sample(voxels, position, self._moments.of(position.sample))


def collated(samples: Sequence[Sample], *, seed: int) -> Regions:
    """Samples as one batch; its randomness follows from seed, epoch and sample."""
    hu, sizes = padded([torch.from_numpy(s.hu) for s in samples])
    keys = [derive_key(seed, s.position.epoch, s.position.sample) for s in samples]
    return Regions(hu, sizes, torch.tensor(keys), torch.tensor([s.moments for s in samples]))


class PretrainTask:
    """A pretext method with the views it learns from: what the loop trains.

    Args:
        method: the pretext method.
        config: of the run.
        device: where it is trained.
        learner: calls the method and averages its gradients over processes; None: the method.
    """

    def __init__(
        self,
        method: Method,
        config: PretrainConfig,
        device: torch.device,
        learner: nn.Module | None = None,
    ) -> None:
        self.module = method
        self.learner = method if learner is None else learner
        self.healthy = method.healthy
        self.preprocess = config.preprocess
        self._config = config
        self._device = device

    def views(self, regions: Regions, *, plain: bool = False) -> ViewSet:
        """The views of each sample; `plain` leaves mirroring and values as they are."""
        v, p = self._config.views, self.preprocess
        there = Regions(*(part.to(self._device, non_blocking=True) for part in regions))
        kinds = {
            kind: ()
            if settings is None
            else cut_views(
                there,
                cut_of(v, settings, plain=plain),
                hu_window=p.hu_window,
                zscore=p.intensity == "zscore",
                local=kind == "local",
            )
            for kind, settings in (("main", v.main), ("local", v.local))
        }
        return ViewSet(**kinds)

    def loss(self, batch: Regions, progress: float) -> Losses:
        """See `Trainable`."""
        losses: Losses = self.learner(self.views(batch), progress)
        return losses

    def after_backward(self, progress: float) -> None:
        """See `Trainable`."""
        self.module.after_backward(progress)

    def after_step(self, progress: float) -> dict[str, float]:
        """See `Trainable`."""
        return self.module.after_step(progress)

    def settings(self, progress: float) -> dict[str, float]:
        """See `Trainable`."""
        return self.module.settings(progress)


def cut_of(views: ViewsConfig, view: ViewConfig, *, plain: bool = False) -> Cut:
    """How views of one kind are made; `plain` leaves mirroring and values as they are."""
    cut = Cut(
        count=view.count,
        size=triple(view.size),
        scale=view.scale,
        relative=views.region is None,
        cubes=views.isotropic_first,
        minimum_overlap=views.minimum_overlap if view is views.main else 0.0,
    )
    if plain:
        return cut
    return replace(
        cut,
        flip_probability=view.flip_probability,
        intensity_scale=view.intensity_scale,
        intensity_shift=view.intensity_shift,
        changes=Changes(
            noise=view.noise_probability,
            noise_variance=view.noise_variance,
            blur=view.blur_probability,
            blur_sigma=view.blur_sigma,
            brightness=view.brightness_probability,
            brightness_factor=view.brightness,
            gamma=view.gamma_probability,
            gamma_exponent=view.gamma,
        ),
    )
