"""The table of scans: what was found, what was refused and why. Ids only, no paths."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MAX_TABLE_ROWS = 200

_TIMES = "\N{MULTIPLICATION SIGN}"


class ScanRow(Protocol):
    """One series of an index, usable or refused: `backend.data.index.SeriesRow` is one."""

    @property
    def id(self) -> str: ...  # noqa: D102 - as in the index
    @property
    def format(self) -> str: ...  # noqa: D102
    @property
    def size(self) -> tuple[int, int, int] | None: ...  # noqa: D102
    @property
    def spacing_mm(self) -> tuple[float, float, float] | None: ...  # noqa: D102
    @property
    def orientation(self) -> str: ...  # noqa: D102
    @property
    def verdict(self) -> str: ...  # noqa: D102
    @property
    def reason(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class ScanLine:
    """One series in the table."""

    id: str
    format: str
    size: str
    spacing: str
    orientation: str
    usable: bool
    reason: str


@dataclass(frozen=True)
class ScanTable:
    """Usable and refused series, cut to a readable length."""

    usable: Sequence[ScanLine]
    refused: Sequence[ScanLine]
    usable_count: int
    refused_count: int
    reasons: Sequence[tuple[str, int]]


def scan_table(rows: Iterable[ScanRow]) -> ScanTable:
    """The table of an index; sizes and spacings are told as x, y, z, as viewers do."""
    return _table(
        ScanLine(
            id=row.id, format=row.format, size=_TIMES.join(str(n) for n in (row.size or ())[::-1]),
            spacing=_TIMES.join(f"{mm:.4g}" for mm in (row.spacing_mm or ())[::-1]),
            orientation=row.orientation, usable=row.verdict == "usable", reason=row.reason,
        )
        for row in rows
    )  # fmt: skip


def index_table(path: Path) -> ScanTable | None:
    """The same of an index.csv beside the run, if one was kept there."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as stream:
        return _table(
            ScanLine(
                id=row.get("id") or "", format=row.get("format") or "",
                size=(row.get("size") or "").replace("x", _TIMES),
                spacing=(row.get("spacing_mm") or "").replace("x", _TIMES),
                orientation=row.get("orientation") or "",
                usable=row.get("verdict") == "usable", reason=row.get("reason") or "",
            )
            for row in csv.DictReader(stream)
        )  # fmt: skip


def _table(lines: Iterable[ScanLine]) -> ScanTable:
    lines = list(lines)
    usable = [line for line in lines if line.usable]
    refused = [line for line in lines if not line.usable]
    # Numbers differ from scan to scan; the words in front of them are the kind of reason.
    kinds = Counter(re.split(r"[:;(]|\d", line.reason)[0].strip() for line in refused)
    return ScanTable(
        usable[:MAX_TABLE_ROWS], refused[:MAX_TABLE_ROWS], len(usable), len(refused),
        kinds.most_common(),
    )  # fmt: skip
