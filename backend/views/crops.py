"""Views of a part of a scan, cut in a batch on the device, each with the affine that made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int16, Int64
from torch import Tensor

from backend.views import intensity
from backend.views.randomness import derive_keys, integers, uniform

Grid = tuple[int, int, int]

_STARTS, _FLIPS, _SCALE, _SHIFT, _EXTENT = 1, 2, 3, 4, 5
_LOCAL = 1000
"""Local views are numbered from here on, so that their number never decides a main view."""
_TRIES = 16
"""Places that are drawn for a view that must overlap another one."""


class View(NamedTuple):
    """One view of each sample of a batch.

    Attributes:
        image: values as the network sees them, (b, 1, z, y, x).
        affine: from a voxel (z, y, x, 1) of the view to a voxel of the region, (b, 4, 4) fp64;
            whole numbers are the centres of voxels in both.
        keys: what the randomness of this view follows from, (b).
    """

    image: Float[Tensor, "b 1 z y x"]
    affine: Float[Tensor, "b 4 4"]
    keys: Int64[Tensor, " b"]


class ViewSet(NamedTuple):
    """All views of each sample of a batch.

    Attributes:
        main: the views that every method has, all of one size; global ones, if there are local.
        local: smaller ones, all of one size; may be empty.
    """

    main: tuple[View, ...]
    local: tuple[View, ...] = ()


class Regions(NamedTuple):
    """What the views of a batch are cut from.

    Attributes:
        hu: Hounsfield units, (b, 1, z, y, x), padded at the far ends where samples differ in size.
        sizes: voxels of each sample along (z, y, x), (b, 3).
        keys: one for each sample; all views follow from it.
        moments: mean and deviation of each whole scan's HU, clipped to the window, (b, 2).
    """

    hu: Int16[Tensor, "b 1 rz ry rx"]
    sizes: Int64[Tensor, "b 3"]
    keys: Int64[Tensor, " b"]
    moments: Float[Tensor, "b 2"]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How views of one kind are made.

    Attributes:
        count: views of each sample.
        size: voxels of a view (z, y, x).
        scale: what is cut before it is resized to `size`, drawn uniformly for each view: so many
            times `size`, or with `relative` this share of the region's own extent.
        relative: see `scale`.
        cubes: with `relative`: cut cubes, the share being that of the shortest extent.
        minimum_overlap: least share of the smaller box that a view has in common with the first.
        flip_probability: chance to mirror along each axis.
        intensity_scale: values are multiplied by a factor in 1 +- this.
        intensity_shift: a number in +- this is added.
        changes: further changes of the values.
    """

    count: int
    size: Grid
    scale: tuple[float, float] = (1.0, 1.0)
    relative: bool = False
    cubes: bool = False
    minimum_overlap: float = 0.0
    flip_probability: float = 0.0
    intensity_scale: float = 0.0
    intensity_shift: float = 0.0
    changes: intensity.Changes = field(default_factory=intensity.Changes)


class Boxes(NamedTuple):
    """Parts of regions, told by their outer faces: voxel i covers [i, i + 1].

    Attributes:
        start: the low faces, (b, 3) fp64.
        extent: edge lengths in voxels, (b, 3) fp64.
    """

    start: Float[Tensor, "b 3"]
    extent: Float[Tensor, "b 3"]


def cut_views(
    regions: Regions,
    cut: Cut,
    *,
    hu_window: tuple[float, float],
    zscore: bool = False,
    local: bool = False,
) -> tuple[View, ...]:
    """All views of one kind: boxes at random places, resized, maybe mirrored and changed.

    Args:
        regions: what they are cut from.
        cut: how.
        hu_window: Hounsfield units that become 0 and 1, values beyond are clipped.
        zscore: give clipped HU the mean 0 and deviation 1 of their scan instead.
        local: views beside the main ones, with randomness of their own.
    """
    first = _LOCAL if local else 1
    views: list[View] = []
    first_boxes: Boxes | None = None
    for number in range(first, first + cut.count):
        keys = derive_keys(regions.keys, number)
        boxes = random_boxes(keys, regions.sizes, cut, beside=first_boxes)
        first_boxes = first_boxes or boxes
        flip = uniform(keys, 3, stream=_FLIPS) < cut.flip_probability
        hu = _cut_out(regions, boxes, flip, cut)
        image = zscored(hu, hu_window, regions.moments) if zscore else window_hu(hu, hu_window)
        image = _changed(image, keys, cut, bounded=not zscore)
        views.append(View(image, _affine(boxes, flip, cut.size), keys))
    return tuple(views)


def window_hu(hu: Tensor, window: tuple[float, float]) -> Float[Tensor, "*shape"]:
    """Hounsfield units as fp32, the window's ends at 0 and 1, clipped beyond."""
    low, high = window
    return ((hu.to(torch.float32) - low) / (high - low)).clamp_(0.0, 1.0)


