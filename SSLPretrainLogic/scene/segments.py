"""Segments out: segmentation nodes and their volumes as a labelled set to fine-tune on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.scene.grids import Grid, box, inverse, placed, value_counts
from SSLPretrainLogic.scene.structures import (
    Color,
    FoundSegment,
    Structure,
    StructureTable,
    folded,
    read_labels,
    write_labels,
)
from SSLPretrainLogic.scene.terminology import code_for, color_for, is_unspecific
from SSLPretrainLogic.scene.volumes import (
    ENDING,
    linear_matrix,
    oriented,
    oriented_grid,
    resampled,
    to_world,
    voxels_of,
    world_image,
    write_image,
)

LABELMAP: str = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()

_NAME = re.compile(r"[^\W_][\w-]{0,99}")
_OUTSIDE = 0.5
"""Voxels beyond the centre of the last one where the volume ends."""

_UINT8_VALUES = 256


@dataclass(frozen=True, kw_only=True)
class SceneCase:
    """A volume of the scene with what is segmented on it.

    Attributes:
        name: of the case and its files, e.g. "case_001"; never a patient's.
        volume: a vtkMRMLScalarVolumeNode.
        segmentations: vtkMRMLSegmentationNode; their segments count as one set.
    """

    name: str
    volume: Any
    segmentations: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class ExportedSet:
    """A labelled set written from the scene.

    Attributes:
        folder: images/, labels/ and labels.json.
        voxels: per case and structure, how many voxels it has; 0 where it is missing.
        warnings: what the user should know: empty or cut segments, interpolated volumes.
    """

    folder: Path
    voxels: Mapping[str, Mapping[str, int]]
    warnings: tuple[str, ...]


def found_segments(cases: Sequence[SceneCase]) -> tuple[FoundSegment, ...]:
    """All segments of some cases with colour and terminology, to make a table of."""
    return tuple(
        FoundSegment(
            case=case.name,
            name=segment.GetName(),
            color=_color(segment),
            terminology=_terminology(segment),
        )
        for case in cases
        for node in case.segmentations
        for segment in _segments(node.GetSegmentation())
    )


def export_set(cases: Sequence[SceneCase], table: StructureTable, folder: Path) -> ExportedSet:
    """Write images/, labels/ and labels.json; every value means the same in every case.

    Label maps lie on the grid of their image, voxel for voxel. The nodes are not changed.

    Args:
        cases: see `SceneCase`.
        table: what each segment stands for, see `structures.proposed`.
        folder: files of cases with the same name are replaced, others stay.

    Raises:
        LogicError: naming the case, if a name serves twice or is no name for a file, two
            structures overlap, nothing is labelled, the values contradict those of cases that
            stay in the folder, or something cannot be read or written.
    """
    _check_names(cases)
    _prepare(folder, cases, table)
    voxels: dict[str, Mapping[str, int]] = {}
    warnings: list[str] = []
    for case in cases:
        try:
            voxels[case.name], told = _export_case(case, table, folder)
        except LogicError as error:
            raise LogicError(f"Case {case.name}: {error.message}", error.hint) from error
        warnings += [f"Case {case.name}: {text}" for text in told]
    write_labels(folder / "labels.json", [_completed(entry) for entry in table.structures])
    return ExportedSet(folder=folder, voxels=voxels, warnings=tuple(warnings))


def label_map(
    case: SceneCase, table: StructureTable, grid: Grid
) -> tuple[NDArray[np.int16], list[str]]:
    """The structures of a case on a grid of the world, (z, y, x), and what is to be told of them.

    Raises:
        LogicError: if two structures overlap, or a segment cannot be brought to the grid.
    """
    merged = np.zeros(grid.size[::-1], dtype=np.int16)
    warnings = []
    for node in case.segmentations:
        for image, segments in _layers(node, grid):
            on_grid = _on_grid(image, node, grid)
            values = {s.GetLabelValue(): table.value_of(s.GetName()) for s in segments}
            meaning = np.zeros(1 + max(int(on_grid.max()), *values), dtype=np.int16)
            meaning[list(values)] = list(values.values())
            layer = meaning[on_grid]
            _refuse_overlap(layer, merged, table)
            np.maximum(merged, layer, out=merged)
            counts = value_counts(on_grid, len(meaning))
            for segment in segments:
                if values[segment.GetLabelValue()]:
                    present = bool(counts[segment.GetLabelValue()])
                    warnings += _told(segment, image, present, node, grid)
    return merged, warnings


def _prepare(folder: Path, cases: Sequence[SceneCase], table: StructureTable) -> None:
    """Make sure that values mean the same in the cases of before, whose files stay."""
    names = folder / "labels.json"
    if not names.is_file():
        return
    replaced = {case.name for case in cases}
    staying = sorted({f.stem for f in (folder / "labels").glob(f"*{ENDING}")} - replaced)
    if not staying:
        # Without it the backend refuses what is written in part.
        names.unlink()
        return
    now = {structure.value: folded(structure.name) for structure in table.structures}
    for before in read_labels(names):
        if now.get(before.value) != folded(before.name):
            raise LogicError(
                f"{folder} has case {staying[0]}, where {before.value} is {before.name!r}, which "
                "the table of structures does not say.",
                "Keep the structures of the set, export all its cases, or choose another folder.",
            )


def _export_case(
    case: SceneCase, table: StructureTable, folder: Path
) -> tuple[dict[str, int], list[str]]:
    """Write image and label map of one case.

    Returns:
        Voxels per structure, and what is to be told.
    """
    image = world_image(case.volume)
    labels, warnings = label_map(case, table, image.grid)
    if not labels.any():
        raise LogicError(
            f"nothing is labelled on volume {case.volume.GetName()!r}.",
            "Segment it or leave the case out.",
        )
    counts = value_counts(labels, 1 + max(s.value for s in table.structures))
    stored = labels.astype(np.uint8) if len(counts) <= _UINT8_VALUES else labels
    write_image(folder / "images" / f"{case.name}{ENDING}", image.voxels, image.grid)
    write_image(folder / "labels" / f"{case.name}{ENDING}", stored, image.grid, compress=True)
    if image.resampled:
        warnings.insert(0, f"the volume was interpolated, because {image.resampled}.")
    return {s.name: int(counts[s.value]) for s in table.structures}, warnings


def _layers(node: Any, grid: Grid) -> list[tuple[Any, list[Any]]]:
    """Every label map of a segmentation node with the vtkSegments in it, empty ones included.

    Raises:
        LogicError: if segments that are surfaces cannot become voxels.
    """
    segmentation = node.GetSegmentation()
    if not segmentation.ContainsRepresentation(LABELMAP):
        segmentation = _voxelized(node, grid)
    layers: dict[int, tuple[Any, list[Any]]] = {}
    for segment in _segments(segmentation):
        layer = segmentation.GetLayerIndex(segmentation.GetSegmentIdBySegment(segment))
        image = segment.GetRepresentation(LABELMAP)
        layers.setdefault(layer, (image, []))[1].append(segment)
    return list(layers.values())


def _voxelized(node: Any, grid: Grid) -> Any:
    """A copy of surface segments as label maps on a grid of the world."""
    matrix = linear_matrix(to_world(node))
    if matrix is None:
        raise LogicError(
            f"Segmentation {node.GetName()!r} holds surfaces under a transform that bends space.",
            "Harden the transform, or convert the segmentation to a binary labelmap.",
        )
    copy = slicer.vtkSegmentation()
    copy.DeepCopy(node.GetSegmentation())
    here = grid.moved(inverse(matrix))
    reference = oriented(np.zeros(here.size[::-1], dtype=np.uint8), here)
    converter = slicer.vtkSegmentationConverter
    copy.SetConversionParameter(
        converter.GetReferenceImageGeometryParameterName(),
        converter.SerializeImageGeometry(reference),
    )
    if copy.GetNumberOfSegments() and not copy.CreateRepresentation(LABELMAP):
        raise LogicError(
            f"Segmentation {node.GetName()!r} cannot be converted to voxels.",
            "Create its binary labelmap in the module Segmentations.",
        )
    return copy


def _on_grid(image: Any, node: Any, grid: Grid) -> NDArray[np.integer[Any]]:
    """A layer on a grid of the world, zeros where it has nothing."""
    if not _has_voxels(image):
        return np.zeros(grid.size[::-1], dtype=np.uint8)
    found = resampled(image, grid, to_world(node), linear=False)
    return found.astype(np.uint16 if found.dtype.itemsize > 1 else np.uint8, copy=False)


def _told(segment: Any, image: Any, present: bool, node: Any, grid: Grid) -> list[str]:
    """What the user should know of a segment: empty, outside, or cut by the volume's border."""
    name = segment.GetName()
    found = box(voxels_of(image) == segment.GetLabelValue()) if _has_voxels(image) else None
    if found is None:
        return [f"segment {name!r} is empty."]
    if not present:
        return [f"segment {name!r} has no voxel inside the volume."]
    # In the layer's indices (i, j, k).
    corners = np.array(list(product(*reversed(found))), dtype=np.float64)
    transform = to_world(node)
    world = [transform.TransformPoint(p) for p in placed(oriented_grid(image).ijk_to_ras, corners)]
    inside = placed(inverse(grid.ijk_to_ras), np.array(world))
    over = max(float(-inside.min()), float((inside - np.asarray(grid.size) + 1).max()))
    return [f"segment {name!r} is cut at the border of the volume."] if over > _OUTSIDE else []


