"""The table of what measures each row of the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from backend.bench import data, processes, ranks, segmentation, training
from backend.bench.catalogue import Size
from backend.bench.measure import Pair

BUILDERS: dict[str, Callable[[Size, str, Path], Pair]] = {
    "smit": training.smit,
    "glmae": training.glmae,
    "mae": training.mae,
    "pgl": training.pgl,
    "trio": training.trio,
    "tail": training.tail,
    "preprocess": data.preprocess_file,
    "sample": data.sample,
    "sample_plain": data.sample_plain,
    "crop": data.crop,
    "crop_plain": data.crop_plain,
    "geometry": data.geometry,
    "intensity": data.intensities,
    "segment": segmentation.segment,
    "classes105": segmentation.many_classes_apart,
    "classes105 here": segmentation.many_classes,
    "worker": processes.worker,
    "help": processes.start,
    "ranks": ranks.ranks,
}
"""By name of the row."""


def built(name: str, *, size: Size, device: str, folder: Path) -> Pair:
    """Both sides of a row, on material written to `folder`."""
    return BUILDERS[name](size, device, folder)
