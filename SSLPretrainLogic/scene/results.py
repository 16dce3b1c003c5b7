"""Results in: a label file of the backend as a segmentation that sits on its volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.scene.grids import Grid, box, brought, inverse, value_counts
from SSLPretrainLogic.scene.structures import Structure, folded, read_labels
from SSLPretrainLogic.scene.terminology import color_for, full_entry
from SSLPretrainLogic.scene.volumes import (
    as_array,
    as_matrix,
    linear_matrix,
    oriented,
    own_grid,
    to_world,
    voxels_of,
    world_grid,
)

SLICER_ENDING = ".seg.nrrd"
_ENDINGS = (SLICER_ENDING, ".nii.gz", ".nii", ".nrrd", ".mha")
_LABELMAP: str = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
_UNNAMED_COLOR = (128, 174, 128)
_LONGEST_LINE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What `import_labels` did.

    Attributes:
        node: the vtkMRMLSegmentationNode.
        segment_ids: of every structure, by name.
        replaced: names of segments that were there before.
        empty: names of structures without a voxel; their segments are empty.
    """

    node: Any
    segment_ids: Mapping[str, str]
    replaced: tuple[str, ...]
    empty: tuple[str, ...]


def import_labels(
    path: Path,
    volume: Any,
    *,
    segmentation: Any = None,
    only: Sequence[str] | None = None,
    name: str = "",
) -> Imported:
    """Bring a label file of the backend into the scene, voxel for voxel on its volume.

    Every structure becomes a segment with name, colour, terminology and the status "in
    progress": a person has yet to look at it. In an existing segmentation, segments of the same
    names are replaced and others stay as they are; whoever wants undo saves the state before.
    Nothing is changed unless all of it can be done.

    Args:
        path: .seg.nrrd, or another label file with `<stem>.labels.json` beside it.
        volume: the vtkMRMLScalarVolumeNode it was made from, in a scene.
        segmentation: a vtkMRMLSegmentationNode to write into; None makes one in the scene, with
            the volume's transform and place in the subject hierarchy.
        only: names of the structures to take; None takes all.
        name: of a new node; "" names it after the volume.

    Raises:
        LogicError: if a file cannot be read or lacks a name, it lies on another grid than the
            volume, or the segmentation cannot take it.
    """
    known = read_structures(path)
    structures = [_coded(structure) for structure in _chosen(known, only, path)]
    world, resampled = world_grid(volume)
    voxels = _on_grid(path, world, volume)
    _refuse_unnamed(path, voxels, known)
    if segmentation is None:
        node, grid = _new_node(volume, world, moves_along=not resampled, name=name)
    else:
        _refuse_surfaces(segmentation)
        node, grid = segmentation, _below(segmentation, world)
    modified = node.StartModify()
    try:
        return _filled(node, voxels, grid, structures)
    finally:
        node.EndModify(modified)


def read_structures(path: Path) -> tuple[Structure, ...]:
    """Names, colours and codes of a label file, in the order of their values.

    Raises:
        LogicError: if they cannot be read.
    """
    stem = next((path.name[: -len(e)] for e in _ENDINGS if path.name.lower().endswith(e)), None)
    if stem is None:
        raise LogicError(f"{path}: no label file.", f"Choose one of {', '.join(_ENDINGS)}.")
    if path.name.lower().endswith(SLICER_ENDING):
        return _header_structures(path)
    return read_labels(path.with_name(f"{stem}.labels.json"))


def _filled(
    node: Any, voxels: NDArray[np.generic], grid: Grid, structures: Sequence[Structure]
) -> Imported:
    segmentation = node.GetSegmentation()
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    there = {folded(segmentation.GetSegment(i).GetName()): i for i in segmentation.GetSegmentIDs()}
    ids: dict[str, str] = {}
    empty = []
    for structure in structures:
        identifier = there.get(folded(structure.name), "")
        if not identifier:
            wanted = segmentation.GenerateUniqueSegmentID(structure.name)
            identifier = segmentation.AddEmptySegment(wanted, structure.name)
        ids[structure.name] = identifier
        image = _mask(voxels, structure.value, grid)
        if image is None:
            empty.append(structure.name)
            logic.ClearSegment(node, identifier)
        else:
            _separate(segmentation, identifier, grid)
            if not logic.SetBinaryLabelmapToSegment(image, node, identifier, logic.MODE_REPLACE):
                raise LogicError(
                    f"Segment {structure.name!r} does not take its voxels.", "Undo, and try again."
                )
        _describe(segmentation.GetSegment(identifier), structure)
    return Imported(
        node=node,
        segment_ids=ids,
        replaced=tuple(s.name for s in structures if folded(s.name) in there),
        empty=tuple(empty),
    )


