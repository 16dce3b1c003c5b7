"""Run folders as the backend writes them, without any training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backend.engine.record import RunFolder
from backend.geometry import Geometry
from backend.previews import write_preview_volumes

GRID = Geometry(size=(8, 10, 12), spacing_mm=(3.0, 2.0, 2.0))


@contextmanager
def going_on(folder: Path, *, kind: Any = "pretrain", steps: int = 40) -> Iterator[RunFolder]:
    """A run that this process works on, at step 40 of 200."""
    with RunFolder(folder, kind=kind, argv=["/x/backend/__main__.py", kind], resume=False) as run:
        append(run, range(1, steps + 1))
        run.update(step=steps, total_steps=200, eta_s=720.0, message="Training")
        yield run


def ended(folder: Path, *, kind: Any = "pretrain", **values: Any) -> Path:
    """A run that is over."""
    with going_on(folder, kind=kind) as run:
        run.update(**{"state": "done", "eta_s": None, "message": "Done", **values})
    return folder


def append(run: RunFolder, steps: Sequence[int] | range) -> None:
    """Records of metrics: a loss that falls, its terms, a monitor, and Dice at each tenth step."""
    for step in steps:
        loss = 1 + math.exp(-step / 20)
        record = {"step": step, "loss/total": loss, "loss/mip": loss / 50, "loss/mpd": loss}
        run.append({**record, "monitor/feature_std": 0.5, "lr": 1e-3, "epoch": step / 10})
        if step % 10 == 0:
            dice = {"val/dice/liver": 0.8, "val/dice/spleen": 0.6, "val/dice_mean": 0.7}
            run.append({"step": step, **dice})


def draw(run: RunFolder, step: int) -> None:
    """The picture and the volumes of a step."""
    grey = np.random.default_rng(step).random(GRID.size, dtype=np.float32)
    hidden = np.zeros(GRID.size, bool)
    hidden[:4] = True
    Image.new("L", (120, 80), step).save(run.previews / f"step_{step:06d}.png")
    volumes = {"input": grey, "masked": np.where(hidden, 0, grey), "reconstruction": grey}
    write_preview_volumes(run.previews, step, volumes, geometry=GRID)


def rewrite_status(folder: Path, **values: Any) -> None:
    """Change what status.json says."""
    path = folder / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")
