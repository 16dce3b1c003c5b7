"""What the values of a label map mean: names, colours and terminology, read from small JSON files.

Understood are `labels.json` of this project and `dataset.json` of nnU-Net and of the Medical
Segmentation Decathlon (MSD).
"""

from __future__ import annotations

import colorsys
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.errors import UserError
from backend.files import write_json

Color = tuple[int, int, int]

MAX_VALUE = 32767
"""Label maps are at most int16."""

_NUMBER = re.compile(r"\s*-?\d+\s*", re.ASCII)
_LONGEST_NAME = 200
_LONGEST_NUMBER = 20
_LONGEST_TOLD = 60
_LONGEST_TERMINOLOGY = 2000

_PALETTE: tuple[Color, ...] = (
    (15, 195, 180),
    (255, 30, 0),
    (135, 105, 255),
    (225, 240, 0),
    (90, 195, 255),
    (240, 165, 120),
    (255, 60, 135),
    (0, 150, 60),
    (135, 255, 195),
    (180, 120, 180),
    (225, 165, 0),
    (75, 240, 255),
    (255, 225, 135),
    (225, 120, 105),
    (120, 150, 225),
    (240, 135, 165),
)
"""Colours as far apart as can be for full and for red-green blind sight, the first ones farthest,
and apart from the greys of a CT. Found by taking, again and again, the colour whose nearest one
(CIEDE2000) is farthest. Organs do not choose theirs: neighbours that look alike, as most of them
do in an atlas, could not be told apart in a picture."""