def zscored(
    hu: Tensor, window: tuple[float, float], moments: Float[Tensor, "b 2"]
) -> Float[Tensor, "*shape"]:
    """Hounsfield units clipped to the window, less their scan's mean, over its deviation."""
    mean, deviation = (m.view(-1, *[1] * (hu.ndim - 1)) for m in moments.float().unbind(1))
    return (hu.to(torch.float32).clamp(*window) - mean) / deviation.clamp(min=1.0)


def random_boxes(
    keys: Int64[Tensor, " b"],
    sizes: Int64[Tensor, "b 3"],
    cut: Cut,
    *,
    beside: Boxes | None = None,
) -> Boxes:
    """Where a view of each sample is cut from.

    Args:
        keys: of the view.
        sizes: voxels of each region, (z, y, x).
        cut: how large, and how much it must have in common with `beside`.
        beside: the first view's boxes; a box that overlaps them enough is drawn, or if none of
            sixteen does, the one with the same centre, as far as the region allows.
    """
    extent = _extent(keys, sizes, cut)
    if beside is None or cut.minimum_overlap == 0:
        return Boxes(_random_start(keys, sizes, extent, cut), extent)
    room = (sizes - extent).clamp(min=0)
    centred = torch.minimum((beside.start + (beside.extent - extent) / 2).clamp(min=0), room)
    start, found = centred, torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
    for attempt in range(_TRIES):
        tried = _random_start(derive_keys(keys, attempt), sizes, extent, cut)
        enough = overlap_share(beside, Boxes(tried, extent)) >= cut.minimum_overlap
        start = torch.where((enough & ~found).unsqueeze(1), tried, start)
        found = found | enough
    return Boxes(start, extent)


def overlap_share(a: Boxes, b: Boxes) -> Float[Tensor, " b"]:
    """What two boxes have in common, as a share of the smaller one."""
    low = torch.maximum(a.start, b.start)
    high = torch.minimum(a.start + a.extent, b.start + b.extent)
    common = (high - low).clamp(min=0).prod(dim=1)
    return common / torch.minimum(a.extent.prod(dim=1), b.extent.prod(dim=1))


def _extent(
    keys: Int64[Tensor, " b"], sizes: Int64[Tensor, "b 3"], cut: Cut
) -> Float[Tensor, "b 3"]:
    low, high = cut.scale
    share = low + (high - low) * uniform(keys, 1, stream=_EXTENT).double()
    if not cut.relative:
        return share * torch.tensor(cut.size, device=keys.device, dtype=torch.float64)
    if cut.cubes:
        return (share * sizes.amin(dim=1, keepdim=True)).expand(-1, 3)
    return share * sizes


def _random_start(
    keys: Int64[Tensor, " b"], sizes: Int64[Tensor, "b 3"], extent: Tensor, cut: Cut
) -> Float[Tensor, "b 3"]:
    if _whole_voxels(cut):
        # On the grid: such views are copies of voxels, not mixtures of neighbours.
        return integers(keys, sizes - extent.long() + 1, 3, stream=_STARTS).double()
    return uniform(keys, 3, stream=_STARTS).double() * (sizes - extent).clamp(min=0)


def _whole_voxels(cut: Cut) -> bool:
    return cut.scale == (1.0, 1.0) and not cut.relative


def _cut_out(
    regions: Regions, boxes: Boxes, flip: Bool[Tensor, "b 3"], cut: Cut
) -> Int16[Tensor, "b 1 z y x"] | Float[Tensor, "b 1 z y x"]:
    if _whole_voxels(cut):
        return copied(regions.hu, boxes.start.long(), flip, cut.size)
    return resampled(regions.hu, regions.sizes, boxes, flip, cut.size)


def copied(
    volumes: Tensor, start: Int64[Tensor, "b 3"], flip: Bool[Tensor, "b 3"], size: Grid
) -> Tensor:
    """Boxes of `size` from (b, c, z, y, x) at `start` (b, 3), mirrored where `flip` (b, 3) says.

    One gather for the whole batch; nothing is copied to the host.
    """
    index = []
    for axis, edge in enumerate(size):
        steps = torch.arange(edge, device=volumes.device)
        offset = torch.where(flip[:, axis, None], edge - 1 - steps, steps)
        index.append(start[:, axis, None] + offset)  # (b, edge)
    b = torch.arange(len(volumes), device=volumes.device).view(-1, 1, 1, 1, 1)
    c = torch.arange(volumes.shape[1], device=volumes.device).view(1, -1, 1, 1, 1)
    z = index[0].view(-1, 1, size[0], 1, 1)
    y = index[1].view(-1, 1, 1, size[1], 1)
    x = index[2].view(-1, 1, 1, 1, size[2])
    return volumes[b, c, z, y, x]


