"""How long an annotator waits for the effect, beside the forward passes themselves.

Run from the repository's root, with nothing else computing:

    PYTHONPATH=.:Testing/backend:Testing/benchmarks:Testing/gui \\
        python Testing/benchmarks/effect_latency.py OUTPUT.json

A use is timed from the click on Apply until the segment is written and the button reads Apply
again. The passes are timed in this process, on the same windows, with one thread as in the worker.
Seconds of the processor are those of the worker and of writing the segment, not of waiting.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ["OMP_NUM_THREADS"] = "1"

import psutil
import torch
from serve_latency import (
    REPEATS,
    SIZE,
    SPACING_XYZ,
    Seconds,
    circumstances,
    cpu_seconds,
    forward_seconds,
)
from slicer_host.session import Host
from worker_material import write_model, write_scan

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 600
EDGES_MM = (64.0, 64.0, 64.0)


def forward(model: Path, scan: Path, region: dict[str, Any] | None) -> Seconds:
    """Seconds of the passes alone."""
    found = forward_seconds(model, scan, region)
    return Seconds(
        statistics.median(s.wall for s in found), statistics.median(s.cpu for s in found)
    )


def opened(host: Host, folder: Path, scan: Path, model: Path) -> Any:
    """A Segment Editor with the effect on a scan, ready to be applied."""
    import slicer
    from slicer_host.effects import Editor

    from SSLPretrainLogic.environments import chosen_interpreter
    from SSLSegmentationLib.session import Session
    from SSLSegmentationLib.startup import EFFECT

    slicer.app.setEnvironmentVariable("XDG_CACHE_HOME", str(folder / "cache"))
    session = Session()
    session.use_interpreter(chosen_interpreter(Path(sys.executable)))
    session.use_model_file(model)
    volume = slicer.modules.volumes.logic().AddArchetypeVolume(str(scan), "CT", 0)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segment = node.GetSegmentation().AddEmptySegment("", "liver")
    editor = Editor(EFFECT, segmentation=node, volume=volume, segment=segment)
    editor.options.show()
    host.settle()
    return editor


def computing() -> float:
    """What all workers have used of the processor so far."""
    return sum(cpu_seconds(child) for child in psutil.Process().children(recursive=True))


class Writing:
    """Notes what writing takes of the processor.

    Args:
        options: of the effect, whose `write` is from now on this one's.
    """

    def __init__(self, options: Any) -> None:
        self.cpu = 0.0
        self._write = options.write
        options.write = self

    def __call__(self, *values: Any) -> Any:
        """Write, and note."""
        began = time.process_time()
        try:
            return self._write(*values)
        finally:
            self.cpu += time.process_time() - began


def used(host: Host, ui: Any, writing: Writing) -> Seconds:
    """Seconds of one use."""
    began, cpu = time.perf_counter(), computing() + writing.cpu
    host.click(ui.effectApply)
    host.wait_until(lambda: ui.effectApply.text == "Apply", limit_s=LIMIT_S)
    seconds = Seconds(time.perf_counter() - began, computing() + writing.cpu - cpu)
    if not ui.effectStatus.text.startswith("Found"):
        raise RuntimeError(f"nothing was found: {ui.effectStatus.text}")
    return seconds


def choose_roi(editor: Any, ui: Any) -> None:
    """A small box in the middle of the volume."""
    import slicer

    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    bounds = [0.0] * 6
    editor.node.GetSourceVolumeNode().GetRASBounds(bounds)
    low, high = bounds[::2], bounds[1::2]
    roi.SetCenter(*((a + b) / 2 for a, b in zip(low, high, strict=True)))
    roi.SetSize(*EDGES_MM)
    ui.effectWhere.currentIndex = 1
    ui.effectRoi.setCurrentNode(roi)


def measured(use: Callable[[], Seconds], passes: Seconds) -> dict[str, Any]:
    """Several uses against the passes."""
    uses = [use() for _ in range(REPEATS)]
    wall = statistics.median(use.wall for use in uses)
    cpu = statistics.median(use.cpu for use in uses)
    return {
        "wall_s": [round(use.wall, 3) for use in uses],
        "forward_s": round(passes.wall, 3),
        "beside_forward_s": round(wall - passes.wall, 3),
        "cpu_s": [round(use.cpu, 2) for use in uses],
        "forward_cpu_s": round(passes.cpu, 2),
        "beside_forward_cpu_s": round(cpu - passes.cpu, 2),
    }


def main(output: Path) -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        host = Host(folder / "slicer")
        host.load(REPOSITORY / "SSLSegmentation" / "SSLSegmentation.py")
        model = write_model(folder / "model.safetensors", seed=1, window=48)
        scan = write_scan(folder / "ct.nrrd", size=SIZE, spacing_xyz=SPACING_XYZ)
        editor = opened(host, folder, scan, model)
        options = editor.effect.self().options
        writing, around = Writing(options), circumstances()
        whole = forward(model, scan, None)
        first = used(host, options.ui, writing)
        measures = {"whole": measured(lambda: used(host, options.ui, writing), whole)}
        choose_roi(editor, options.ui)
        from SSLPretrainLogic.scene.volumes import world_grid
        from SSLPretrainLogic.scene.worker_scan import inside_roi

        grid, _reason = world_grid(editor.node.GetSourceVolumeNode())
        region = inside_roi(editor.effect.nodeReference("Roi"), grid).told
        box = {key: (value[0], value[1], value[2]) for key, value in region.items()}
        measures["roi"] = measured(
            lambda: used(host, options.ui, writing), forward(model, scan, box)
        )
        from SSLSegmentationLib import worker

        worker.end_all()
        content = {
            "what": "seconds from the click on Apply to the written segment; later uses",
            "scan_voxels": SIZE,
            "roi_voxels": region["size"],
            "first_use_s": round(first.wall, 2),
            **around,
            "measures": measures,
        }
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        output.write_text(text, encoding="utf-8")
        sys.stdout.write(text)
        sys.stdout.flush()
        # Qt, VTK and Python end in an order of their own.
        host.stop()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
