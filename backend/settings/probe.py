"""Settings of the questions that frozen features are asked while an encoder is pretrained."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from backend.settings.common import NUMBER, STRICT, Count, Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProbeConfig:
    """A linear probe of frozen features while pretraining, on the labelled set of --probe-data."""

    every_epochs: Positive | None = None
    """Epochs between two probes; left out: ten over the run, beside that of the start."""
    scans: Annotated[int, Field(ge=2, le=1000), NUMBER] = 8
    """Labelled scans at most: half of them to solve on, half to judge by."""
    windows: Annotated[int, Field(ge=1, le=1000), NUMBER] = 4
    """Parts of each scan, as large as a view, each around a voxel of a structure in turn."""
    voxels: Count = 50
    """Read of each structure in the middle of a part, at most."""
    ridge: Positive = 0.01
    """Weight of the penalty, relative to the mean variance of the features."""
