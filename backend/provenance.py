"""What a weights file and a run say of where they come from."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import backend
from backend.config import FinetuneConfig, NetworkConfig, PreprocessConfig

_PACKAGES = ("torch", "monai", "numpy", "SimpleITK", "pydicom", "blosc2", "safetensors")


def software_versions() -> dict[str, str]:
    """Versions of this program and of what it computes with, without importing any of it."""
    versions = {"backend": backend.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    return versions


def source_commit() -> str | None:
    """The commit of the sources, "-dirty" if they were changed since; None if there is none.

    Sources that come from a package have none, and without git it is not known.
    """
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        told = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return told.stdout.strip() or None


def processor_name() -> str:
    """The model of the processor, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown processor"


def preprocessing(config: PreprocessConfig) -> dict[str, Any]:
    """The preprocessing as it stands in a weights header; spacing is (z, y, x)."""
    return {
        "spacing_mm": None if config.spacing_mm is None else list(config.spacing_mm),
        "orientation": config.orientation,
        "hu_window": list(config.hu_window),
        "intensity": config.intensity,
        "body_margin_mm": config.body_margin_mm,
        "body_threshold_hu": config.body_threshold_hu,
    }


def encoder_arguments(config: NetworkConfig) -> dict[str, Any]:
    """What builds the encoder again; how it was trained (drop-path) is not part of it."""
    arguments = asdict(config.encoder)
    arguments.pop("drop_path", None)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}


def segmentation_architecture(config: FinetuneConfig, *, classes: int) -> dict[str, Any]:
    """Plain arguments of the network, as they stand in a weights file."""
    return {
        "encoder": encoder_arguments(config.method),
        "decoder": config.decoder.kind,
        "classes": classes,
        "width": config.decoder.width or config.method.encoder.first_width,
        "norm": config.decoder.norm,
        "window": list(config.crop_size),
    }