def _separate(segmentation: Any, identifier: str, grid: Grid) -> None:
    """Take a segment out of a label map on another lattice: the others there would be resampled."""
    shared = segmentation.GetSegment(identifier).GetRepresentation(_LABELMAP)
    if shared is None or shared.GetNumberOfPoints() == 0:
        return
    matrix = vtk.vtkMatrix4x4()
    shared.GetImageToWorldMatrix(matrix)
    if not np.allclose(as_array(matrix), grid.ijk_to_ras, atol=1e-6):
        segmentation.SeparateSegmentLabelmap(identifier)


def _coded(structure: Structure) -> Structure:
    """With a whole terminology entry, that of the shipped table where the file has none."""
    entry = full_entry(structure.terminology, structure.name)
    return replace(structure, terminology=entry)


def _describe(segment: Any, structure: Structure) -> None:
    """Name, colour, code and status; a code that the user chose is only replaced by a code."""
    color = structure.color or color_for(structure.name) or _UNNAMED_COLOR
    segment.SetName(structure.name)
    segment.SetNameAutoGenerated(False)
    segment.SetColor([channel / 255 for channel in color])
    segment.SetColorAutoGenerated(False)
    if structure.terminology:
        segment.SetTerminology(structure.terminology)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(segment, logic.InProgress)


def _mask(voxels: NDArray[np.generic], value: int, grid: Grid) -> Any:
    """A vtkOrientedImageData with the box around a structure, None if it has no voxel."""
    where = voxels == value
    spans = box(where)
    if spans is None:
        return None
    inside = where[tuple(slice(first, last + 1) for first, last in spans)].astype(np.uint8)
    image = oriented(inside, Grid(size=inside.shape[::-1], ijk_to_ras=grid.ijk_to_ras))
    # On the lattice of the whole volume: segments of one lattice can share a label map.
    image.SetExtent([end for span in reversed(spans) for end in span])
    return image


def _on_grid(path: Path, grid: Grid, volume: Any) -> NDArray[np.generic]:
    """Label values (z, y, x) of a file in the axis order of a grid."""
    if not path.is_file():
        raise LogicError(f"{path} does not exist.", "Segment the volume again.")
    node = slicer.vtkMRMLLabelMapVolumeNode()
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.SetSingleFile(True)
    if not storage.ReadData(node) or node.GetImageData() is None:
        raise LogicError(f"{path} cannot be read as a label map.", "Segment the volume again.")
    values = voxels_of(node.GetImageData())
    if not np.issubdtype(values.dtype, np.integer) or np.min(values) < 0:
        raise LogicError(f"{path} is no label map.", "Choose a file of whole numbers from 0 on.")
    # Slicer's reader turns the axes of left-handed files round.
    voxels = brought(values, own_grid(node), grid)
    if voxels is None:
        raise LogicError(
            f"{path} lies on another grid than volume {volume.GetName()!r}.",
            "Choose the volume it was made from, or segment this one.",
        )
    return voxels


def _new_node(volume: Any, world: Grid, *, moves_along: bool, name: str) -> tuple[Any, Grid]:
    """An empty segmentation beside a volume, and its grid below its transform.

    Args:
        volume: see `import_labels`.
        world: grid of the label file.
        moves_along: whether the voxels are the volume's own; then it gets the same transform.
        name: see `import_labels`.
    """
    scene = volume.GetScene()
    if scene is None:
        raise LogicError(f"Volume {volume.GetName()!r} is in no scene.", "Add it to the scene.")
    node = scene.AddNewNodeByClass(
        "vtkMRMLSegmentationNode", name or f"{volume.GetName()} segmentation"
    )
    node.CreateDefaultDisplayNodes()
    grid = own_grid(volume) if moves_along else world
    if moves_along:
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    else:
        _set_reference_grid(node, grid)
    node.SetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole(), volume.GetID())
    _place_beside(node, volume)
    return node, grid


