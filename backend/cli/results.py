"""Commands that make and judge segmentations: `segment`, `serve` and `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from backend.cli.dividing import in_processes, to_be_divided
from backend.cli.options import Device, Names, OptionalPath, Processes, Switch


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Options of `backend segment`."""

    model: Path
    """Fine-tuning run or .safetensors file."""
    input: Path
    """A volume file, a folder with one DICOM series, or a folder of scans."""
    output: Path
    """Label file (.nii.gz, .nrrd, .seg.nrrd, .mha), or a folder, which gets an index.csv too."""
    structures: Names = None
    """Names of the structures to write. Left out: all."""
    device: Device = "auto"
    """Device to compute on; auto takes a GPU where there is one and says so."""
    ending: Annotated[
        str | None, arg(metavar=".nii.gz|.nrrd|.seg.nrrd|.mha", help_behavior_hint="")
    ] = None
    """Format of the label files when --output is a folder. Left out: .nii.gz."""
    devices: Processes = 1
    """Divide the scans of a folder among so many GPUs, or processes on a processor."""
    overwrite: Switch = False
    """Replace files. Left out: a folder keeps what the same model made of the same scan."""

    def run(self) -> None:
        """Segment."""
        from backend import segment
        from backend.engine.signals import ending_at_once

        if to_be_divided(self.devices):
            in_processes(self.devices, self.device)
        with ending_at_once():
            segment.run(
                self.model,
                self.input,
                self.output,
                device=self.device,
                structures=self.structures,
                overwrite=self.overwrite,
                ending=self.ending,
            )


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Options of `backend serve`."""

    device: Device = "auto"
    """Device to compute on; auto takes a GPU where there is one and says so."""
    idle_minutes: Annotated[float, arg(metavar="MINUTES")] = 15.0
    """End after so long without work."""
    model_memory_mb: Annotated[float, arg(metavar="MB")] = 4096.0
    """Memory for networks; beyond it the one longest unused is forgotten."""
    allow_second: Switch = False
    """Start even if another worker serves this device."""
    owner: Annotated[int | None, arg(metavar="PID", help_behavior_hint="")] = None
    """End with this process. Left out: with the one that started it."""

    def run(self) -> None:
        """Serve."""
        from backend import serve

        serve.run(
            device=self.device,
            idle_minutes=self.idle_minutes,
            model_memory_mb=self.model_memory_mb,
            allow_second=self.allow_second,
            owner=self.owner,
        )


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Options of `backend evaluate`."""

    prediction: Path
    """A label file or a folder of them."""
    reference: Path
    """A label file, a folder of them, or a labelled set."""
    output: OptionalPath = None
    """Folder for evaluation.csv and evaluation.json. Left out: the table on screen alone."""
    labels: OptionalPath = None
    """labels.json with names. Left out: found beside the reference."""
    tolerance_mm: Annotated[float, arg(metavar="MM")] = 2.0
    """Surfaces that lie no further apart than this count as equal in the surface Dice."""
    allow_unmatched: Switch = False
    """Go on where a file on one side has no partner; they are listed."""

    def run(self) -> None:
        """Evaluate."""
        from backend import evaluate

        evaluate.run(
            self.prediction,
            self.reference,
            output=self.output,
            labels=self.labels,
            tolerance_mm=self.tolerance_mm,
            allow_unmatched=self.allow_unmatched,
        )
