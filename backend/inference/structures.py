"""What a weights file can label; told by its header alone, so nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backend.data.labels import Label
from backend.errors import UserError
from backend.weights import WeightsHeader


def require_segmentation(header: WeightsHeader, file: Path) -> None:
    """Refuse weights that cannot label anything.

    Raises:
        UserError: if they are those of an encoder, or name no structure.
    """
    if header.kind != "segmentation" or not header.labels:
        raise UserError(
            f"{file}: weights of kind {header.kind!r} with {len(header.labels)} structures.",
            "Fine-tune first: backend finetune --init FILE --data SET --output RUN",
        )


def header_labels(header: WeightsHeader) -> tuple[Label, ...]:
    """The structures that a weights header names, in the order of the classes 1, 2, ..."""
    return tuple(
        Label(
            value=int(entry["value"]),
            name=str(entry["name"]),
            color=_color(entry["color"]),
            terminology=str(entry.get("terminology", "")),
        )
        for entry in header.labels
        if int(entry["value"]) != 0
    )


def _color(values: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = values
    return int(red), int(green), int(blue)
