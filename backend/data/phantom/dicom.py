"""Phantoms as DICOM series: valid enough for any viewer, with no word about a person in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

from backend.files import written_whole
from backend.geometry import Vec3, Volume

_IMPLEMENTATION = "phantom implementation"


@dataclass(frozen=True, kw_only=True)
class Series:
    """What one series says about itself.

    Attributes:
        patient: an invented identifier such as "PHANTOM_01"; also seeds all UIDs.
        number: series number within the study.
        description: series description.
        image_type: DICOM image type.
        modality: "CT" or "MR".
        tilt_deg: gantry tilt.
        intercept: rescale intercept; stored values are HU minus this, unsigned if it is negative.
        ending: file ending, with its dot; may be empty.
        stem: file name without number and ending.
        extra: further elements by keyword.
    """

    patient: str
    number: int = 1
    description: str = "Abdomen"
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL")
    modality: str = "CT"
    tilt_deg: float = 0.0
    intercept: int = -1024
    ending: str = ".dcm"
    stem: str = "IM"
    extra: dict[str, str] = field(default_factory=dict)

    def uid(self, *parts: object) -> str:
        """A UID that depends on the patient and the parts alone."""
        return str(generate_uid(entropy_srcs=[self.patient, *map(str, parts)]))


def write_series(
    folder: Path,
    volume: Volume,
    series: Series,
    *,
    keep: Callable[[int], bool] = lambda _: True,
    shear_mm: Vec3 = (0.0, 0.0, 0.0),
) -> list[Path]:
    """Write one file per slice of a volume (z, y, x); `folder` may hold other series already.

    Args:
        folder: made if missing.
        volume: HU (or any int16 values for an MR).
        series: what the headers say.
        keep: tells by slice number which slices are written.
        shear_mm: added to the position once per slice, along world (x, y, z).

    Returns:
        The files in slice order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in filter(keep, range(volume.geometry.size[0])):
        path = folder / f"{series.stem}{series.number}{index:04d}{series.ending}"
        dataset = _slice(volume, series, index=index, shear_mm=shear_mm)
        with written_whole(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
        files.append(path)
    return files


def _slice(volume: Volume, series: Series, *, index: int, shear_mm: Vec3) -> Dataset:
    """The dataset of one slice."""
    dataset = Dataset()
    dataset.file_meta = _file_meta(series, index)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    _describe(dataset, series, index)
    _place(dataset, volume, index=index, shear_mm=shear_mm)
    _fill(dataset, volume.voxels[index].astype(np.int32), series)
    for keyword, value in series.extra.items():
        setattr(dataset, keyword, value)
    return dataset


def _file_meta(series: Series, index: int) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(
        {"CT": CTImageStorage, "MR": MRImageStorage}[series.modality]
    )
    meta.MediaStorageSOPInstanceUID = UID(series.uid("instance", series.number, index))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(str(generate_uid(entropy_srcs=[_IMPLEMENTATION])))
    return meta


def _describe(dataset: Dataset, series: Series, index: int) -> None:
    """Patient, study, series and equipment: invented, and the same at every run."""
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = list(series.image_type)
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = "20240101"
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = "120000"
    dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""
    dataset.Modality = series.modality
    dataset.Manufacturer = "Phantom"
    dataset.ManufacturerModelName = "Painted body"
    dataset.PatientName = ""
    dataset.PatientID = series.patient
    dataset.PatientBirthDate = ""
    dataset.PatientSex = ""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "Invented patient"
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID = series.uid("study")
    dataset.SeriesInstanceUID = series.uid("series", series.number)
    dataset.FrameOfReferenceUID = series.uid("frame")
    dataset.PositionReferenceIndicator = ""
    dataset.StudyID = "1"
    dataset.SeriesNumber = series.number
    dataset.SeriesDescription = series.description
    dataset.AcquisitionNumber = 1
    dataset.InstanceNumber = index + 1


def _place(dataset: Dataset, volume: Volume, *, index: int, shear_mm: Vec3) -> None:
    geometry = volume.geometry
    matrix = geometry.direction_matrix
    position = np.asarray(geometry.world((index, 0, 0))) + index * np.asarray(shear_mm)
    dataset.ImagePositionPatient = [round(float(v), 5) for v in position]
    dataset.ImageOrientationPatient = [round(float(v), 8) for v in matrix[:, :2].T.ravel()]
    dataset.SliceLocation = round(float(position @ matrix[:, 2]), 5)
    dataset.SliceThickness = geometry.spacing_mm[0]
    dataset.PixelSpacing = [geometry.spacing_mm[1], geometry.spacing_mm[2]]


def _fill(dataset: Dataset, values: np.typing.NDArray[np.int32], series: Series) -> None:
    signed = series.intercept >= 0
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(signed)
    if series.modality == "CT":
        dataset.RescaleIntercept, dataset.RescaleSlope = series.intercept, 1
        dataset.RescaleType = "HU"
        dataset.KVP = "120"
        dataset.ConvolutionKernel = "SOFT"
        dataset.GantryDetectorTilt = series.tilt_deg
        values = values - series.intercept
    else:
        dataset.ScanningSequence, dataset.SequenceVariant = "SE", "NONE"
        dataset.ScanOptions, dataset.MRAcquisitionType = "", "2D"
        dataset.EchoTime, dataset.RepetitionTime, dataset.EchoTrainLength = "12", "600", "1"
    dataset.WindowCenter, dataset.WindowWidth = "40", "400"
    dataset.PixelData = values.astype("<i2" if signed else "<u2").tobytes()


def localizer(volume: Volume, series: Series) -> tuple[Volume, Series]:
    """The projection from the front that planned the scan, as a series of one coronal slice."""
    geometry = volume.geometry
    front = volume.voxels.astype(np.float32).mean(axis=1)[::-1]
    matrix = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    sz, _, sx = geometry.spacing_mm
    flat = replace(
        geometry,
        size=(1, front.shape[0], front.shape[1]),
        spacing_mm=(1.0, sz, sx),
        origin_mm=geometry.world((geometry.size[0] - 1, geometry.size[1] // 2, 0)),
        direction=tuple(matrix.ravel().tolist()),
    )
    described = replace(
        series, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), description="Topogram", number=99
    )
    return Volume(front[None].astype(np.int16), flat), described