def _set_reference_grid(node: Any, grid: Grid) -> None:
    """Slanted volumes cannot be the geometry of a segmentation; the label file's grid can."""
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(grid.size)
    image.SetImageToWorldMatrix(as_matrix(grid.ijk_to_ras))
    converter = slicer.vtkSegmentationConverter
    node.GetSegmentation().SetConversionParameter(
        converter.GetReferenceImageGeometryParameterName(),
        converter.SerializeImageGeometry(image),
    )


def _place_beside(node: Any, volume: Any) -> None:
    """Into the study or folder of the volume, where the scene has a hierarchy of it."""
    scene = volume.GetScene()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if hierarchy is None or not (beside := hierarchy.GetItemByDataNode(volume)):
        return
    parent = hierarchy.GetItemParent(beside)
    if item := hierarchy.GetItemByDataNode(node):
        hierarchy.SetItemParent(item, parent)
    else:
        hierarchy.CreateItem(parent, node)


def _below(segmentation: Any, world: Grid) -> Grid:
    """A grid of the world as it lies below the transform of a segmentation node."""
    matrix = linear_matrix(to_world(segmentation))
    if matrix is None:
        raise LogicError(
            f"Segmentation {segmentation.GetName()!r} is under a transform that bends space.",
            "Harden the transform, or choose a new segmentation.",
        )
    return world.moved(inverse(matrix))


def _refuse_surfaces(segmentation: Any) -> None:
    """Voxels written into segments that are surfaces would be lost with the next change."""
    held = segmentation.GetSegmentation()
    if held.GetNumberOfSegments() and held.GetSourceRepresentationName() != _LABELMAP:
        raise LogicError(
            f"Segmentation {segmentation.GetName()!r} is made of "
            f"{held.GetSourceRepresentationName().lower()}s.",
            "Convert it to a binary labelmap, or choose a new segmentation.",
        )


def _refuse_unnamed(
    path: Path, voxels: NDArray[np.generic], structures: Sequence[Structure]
) -> None:
    named = {0, *(structure.value for structure in structures)}
    if strangers := sorted(set(np.flatnonzero(value_counts(voxels)).tolist()) - named):
        raise LogicError(
            f"{path}: the voxels hold label values without a name: {strangers[:5]}.",
            "Name every value in the list of labels.",
        )


def _chosen(
    structures: Sequence[Structure], only: Sequence[str] | None, path: Path
) -> tuple[Structure, ...]:
    if only is None:
        return tuple(structures)
    wanted = {folded(name): name for name in only}
    if unknown := wanted.keys() - {folded(s.name) for s in structures}:
        raise LogicError(
            f"{path} has no structure {wanted[sorted(unknown)[0]]!r}.",
            f"It has {', '.join(s.name for s in structures)}.",
        )
    return tuple(s for s in structures if folded(s.name) in wanted)


def _header_structures(path: Path) -> tuple[Structure, ...]:
    """The segments that the header of a .seg.nrrd names."""
    fields = _header_fields(path)
    found: list[Structure] = []
    while f"Segment{len(found)}_ID" in fields:
        prefix = f"Segment{len(found)}_"
        try:
            red, green, blue = (float(v) for v in fields[f"{prefix}Color"].split())
            structure = Structure(
                value=int(fields[f"{prefix}LabelValue"]),
                name=fields[f"{prefix}Name"],
                color=(round(255 * red), round(255 * green), round(255 * blue)),
            )
        except (KeyError, ValueError) as error:
            raise LogicError(f"{path}: damaged header ({error}).", "Segment it again.") from error
        tags = fields.get(f"{prefix}Tags", "").split("|")
        entry = next((t.partition(":")[2] for t in tags if t.startswith("TerminologyEntry:")), "")
        found.append(replace(structure, terminology=entry))
    if not found:
        raise LogicError(f"{path} names no segments.", "Choose a segmentation file.")
    return tuple(sorted(found, key=lambda structure: structure.value))


def _header_fields(path: Path) -> dict[str, str]:
    lines = []
    try:
        with path.open("rb") as file:
            # The header ends with an empty line, before the voxels.
            while (line := file.readline(_LONGEST_LINE)).strip():
                lines.append(line.decode("utf-8", errors="replace").rstrip("\r\n"))
    except OSError as error:
        raise LogicError(f"{path}: {error.strerror}.", "Segment the volume again.") from error
    return dict(line.split(":=", 1) for line in lines if ":=" in line)