_GOLDEN_ANGLE = 0.381966
"""Share of the colour wheel; steps of it never come close to an earlier hue for long."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """One structure of a label map.

    Attributes:
        value: what its voxels hold, 1 to 32767; 0 is background and has no label.
        name: as people read it.
        color: red, green, blue, 0 to 255.
        terminology: a terminology entry as 3D Slicer writes it, or "".
    """

    value: int
    name: str
    color: Color
    terminology: str = ""


def class_table(labels: Sequence[Label]) -> NDArray[np.integer]:
    """Class of each label value: 0 for background, 1, 2, … in the order of `labels`.

    In one byte each where there are no more than 255.
    """
    kind = np.min_scalar_type(len(labels))
    table = np.zeros(max(label.value for label in labels) + 1, dtype=kind)
    for number, label in enumerate(labels, start=1):
        table[label.value] = number
    return table


def read_labels(path: Path) -> tuple[Label, ...]:
    """Read the structures that a JSON file names, in the order of their values.

    Understood are `{"labels": {"1": "liver"}}`, the same with
    `{"name": …, "color": [r, g, b], "terminology": …}` in place of the name, and `dataset.json`
    of nnU-Net (`"liver": 1`) and MSD (`"1": "liver"`). Background (value 0) is left out. What has
    no colour gets that of `default_color`.

    Raises:
        UserError: if the file cannot be read, or names a value or a structure twice, or leaves a
            name blank, or uses nnU-Net's regions or ignore label, which stand for no single value.
    """
    return labels_from(read_json(path), source=str(path))


def read_json(path: Path) -> Mapping[str, object]:
    """A JSON file whose outermost value is an object; a key given twice is refused.

    Raises:
        UserError: if it cannot be read.
    """

    def unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
        _refuse_repeated((key for key, _ in pairs), source=str(path))
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist.", _FORM) from error
    # Besides broken text: numbers of thousands of digits, and brackets nested as deep.
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.", _FORM) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object.", _FORM)
    return content


def labels_from(content: Mapping[str, object], *, source: str) -> tuple[Label, ...]:
    """As `read_labels`, from JSON already read; `source` stands in messages.

    Raises:
        UserError: see `read_labels`.
    """
    table = content.get("labels")
    if not isinstance(table, Mapping) or not table:
        raise UserError(f'{source} has no "labels".', _FORM)
    # MSD and this project write value: name, nnU-Net writes name: value.
    by_value = all(_NUMBER.fullmatch(str(key)) for key in table)
    pairs = table.items() if by_value else ((value, name) for name, value in table.items())
    labels = [_label(value, entry, source=source) for value, entry in pairs]
    kept = sorted((label for label in labels if label.value), key=lambda label: label.value)
    if not kept:
        raise UserError(f"{source} names nothing but background.", _FORM)
    _refuse_repeated((label.value for label in kept), source=source)
    _refuse_repeated((label.name.casefold() for label in kept), source=source)
    return tuple(kept)


def write_labels(path: Path, labels: Sequence[Label]) -> None:
    """Write `labels.json` with names, colours and terminology, whole or not at all.

    Raises:
        ResourceError: if the disk is full.
        UserError: if the folder cannot be written.
    """
    content = {"labels": {str(label.value): _described(label) for label in labels}}
    write_json(path, content)


def default_color(value: int) -> Color:
    """A colour that follows from the value alone: neighbouring values look unlike each other."""
    return _PALETTE[value - 1] if 1 <= value <= len(_PALETTE) else _wheel(value)


def _wheel(value: int) -> Color:
    hue = (0.58 + value * _GOLDEN_ANGLE) % 1.0
    # Neighbouring hues come back after a while: four brightnesses keep those apart.
    rgb = colorsys.hls_to_rgb(hue, (0.62, 0.46, 0.75, 0.54)[value % 4], 0.62)
    red, green, blue = (round(255 * channel) for channel in rgb)
    return red, green, blue


_FORM = 'Write {"labels": {"1": "liver", "2": "spleen"}}, one name for each value of the label map.'


def _label(value: object, entry: object, *, source: str) -> Label:
    detail: Mapping[str, object] = entry if isinstance(entry, Mapping) else {"name": entry}
    name = detail.get("name")
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{source}: value {value} has no name.", _FORM)
    _refuse_unseen(name.strip(), "a name", limit=_LONGEST_NAME, source=source)
    number = _number(value, name, source=source)
    color = detail.get("color")
    terminology = detail.get("terminology", "")
    if not isinstance(terminology, str):
        raise UserError(f"{source}: terminology of {name!r} is no text.", "Write it in quotes.")
    _refuse_unseen(terminology, "a terminology", limit=_LONGEST_TERMINOLOGY, source=source)
    return Label(
        value=number,
        name=name.strip(),
        color=default_color(number) if color is None else _color(color, name, source=source),
        terminology=terminology,
    )


def _refuse_unseen(text: str, what: str, *, limit: int, source: str) -> None:
    """Raise for text that no list, header or screen shows as it is."""
    if len(text) > limit or not text.isprintable():
        raise UserError(
            f"{source}: {text[:_LONGEST_TOLD]!a} is no text for {what}.",
            f"Write at most {limit} characters in one line, without control characters.",
        )


def _number(value: object, name: str, *, source: str) -> int:
    if isinstance(value, list):
        raise UserError(
            f"{source}: {name!r} is a region of several values {value}, which is not supported.",
            "Give every structure one value of its own.",
        )
    if name.strip().casefold() == "ignore":
        raise UserError(
            f"{source}: an ignore label ({value}) is not supported.",
            "Leave out the cases that are labelled in part, and the entry.",
        )
    digits = str(value)
    if not _NUMBER.fullmatch(digits) or len(digits) > _LONGEST_NUMBER:
        told = repr(value)[:_LONGEST_TOLD]
        raise UserError(
            f"{source}: {name!r} has the value {told}, which is no number of a label.", _FORM
        )
    number = int(digits)
    if not 0 <= number <= MAX_VALUE:
        raise UserError(f"{source}: {name!r} has the value {number}.", f"Use 1 to {MAX_VALUE}.")
    if number == 0 and name.strip().casefold() not in ("background", "bg", "clear label"):
        raise UserError(
            f"{source}: {name!r} has the value 0, which is background.",
            f"Use 1 to {MAX_VALUE} for structures.",
        )
    return number


def _color(value: object, name: str, *, source: str) -> Color:
    if isinstance(value, list) and len(value) == 3:
        channels = [v for v in value if type(v) is int and 0 <= v <= 255]
        if len(channels) == 3:
            return channels[0], channels[1], channels[2]
    raise UserError(
        f"{source}: the colour of {name!r} is {value!r}.",
        "Write [red, green, blue], each 0 to 255.",
    )


def _described(label: Label) -> dict[str, object]:
    described: dict[str, object] = {"name": label.name, "color": list(label.color)}
    return described | ({"terminology": label.terminology} if label.terminology else {})


def _refuse_repeated(items: Iterable[object], *, source: str) -> None:
    seen: set[object] = set()
    for item in items:
        if item in seen:
            raise UserError(f"{source} names {item!r} twice.", "Keep one of the two.")
        seen.add(item)
