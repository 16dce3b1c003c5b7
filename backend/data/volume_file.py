"""Grid and stored values of one NIfTI, NRRD or MetaImage file."""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK
from isal import igzip
from numpy.typing import NDArray

from backend.data.native_guard import metaimage_problem, nrrd_problem, voxel_bytes
from backend.data.stacking import axes_problem, orthonormal, spacing_problem
from backend.errors import ScanError
from backend.geometry import Geometry, direction9, index3, vec3

FORMATS = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
}
"""Endings that are read, and what they stand for."""

_NIFTI_LABEL_INTENT = 1002
_LARGEST_SCALE = 1e9
_DETACHED = {
    ".nhdr": re.compile(r"^data ?file:\s*(.*?)\s*$", re.MULTILINE | re.IGNORECASE),
    ".mhd": re.compile(r"^\s*ElementDataFile\s*[=:]\s*(.*?)\s*$", re.MULTILINE),
}
"""How a header names the file that holds its voxels."""
_HEADER_LIMIT = 1 << 16
_DRAIN = 1 << 20
_PIECE = 1 << 17
_GUARDS = {"MetaImage": metaimage_problem, "NRRD": nrrd_problem}
_GZIP = b"\x1f\x8b"
_BEST_DEFLATE = 1032
"""No byte of a gzip stream stands for more than this many."""


@dataclass(frozen=True)
class Stored:
    """Values as they stand in the file, (z, y, x), and how they become HU."""

    values: NDArray[Any]
    slope: float
    intercept: float


@dataclass(frozen=True)
class VolumeHeader:
    """What a file says before its voxels are read.

    Attributes:
        geometry: its grid.
        label_sign: why it is certainly a label map, "" if the header does not tell.
    """

    geometry: Geometry
    label_sign: str


def format_of(path: Path) -> str:
    """The format that the ending promises, "" for any other file."""
    name = path.name.lower()
    return next((FORMATS[end] for end in FORMATS if name.endswith(end)), "")


def volume_among(files: Sequence[Path]) -> Path | None:
    """The one volume file among the files of a series; what is beside it holds its voxels."""
    found = [file for file in files if format_of(file)]
    return found[0] if len(found) == 1 else None


def read_volume_header(path: Path) -> VolumeHeader:
    """Grid and kind of a volume file.

    Raises:
        ScanError: if the file is no valid 3D volume; the message does not name the file.
    """
    if path.stat().st_size == 0:
        raise ScanError("unreadable: the file is empty")
    return _nifti_header(path) if format_of(path) == "NIfTI" else _itk_header(path)


def read_stored(path: Path) -> Stored:
    """The voxels of a volume file, not yet scaled.

    Raises:
        ScanError: if the file is cut short or corrupt; the message does not name the file.
    """
    if format_of(path) == "NIfTI":
        return _nifti_stored(path)
    held = voxel_bytes(path, detached_data(path))
    with _told_as_unreadable(path, "voxels are missing or corrupt"), _native_silence():
        values = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    if held is not None:
        _refuse_surplus(values, values.nbytes, held)
    return Stored(values, 1.0, 0.0)


def _refuse_surplus(values: NDArray[Any], told: int, held: int) -> None:
    """Raise for a file with a slice or more beyond what its header tells: its size is wrong.

    Args:
        values: the voxels, whose last axes are a slice.
        told: bytes that the header tells of.
        held: bytes that are there. Some writers fill up to a round number.
    """
    if held - told >= values[0].nbytes > 0:
        raise ScanError(
            f"unreadable: its header tells of {told} bytes of voxels, but it holds {held}"
        )


def segment_values(path: Path) -> dict[str, str]:
    """What 3D Slicer notes in a .seg.nrrd (`Segment0_LabelValue` and so on), {} without it."""
    reader = _itk_information(path)
    return {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys() if "Segment" in key}


def detached_data(path: Path) -> Path | None:
    """The file with the voxels that a .nhdr or .mhd points to, None if they stand inside."""
    named = _DETACHED.get(path.suffix.lower())
    if named is None:
        return None
    with path.open("rb") as stream:
        head = stream.read(_HEADER_LIMIT).decode("latin-1")
    # The header ends with the first empty line; what follows may be voxels.
    found = named.search(re.split(r"\r?\n\r?\n", head, maxsplit=1)[0])
    if found is None or found[1].upper() in ("LOCAL", "LIST"):
        return None
    return path.parent / found[1]


