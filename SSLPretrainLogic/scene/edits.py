"""From the worker's labels to segments: through the editor, so that its rules and undo hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.scene.grids import Array, Grid, box, inverse
from SSLPretrainLogic.scene.segments import LABELMAP
from SSLPretrainLogic.scene.structures import Structure
from SSLPretrainLogic.scene.terminology import color_for, entry_of
from SSLPretrainLogic.scene.volumes import (
    linear_matrix,
    oriented,
    oriented_grid,
    resampled,
    to_world,
    voxels_of,
)

Index = tuple[int, int, int]
CodeArray = NDArray[np.unsignedinteger[Any]]
UNTOUCHED, OTHER, FIRST = 0, 1, 2
"""Codes of voxels: not to be changed, none of the structures, the first structure (then 3 …)."""

_SAME = 0.01
"""Largest difference, in voxels, between lattices that count as one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Codes:
    """Codes on a part of the geometry that a segmentation is edited in.

    Attributes:
        voxels: (z, y, x).
        start: index (i, j, k) of the first of them.
        ijk_to_node: (4, 4), from indices to the space of the segmentation node.
    """

    voxels: CodeArray
    start: Index
    ijk_to_node: Array

    @property
    def grid(self) -> Grid:
        """Where the voxels lie in the space of the segmentation node."""
        matrix = self.ijk_to_node.copy()
        matrix[:3, 3] += matrix[:3, :3] @ np.array(self.start, dtype=float)
        return Grid(size=self.voxels.shape[::-1], ijk_to_ras=matrix)


def coded(
    labels: NDArray[np.integer[Any]],
    structures: Sequence[Structure],
    counts: NDArray[np.bool_] | None,
) -> CodeArray:
    """Codes of label values, in the order of the structures.

    Args:
        labels: (z, y, x), as the model numbers them.
        structures: to be written.
        counts: voxels that may be changed; None means all.
    """
    kind = np.uint8 if FIRST + len(structures) <= np.iinfo(np.uint8).max else np.uint16
    table = np.full(int(labels.max(initial=0)) + 1, OTHER, dtype=kind)
    for code, structure in enumerate(structures, FIRST):
        if structure.value < len(table):
            table[structure.value] = code
    codes: CodeArray = table[labels]
    if counts is not None:
        codes[~counts] = UNTOUCHED
    return codes


