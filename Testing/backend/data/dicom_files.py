"""Small DICOM files for tests: axial CT slices with known values, and ways to spoil them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

ROWS, COLUMNS = 6, 5
ROW_MM, COLUMN_MM, SLICE_MM = 0.75, 0.5, 2.0
SECRET_ID, SECRET_NAME = "SECRET-7", "Nobody^Known"


def hu_values(slices: int, seed: int = 0) -> NDArray[np.int16]:
    """HU (z, y, x) from -1000 to 999, with air in the first row."""
    hu = np.random.default_rng(seed).integers(-900, 1000, (slices, ROWS, COLUMNS), dtype=np.int16)
    hu[:, 0] = -1000
    return hu


def ct_slice(hu: NDArray[np.int16], *, z: float, series: str) -> Dataset:
    """One axial slice stored as unsigned values with intercept -1024."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.SeriesInstanceUID, ds.StudyInstanceUID = series, "1.2.3"
    ds.FrameOfReferenceUID = "1.2.4"
    ds.PatientID, ds.PatientName = SECRET_ID, SECRET_NAME
    ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [-10, -20, z]
    ds.PixelSpacing, ds.SliceThickness = [ROW_MM, COLUMN_MM], SLICE_MM
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    set_pixels(ds, hu.astype(np.int32) + 1024)
    return ds


def set_pixels(ds: Dataset, stored: NDArray[Any], *, signed: bool = False) -> None:
    """Put 16-bit stored values (y, x) or (frames, y, x) into a data set."""
    ds.Rows, ds.Columns = stored.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, int(signed)
    ds.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
    ds["PixelData"].VR = "OW"


def series_of(hu: NDArray[np.int16], *, series: str = "1.2.5") -> list[Dataset]:
    """Slices of one series, 2 mm apart, the first at z = 100 mm."""
    return [ct_slice(p, z=100 + SLICE_MM * i, series=series) for i, p in enumerate(hu)]


def save(slices: Sequence[Dataset], folder: Path, *, ending: str = ".dcm") -> list[Path]:
    """Write slices as 000.dcm, 001.dcm and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}{ending}" for i in range(len(slices))]
    for ds, path in zip(slices, paths, strict=True):
        ds.save_as(path, enforce_file_format=True)
    return paths


def enhanced_ct(hu: NDArray[np.int16], *, order: Sequence[int]) -> Dataset:
    """A multi-frame CT whose frames stand in `order`, each with its own intercept."""
    ds = ct_slice(hu[0], z=0, series="1.2.6")
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        del ds[name]
    del ds.RescaleSlope, ds.RescaleIntercept
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [ROW_MM, COLUMN_MM]
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    ds.SharedFunctionalGroupsSequence = [shared]
    frames, stored = [], []
    for i in order:
        frame, place, rescale = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-10, -20, 100 + SLICE_MM * i]
        rescale.RescaleSlope, rescale.RescaleIntercept = 1, -1024 - i
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [place], [rescale]
        frames.append(frame)
        stored.append(hu[i].astype(np.int32) + 1024 + i)
    ds.PerFrameFunctionalGroupsSequence = frames
    set_pixels(ds, np.stack(stored))
    ds.NumberOfFrames = len(order)
    return ds
