"""A tiny network, a scan for it, and a conversation with a worker that is a real process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from cli_runner import LIMIT_S, REPOSITORY, environment
from tiny_network import ARCHITECTURE

from backend.models.segmentation import build_segmentation
from backend.weights import WeightsHeader, save_weights
from SSLPretrainLogic.worker_client import Reply, WorkerClient

DIRECTION = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
SPACING_XYZ, ORIGIN = (3.0, 2.0, 4.0), (-40.0, 12.0, 99.5)


def write_model(file: Path, *, seed: int, intensity: str = "window", window: int = 16) -> Path:
    """Untrained weights that label liver and spleen somewhere in noise."""
    torch.manual_seed(seed)
    architecture = ARCHITECTURE | {"window": [window] * 3}
    header = WeightsHeader(
        kind="segmentation",
        method="smit",
        preset="tiny",
        preprocessing={
            "spacing_mm": [4.0, 3.0, 3.0],
            "orientation": "LPS",
            "hu_window": [-175, 250],
            "intensity": intensity,
            "body_margin_mm": 8.0,
            "body_threshold_hu": -350,
        },
        architecture=architecture,
        labels=(
            {"value": 1, "name": "liver", "color": [221, 130, 101], "terminology": "SCT^10200004"},
            {"value": 300, "name": "spleen", "color": [157, 108, 162], "terminology": ""},
        ),
    )
    save_weights(file, build_segmentation(architecture).state_dict(), header)
    return file


def write_scan(
    path: Path,
    size: tuple[int, int, int] = (40, 44, 36),
    spacing_xyz: tuple[float, float, float] = SPACING_XYZ,
) -> Path:
    """Noise like a CT in an air frame, oblique and anisotropic."""
    noise = np.random.default_rng(5).normal(40, 120, size)
    noise[:, :5] = -1000
    image = SimpleITK.GetImageFromArray(noise.astype(np.int16))
    image.SetSpacing(spacing_xyz)
    image.SetOrigin(ORIGIN)
    image.SetDirection(DIRECTION)
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))
    return path


def array_of(scan: Path, file: Path) -> dict[str, Any]:
    """The same scan as an array file, and what a request tells of it."""
    image = SimpleITK.ReadImage(str(scan))
    voxels = SimpleITK.GetArrayFromImage(image)
    if file.suffix == ".npy":
        np.save(file, voxels)
    else:
        voxels.tofile(file)
    return {
        "file": str(file),
        "dtype": str(voxels.dtype),
        "size": voxels.shape,
        "spacing_mm": image.GetSpacing()[::-1],
        "origin_mm": image.GetOrigin(),
        "direction": image.GetDirection(),
    }


class Talk:
    """A client and all that it has heard."""

    def __init__(self, home: Path, *options: object) -> None:
        words = ("-m", "backend", "serve", "--device", "cpu", *map(str, options))
        env = environment(PYTHONPATH=str(REPOSITORY), XDG_CACHE_HOME=str(home))
        self.client = WorkerClient([sys.executable, *words], env=env, cwd=home)
        self.heard: list[Reply] = []
        # The first request starts the worker.
        self.client.send("ping")

    def until(self, there: Callable[[Reply], bool], *, limit_s: float = LIMIT_S) -> Reply:
        """The first reply of its kind, heard already or waited for."""
        deadline = time.monotonic() + limit_s
        while True:
            for reply in self.heard:
                if there(reply):
                    return reply
            if time.monotonic() > deadline:
                raise AssertionError(f"not heard within {limit_s:.0f} s: {self.heard[-5:]}")
            time.sleep(0.002)
            self.heard += self.client.poll()

    def event(self, name: str) -> Reply:
        """The first reply of an event."""
        return self.until(lambda reply: reply["event"] == name)

    def answer(self, identity: str) -> Reply:
        """The last word on a request."""
        last = ("result", "error", "pong", "hello")
        return self.until(lambda r: r["id"] == identity and r["event"] in last)

    def ask(self, kind: str, **content: object) -> Reply:
        """Send a request and wait for its last word."""
        return self.answer(self.client.send(kind, **content))

    def of(self, identity: str, event: str) -> list[Reply]:
        """All replies of an event to a request."""
        return [r for r in self.heard if r["id"] == identity and r["event"] == event]


@contextmanager
def talk(home: Path, *options: object) -> Iterator[Talk]:
    """A conversation, ended with the block."""
    home.mkdir(parents=True, exist_ok=True)
    conversation = Talk(home, *options)
    try:
        yield conversation
    finally:
        conversation.client.shutdown()


def alive(pid: int) -> bool:
    """Whether a process that is no child of ours still runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
