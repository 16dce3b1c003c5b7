"""How much an installation downloads, told before it begins."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from SSLPretrainLogic.environments import Report

System = Literal["linux", "win32", "darwin"]

# Wheels for Python 3.12 in autumn 2026, in MB (10**6 bytes), the largest of the three systems. A
# package that is not listed takes less than 1 MB.
_MB = {
    "blosc2": 7,
    "matplotlib": 20,  # with fonttools and its other parts
    "monai": 2,
    "nibabel": 4,
    "numpy": 16,
    "pillow": 7,
    "pydantic": 3,
    "pydicom": 3,
    "python-gdcm": 14,
    "scipy": 37,
    "simpleitk": 53,
    "tyro": 1,
}
_TORCH_MB = {"linux": 192, "win32": 127, "darwin": 139}
TORCH_CUDA_MB = 2600


@dataclass(frozen=True, kw_only=True)
class Download:
    """A package to come, with about how many MB it is."""

    name: str
    mb: int


def downloads(report: Report, *, gpu: bool, system: str = sys.platform) -> tuple[Download, ...]:
    """What installing would download, the largest first.

    Args:
        report: of the interpreter to install into.
        gpu: whether PyTorch is to come with CUDA.
        system: as `sys.platform` names it.
    """
    wanted = [package.name.lower() for package in report.packages if not package.ok]
    found = [Download(name=name, mb=_size(name, gpu=gpu, system=system)) for name in wanted]
    return tuple(sorted(found, key=lambda download: (-download.mb, download.name)))


def _size(name: str, *, gpu: bool, system: str) -> int:
    if name == "torch":
        cpu = _TORCH_MB.get(system, _TORCH_MB["linux"])
        return TORCH_CUDA_MB if gpu and system != "darwin" else cpu
    return _MB.get(name, 1)


def told_size(found: tuple[Download, ...]) -> str:
    """All of it in a few words, e.g. "about 2.8 GB"; "nothing" if nothing is to come."""
    total = sum(download.mb for download in found)
    if not found:
        return "nothing"
    return f"about {total / 1000:.1f} GB" if total >= 1000 else f"about {total} MB"