def resampled(
    volumes: Tensor,
    sizes: Int64[Tensor, "b 3"],
    boxes: Boxes,
    flip: Bool[Tensor, "b 3"],
    size: Grid,
) -> Float[Tensor, "b c z y x"]:
    """Boxes of (b, c, z, y, x), resized to `size` by trilinear interpolation, maybe mirrored.

    Beyond the centres of a sample's outermost voxels its edge continues. Interpolation goes axis
    by axis, which gives the same and touches each voxel less often.
    """
    results = []
    for sample in range(len(volumes)):
        x: Tensor = volumes[sample]
        steps = []
        for axis, edge in enumerate(size):
            centres = _centres(boxes, flip, edge, axis)[sample]
            last = sizes[sample, axis] - 1
            at = torch.minimum(centres.clamp(min=0), last)
            low = at.floor()
            above = torch.minimum(low + 1, last).long()
            steps.append((low.long(), above, (at - low).float()))
        if x.device.type == "cpu":
            # Later axes need no more than the box; looking where it lies would hold up a GPU.
            x, steps = _narrowed(x, steps)
        for axis, (low, above, share) in enumerate(steps):
            below = _picked(x, axis + 1, low).float()
            step = _picked(x, axis + 1, above).float().sub_(below)
            x = step.mul_(share.view(-1, *[1] * (2 - axis))).add_(below)
        results.append(x)
    return torch.stack(results)


def _picked(x: Tensor, axis: int, places: Int64[Tensor, " n"]) -> Tensor:
    """Planes of (c, z, y, x) across an axis."""
    if axis < x.ndim - 1:
        return x.index_select(axis, places)
    # Single voxels: PyTorch gathers them four times faster than it selects them.
    return x.gather(axis, places.expand(*x.shape[:-1], -1))


_Step = tuple[Tensor, Tensor, Tensor]
"""Planes below and above each voxel along an axis, and the share of the upper one."""


def _narrowed(x: Tensor, steps: Sequence[_Step]) -> tuple[Tensor, list[_Step]]:
    """The part of (c, z, y, x) that is asked for, and the steps counted from its first voxel."""
    moved = []
    for axis, (low, above, share) in enumerate(steps, start=1):
        first, last = int(low.min()), int(above.max())
        x = x.narrow(axis, first, last + 1 - first)
        moved.append((low - first, above - first, share))
    return x, moved


def _centres(boxes: Boxes, flip: Tensor, edge: int, axis: int) -> Float[Tensor, "b edge"]:
    """Voxel coordinates (centres whole numbers) in the region of a view's voxels on one axis."""
    steps = torch.arange(edge, device=flip.device, dtype=torch.float64)
    steps = torch.where(flip[:, axis, None], edge - 1 - steps, steps)
    step = boxes.extent[:, axis, None] / edge
    return boxes.start[:, axis, None] - 0.5 + (steps + 0.5) * step


def _affine(boxes: Boxes, flip: Bool[Tensor, "b 3"], size: Grid) -> Float[Tensor, "b 4 4"]:
    affine = torch.zeros(len(flip), 4, 4, dtype=torch.float64, device=flip.device)
    for axis, edge in enumerate(size):
        step = boxes.extent[:, axis] / edge
        first = boxes.start[:, axis] - 0.5 + 0.5 * step
        mirrored = flip[:, axis]
        affine[:, axis, axis] = torch.where(mirrored, -step, step)
        affine[:, axis, 3] = torch.where(mirrored, first + (edge - 1) * step, first)
    affine[:, 3, 3] = 1.0
    return affine


def _changed(image: Tensor, keys: Int64[Tensor, " b"], cut: Cut, *, bounded: bool) -> Tensor:
    image = intensity.changed(image, keys, cut.changes)
    if cut.intensity_scale:
        spread = uniform(keys, 1, stream=_SCALE) * 2 - 1
        image = image * (1 + cut.intensity_scale * spread).view(-1, 1, 1, 1, 1)
    if cut.intensity_shift:
        spread = uniform(keys, 1, stream=_SHIFT) * 2 - 1
        image = image + (cut.intensity_shift * spread).view(-1, 1, 1, 1, 1)
    if bounded and (cut.intensity_scale or cut.intensity_shift):
        image = image.clamp(0.0, 1.0)
    return image


def padded(volumes: Sequence[Tensor]) -> tuple[Tensor, Int64[Tensor, "b 3"]]:
    """Volumes (z, y, x) of unequal size as one batch (b, 1, z, y, x), and the size of each."""
    sizes = torch.tensor([v.shape for v in volumes])
    if bool((sizes == sizes[0]).all()):
        return torch.stack(list(volumes)).unsqueeze(1), sizes
    whole = volumes[0].new_zeros(len(volumes), 1, *sizes.amax(dim=0).tolist())
    for number, volume in enumerate(volumes):
        z, y, x = volume.shape
        whole[number, 0, :z, :y, :x] = volume
    return whole, sizes
