"""Plans for tests, as YAML files like those that people write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.config import merged

SMALL: dict[str, Any] = {
    "preprocess": {"spacing_mm": [6, 6, 6]},
    "data": {"workers": 0},
}
"""The coarsest grid on which a phantom is still a body."""

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "labelled": "labelled",
        "split_source": "ours",
        "test": ["case_3"],
        "validation": ["case_2"],
    },
    "pretrain": {
        "steps": 2,
        "data": ["unlabelled"],
        "settings": {**SMALL, "train": {"batch_size": 2}},
    },
    "finetune": {
        "steps": 3,
        "settings": {**SMALL, "crop": 32, "crops_per_scan": 1, "decoder": {"width": 4}},
    },
    "entries": [
        {
            "name": "SMIT",
            "method": "smit",
            "preset": "tiny",
            "network": {"method": {"encoder": {"embed_dim": 4, "heads": [1, 1, 2]}}},
            "pretrain": {
                "method": {"head": {"hidden": 16, "bottleneck": 8, "prototypes": 32}},
                "views": {"region": 40, "main": {"size": 32}},
            },
        }
    ],
    "labels": [1],
    "seeds": [0],
}


def result_row(**cells: str) -> dict[str, str]:
    """A row of results with some of its cells given, but for the key."""
    return {
        **{"start": "SMIT", "network": "swin", "mode": "end to end", "labels": "5", "seed": "0"},
        **{"case": "a", "organ": "liver", "value": "1", "dice": "0.5", "iou": "0.4"},
        **{"surface_dice": "0.5", "tolerance": "2", "volume_pred_ml": "9", "volume_ref_ml": "9"},
        **{"status": "ok"},
        **cells,
    }


def write_plan(folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """The smallest plan with changes over it; paths in it are relative to the folder."""
    path = folder / "plan.yaml"
    path.write_text(json.dumps(merged(TINY, changes or {})), encoding="utf-8")
    return path
