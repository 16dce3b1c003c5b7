"""Slicer's DICOM database: the headers of folders, kept in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slicer_host.standins import Behaviour


class DICOMDatabase(Behaviour):
    """Patients, studies and series of the files that a test put into it."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._host_open = False
        self._host_files: dict[str, list[str]] = {}
        self._host_headers: dict[str, Any] = {}

    def _host_use(self, *folders: Path) -> None:
        """Open it with all that lies below some folders."""
        import pydicom

        self._host_open = True
        self._host_files, self._host_headers = {}, {}
        for file in sorted(f for folder in folders for f in folder.rglob("*") if f.is_file()):
            header = pydicom.dcmread(file, stop_before_pixels=True)
            self._host_headers.setdefault(header.SeriesInstanceUID, header)
            self._host_files.setdefault(header.SeriesInstanceUID, []).append(str(file))

    def _host_read_isOpen(self) -> bool:
        return self._host_open

    def closeDatabase(self) -> None:
        self._host_open = False
        self._host_files, self._host_headers = {}, {}

    def _host_values_of(self, wanted: str, **given: str) -> list[str]:
        found = [
            str(h.get(wanted, ""))
            for h in self._host_headers.values()
            if all(str(h.get(name, "")) == value for name, value in given.items())
        ]
        return list(dict.fromkeys(found))

    def patients(self) -> list[str]:
        return self._host_values_of("PatientID")

    def studiesForPatient(self, patient: str) -> list[str]:
        return self._host_values_of("StudyInstanceUID", PatientID=patient)

    def seriesForStudy(self, study: str) -> list[str]:
        return self._host_values_of("SeriesInstanceUID", StudyInstanceUID=study)

    def filesForSeries(self, series: str, *_: Any) -> list[str]:
        return list(self._host_files.get(series, ()))

    def nameForPatient(self, patient: str) -> str:
        return self._host_values_of("PatientName", PatientID=patient)[0]

    def descriptionForSeries(self, series: str) -> str:
        return str(self._host_headers[series].get("SeriesDescription", ""))

    def fieldForSeries(self, field: str, series: str) -> str:
        return str(self._host_headers[series].get(field, ""))

    def fieldForStudy(self, field: str, study: str) -> str:
        return (self._host_values_of(field, StudyInstanceUID=study) or [""])[0]


BEHAVIOURS: dict[str, type[Behaviour]] = {"ctkDICOMDatabase": DICOMDatabase}
