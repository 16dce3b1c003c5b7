"""One row of the index: a series that was found, and whether it can be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backend.geometry import Index3, Vec3

Verdict = Literal["usable", "refused"]


@dataclass(frozen=True, kw_only=True)
class SeriesRow:
    """What is known about one series.

    Attributes:
        id: short, unique in its index; the same wherever the files lie.
        path: the file, or the folder that holds all files of the series.
        files: every file, absolute.
        patient: hash of the patient's ID, or of the series itself where there is none.
        modality: as DICOM writes it ("CT"); empty where the format does not say.
        format: "DICOM", "NIfTI", "NRRD" or "MetaImage"; empty if the file could not be read.
        size: voxels along (z, y, x), None if unknown.
        spacing_mm: distance of voxel centres along (z, y, x), None if unknown.
        orientation: code of the array axes x, y, z, such as "LPS"; empty if unknown.
        hu_min: lowest value, None if the series was not decoded.
        hu_max: highest value, None if the series was not decoded.
        slices: number of slices (or of files, where there are no slices).
        verdict: "usable" or "refused".
        reason: why it is refused, "kind: details", several joined by "; ". Empty if usable.
    """

    id: str
    path: Path
    files: tuple[Path, ...]
    patient: str
    modality: str
    format: str
    size: Index3 | None
    spacing_mm: Vec3 | None
    orientation: str
    hu_min: int | None
    hu_max: int | None
    slices: int
    verdict: Verdict
    reason: str

    @property
    def reason_kind(self) -> str:
        """The first words of the reason, equal for all rows refused for the same cause."""
        return self.reason.split(":", maxsplit=1)[0]
