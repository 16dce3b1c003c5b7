"""A network, a scan and what the backend makes of both: written by a process of its own.

Nothing of torch comes into the process of the window, where it would hide that a module loads it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# In the child, where torch may be: the package, and what its tests share.
PYTHONPATH = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "Testing" / "backend")))
LIMIT_S = 240.0
ABSENT = "bladder"
SPACING_XYZ, ORIGIN = (3.0, 2.0, 4.0), (-40.0, 12.0, 99.5)
DIRECTION = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
SIZE_ZYX = (26, 30, 28)
LABELS = (
    {"value": 1, "name": "liver", "color": [221, 130, 101], "terminology": "SCT^10200004^Liver"},
    {"value": 300, "name": "spleen", "color": [157, 108, 162], "terminology": ""},
    {"value": 7, "name": ABSENT, "color": [222, 154, 132], "terminology": ""},
)


@dataclass(frozen=True, kw_only=True)
class Material:
    """Files that all tests of the panel use.

    Attributes:
        model: a model's file; it labels liver and spleen somewhere in noise, and never a bladder.
        scan: noise like a CT, oblique and anisotropic.
        labels: what `backend segment` makes of it.
    """

    model: Path
    scan: Path
    labels: Path


def make_material(folder: Path) -> Material:
    """Write all of it below a folder."""
    material = Material(
        model=folder / "abdomen.safetensors",
        scan=folder / "ct.nrrd",
        labels=folder / "labels.nrrd",
    )
    told = json.dumps({name: str(path) for name, path in asdict(material).items()})
    variables = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, told]
    subprocess.run(command, env=variables, check=True, timeout=LIMIT_S, capture_output=True)
    return material


def _write(material: Material) -> None:
    import numpy as np
    import SimpleITK
    import torch
    from tiny_network import ARCHITECTURE

    from backend.models.segmentation import build_segmentation
    from backend.segment import run
    from backend.weights import WeightsHeader, save_weights

    torch.manual_seed(1)
    architecture = ARCHITECTURE | {"classes": 1 + len(LABELS)}
    preprocessing = {
        "spacing_mm": [4.0, 3.0, 3.0],
        "orientation": "LPS",
        "hu_window": [-175, 250],
        "intensity": "window",
        "body_margin_mm": 8.0,
        "body_threshold_hu": -350,
    }
    header = WeightsHeader(
        kind="segmentation",
        method="smit",
        preset="tiny",
        preprocessing=preprocessing,
        architecture=architecture,
        labels=LABELS,
        fingerprint={"training": 8, "validation": 2},
    )
    tensors = build_segmentation(architecture).state_dict()
    bias = next(value for value in reversed(tensors.values()) if value.shape == (1 + len(LABELS),))
    bias[-1] = -1e4
    save_weights(material.model, tensors, header)
    noise = np.random.default_rng(5).normal(40, 120, SIZE_ZYX)
    noise[:, :5] = -1000
    image = SimpleITK.GetImageFromArray(noise.astype(np.int16))
    image.SetSpacing(SPACING_XYZ)
    image.SetOrigin(ORIGIN)
    image.SetDirection(DIRECTION)
    SimpleITK.WriteImage(image, str(material.scan))
    run(material.model, material.scan, material.labels, device="cpu")


if __name__ == "__main__":
    _write(Material(**{name: Path(path) for name, path in json.loads(sys.argv[1]).items()}))
