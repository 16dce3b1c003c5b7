"""Rows 11 and 12: a scan segmented from voxels to labels on its own grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backend.bench.catalogue import Size
from backend.bench.child import apart
from backend.bench.data import scan_like
from backend.bench.measure import Memory, Pair, Told
from backend.data.preprocess import preprocess
from backend.geometry import Index3, Volume
from backend.inference.predictor import Predictor
from backend.weights import WeightsHeader

_SPACING_MM = [2.0, 1.5, 1.5]
_HU_WINDOW = [-175.0, 250.0]


class SmallNetwork(nn.Module):
    """So small that what is around the forward pass shows."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv3d(1, 8, kernel_size=3, padding=1)
        self.last = nn.Conv3d(8, classes, kernel_size=1)

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (b, 1, z, y, x) to logits (b, classes, z, y, x)."""
        logits: Tensor = self.last(torch.relu(self.first(windows)))
        return logits


def segment(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001
    """Row 11: 14 classes, against MONAI's sliding window and inverse; memory apart."""
    from backend.bench.peers.monai_inference import segmented

    grid: Index3 = {"smallest": (20, 24, 24), "default": (260, 384, 384), "full": (300, 512, 512)}[
        size
    ]
    volume, predictor = _material(grid, classes=14, device=device, edge=_edge(size))
    onto = preprocess(volume, predictor.recipe).geometry

    def peer() -> Any:
        return segmented(
            volume,
            predictor.network,
            onto=onto,
            window=predictor.window,
            hu_window=(_HU_WINDOW[0], _HU_WINDOW[1]),
            device=device,
        )

    def memory() -> Memory:
        ours, peer = (_peak("segment", size, device, side) for side in ("ours", "peer"))
        return Memory("peak growth of a process (VmHWM)", ours, peer)

    return Pair(
        size=f"{grid[2]}×{grid[1]}×{grid[0]} voxels, {_windows(onto.size, predictor)} windows",
        ours=lambda: predictor.segment(volume).voxels,
        peer=peer,
        memory=memory,
    )


def many_classes(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001
    """What row 12 does, in this process."""
    grid: Index3 = (20, 24, 24) if size == "smallest" else (300, 512, 512)
    volume, predictor = _material(grid, classes=105, device=device, edge=_edge(size))
    return Pair(
        size=f"{grid[2]}×{grid[1]}×{grid[0]} voxels",
        ours=lambda: predictor.segment(volume).voxels,
        peer=None,
    )


def many_classes_apart(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001
    """Row 12: 105 classes, once, in a process of its own that tells time and peak alike."""
    grid = "24×24×20" if size == "smallest" else "512×512×300"
    peaks: list[float] = []

    def ours() -> Told:
        figures = apart("classes105 here", size, device, side="ours")
        peaks.append(_known(figures))
        return Told(figures["seconds"])

    return Pair(
        size=f"{grid} voxels",
        ours=ours,
        peer=None,
        warm=False,
        memory=lambda: Memory("peak growth of a process (VmHWM)", max(peaks), None),
    )


def _material(grid: Index3, *, classes: int, device: str, edge: int) -> tuple[Volume, Predictor]:
    labels = tuple(
        {"value": n, "name": f"part {n}", "color": [n, n, n], "terminology": ""}
        for n in range(1, classes)
    )
    header = WeightsHeader(
        kind="segmentation",
        method="smit",
        preset="tiny",
        preprocessing={
            "spacing_mm": _SPACING_MM,
            "orientation": "LPS",
            "hu_window": _HU_WINDOW,
            "intensity": "window",
            "body_margin_mm": 8.0,
            "body_threshold_hu": -350,
        },
        architecture={"window": [edge] * 3},
        labels=labels,
    )
    place = torch.device(device)
    network = SmallNetwork(classes).eval().to(place)
    return scan_like(grid), Predictor(network=network, header=header, device=place)


def _edge(size: Size) -> int:
    return 16 if size == "smallest" else 96


def _windows(size: Index3, predictor: Predictor) -> int:
    """How many windows a volume of this size takes."""
    count = 1
    for n, w in zip(size, predictor.window, strict=True):
        count *= 1 + -(-max(0, n - w) // (w // 2))
    return count


def _peak(name: str, size: Size, device: str, side: str) -> float:
    return _known(apart(name, size, device, side=side))


def _known(figures: dict[str, Any]) -> float:
    if figures["peak_mib"] is None:
        raise RuntimeError("this system does not tell the peak of a process")
    return float(figures["peak_mib"])