def in_editor(codes: CodeArray, grid: Grid, segmentation: Any, reference: Any) -> Codes:
    """Codes of the world in the geometry that a segmentation is edited in.

    Voxels of the same lattice are taken as they are; others get the code that lies nearest.

    Args:
        codes: (z, y, x).
        grid: where they lie in the world.
        segmentation: its node.
        reference: the image whose geometry is edited in.

    Raises:
        LogicError: if the two do not meet.
    """
    target, first = oriented_grid(reference), np.array(reference.GetExtent()[::2])
    transform = to_world(segmentation)
    transform.Inverse()
    matrix = linear_matrix(transform)
    offset = None if matrix is None else _offset(grid.moved(matrix), target)
    if offset is None:
        found = resampled(oriented(codes, grid), target, transform, linear=False)
        codes = found.astype(codes.dtype, copy=False)
        offset = np.zeros(3, dtype=int)
    low = np.maximum(offset, 0)
    high = np.minimum(offset + codes.shape[::-1], target.size)
    if np.any(high <= low):
        raise LogicError(
            "The segmentation's geometry does not meet what was segmented.",
            "Set its geometry to that of the source volume.",
        )
    part = tuple(slice(a, b) for a, b in zip(low - offset, high - offset, strict=True))
    start = low + first
    ijk_to_node = target.ijk_to_ras.copy()
    ijk_to_node[:3, 3] -= ijk_to_node[:3, :3] @ first
    return Codes(
        voxels=codes[part[::-1]],
        start=(int(start[0]), int(start[1]), int(start[2])),
        ijk_to_node=ijk_to_node,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """One change of a segment.

    Attributes:
        segment: its identifier.
        gain: a label map (vtkOrientedImageData) of the voxels that it shall hold.
        loss: one of those that it shall hold no more; either is None if there are none.
    """

    segment: str
    gain: Any
    loss: Any


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done.

    Attributes:
        edits: one for each segment that changes.
        empty: names of the structures of which there is no voxel.
    """

    edits: tuple[Edit, ...]
    empty: tuple[str, ...]


def planned(
    editor: Any,
    codes: Codes,
    structures: Sequence[Structure],
    segments: Mapping[str, str],
    *,
    source: Any,
) -> Plan:
    """The changes after which segments hold exactly their structures, where they may be changed.

    A structure that has voxels but no segment gets one now, so the state for undo is saved before.

    Args:
        editor: the vtkMRMLSegmentEditorNode, with its rules of masking.
        codes: see `in_editor`.
        structures: in the order of their codes.
        segments: identifier of the segment of each structure that has one, by name.
        source: the source volume as the editor sees it, for its range of intensities.
    """
    node = editor.GetSegmentationNode()
    edits, empty = [], []
    for code, structure in enumerate(structures, FIRST):
        wanted = codes.voxels == code
        if not np.any(wanted):
            empty.append(structure.name)
        identifier = segments.get(structure.name, "")
        if not identifier and np.any(wanted):
            identifier = _added(node, structure)
        if not identifier:
            continue
        may = codes.voxels != UNTOUCHED
        if (locked := _locked(editor, identifier, codes, source)) is not None:
            may &= ~locked
        stale = _held(node, identifier, codes) & may & ~wanted
        gain, loss = _image(wanted & may, codes), _image(stale, codes)
        if gain is not None or loss is not None:
            edits.append(Edit(segment=identifier, gain=gain, loss=loss))
    return Plan(edits=tuple(edits), empty=tuple(empty))


def take(node: Any, segment: str, loss: Any) -> None:
    """Take voxels from a segment and give them to no other.

    The editor's own way to erase would give them to the segment that editing is masked by.

    Args:
        node: the vtkMRMLSegmentationNode.
        segment: its identifier.
        loss: a label map of the voxels.

    Raises:
        LogicError: if it does not work.
    """
    kept = slicer.vtkOrientedImageData()
    kept.DeepCopy(loss)
    voxels_of(kept)[...] = 1 - voxels_of(loss)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    if not logic.SetBinaryLabelmapToSegment(
        kept, node, segment, logic.MODE_MERGE_MIN, kept.GetExtent()
    ):
        name = node.GetSegmentation().GetSegment(segment).GetName()
        raise LogicError(f"Segment {name!r} does not lose its voxels.", "Undo, and try again.")


def mark_in_progress(node: Any, segment: str) -> None:
    """A person has yet to look at a segment."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(node.GetSegmentation().GetSegment(segment), logic.InProgress)


def _added(node: Any, structure: Structure) -> str:
    """A new segment for a structure, with its name, colour and code."""
    segmentation = node.GetSegmentation()
    identifier: str = segmentation.AddEmptySegment("", structure.name)
    segment = segmentation.GetSegment(identifier)
    color = structure.color or color_for(structure.name)
    if color is not None:
        segment.SetColor([channel / 255 for channel in color])
        segment.SetColorAutoGenerated(False)
    segment.SetNameAutoGenerated(False)
    if entry := entry_of(structure):
        segment.SetTerminology(entry)
    return identifier


def _held(node: Any, identifier: str, codes: Codes) -> NDArray[np.bool_]:
    """Voxels of the codes' box that a segment holds now."""
    segment = node.GetSegmentation().GetSegment(identifier)
    held = np.zeros(codes.voxels.shape, dtype=bool)
    # Several segments may share it; a copy for this one alone would take longer than all else.
    image, value = segment.GetRepresentation(LABELMAP), segment.GetLabelValue()
    if image is None or image.GetNumberOfPoints() == 0:
        return held
    offset = _offset(oriented_grid(image), codes.grid)
    if offset is None:
        nearest = resampled(image, codes.grid, vtk.vtkGeneralTransform(), linear=False)
        return np.asarray(nearest == value, dtype=bool)
    voxels = voxels_of(image)
    low = np.maximum(offset, 0)
    high = np.minimum(offset + np.array(image.GetDimensions()), codes.grid.size)
    if np.all(high > low):
        there = tuple(slice(a, b) for a, b in zip(low, high, strict=True))[::-1]
        here = tuple(slice(a, b) for a, b in zip(low - offset, high - offset, strict=True))[::-1]
        held[there] = voxels[here] == value
    return held


def _locked(editor: Any, identifier: str, codes: Codes, source: Any) -> NDArray[np.bool_] | None:
    """Voxels of the codes' box that the editor's masks protect, None if there is no mask."""
    node, ranged = editor.GetSegmentationNode(), editor.GetSourceVolumeIntensityMask()
    if editor.GetMaskMode() == node.EditAllowedEverywhere and not ranged:
        return None
    # Made on the box alone, which may be a small part of the volume.
    reference, mask = oriented(codes.voxels, codes.grid), slicer.vtkOrientedImageData()
    done = node.GenerateEditMask(
        mask,
        editor.GetMaskMode(),
        reference,
        identifier,
        editor.GetMaskSegmentID() or "",
        source if ranged else None,
        editor.GetSourceVolumeIntensityMaskRange() if ranged else None,
        node.GetDisplayNode(),
    )
    if not done:
        raise LogicError("The editor's mask cannot be made.", "Edit everywhere, and try again.")
    return voxels_of(mask).astype(bool)


def _image(where: NDArray[np.bool_], codes: Codes) -> Any:
    """A label map of the box around what is true, None if nothing is."""
    spans = box(where)
    if spans is None:
        return None
    inside = where[tuple(slice(first, last + 1) for first, last in spans)].astype(np.uint8)
    image = oriented(inside, Grid(size=inside.shape[::-1], ijk_to_ras=codes.ijk_to_node))
    pairs = zip(codes.start, reversed(spans), strict=True)
    image.SetExtent([start + end for start, span in pairs for end in span])
    return image


def _offset(source: Grid, target: Grid) -> NDArray[np.int_] | None:
    """Index (i, j, k) in `target` of the first voxel of `source`; None on another lattice."""
    turn = inverse(target.ijk_to_ras) @ source.ijk_to_ras
    # A small turn grows with the size of the grid.
    drift = np.abs(turn[:3, :3] - np.eye(3)) * np.array(source.size)
    offset = np.rint(turn[:3, 3])
    if drift.max() > _SAME or np.abs(turn[:3, 3] - offset).max() > _SAME:
        return None
    return np.asarray(offset, dtype=int)
