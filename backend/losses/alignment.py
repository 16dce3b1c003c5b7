"""Feature maps of two views brought to the place that both show (PGL, sec. 3.3).

A view's affine leads from its voxels to those of the region that it was cut from, voxel centres at
whole numbers, axes (z, y, x): crops, resizes and mirrors, no turns, so each axis stands for itself.
Maps cover the same extent as their view, with coarser cells.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from backend.losses.precision import full_precision

Extent = tuple[int, int, int]


def align(
    features: Float[Tensor, "b c z y x"],
    affine: Float[Tensor, "b 4 4"],
    other: Float[Tensor, "b 4 4"],
    *,
    view_size: Extent,
    undo_flips: bool = True,
    crop_scale: bool = True,
) -> Float[Tensor, "b c z y x"]:
    """Resample a view's map so that equal cells of both views' maps show the same place.

    FlipAlign (eq. 4) mirrors the map as its view was. CSAlign (eqs. 5 to 7) takes the box that both
    views show, in continuous coordinates, and resizes it to the whole grid: one sample at the
    centre of each cell, linear along each axis, the outermost cells continued as constants. With
    `crop_scale` alone it is the right box, in the view's own direction.

    Args:
        features: the map of one view.
        affine: that view's.
        other: that of the view it is aligned with.
        view_size: edges of both views in voxels.
        undo_flips: whether to do FlipAlign.
        crop_scale: whether to do CSAlign.

    Returns:
        A map on the same grid, fp32 unless nothing was to do.
    """
    if not (undo_flips or crop_scale):
        return features
    begin, end = _span(affine, other, view_size, crop_scale=crop_scale)
    if not undo_flips:
        begin, end = torch.minimum(begin, end), torch.maximum(begin, end)
    z, y, x = (
        _interpolation(begin[:, axis], end[:, axis], cells)
        for axis, cells in enumerate(features.shape[2:])
    )
    with full_precision(features.device.type):
        # Products with small matrices: unlike grid_sample's, their gradient adds up in a fixed
        # order on every device, and there is one on each of them.
        aligned = torch.einsum("bpx,bczyx->bczyp", x, features.float())
        aligned = torch.einsum("bqy,bczyx->bczqx", y, aligned)
        return torch.einsum("brz,bczyx->bcryx", z, aligned)


def _span(
    affine: Float[Tensor, "b 4 4"],
    other: Float[Tensor, "b 4 4"],
    view_size: Extent,
    *,
    crop_scale: bool,
) -> tuple[Float[Tensor, "b 3"], Float[Tensor, "b 3"]]:
    """Where the box wanted begins and ends in the view, as shares of it; from 1 to 0 if mirrored.

    Begin and end are in the direction of the region's axes.
    """
    first, last = _faces(affine, view_size)
    low, high = torch.minimum(first, last), torch.maximum(first, last)
    if crop_scale:
        theirs = _faces(other, view_size)
        low = torch.maximum(low, torch.minimum(*theirs))
        # Views apart from each other have no box: they are compared where they are nearest.
        high = torch.maximum(torch.minimum(high, torch.maximum(*theirs)), low)
    return (low - first) / (last - first), (high - first) / (last - first)


def _faces(
    affine: Float[Tensor, "b 4 4"], view_size: Extent
) -> tuple[Float[Tensor, "b 3"], Float[Tensor, "b 3"]]:
    """Outer faces of a view's first and last voxels, in voxels of the region."""
    step = affine.diagonal(dim1=1, dim2=2)[:, :3]
    size = torch.tensor(view_size, dtype=affine.dtype, device=affine.device)
    first = affine[:, :3, 3] - step / 2
    return first, first + step * size


def _interpolation(
    begin: Float[Tensor, " b"], end: Float[Tensor, " b"], cells: int
) -> Float[Tensor, "b cells cells"]:
    """Weights of an axis' cells (last axis) for as many samples between begin and end."""
    index = torch.arange(cells, dtype=begin.dtype, device=begin.device)
    share = (index + 0.5) / cells
    place = begin.unsqueeze(1) + (end - begin).unsqueeze(1) * share
    place = (place * cells - 0.5).clamp(0, cells - 1)
    return (1 - (place.unsqueeze(2) - index).abs()).clamp(min=0).float()