def _refuse_overlap(
    layer: NDArray[np.int16], merged: NDArray[np.int16], table: StructureTable
) -> None:
    """Raise if a layer has voxels that are taken by another structure."""
    clash = (layer != 0) & (merged != 0) & (layer != merged)
    if not clash.any():
        return
    names = {structure.value: structure.name for structure in table.structures}
    one, other = names[int(layer[clash][0])], names[int(merged[clash][0])]
    raise LogicError(
        f"{one!r} overlaps {other!r} in {int(clash.sum())} voxels, but a voxel has one label.",
        "Remove the overlap in the Segment Editor, merge the two or leave one out.",
    )


def _check_names(cases: Sequence[SceneCase]) -> None:
    """Names of cases become names of files."""
    seen: set[str] = set()
    for case in cases:
        if not _NAME.fullmatch(case.name):
            raise LogicError(
                f"{case.name[:60]!a} is no name for a case.",
                "Use letters, digits, - and _ only, e.g. case_001; no patient's name.",
            )
        # Windows and macOS do not tell capitals from small letters.
        if case.name.casefold() in seen:
            raise LogicError(f"Two cases are named {case.name!r}.", "Give each its own name.")
        seen.add(case.name.casefold())


def _completed(structure: Structure) -> Structure:
    """With code and colour of the shipped tables where the segments had none."""
    return replace(
        structure,
        color=structure.color or color_for(structure.name),
        terminology=structure.terminology or code_for(structure.name),
    )


def _terminology(segment: Any) -> str:
    """A segment's own entry; Slicer gives every new segment that of unspecified tissue."""
    entry = str(segment.GetTerminology() or "")
    return code_for(segment.GetName()) if is_unspecific(entry) else entry


def _segments(segmentation: Any) -> list[Any]:
    return [segmentation.GetNthSegment(n) for n in range(segmentation.GetNumberOfSegments())]


def _color(segment: Any) -> Color:
    red, green, blue = (round(255 * channel) for channel in segment.GetColor())
    return red, green, blue


def _has_voxels(image: Any) -> bool:
    return image is not None and image.GetNumberOfPoints() > 0
