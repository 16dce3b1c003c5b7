"""How long the warm worker takes beside the forward passes themselves.

Run from the repository's root, with nothing else computing:

    PYTHONPATH=.:Testing/backend python Testing/benchmarks/serve_latency.py OUTPUT.json

The time of a request is what the client sees, from asking to labels in its memory. The passes are
timed in this process, on the same windows, with the same number of threads. Seconds of the
processor tell what a request costs also where others compute on the machine.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from worker_material import Talk, array_of, talk, write_model, write_scan

from backend.data.readers import read_volume
from backend.inference.predictor import load_predictor
from backend.inference.worker import Phases, Region, label_region, prepare

SIZE, SPACING_XYZ = (160, 320, 320), (1.0, 1.0, 2.0)
REGION = {"start": (60, 120, 120), "size": (32, 64, 64)}
REPEATS = 3


class Seconds(NamedTuple):
    """How long something takes.

    Attributes:
        wall: as people see it.
        cpu: of the processor.
    """

    wall: float
    cpu: float


class Timed(nn.Module):
    """A network that notes how long it takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seconds = Seconds(0.0, 0.0)

    def forward(self, windows: Tensor) -> Tensor:
        began, cpu = time.perf_counter(), time.process_time()
        logits: Tensor = self.network(windows)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        self.seconds = Seconds(self.seconds.wall + wall, self.seconds.cpu + cpu)
        return logits


def forward_seconds(model: Path, scan: Path, region: dict[str, Any] | None) -> list[Seconds]:
    """Time of all forward passes that a request needs, several times."""
    predictor = load_predictor(model, device="cpu")
    timed = Timed(predictor.network)
    predictor = replace(predictor, network=timed)
    prepared = prepare(predictor, read_volume([scan]))
    box = None if region is None else Region(**region)
    seconds = []
    for _ in range(REPEATS):
        timed.seconds = Seconds(0.0, 0.0)
        label_region(predictor, prepared, box, phases=Phases())
        seconds.append(timed.seconds)
    return seconds


def cpu_seconds(process: psutil.Process) -> float:
    """What a process has used of the processor so far."""
    used = process.cpu_times()
    return float(used.user + used.system)


def circumstances() -> dict[str, Any]:
    """What a measurement depends on, to be asked before it."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    )
    return {
        "commit": told.stdout.strip(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
    }


def asked(worker: Talk, **request: object) -> dict[str, Any]:
    """One request as a client meets it."""
    process = psutil.Process(worker.event("hello")["pid"])
    began, before = time.perf_counter(), cpu_seconds(process)
    reply = worker.ask("segment", **request)
    labels = np.load(reply["labels"]["file"], allow_pickle=False)
    seconds = time.perf_counter() - began
    Path(reply["labels"]["file"]).unlink()
    return {
        "wall_s": round(seconds, 4),
        "worker_cpu_s": round(cpu_seconds(process) - before, 2),
        "phases_s": reply["seconds"],
        "reused": reply["reused"],
        "windows": reply["windows"],
        "voxels": labels.size,
    }


def measured(
    worker: Talk, model: Path, source: dict[str, Any], forward: dict[str, list[Seconds]]
) -> dict[str, Any]:
    """First use, and later ones, of a region and of the whole scan."""
    request = {"model": str(model), **source}
    result: dict[str, Any] = {"first_use": asked(worker, **request, region=REGION)}
    for name, region in (("region", REGION), ("whole", None)):
        passes = forward[name]
        uses = [asked(worker, **request, region=region) for _ in range(REPEATS)]
        walls = [use["wall_s"] for use in uses]
        result[name] = {
            "wall_s": walls,
            "forward_s": [round(value.wall, 4) for value in passes],
            "beside_forward_s": round(
                statistics.median(walls) - statistics.median(p.wall for p in passes), 4
            ),
            "beside_forward_cpu_s": round(
                statistics.median(use["worker_cpu_s"] for use in uses)
                - statistics.median(p.cpu for p in passes),
                2,
            ),
            "beside_network_phase_s": round(
                statistics.median(u["wall_s"] - u["phases_s"]["network"] for u in uses), 4
            ),
            "last": uses[-1],
        }
    return result


def main(output: Path) -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    around = circumstances()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "model.safetensors", seed=1, window=48)
        scan = write_scan(folder / "ct.nrrd", size=SIZE, spacing_xyz=SPACING_XYZ)
        forms: dict[str, Callable[[], dict[str, Any]]] = {
            "volume": lambda: {"volume": str(scan)},
            "array": lambda: {"array": array_of(scan, folder / "ct.raw")},
        }
        forward = {
            name: forward_seconds(model, scan, region)
            for name, region in (("region", REGION), ("whole", None))
        }
        with talk(folder / "home") as worker:
            hello = worker.event("hello")
            measures = {
                form: measured(worker, model, source(), forward) for form, source in forms.items()
            }
    content = {
        "what": "seconds of requests to the warm worker with a tiny network of 48³ windows",
        "scan_voxels": SIZE,
        "scan_spacing_mm": SPACING_XYZ[::-1],
        "region": REGION,
        "device": hello["device_text"],
        "versions": hello["versions"],
        **around,
        "measures": measures,
    }
    output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