def with_detached(files: Iterable[Path]) -> tuple[Path, ...]:
    """The files, and beside each header without voxels the file that holds them, if it is there.

    Raises:
        OSError: if a header cannot be read.
    """
    found: dict[Path, None] = {}
    for file in files:
        found[file] = None
        data = detached_data(file)
        if data is not None and not detached_problem(file):
            found[data] = None
    return tuple(found)


def detached_problem(path: Path) -> str:
    """Why the file that a header points to cannot be read, "" if it can or there is none."""
    data = detached_data(path)
    try:
        lost = data is not None and not data.is_file()
    except OSError:
        # The header holds what can be no name of a file.
        lost = True
    return f"unreadable: its data file {data.name[:80]} is missing" if data and lost else ""


def _nifti_stored(path: Path) -> Stored:
    with _told_as_unreadable(path), _nifti_stream(path) as (kind, stream):
        image = kind.from_stream(stream)
        _refuse_too_large(path, image.shape, image.get_data_dtype().itemsize)
        raw = np.asanyarray(image.dataobj.get_unscaled())
        stream.seek(image.dataobj.offset + raw.nbytes)
        # gzip compares its checksum only at the very end, which the voxels do not reach.
        beyond = sum(map(len, iter(partial(stream.read, _DRAIN), b"")))
        scale, shift = float(image.dataobj.slope), float(image.dataobj.inter)
    values = raw.reshape(raw.shape[:3], order="F").T
    _refuse_surplus(values, raw.nbytes, raw.nbytes + beyond)
    return Stored(values, scale, shift)


def _refuse_hidden_gzip(path: Path) -> None:
    with path.open("rb") as stream:
        packed = stream.read(2) == _GZIP
    if packed and path.suffix.lower() != ".gz":
        raise ScanError("unreadable: it is compressed; name it .nii.gz")


def _nifti_header(path: Path) -> VolumeHeader:
    _refuse_hidden_gzip(path)
    with _told_as_unreadable(path), _nifti_stream(path) as (kind, stream):
        # Unchecked: the library would quietly write 1 where a spacing is 0 or a slope is NaN.
        raw = kind.header_class.from_fileobj(stream, check=False)
        spacing = raw["pixdim"][1:4]
        _refuse_scale(float(raw["scl_slope"]), float(raw["scl_inter"]))
        stream.seek(0)
        image = kind.from_stream(stream)
        shape, values = image.shape, image.get_data_dtype()
        intent = int(image.header["intent_code"])
        scaled = float(image.dataobj.slope) != 1 or float(image.dataobj.inter) != 0
    _refuse_shape(shape)
    if values.fields is not None or values.kind == "c":
        raise ScanError("not HU: several values per voxel, a colour or complex image")
    _refuse_too_large(path, shape, values.itemsize)
    _refuse_spacing(spacing)
    # The library finds some numbers of the header impossible when it is asked for them.
    with _told_as_unreadable(path):
        _refuse_contradiction(image, spacing)
        _refuse_no_place(image, shape)
    geometry = _nifti_geometry(path, image, shape)
    if intent == _NIFTI_LABEL_INTENT:
        return VolumeHeader(geometry, "label map: the header says so (intent 1002)")
    eight_bit = values == np.uint8 and not scaled
    return VolumeHeader(geometry, _EIGHT_BIT_SIGN if eight_bit else "")


def _refuse_contradiction(image: Any, spacing: NDArray[np.float32]) -> None:
    """Raise where two places of the header state different spacings, as readers then disagree."""
    if int(image.header["sform_code"]) == 0:
        return
    stated = np.linalg.norm(image.header.get_sform()[:3, :3], axis=0)
    if not np.allclose(stated, spacing, rtol=1e-3, atol=1e-4):
        raise ScanError(
            f"no geometry: pixdim says {_shown(spacing)} mm, but sform {_shown(stated)} mm"
        )


