"""Voxels of CT scans and label maps, read from DICOM, NIfTI, NRRD and MetaImage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.data import dicom
from backend.data.encapsulated import encapsulated_problem
from backend.data.headers import frames_problem, same_plane
from backend.data.native_guard import name_problem, printable
from backend.data.stacking import spacing_problem, stack_geometry, stack_order, stack_problems
from backend.data.volume_file import (
    FORMATS,
    format_of,
    read_stored,
    read_volume_header,
    segment_values,
    volume_among,
)
from backend.errors import ScanError
from backend.geometry import Geometry, Vec3, Volume

HU_FLOOR = -1024
"""Nothing is less dense than air; lower values are padding outside the field of view."""
HU_CEILING = 32767
LABEL_VALUES = 256
"""A map of whole numbers, none below 0, with at most this many values is a label map."""
SMALLEST_HU_RANGE = 200
"""Air, fat, water and bone lie further apart than this in any CT."""
BRIGHTEST_TISSUE_HU = 3071
LARGEST_BRIGHT_SHARE = 0.05
"""Metal and dense bone fill less than this share of a CT."""

_LOWEST_TISSUE_HU = -1000


def read_volume(files: Sequence[Path]) -> Volume:
    """A CT as int16 Hounsfield units (z, y, x) on the grid of its source.

    Values are rounded, and clipped into -1024 to 32767. Slices are sorted so that z grows along
    the cross product of row and column direction.

    Args:
        files: one NIfTI, NRRD, MetaImage or multi-frame DICOM file, or all files of one DICOM
            series in any order.

    Raises:
        ScanError: if the files are no readable CT volume on a regular grid, or its values cannot
            be HU.
    """
    if not files:
        raise ScanError("No file was given to read.")
    with _naming(files):
        volume, reason = read_judged(files)
        if reason:
            raise ScanError(reason)
        return volume


def read_judged(files: Sequence[Path]) -> tuple[Volume, str]:
    """Like `read_volume`, and why its values cannot be HU ("" if they can).

    Raises:
        ScanError: as `read_volume`, but with the bare reason, as it stands in the index.
    """
    for file in files:
        if problem := name_problem(file):
            raise ScanError(problem)
        if not file.is_file():
            raise ScanError(f"unreadable: there is no file {file.name}")
    volume = volume_among(files)
    return _read_dicom(files) if volume is None else _read_file(volume)


def read_label(path: Path) -> Volume:
    """A label map (z, y, x) on the grid of its own file; uint8, or int16 where that is too small.

    Raises:
        ScanError: if it is no readable 3D map of whole numbers.
    """
    with _naming([path]):
        if problem := name_problem(path):
            raise ScanError(problem)
        if not path.is_file():
            raise ScanError("unreadable: there is no such file")
        if not format_of(path):
            raise ScanError(f"not a label map: its ending is none of {' '.join(FORMATS)}")
        if path.name.lower().endswith(".seg.nrrd"):
            _refuse_layers(path)
        geometry = read_volume_header(path).geometry
        stored = read_stored(path)
        values = stored.values
        if (stored.slope, stored.intercept) != (1.0, 0.0):
            values = values * stored.slope + stored.intercept
        return Volume(_whole(values.reshape(geometry.size)), geometry)


def _read_file(path: Path) -> tuple[Volume, str]:
    header = read_volume_header(path)
    stored = read_stored(path)
    values = stored.values.reshape(header.geometry.size)
    voxels = np.empty(header.geometry.size, dtype=np.int16)
    statistics = _Statistics()
    for z, plane in enumerate(values):
        hu = _scaled(plane, slope=stored.slope, intercept=stored.intercept)
        statistics.add(hu)
        voxels[z] = _clipped(hu)
    return Volume(voxels, header.geometry), header.label_sign or statistics.problem()


@dataclass(frozen=True)
class _Slice:
    """Where one frame of one file lies and how it becomes HU."""

    file: Path
    number: int
    frame: dicom.Frame
    plane: tuple[int, int]


def _read_dicom(files: Sequence[Path]) -> tuple[Volume, str]:
    tilts: list[float] = []
    slices: list[_Slice] = []
    thickness = 0.0
    patients, series = set(), set()
    for file in files:
        dataset = _checked_header(file)
        plane = dicom.plane_of(dataset)
        tilts.append(dicom.number(dataset, "GantryDetectorTilt") or 0.0)
        thickness = dicom.number(dataset, "SliceThickness") or thickness
        with _decoding(file):
            patients.add(dicom.text(dataset, "PatientID"))
            series.add(dicom.text(dataset, "SeriesInstanceUID"))
        slices += [_Slice(file, i, f, plane) for i, f in enumerate(dicom.frames_of(dataset))]
    if len(patients) > 1:
        raise ScanError(dicom.PATIENTS_MIXED)
    if len(series) > 1:
        raise ScanError(
            f"several series: the files bear {len(series)} different SeriesInstanceUIDs"
        )
    geometry, order = _stacked(slices, tilt=max(tilts, key=abs), thickness=thickness)
    return _decoded([slices[i] for i in order], geometry)


def _checked_header(file: Path) -> Any:
    with _decoding(file):
        if not file.stat().st_size:
            raise ScanError("unreadable: the file is empty")
        dataset, rest = dicom.read_header(file)
        modality = dicom.text(dataset, "Modality")
        if not modality:
            raise ScanError("unreadable: it is no DICOM file of a known kind")
        if modality != "CT":
            raise ScanError(f"other modality: {dicom.shown(modality)}")
        frames = dicom.frames_of(dataset)
        problem = dicom.pixel_problem(dataset, rest) or dicom.value_problem(dataset, frames)
        problem = problem or frames_problem(frames, dicom.frame_count(dataset))
    if problem:
        raise ScanError(f"{problem} ({file.name})")
    return dataset


def _stacked(
    slices: Sequence[_Slice], *, tilt: float, thickness: float
) -> tuple[Geometry, list[int]]:
    first = slices[0]
    for other in slices:
        if other.plane != first.plane or not same_plane(other.frame, first.frame):
            raise ScanError(
                f"several series: {first.file.name} and {other.file.name} differ in size, "
                "orientation or pixel spacing"
            )
    positions: list[Vec3] = [s.frame.position_mm for s in slices if s.frame.position_mm]
    problems = stack_problems(positions, first.frame.orientation, tilt_degrees=tilt)
    if problems:
        raise ScanError("; ".join(problems))
    if len(slices) == 1 and thickness <= 0:
        raise ScanError("no geometry: a single slice without SliceThickness")
    geometry = stack_geometry(
        positions,
        first.frame.orientation,
        pixel_spacing_mm=first.frame.pixel_spacing_mm,
        plane=first.plane,
        slice_mm=thickness,
    )
    if problem := spacing_problem(geometry.spacing_mm):
        raise ScanError(problem)
    return geometry, stack_order(positions, first.frame.orientation)


def _decoded(slices: Sequence[_Slice], geometry: Geometry) -> tuple[Volume, str]:
    voxels = np.empty(geometry.size, dtype=np.int16)
    statistics = _Statistics()
    opened: tuple[Path, NDArray[Any], tuple[float, float] | None] | None = None
    for z, piece in enumerate(slices):
        # A multi-frame file is decoded once, not once per frame.
        if opened is None or opened[0] != piece.file:
            opened = (piece.file, *_pixels(piece.file))
        _, frames, padding = opened
        frame = piece.frame
        if frame.slope is None or frame.intercept is None:
            raise ScanError("not HU: no RescaleSlope and RescaleIntercept")
        stored = frames[piece.number].reshape(piece.plane)
        hu = _scaled(stored, slope=frame.slope, intercept=frame.intercept)
        if padding is not None:
            hu = np.where(_padded(stored, padding, frame), HU_FLOOR, hu)
        statistics.add(hu)
        voxels[z] = _clipped(hu)
    return Volume(voxels, geometry), statistics.problem()


def _pixels(file: Path) -> tuple[NDArray[Any], tuple[float, float] | None]:
    """Stored values (frames, rows, columns) and the range that marks padding."""
    with _decoding(file):
        dataset = dicom.read_dataset(file)
        if problem := _packed_problem(dataset):
            raise ScanError(f"{problem} ({file.name})")
        values = np.asarray(dataset.pixel_array)
        # Stored fractions have no sign of their own, and their own tags for padding.
        kind = next((k for k in ("Float", "DoubleFloat") if f"{k}PixelData" in dataset), "")
        low = dicom.number(dataset, f"{kind}PixelPaddingValue")
        high = dicom.number(dataset, f"{kind}PixelPaddingRangeLimit")
        signed = dicom.whole(dataset, "PixelRepresentation", 0) == 1
    frames = values if values.ndim == 3 else values[np.newaxis]
    if low is None:
        return frames, None
    bounds = [low, low if high is None else high]
    if signed:
        # Some writers store a negative padding value as an unsigned number.
        bounds = [b - 65536 if b > HU_CEILING else b for b in bounds]
    return frames, (min(bounds), max(bounds))


def _packed_problem(dataset: Any) -> str:
    if not dicom.is_compressed(dataset):
        return ""
    return encapsulated_problem(
        dataset.PixelData,
        syntax=dicom.transfer_syntax(dataset),
        plane=dicom.plane_of(dataset),
        frames=dicom.frame_count(dataset),
    )


def _padded(
    stored: NDArray[Any], padding: tuple[float, float], frame: dicom.Frame
) -> NDArray[np.bool_]:
    """Where a slice holds padding.

    A padding value that would pass for tissue is not trusted: scanners exist that write 0 there
    while 0 is also their water.
    """
    ends = [p * (frame.slope or 1.0) + (frame.intercept or 0.0) for p in padding]
    if any(_LOWEST_TISSUE_HU < e <= BRIGHTEST_TISSUE_HU for e in ends):
        return np.zeros(stored.shape, dtype=np.bool_)
    return np.asarray((stored >= padding[0]) & (stored <= padding[1]), dtype=np.bool_)


def _scaled(stored: NDArray[Any], *, slope: float, intercept: float) -> NDArray[Any]:
    """Stored values as HU, not yet rounded or clipped; not a copy where they are HU already."""
    if slope == 1.0 and intercept == 0.0 and stored.dtype == np.int16:
        return stored
    if slope == 1.0 and intercept == int(intercept) and stored.dtype.kind in "iub":
        wide = stored.astype(np.int64 if stored.dtype.itemsize > 2 else np.int32)
        return np.asarray(wide + int(intercept))
    values = stored.astype(np.float64) * slope + intercept
    broken = int(np.count_nonzero(~np.isfinite(values)))
    if broken:
        raise ScanError(f"not HU: NaN or infinite voxels, {broken} in the first slice with any")
    return np.asarray(values)


def _clipped(values: NDArray[Any]) -> NDArray[np.int16]:
    clipped = np.clip(values, HU_FLOOR, HU_CEILING)
    return np.asarray(clipped if values.dtype.kind == "i" else np.rint(clipped), dtype=np.int16)


@dataclass
class _Statistics:
    """What the unclipped values of a volume say about being HU, gathered slice by slice."""

    low: float = np.inf
    high: float = -np.inf
    voxels: int = 0
    bright: int = 0
    whole: bool = True
    distinct: set[float] = field(default_factory=set)

    def problem(self) -> str:
        """Why these cannot be HU, "" if they can."""
        span = f"{self.low:.6g} to {self.high:.6g}"
        if self.low >= 0 and self.whole and len(self.distinct) <= LABEL_VALUES:
            # Rounding makes such values also of a CT that was scaled to between 0 and 1.
            found = f"label map: {len(self.distinct)} whole values from {span}"
            return f"{found}; if it is a CT it was rescaled, as air is negative in HU"
        if self.low >= 0:
            return f"not HU: no value below 0 ({span}), but air and fat are negative"
        if self.high - self.low < SMALLEST_HU_RANGE:
            return f"not HU: values from {span} only, as if normalised or empty"
        share = self.bright / self.voxels
        if share > LARGEST_BRIGHT_SHARE:
            return f"not HU: {share:.0%} of the values lie above {BRIGHTEST_TISSUE_HU} ({span})"
        return ""

    def add(self, values: NDArray[Any]) -> None:
        """Take in one slice of unclipped HU."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        self.voxels += values.size
        self.bright += int(np.count_nonzero(values > BRIGHTEST_TISSUE_HU))
        # Telling values apart is slow, and only label maps, which have none below 0, need it.
        if self.low >= 0 and self.whole and len(self.distinct) <= LABEL_VALUES:
            present = np.unique(values)
            self.whole = bool(np.all(present == np.rint(present)))
            self.distinct.update(present[: LABEL_VALUES + 1].tolist())


