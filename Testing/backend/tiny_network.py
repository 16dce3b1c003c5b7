"""The smallest segmentation network: what tests that only need some network build.

Nothing of torch here: processes that must not have it tell it to others.
"""

from __future__ import annotations

from typing import Any

ARCHITECTURE: dict[str, Any] = {
    "window": [16, 16, 16],
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
