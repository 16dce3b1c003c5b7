"""A network whose answer is known: it tells intensities apart, voxel by voxel, and nothing else.

A process of its own writes it and segments with it, so that nothing of torch comes into the window.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[2]
# In the child, where torch may be: the package, and what its tests share.
PYTHONPATH = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "Testing" / "backend")))
LIMIT_S = 240.0
SPACING_XYZ = (0.7, 1.3, 2.9)
"""Of the network's grid, along left, back and up."""
WINDOW_HU = (0, 1000)
LOW_HU, HIGH_HU = 300, 600
"""Where the first structure begins, and where the second."""
VALUES = {"grey": 2, "bright": 5}


def answer(hu: NDArray[np.generic]) -> NDArray[np.uint8]:
    """What the network makes of Hounsfield units."""
    labels = np.where(hu > LOW_HU, VALUES["grey"], 0)
    return np.where(hu > HIGH_HU, VALUES["bright"], labels).astype(np.uint8)


def segmented(folder: Path, output: Path) -> None:
    """Let `backend segment` label all scans of a folder with the network."""
    variables = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder), str(output)]
    done = subprocess.run(
        command, env=variables, check=False, timeout=LIMIT_S, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def _write(file: Path) -> None:
    import torch
    from tiny_network import ARCHITECTURE

    from backend.models.segmentation import build_segmentation
    from backend.weights import WeightsHeader, save_weights

    architecture = ARCHITECTURE | {"norm": "batch"}
    low, high = (hu / (WINDOW_HU[1] - WINDOW_HU[0]) for hu in (LOW_HU, HIGH_HU))
    tensors = build_segmentation(architecture).state_dict()
    for name, value in tensors.items():
        if value.is_floating_point() and not name.startswith("encoder."):
            value.fill_(0.0)
        if name.endswith(("norm3.weight", "norm3.running_var")):
            value.fill_(1.0)
    # All that is left of the decoder is the way past its blocks: the image, to the last layer.
    tensors["image_block.layer.conv3.conv.weight"][0] = 1.0
    tensors["up_blocks.2.conv_block.conv3.conv.weight"][0, 4] = 1.0
    # Three straight lines of which another one is the highest in each range.
    tensors["out.conv.conv.weight"][:, 0] = torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1)
    tensors["out.conv.conv.bias"][:] = torch.tensor([0.0, -low, -low - high])
    header = WeightsHeader(
        kind="segmentation",
        method="smit",
        preset="tiny",
        preprocessing={
            "spacing_mm": list(SPACING_XYZ[::-1]),
            "orientation": "LPS",
            "hu_window": list(WINDOW_HU),
            "intensity": "window",
            "body_margin_mm": 8.0,
            "body_threshold_hu": -350,
        },
        architecture=architecture,
        labels=tuple({"value": v, "name": n, "color": [9, 9, v]} for n, v in VALUES.items()),
    )
    save_weights(file, tensors, header)


if __name__ == "__main__":
    from backend.cli import main

    scans, results = map(Path, sys.argv[1:])
    model = scans.with_name("threshold.safetensors")
    _write(model)
    paths = ("--model", str(model), "--input", str(scans), "--output", str(results))
    sys.argv[1:] = ["segment", *paths, "--device", "cpu", "--ending", ".seg.nrrd"]
    main()