def _refuse_layers(path: Path) -> None:
    """Raise for a segmentation whose segments overlap, and so share no single label map."""
    tags = segment_values(path)
    if any(key.endswith("_Layer") and value.strip() != "0" for key, value in tags.items()):
        raise ScanError("several layers: segments overlap. Export it as a label map first")
    labels = [value for key, value in tags.items() if key.endswith("_LabelValue")]
    if len(labels) != len(set(labels)):
        raise ScanError("several layers: two segments share one label value")


def _whole(values: NDArray[Any]) -> NDArray[Any]:
    # NaN equals nothing, infinity is caught by the range below.
    if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
        raise ScanError("not a label map: some values are no whole numbers")
    low, high = float(values.min()), float(values.max())
    for kind in (np.uint8, np.int16):
        if low >= np.iinfo(kind).min and high <= np.iinfo(kind).max:
            return np.ascontiguousarray(values, dtype=kind)
    raise ScanError(f"not a label map: values from {low:g} to {high:g} do not fit into int16")


@contextmanager
def _decoding(file: Path) -> Iterator[None]:
    """Tell whatever pydicom and its decoders say about a broken file in one line."""
    try:
        with dicom.quiet():
            yield
    except (ScanError, MemoryError):
        raise
    # Corrupt bytes make the decoders raise almost anything.
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # pydicom's first line may only announce what each of its decoders says.
        telling = next((line for line in lines if not line.endswith(":")), type(error).__name__)
        detail = dicom.shown(telling)
        raise ScanError(f"unreadable: {file.name}: {detail}") from error


@contextmanager
def _naming(files: Sequence[Path]) -> Iterator[None]:
    """Put the path in front of a reason."""
    try:
        yield
    except ScanError as error:
        where = files[0] if len(files) == 1 else files[0].parent
        raise ScanError(
            f"{printable(where)}: {error.message}.", error.hint or _cure(error)
        ) from error


def _cure(error: ScanError) -> str:
    if error.message.startswith("unreadable"):
        return "Copy it again from where it came, or leave it out."
    return "Give another file, or leave this one out."
