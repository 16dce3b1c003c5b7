"""Views of smooth volumes: what is missing of them can be guessed from what is there."""

from __future__ import annotations

import torch
from torch.nn import functional

from backend.views.crops import Cut, Regions, ViewSet, cut_views


def smooth_views(
    size: tuple[int, int, int], *, samples: int = 2, count: int = 1, grain: int = 4
) -> ViewSet:
    """Main views in [0, 1] of volumes four voxels larger; `grain` cells span each axis."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.randn(samples, 1, grain, grain, grain, generator=generator)
    edges = [n + 4 for n in size]
    hu = 1000 * functional.interpolate(coarse, edges, mode="trilinear").tanh()
    regions = Regions(
        hu.to(torch.int16),
        torch.tensor([edges] * samples),
        torch.arange(10, 10 + samples),
        torch.tensor([[0.0, 500.0]] * samples),
    )
    return ViewSet(cut_views(regions, Cut(count=count, size=size), hu_window=(-1000, 1000)))
