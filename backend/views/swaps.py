"""Cells of a view that change places (PCRLv2's released code)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from backend.views.crops import Grid
from backend.views.randomness import uniform

_STREAM = 811


def swap_cells(
    image: Float[Tensor, "b c z y x"], keys: Int64[Tensor, " b"], *, pairs: int, cell: Grid
) -> Float[Tensor, "b c z y x"]:
    """Let `pairs` of cells, no cell twice, change places in each sample.

    Args:
        image: edges are multiples of the cell's.
        keys: one for each sample.
        pairs: at most half as many as there are cells.
        cell: edges in voxels, (z, y, x).
    """
    b, c, *size = image.shape
    gz, gy, gx = (n // edge for n, edge in zip(size, cell, strict=True))
    cells = gz * gy * gx
    order = uniform(keys, cells, stream=_STREAM).argsort(dim=1, stable=True)
    first, second = order[:, :pairs], order[:, pairs : 2 * pairs]
    source = torch.arange(cells, device=image.device).repeat(b, 1)
    source = source.scatter(1, first, second).scatter(1, second, first)
    # (b, c, gz, ez, gy, ey, gx, ex) -> (b, cells, c, ez, ey, ex)
    apart = image.reshape(b, c, gz, cell[0], gy, cell[1], gx, cell[2])
    apart = apart.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, cells, c, *cell)
    moved = apart.gather(1, source.view(b, cells, 1, 1, 1, 1).expand_as(apart))
    moved = moved.view(b, gz, gy, gx, c, *cell).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return moved.reshape(image.shape)
