"""What the header of one file says, in the few facts that the scan needs and remembers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from backend.data import dicom
from backend.data.stacking import spacing_problem
from backend.data.volume_file import detached_data, detached_problem, format_of, read_volume_header
from backend.errors import ScanError
from backend.geometry import Geometry, Vec3

Format = Literal["", "DICOM", "NIfTI", "NRRD", "MetaImage"]

_DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
_SAMPLE = 1 << 16
_HEAD = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """The facts of one file.

    Attributes:
        path: absolute.
        bytes: size of the file and of the data file it points to.
        mtime_ns: when either was last changed.
        data_file: where a header without voxels points to, "" otherwise.
        format: "" for a file that is no image.
        problem: why the file cannot be used whatever lies beside it, "kind: details".
        modality: DICOM only, as the following ones.
        sop_class: kind of object.
        localizer: whether it is a scout.
        compressed: whether native code must unpack its pixel data.
        series_uid: SeriesInstanceUID.
        study_uid: StudyInstanceUID.
        frame_uid: FrameOfReferenceUID.
        patient: hash of PatientID.
        identity: SOPInstanceUID, or a hash of the content where there is none.
        instance: InstanceNumber, "" if not stated.
        plane: rows and columns.
        pixel_spacing_mm: distance of rows and of columns.
        orientation: row and column cosines.
        positions_mm: position (x, y, z) of each frame.
        tilt_degrees: GantryDetectorTilt.
        slice_mm: SliceThickness, 0 if not stated.
        geometry: NIfTI, NRRD and MetaImage only.
    """

    path: str
    bytes: int
    mtime_ns: int
    data_file: str = ""
    format: Format = ""
    problem: str = ""
    modality: str = ""
    sop_class: str = ""
    localizer: bool = False
    compressed: bool = False
    series_uid: str = ""
    study_uid: str = ""
    frame_uid: str = ""
    patient: str = ""
    identity: str = ""
    instance: str = ""
    plane: tuple[int, int] = (0, 0)
    pixel_spacing_mm: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    positions_mm: tuple[Vec3, ...] = ()
    tilt_degrees: float = 0.0
    slice_mm: float = 0.0
    geometry: Geometry | None = None


def read_facts(path: Path) -> FileFacts:
    """The facts of one file. Never raises for a bad file: `problem` says what is wrong."""
    bare = FileFacts(path=str(path), bytes=0, mtime_ns=0)
    try:
        size, changed = signature(path)
        bare = replace(bare, bytes=size, mtime_ns=changed)
        if format_of(path):
            return _volume_facts(bare, path)
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError as error:
        return replace(bare, problem=f"unreadable: {error.strerror or error}")
    if dicom.looks_like_dicom(head):
        return _dicom_facts(bare, path, surely=head[128:132] == b"DICM")
    return _no_image(bare, path)


def signature(path: Path, data_file: str = "") -> tuple[int, int]:
    """Size and time of change of a file together with the data file it points to.

    Raises:
        OSError: if one of them is not there.
    """
    stats = [path.stat(), *([Path(data_file).stat()] if data_file else [])]
    return sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)


def content_sample(paths: Sequence[Path]) -> str:
    """Hash of sizes, ends and three inner places of files: cheap, and enough to suspect a copy."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest.update(str(size).encode())
            for part in range(5):
                stream.seek(max(0, (size - _SAMPLE) * part // 4))
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()[:32]


def _volume_facts(bare: FileFacts, path: Path) -> FileFacts:
    kind: Any = format_of(path)
    facts = replace(bare, format=kind)
    data = detached_data(path)
    if problem := detached_problem(path):
        return replace(facts, problem=problem)
    if data is not None:
        size, changed = signature(path, str(data))
        facts = replace(facts, data_file=str(data), bytes=size, mtime_ns=changed)
    facts = replace(facts, identity=content_sample([path, *([data] if data else [])]))
    try:
        header = read_volume_header(path)
    except ScanError as error:
        return replace(facts, problem=error.message)
    return replace(facts, geometry=header.geometry, problem=header.label_sign)


def _dicom_facts(bare: FileFacts, path: Path, *, surely: bool) -> FileFacts:
    try:
        with dicom.quiet():
            dataset, rest = dicom.read_header(path)
            if not surely and not dicom.text(dataset, "SOPClassUID"):
                return _no_image(bare, path)
            if str(dataset.get("SOPClassUID") or _media_class(dataset)) == dicom.DIRECTORY:
                return bare
            return _facts_of(replace(bare, format="DICOM"), path, dataset, rest)
    # Corrupt bytes make the parser raise almost anything.
    except Exception as error:
        if not surely:
            return _no_image(bare, path)
        detail = dicom.shown(str(error) or type(error).__name__)
        return replace(bare, format="DICOM", problem=f"unreadable: {detail}")


def _no_image(bare: FileFacts, path: Path) -> FileFacts:
    """A file of another kind: nobody's concern, unless its ending promises DICOM."""
    if path.suffix.lower() not in _DICOM_ENDINGS:
        return bare
    what = "it is no DICOM file in spite of its ending" if bare.bytes else "the file is empty"
    return replace(bare, format="DICOM", problem=f"unreadable: {what}")


def _facts_of(facts: FileFacts, path: Path, dataset: Any, rest: dicom.PixelBytes) -> FileFacts:
    """What identifies the file, and either where its frames lie or what is wrong with it."""
    patient = dicom.text(dataset, "PatientID")
    facts = replace(
        facts,
        modality=dicom.text(dataset, "Modality"),
        sop_class=dicom.text(dataset, "SOPClassUID") or _media_class(dataset),
        localizer=dicom.is_localizer(dataset),
        compressed=dicom.is_compressed(dataset),
        series_uid=dicom.text(dataset, "SeriesInstanceUID"),
        study_uid=dicom.text(dataset, "StudyInstanceUID"),
        frame_uid=dicom.text(dataset, "FrameOfReferenceUID"),
        patient=dicom.short_hash(patient) if patient else "",
        identity=_identity(path, dataset),
        instance=dicom.text(dataset, "InstanceNumber"),
    )
    if facts.modality != "CT":
        return facts
    try:
        facts = replace(facts, plane=dicom.plane_of(dataset))
        return _with_frames(facts, dataset, rest)
    except ScanError as error:
        return replace(facts, problem=error.message)


def _with_frames(facts: FileFacts, dataset: Any, rest: dicom.PixelBytes) -> FileFacts:
    frames = dicom.frames_of(dataset)
    problem = dicom.pixel_problem(dataset, rest) or dicom.value_problem(dataset, frames)
    problem = problem or frames_problem(frames, dicom.frame_count(dataset))
    first = frames[0]
    return replace(
        facts,
        problem=problem,
        tilt_degrees=dicom.number(dataset, "GantryDetectorTilt") or 0.0,
        slice_mm=dicom.number(dataset, "SliceThickness") or 0.0,
        pixel_spacing_mm=first.pixel_spacing_mm,
        orientation=first.orientation,
        positions_mm=tuple(f.position_mm for f in frames if f.position_mm is not None),
    )


def frames_problem(frames: Sequence[dicom.Frame], stated: int) -> str:
    """Why the frames of one file have no common plane and scale, "" if they have.

    Args:
        frames: what the header says about each frame.
        stated: how many frames the file holds.
    """
    first = frames[0]
    missing = [
        name
        for name, values in (
            ("position", first.position_mm),
            ("orientation", first.orientation),
            ("pixel spacing", first.pixel_spacing_mm),
        )
        if not values
    ]
    if missing:
        return f"no geometry: {' and '.join(missing)} not stated"
    if len(frames) != stated or any(f.position_mm is None for f in frames):
        placed = sum(f.position_mm is not None for f in frames)
        return f"no geometry: {stated} frames, but {placed} positions"
    if problem := spacing_problem(first.pixel_spacing_mm, what="pixel spacing"):
        return problem
    if not all(same_plane(f, first) for f in frames):
        return "no geometry: frames of several orientations or pixel spacings in one file"
    return ""


def same_plane(one: Any, other: Any) -> bool:
    """Whether two frames or files have the same orientation and pixel spacing up to rounding."""
    return _close(one.orientation, other.orientation, 1e-3) and _close(
        one.pixel_spacing_mm, other.pixel_spacing_mm, 1e-3
    )


def _close(one: Sequence[float], other: Sequence[float], tolerance: float) -> bool:
    return len(one) == len(other) and all(
        abs(a - b) <= tolerance for a, b in zip(one, other, strict=True)
    )


def _media_class(dataset: Any) -> str:
    return str(getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID", "") or "")


def _identity(path: Path, dataset: Any) -> str:
    meta = getattr(dataset, "file_meta", {})
    uid = dicom.text(dataset, "SOPInstanceUID") or str(meta.get("MediaStorageSOPInstanceUID") or "")
    # Without a UID only equal bytes make two files the same image.
    return uid or hashlib.sha256(path.read_bytes()).hexdigest()[:32]
