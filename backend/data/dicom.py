"""What one DICOM file says about its frames, be it a single slice or a multi-frame volume."""

from __future__ import annotations

import hashlib
import math
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from backend.errors import ScanError
from backend.geometry import Vec3, vec3

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DIRECTORY = "1.2.840.10008.1.3.10"
PATIENTS_MIXED = "several patients: the files of one series bear different PatientIDs"
_HU_TYPES = ("", "HU", "US", "HU_MOD")
_PREAMBLE = 128
_ENCAPSULATED_FROM = "1.2.840.10008.1.2.4"
# What stands in front of pixel data: tag and length, with explicit syntax also the kind.
_SHORT_HEAD, _LONG_HEAD = 8, 12
_PIXEL_TAGS = ((0x7FE0, 0x0010), (0x7FE0, 0x0008), (0x7FE0, 0x0009))
_UNDEFINED = 0xFFFFFFFF
_SHOWN = 120
_LARGEST_SCALE = 1e9

HEADER_TAGS = [
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "PatientID",
    "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "InstanceNumber", "Rows",
    "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "PixelSpacing",
    "ImagePositionPatient", "ImageOrientationPatient", "GantryDetectorTilt", "SliceThickness",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
"""All that the scan asks of a header; everything else is stepped over."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where one frame lies and how its stored values become HU; None where nothing is said."""

    position_mm: Vec3 | None
    orientation: tuple[float, ...]
    pixel_spacing_mm: tuple[float, ...]
    slope: float | None
    intercept: float | None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's warnings about odd values off the console; they change no verdict."""
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file that begins with `head` (132 bytes or more) is DICOM, preamble or not."""
    if head[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
        return True
    # Without preamble a file begins with group 0002 or 0008, little endian, element below 0x0100.
    return len(head) > 8 and head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"


@dataclass(frozen=True, kw_only=True)
class PixelBytes:
    """How large the pixel data are, as far as can be told without reading them.

    Attributes:
        present: bytes behind the header, -1 if unknown.
        stated: length that the element states, -1 if it states none.
    """

    present: int
    stated: int = -1


def read_header(path: Path) -> tuple[Any, PixelBytes]:
    """The header's data set, and what follows it."""
    with path.open("rb") as stream:
        dataset = _header_of(stream)
        rest = os.fstat(stream.fileno()).st_size - stream.tell()
        head = stream.read(_LONG_HEAD)
    if transfer_syntax(dataset) == DeflatedExplicitVRLittleEndian:
        return dataset, PixelBytes(present=-1)
    return dataset, PixelBytes(present=rest, stated=_stated_length(head, transfer_syntax(dataset)))


def _stated_length(head: bytes, syntax: str) -> int:
    """The length in the first bytes of a pixel data element, -1 if these are none."""
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    if len(head) < _LONG_HEAD or struct.unpack_from(f"{order}2H", head) not in _PIXEL_TAGS:
        return -1
    place = 4 if syntax == ImplicitVRLittleEndian else 8
    length: int = struct.unpack_from(f"{order}L", head, place)[0]
    return -1 if length == _UNDEFINED else length


def _header_of(stream: BinaryIO) -> Any:
    return _with_syntax(
        pydicom.dcmread(
            stream, stop_before_pixels=True, specific_tags=list(HEADER_TAGS), force=True
        )
    )


def read_dataset(path: Path) -> Any:
    """The whole data set of a file, pixel data included."""
    return _with_syntax(pydicom.dcmread(path, force=True))


def _with_syntax(dataset: Any) -> Any:
    """The same data set, with the transfer syntax found by reading where the file states none."""
    if not transfer_syntax(dataset):
        implicit, little_endian = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def transfer_syntax(dataset: Any) -> str:
    """The transfer syntax' UID, "" where the file does not say."""
    return str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", "") or "")


def is_compressed(dataset: Any) -> bool:
    """Whether native code must unpack the pixel data."""
    syntax = transfer_syntax(dataset)
    return syntax.startswith(_ENCAPSULATED_FROM) or syntax == RLELossless


def text(dataset: Any, keyword: str) -> str:
    """A value as stripped text, "" if there is none."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def shown(content: object) -> str:
    """What a header says, fit for a message: one line, not long, in quotes where it is odd."""
    word = str(content)
    plain = len(word) <= _SHOWN and word.isprintable()
    return word if plain else ascii(word[:_SHOWN])


def numbers(dataset: Any, keyword: str, count: int) -> tuple[float, ...]:
    """`count` finite numbers, or () if there is no such value or not that many.

    Raises:
        ScanError: naming the tag, if what stands there is no number.
    """
    try:
        value = dataset.get(keyword)
        if value is None or value == "":
            return ()
        many = isinstance(value, Sequence | pydicom.multival.MultiValue)
        items = value if many and not isinstance(value, str | bytes) else [value]
        values = tuple(float(v) for v in items)
    # Corrupt bytes make the parser raise almost anything.
    except Exception as error:
        raise ScanError(f"unreadable: {keyword} is no number, {shown(error)}") from error
    if not all(math.isfinite(v) for v in values):
        raise ScanError(f"unreadable: {keyword} is no finite number, {shown(value)}")
    return values if len(values) == count else ()


def number(dataset: Any, keyword: str) -> float | None:
    """One number, None if there is no such value.

    Raises:
        ScanError: as `numbers`.
    """
    values = numbers(dataset, keyword, 1)
    return values[0] if values else None


def whole(dataset: Any, keyword: str, default: int) -> int:
    """One whole number, `default` if there is no such value or it is 0.

    Raises:
        ScanError: naming the tag, if it is no number, has a fraction or is below 0.
    """
    value = number(dataset, keyword) or default
    if value < 0 or value != int(value):
        raise ScanError(f"unreadable: {keyword} is no count, {value:g}")
    return int(value)


def frames_of(dataset: Any) -> list[Frame]:
    """One entry per frame; single-slice files have one."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if not per_frame:
        return [_plain_frame(dataset)]
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    return [_enhanced_frame(frame, shared) for frame in per_frame]


def frame_count(dataset: Any) -> int:
    """NumberOfFrames, 1 where a file does not state it."""
    return whole(dataset, "NumberOfFrames", 1)


def plane_of(dataset: Any) -> tuple[int, int]:
    """Rows and columns, each 0 where a file does not state it."""
    return whole(dataset, "Rows", 0), whole(dataset, "Columns", 0)


def is_localizer(dataset: Any) -> bool:
    """Whether ImageType says that this is a scout."""
    return "LOCALIZER" in [str(part).upper() for part in dataset.get("ImageType") or []]


def value_problem(dataset: Any, frames: Sequence[Frame]) -> str:
    """Why the pixel data cannot be HU as far as the header tells, "" if they can."""
    kind = text(dataset, "RescaleType").upper()
    if kind not in _HU_TYPES:
        return f"not HU: RescaleType is {shown(kind)}"
    for frame in frames:
        if frame.slope is None or frame.intercept is None:
            return "not HU: no RescaleSlope and RescaleIntercept"
        if not 0 < abs(frame.slope) <= _LARGEST_SCALE or abs(frame.intercept) > _LARGEST_SCALE:
            return f"not HU: RescaleSlope {frame.slope:g}, RescaleIntercept {frame.intercept:g}"
    return ""


def pixel_problem(dataset: Any, rest: PixelBytes) -> str:
    """Why the pixel data cannot be decoded, or only in part, as far as lengths tell.

    Args:
        dataset: the header.
        rest: what follows it.
    """
    if not all(plane_of(dataset)) or rest.present == 0:
        return "no pixel data: the file holds no image"
    samples = whole(dataset, "SamplesPerPixel", 1)
    if samples != 1:
        return f"not HU: {samples} values per pixel, a colour image"
    if rest.present < 0 or is_compressed(dataset):
        return ""
    bits = whole(dataset, "BitsAllocated", 16)
    rows, columns = plane_of(dataset)
    wanted = rows * columns * frame_count(dataset) * bits // 8
    implicit = transfer_syntax(dataset) == ImplicitVRLittleEndian
    present = rest.present - (_SHORT_HEAD if implicit else _LONG_HEAD)
    if present < wanted:
        return f"unreadable: cut short, {max(present, 0)} of {wanted} bytes of pixel data"
    # Writers may pad, but not by as much as a row.
    if rest.stated - wanted >= max(1, columns * bits // 8):
        return (
            f"unreadable: {rest.stated} bytes of pixel data, but {rows} rows, {columns} columns "
            f"and {frame_count(dataset)} frames make {wanted}"
        )
    return ""


def short_hash(content: str) -> str:
    """Twelve characters that stand for a text.

    The first is a letter, or spreadsheets would take "4190e7" for a number and rewrite it.
    """
    digest = hashlib.sha256(content.encode()).hexdigest()
    return "abcdefghijklmnop"[int(digest[0], 16)] + digest[1:12]


def _plain_frame(dataset: Any) -> Frame:
    position = numbers(dataset, "ImagePositionPatient", 3)
    return Frame(
        position_mm=vec3(position) if position else None,
        orientation=numbers(dataset, "ImageOrientationPatient", 6),
        pixel_spacing_mm=numbers(dataset, "PixelSpacing", 2),
        slope=number(dataset, "RescaleSlope"),
        intercept=number(dataset, "RescaleIntercept"),
    )


def _enhanced_frame(frame: Any, shared: Any) -> Frame:
    def group(name: str) -> Any:
        own = _first(frame, name)
        return own if own is not None else _first(shared, name) or {}

    position = numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3)
    rescale = group("PixelValueTransformationSequence")
    return Frame(
        position_mm=vec3(position) if position else None,
        orientation=numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
        pixel_spacing_mm=numbers(group("PixelMeasuresSequence"), "PixelSpacing", 2),
        slope=number(rescale, "RescaleSlope"),
        intercept=number(rescale, "RescaleIntercept"),
    )


def _first(dataset: Any, keyword: str) -> Any:
    items = dataset.get(keyword) if dataset is not None else None
    return items[0] if items else None
