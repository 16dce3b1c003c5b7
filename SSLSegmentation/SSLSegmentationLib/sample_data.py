"""Invented patients in Slicer's module Sample Data; nothing is downloaded.

Slicer's start waits for this file: what makes the patients is in phantoms.py, read on the first
click.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer

CATEGORY = "SSL Segmentation"
PATIENTS = (1, 2, 3)
"""Two to learn from, and one to try the model on."""

_ICON = Path(__file__).parents[1] / "Resources" / "Icons" / "SSLSegmentation.png"


def register() -> None:
    """Offer the phantoms, where Slicer has its module Sample Data."""
    if not hasattr(slicer.modules, "sampledata"):
        return
    import SampleData

    for number in PATIENTS:
        phantom = Phantom(number)
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=f"Abdomen phantom {number}",
            # Once it is made, Slicer finds it in its cache and needs no address.
            uris=phantom.ct.as_uri(),
            fileNames=phantom.ct.relative_to(_cache()).as_posix(),
            nodeNames=phantom.name,
            customDownloader=phantom,
            thumbnailFileName=str(_ICON),
        )


@dataclass(frozen=True)
class Phantom:
    """An invented patient: a CT and its organs. Sample Data calls it when its button is clicked."""

    number: int

    @property
    def name(self) -> str:
        """Of the volume in the scene."""
        return f"AbdomenPhantom{self.number}"

    @property
    def folder(self) -> Path:
        """Where it is kept, in Slicer's cache."""
        return _cache() / f"SSLSegmentation-phantom-{self.number}"

    @property
    def ct(self) -> Path:
        """The scan."""
        return self.folder / "labelled" / "case_01" / "ct.nii.gz"

    @property
    def labels(self) -> Path:
        """The label map of its organs."""
        return self.ct.with_name("label.nii.gz")

    def __call__(self, source: Any = None) -> None:
        """Show it, after it was made where it is not there yet; returns at once."""
        from SSLSegmentationLib import phantoms

        phantoms.bring(self)


def _cache() -> Path:
    return Path(slicer.app.cachePath)
