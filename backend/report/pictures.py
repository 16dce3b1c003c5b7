"""Which pictures go into a page, within a budget of bytes."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PICTURE_BUDGET_BYTES = 4_000_000
"""PNG bytes put into one report; base64 makes a third more of them."""


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page."""

    source: str
    caption: str


@dataclass(frozen=True)
class Pictures:
    """The chosen pictures, and how many more there are.

    Attributes:
        shown: those of the latest step, or those given by name.
        earlier: those of earlier steps, the first step first.
        left_out: how many did not fit.
    """

    shown: Sequence[Picture]
    earlier: Sequence[Picture]
    left_out: int


def choose_pictures(folder: Path, *, budget_bytes: int = PICTURE_BUDGET_BYTES) -> Pictures:
    """The last, the first and some steps between of a preview folder, as many as fit.

    Args:
        folder: PNG files named by their step, e.g. `step_000100.png`, `step_000100_case.png`.
        budget_bytes: bytes of all chosen files together.
    """
    by_step: dict[int, list[Path]] = {}
    files = sorted(folder.glob("*.png")) if folder.is_dir() else []
    for file in files:
        match = re.search(r"step_?(\d+)", file.stem)
        by_step.setdefault(int(match[1]) if match else -1, []).append(file)
    steps = sorted(by_step)
    chosen: dict[int, list[Picture]] = {}
    left = budget_bytes
    for step in _telling_order(steps):
        pictures = []
        for file in by_step[step]:
            content = file.read_bytes()
            if content.startswith(b"\x89PNG") and len(content) <= left:
                left -= len(content)
                pictures.append(_picture(content, _step_caption(step, last=step == steps[-1])))
        chosen[step] = pictures
    shown = [picture for step in steps[-1:] for picture in chosen[step]]
    earlier = [picture for step in steps[:-1] for picture in chosen.get(step, [])]
    return Pictures(shown, earlier, len(files) - len(shown) - len(earlier))


def _telling_order(steps: Sequence[int]) -> list[int]:
    """Last, first, middle and quarters: the order in which steps are given room."""
    if not steps:
        return []
    end = len(steps) - 1
    return list(dict.fromkeys(steps[round(end * part)] for part in (1, 0, 1 / 2, 1 / 4, 3 / 4)))


def _step_caption(step: int, *, last: bool) -> str:
    if step < 0:
        return ""
    return f"Step {step:,}{' (latest)' if last else ''}"


def _picture(content: bytes, caption: str) -> Picture:
    return Picture(f"data:image/png;base64,{base64.b64encode(content).decode()}", caption)


def given_pictures(pictures: Mapping[str, Path]) -> Pictures:
    """Named pictures in their order, as many as the budget holds."""
    shown = []
    left = PICTURE_BUDGET_BYTES
    for caption, path in pictures.items():
        content = path.read_bytes()
        if len(content) <= left:
            left -= len(content)
            shown.append(_picture(content, caption))
    return Pictures(shown, [], len(pictures) - len(shown))