def _refuse_no_place(image: Any, shape: Sequence[int]) -> None:
    """Raise where nothing says which side is left, or two places of the header disagree on it."""
    header = image.header
    qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    if qform is None and sform is None:
        raise ScanError(
            "no geometry: neither qform nor sform is set, so left and right are unknown; set one "
            "from the source of the file"
        )
    if qform is None or sform is None:
        return
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape[:3]))))
    apart = np.abs(corners @ (qform - sform)[:3, :3].T + (qform - sform)[:3, 3])
    farthest = float(np.linalg.norm(apart, axis=1).max())
    # Rounded quaternions turn a large grid by a part of a voxel.
    if not farthest <= float(np.linalg.norm(header["pixdim"][1:4])):
        raise ScanError(
            f"no geometry: qform and sform lie up to {farthest:.3g} mm apart, and readers differ "
            "in which they take; save the file again with the right one alone"
        )


_EIGHT_BIT_SIGN = "label map: 8-bit whole numbers, none below 0"


def _nifti_geometry(path: Path, image: Any, shape: Sequence[int]) -> Geometry:
    # ITK chooses between qform and sform as the viewers do, so its grid is taken where it has
    # one. It refuses tiny shears, which other tools leave behind by rounding.
    try:
        reader = _itk_information(path)
    except ScanError:
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
        return _geometry(
            size_xyz=shape[:3],
            spacing_xyz=np.linalg.norm(affine[:3, :3], axis=0),
            origin=affine[:3, 3],
            columns=affine[:3, :3],
        )
    return _reader_geometry(reader)


def _refuse_scale(slope: float, intercept: float) -> None:
    """Raise for numbers that make no HU of anything; a slope of 0 stands for no scaling."""
    if not (abs(slope) <= _LARGEST_SCALE and abs(intercept) <= _LARGEST_SCALE):
        raise ScanError(f"not HU: scl_slope is {slope:g} and scl_inter is {intercept:g}")


def _refuse_too_large(path: Path, shape: Sequence[int], voxel_bytes: int) -> None:
    """Raise where a header promises more than the file can hold, before memory is asked for."""
    wanted = math.prod(int(n) for n in shape) * voxel_bytes
    present = path.stat().st_size
    if wanted > present * (_BEST_DEFLATE if path.suffix.lower() == ".gz" else 1):
        raise ScanError(f"unreadable: cut short, {present} bytes for {wanted} bytes of voxels")


def _itk_header(path: Path) -> VolumeHeader:
    reader = _itk_information(path)
    _refuse_shape(reader.GetSize())
    if reader.GetNumberOfComponents() != 1:
        raise ScanError(
            f"not HU: {reader.GetNumberOfComponents()} values per voxel, a colour or vector image"
        )
    sign = _EIGHT_BIT_SIGN if reader.GetPixelID() == SimpleITK.sitkUInt8 else ""
    if any(key.startswith("Segment0") for key in reader.GetMetaDataKeys()):
        sign = "label map: the header says so (segmentation)"
    return VolumeHeader(_reader_geometry(reader), sign)


def _itk_information(path: Path) -> Any:
    _refuse_unsafe(path)
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    with _told_as_unreadable(path), _native_silence():
        reader.ReadImageInformation()
    return reader


def _refuse_unsafe(path: Path) -> None:
    """Raise for a file whose header native code cannot be trusted with."""
    guard = _GUARDS.get(format_of(path))
    problem = guard(path) if guard else ""
    if problem := problem or detached_problem(path):
        raise ScanError(problem)


