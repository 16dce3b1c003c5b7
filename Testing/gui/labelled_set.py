"""Invented patients with their labels, laid out as the module exports segments."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from backend.data.phantom import LABELS, make_phantom
from backend.data.phantom.cohort import write_image


def write_labelled_set(folder: Path, *, seeds: Iterable[int]) -> Path:
    """images/, labels/ and labels.json, as coarse as the tests need it; answers the folder."""
    for seed in seeds:
        pair = make_phantom(seed, size=(36, 60, 60), spacing_mm=(6.0, 6.0, 6.0))
        for part, image in zip(("images", "labels"), pair, strict=True):
            (folder / part).mkdir(parents=True, exist_ok=True)
            write_image(folder / part / f"case_{seed}.nii.gz", image)
    names = {str(value): {"name": name} for value, name in LABELS.items()}
    (folder / "labels.json").write_text(json.dumps({"labels": names}), "utf-8")
    return folder
