"""Rows 13 and 14: what whole processes take, from start to answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from backend.bench.catalogue import Size
from backend.bench.data import scan_like, write_nifti
from backend.bench.measure import Pair, Told
from backend.geometry import Index3
from backend.models.segmentation import build_segmentation
from backend.weights import WeightsHeader, save_weights

_ARCHITECTURE: dict[str, Any] = {
    "classes": 3,
    "width": 4,
    "norm": "instance",
    "decoder": "default",
    "encoder": {
        "kind": "swin",
        "embed_dim": 4,
        "depths": [1, 1],
        "heads": [1, 1],
        "window": 4,
        "patch": 2,
        "mlp_ratio": 2.0,
        "qkv_bias": True,
        "final_merge": True,
        "patch_norm": True,
    },
}


def start(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001
    """Row 14: `backend --help` against an interpreter that does nothing."""
    return Pair(
        size="processes",
        ours=lambda: _timed("-m", "backend", "--help"),
        peer=lambda: _timed("-c", "pass"),
    )


def worker(size: Size, device: str, folder: Path) -> Pair:
    """Row 13: a region of a scan that the worker has seen, against `segment` from the start.

    The time of the forward passes is taken off both: the worker tells it, and `segment` makes the
    same passes.
    """
    edge = 16 if size == "smallest" else 48
    grid: Index3 = (20, 24, 24) if size == "smallest" else (80, 160, 160)
    model = _model(folder / "model.safetensors", edge=edge)
    scan = write_nifti(scan_like(grid), folder / "scan.nii.gz")
    talk = Talk(folder, device)
    passes: list[float] = []

    def warm() -> Told:
        began = time.perf_counter()
        reply = talk.ask("segment", model=str(model), volume=str(scan))
        taken = time.perf_counter() - began
        Path(reply["labels"]["file"]).unlink()
        passes.append(reply["seconds"]["network"])
        return Told(taken - passes[-1], reply["structures"])

    def cold() -> Told:
        began = time.perf_counter()
        output = folder / f"labels-{len(list(folder.glob('labels-*.nii.gz')))}.nii.gz"
        words = ("segment", "--model", model, "--input", scan, "--output", output)
        _ended("-m", "backend", *map(str, words), "--device", device)
        taken = time.perf_counter() - began
        told = json.loads(
            output.with_name(f"{output.name.removesuffix('.nii.gz')}.json").read_text()
        )
        return Told(taken - median(passes), told["structures"])

    return Pair(
        size=f"{grid[2]}×{grid[1]}×{grid[0]} voxels, network of {edge}³ windows",
        ours=warm,
        peer=cold,
        close=talk.close,
    )


class Talk:
    """A warm worker, asked one request after the other.

    Args:
        folder: its home.
        device: of the worker.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "backend", "serve", "--device", device, "--allow-second"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "XDG_CACHE_HOME": str(folder)},
            text=True,
        )

    def ask(self, kind: str, **content: object) -> dict[str, Any]:
        """Send a request and wait for its result.

        Raises:
            RuntimeError: if the worker refuses or ends.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"kind": kind, "id": "bench", **content}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            reply: dict[str, Any] = json.loads(line)
            if reply["event"] == "result":
                return reply
            if reply["event"] == "error":
                raise RuntimeError(f"{reply['message']} {reply['hint']}")
        raise RuntimeError("the worker ended")

    def close(self) -> None:
        """End the worker."""
        self._process.kill()
        self._process.communicate()


def _model(file: Path, *, edge: int) -> Path:
    torch.manual_seed(0)
    architecture = _ARCHITECTURE | {"window": [edge] * 3}
    header = WeightsHeader(
        kind="segmentation",
        method="smit",
        preset="tiny",
        preprocessing={
            "spacing_mm": [4.0, 3.0, 3.0],
            "orientation": "LPS",
            "hu_window": [-175, 250],
            "intensity": "window",
            "body_margin_mm": 8.0,
            "body_threshold_hu": -350,
        },
        architecture=architecture,
        labels=(
            {"value": 1, "name": "liver", "color": [221, 130, 101], "terminology": ""},
            {"value": 2, "name": "spleen", "color": [157, 108, 162], "terminology": ""},
        ),
    )
    save_weights(file, build_segmentation(architecture).state_dict(), header)
    return file


def _timed(*words: str) -> Told:
    began = time.perf_counter()
    _ended(*words)
    return Told(time.perf_counter() - began)


def _ended(*words: str) -> None:
    """Run an interpreter to its end.

    Raises:
        RuntimeError: with its last words, if it fails.
    """
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