def _reader_geometry(reader: Any) -> Geometry:
    dimension = reader.GetDimension()
    direction = np.asarray(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    return _geometry(
        size_xyz=reader.GetSize()[:3],
        spacing_xyz=reader.GetSpacing()[:3],
        origin=reader.GetOrigin()[:3],
        columns=direction * np.asarray(reader.GetSpacing()[:3]),
    )


def _geometry(
    *,
    size_xyz: Sequence[int],
    spacing_xyz: Sequence[float],
    origin: Sequence[float],
    columns: NDArray[np.float64],
) -> Geometry:
    spacing = np.asarray(spacing_xyz, dtype=np.float64)
    _refuse_spacing(spacing)
    if not np.all(np.isfinite(origin)) or not np.all(np.isfinite(columns)):
        raise ScanError("no geometry: origin or directions are not finite")
    axes = columns / spacing
    problem = axes_problem(axes)
    if problem:
        raise ScanError(problem)
    return Geometry(
        size=index3(tuple(reversed(tuple(size_xyz)))),
        spacing_mm=vec3(tuple(reversed(tuple(spacing.tolist())))),
        origin_mm=vec3(tuple(float(v) for v in origin)),
        direction=direction9([float(v) for v in orthonormal(axes).ravel()]),
    )


def _refuse_spacing(spacing: NDArray[Any]) -> None:
    problem = spacing_problem([float(v) for v in spacing])
    if problem:
        raise ScanError(problem)


def _shown(spacing: NDArray[Any]) -> str:
    return "x".join(f"{float(v):.4g}" for v in spacing)


def _refuse_shape(shape: Sequence[int]) -> None:
    """Raise for anything but three dimensions, of which all beyond are 1."""
    shown = "x".join(str(n) for n in shape)
    if len(shape) < 3:
        raise ScanError(f"not a volume: {shown} is a single slice")
    if any(n != 1 for n in shape[3:]):
        raise ScanError(f"not a volume: {shown} has {len(shape)} dimensions, e.g. time points")
    if any(n < 1 for n in shape):
        raise ScanError(f"not a volume: {shown} holds no voxels")


class _Unpacked(igzip.IGzipFile):
    """A compressed file that fills a buffer little by little.

    The library's own way unpacks all of it beside the buffer and copies: more memory and time.
    """

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the file reaches; returns the bytes read."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and (piece := self.read(min(_PIECE, len(view) - done))):
            view[done : done + len(piece)] = piece
            done += len(piece)
        return done


@contextmanager
def _nifti_stream(path: Path) -> Iterator[tuple[Any, Any]]:
    """The class that reads a NIfTI file, and its bytes from the start."""
    logger, level = logging.getLogger("nibabel.global"), logging.CRITICAL
    former = logger.level
    logger.setLevel(level)
    try:
        kind = type(nib.load(path))
        opener = _Unpacked if path.suffix.lower() == ".gz" else open
        with opener(path, "rb") as stream:
            yield kind, stream
    finally:
        logger.setLevel(former)


class _Silence:
    """How many threads read in silence, and where standard error went meanwhile.

    The descriptor belongs to the whole process: were each thread to keep and restore it, two that
    overlap would restore each other's silence and leave it for good.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._readers = 0
        self._kept: int | None = None

    def begin(self) -> None:
        """Turn standard error away for the first reader."""
        with self._mutex:
            self._readers += 1
            if self._readers > 1:
                return
            try:
                self._kept = os.dup(2)
            except OSError:
                # There is no standard error, as under pythonw on Windows.
                return
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)

    def end(self) -> None:
        """Give it back after the last reader."""
        with self._mutex:
            self._readers -= 1
            if self._readers == 0 and self._kept is not None:
                os.dup2(self._kept, 2)
                os.close(self._kept)
                self._kept = None


_SILENCE = _Silence()


@contextmanager
def _native_silence() -> Iterator[None]:
    """Keep off the console what native code writes to standard error about a broken file."""
    _SILENCE.begin()
    try:
        yield
    finally:
        _SILENCE.end()


@contextmanager
def _told_as_unreadable(path: Path, detail: str = "") -> Iterator[None]:
    """Tell `detail`, or else what a library says about a broken file, in one line.

    The folder is left out: the reason stands in indices that travel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ScanError, MemoryError):
        raise
    # Corrupt bytes make the libraries raise almost anything.
    except Exception as error:
        lines = [line.strip(" .") for line in str(error).replace(str(path), path.name).splitlines()]
        # nibabel's last line only asks whether the file is damaged, behind a dash.
        telling = (line for line in reversed(lines) if line and not line.startswith("-"))
        said = next(telling, type(error).__name__)
        raise ScanError(f"unreadable: {detail or said[:160]}") from error
