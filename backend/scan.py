"""The command `backend scan`: find usable CT series and write them down."""

from __future__ import annotations

import os
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from backend.data.index import refusals, write_index
from backend.data.memory import save_memory
from backend.data.native_guard import name_problem, printable
from backend.data.scan import ScanResult, scan
from backend.data.series import SeriesRow
from backend.engine.signals import StopRequest, ending_at_once
from backend.errors import Cancelled, Interrupted, UserError, told_plainly
from backend.files import require_file_place

_EXAMPLES = 3
_WIDTH = 100


def run(
    paths: Sequence[Path],
    *,
    output: Path,
    min_slices: int,
    quick: bool,
    workers: int | None,
) -> None:
    """Scan, write the index and tell what was found.

    Args:
        paths: folders and files to search.
        output: the index to write; an earlier one there saves reading unchanged files again.
        min_slices: series with fewer slices are refused.
        quick: read headers only.
        workers: processes; None takes one per core.

    Raises:
        UserError: if a path does not exist, or nothing usable was found (the index is written
            all the same, and tells why).
        Cancelled: if the user interrupted it (SIGINT); the earlier index stays as it was.
        Interrupted: if the system did (SIGTERM, SIGUSR1), likewise.
        ResourceError: if the index cannot be written.
    """
    _check_output(output)
    try:
        with ending_at_once():
            result = scan(
                paths, min_slices=min_slices, quick=quick, workers=workers, previous=output
            )
    except (Cancelled, Interrupted) as error:
        hint = "No index was written; scan again."
        raise type(error)(error.message, hint) from error
    # Index and file lists belong together, so a stop comes too late now: the scan is done.
    with StopRequest().listening():
        try:
            write_index(output, result.rows)
            save_memory(output, result.memory)
        except OSError as error:
            raise told_plainly(error, output) from error
        sys.stdout.write(summary(result, output=output, quick=quick))
    if not result.usable:
        where = ", ".join(str(p) for p in paths)
        raise UserError(f"{where}: no usable CT series.", f"{refusals(result.rows)} See {output}.")


def summary(result: ScanResult, *, output: Path, quick: bool) -> str:
    """What a scan found, as a text for people."""
    usable = result.usable
    patients = len({row.patient for row in usable})
    lines = [
        f"{len(usable):,} usable CT series of {patients:,} patient{'s' * (patients != 1)}, "
        f"{len(result.rows) - len(usable):,} refused",
        *_table(usable),
        *_refused_lines(r for r in result.rows if r.verdict == "refused"),
        "",
        _files_line(result),
        *_ignored_lines(result),
    ]
    if quick:
        lines.append("Only headers were read: HU ranges, and label maps of 16 bits, are unknown.")
    lines.append(f"Index: {output}")
    if usable:
        run = output.parent / "runs" / "pretrain"
        lines.append(f"Next:  backend pretrain --method smit --data {output} --output {run}")
        lines.append("       (without a GPU add --preset tiny)")
    return "\n".join(lines) + "\n"


def _table(usable: Sequence[SeriesRow]) -> list[str]:
    """How many series there are of each format, and what they span."""
    groups: dict[str, list[SeriesRow]] = defaultdict(list)
    for row in usable:
        groups[row.format].append(row)
    return [
        f"  {name:<10}{len(rows):>6}   {_span('slices', [r.slices for r in rows])}   "
        f"{_span('spacing z', [r.spacing_mm[0] for r in rows if r.spacing_mm])} mm   "
        f"{_span('in plane', [r.spacing_mm[2] for r in rows if r.spacing_mm])} mm"
        for name, rows in sorted(groups.items())
    ]


def _span(what: str, values: Sequence[float]) -> str:
    low, high = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in (min(values), max(values)))
    return f"{what} {low}" if low == high else f"{what} {low} to {high}"


def _refused_lines(rows: Iterable[SeriesRow]) -> list[str]:
    groups: dict[str, list[SeriesRow]] = defaultdict(list)
    for row in rows:
        groups[row.reason_kind].append(row)
    lines = []
    for kind, members in sorted(groups.items(), key=lambda g: (-len(g[1]), g[0])):
        lines += ["", f"Refused, {kind}: {len(members)}"]
        lines += [line for r in members[:_EXAMPLES] for line in _refused_row(r)]
        if len(members) > _EXAMPLES:
            lines.append(f"… and {len(members) - _EXAMPLES} more")
    return [line if line.startswith("Refused") or not line else f"  {line}" for line in lines]


def _refused_row(row: SeriesRow) -> list[str]:
    """Where it lies, what tells it from others of that folder, and the whole reason."""
    size = f", {'x'.join(map(str, reversed(row.size)))}" if row.size else ""
    text = f"{_short(row.path)} ({row.id}{size}): {row.reason}"
    return textwrap.wrap(
        text, _WIDTH - 2, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )


def _short(path: Path) -> str:
    """The end of a path, which is where series differ."""
    return "/".join(path.parts[-2:])


def _files_line(result: ScanResult) -> str:
    rate = result.files / result.header_seconds if result.header_seconds > 0 else 0.0
    reused = f", {result.reused_files:,} unchanged" if result.reused_files else ""
    return (
        f"{result.files:,} files in {result.header_seconds:.1f} s "
        f"({rate:,.0f} files/s{reused}), {result.seconds:.1f} s in all"
    )


def _ignored_lines(result: ScanResult) -> list[str]:
    if not result.ignored_files:
        return []
    endings = list(result.ignored_endings.items())
    shown = ", ".join(f"{n:,} {ending}" for ending, n in endings[:6])
    more = ", …" if len(endings) > 6 else ""
    one = result.ignored_files == 1
    told = "1 file is no image" if one else f"{result.ignored_files:,} files are no images"
    lines = [f"{told} ({shown}{more})"]
    if ".zip" in result.ignored_endings:
        lines.append("Archives are not opened: unpack those that hold scans.")
    return lines


def _check_output(output: Path) -> None:
    """Refuse what cannot become an index before the time of a scan is spent."""
    if name_problem(output):
        raise UserError(f"--output {printable(output)} is not valid UTF-8.", "Choose another name.")
    if output.is_dir():
        raise UserError(f"{output} is a folder.", f"Name a file: --output {output / 'index.csv'}")
    if output.suffix.lower() != ".csv":
        raise UserError(f"--output {output} is no .csv file.", "Name it index.csv, for example.")
    require_file_place(output)
    existing = next(p for p in output.resolve().parents if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{existing} cannot be written to.", "Choose another --output.")
