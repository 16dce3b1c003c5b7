"""The recipe behind `backend bench`: rows in, one table and a file of figures out."""

from __future__ import annotations

import difflib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import psutil

from backend.bench.catalogue import ROWS, Kind, Row, Size
from backend.bench.child import command, figures_of, started
from backend.errors import Cancelled, UserError
from backend.files import require_file_place, write_json
from backend.preparation import check_device
from backend.progress import Lines, progress_bar
from backend.provenance import processor_name, software_versions, source_commit

SCHEMA = 1
"""Version of the file of figures."""

_NO_GPU = "not measured: no GPU"
_HEADINGS = (
    "row",
    "path",
    "peer",
    "ours",
    "peer's",
    "ratio",
    "cpu",
    "spread",
    "memory",
    "goal",
    "",
)


def run(
    names: Sequence[str],
    *,
    output: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    repeats: int = 3,
    full: bool = False,
    as_json: bool = False,
) -> None:
    """Measure rows and print the table.

    Args:
        names: names or numbers of rows; none means all.
        output: JSON file, written anew after each row; what it holds of other rows stays.
        device: "auto" measures on the processor, and on a GPU where there is one.
        repeats: measurements of each side.
        full: sizes of real work.
        as_json: print JSON instead of the table.

    Raises:
        UserError: if there is no such row or device.
        Cancelled: on Ctrl-C, once what was measured is told.
    """
    rows = chosen(names)
    if repeats < 1:
        raise UserError(f"--repeats {repeats} measures nothing.", "Give 1 or more.")
    if device == "cuda":
        check_device(device)
    lines = _lines(rows, device)
    content = _begun(output)
    done: list[dict[str, Any]] = []
    try:
        with progress_bar(total=_cost_s(lines), what="Measuring", unit="s of work") as bar:
            for row, kind in lines:
                done.append(_line(row, kind, repeats=repeats, size=_size(full=full), bar=bar))
                _keep(content, done[-1], output)
    except KeyboardInterrupt:
        raise Cancelled("Stopped by the keyboard.", "What was measured is told above.") from None
    finally:
        _print(json.dumps(content | {"rows": done}, indent=1) if as_json else table(done))


def show_rows() -> None:
    """Print what can be measured, without measuring."""
    told = [
        (row.number, row.name, row.path, row.peer, _goals(row, "cpu"), _goals(row, "gpu"))
        for row in ROWS
    ]
    _print(_aligned([("row", "name", "path", "peer", "goal on CPU", "on GPU"), *told]))


def chosen(names: Sequence[str]) -> tuple[Row, ...]:
    """The rows of these names or numbers, in their order; all if none is named.

    Raises:
        UserError: for a name that no row has, with the nearest one.
    """
    if not names:
        return ROWS
    found: dict[str, Row] = {}
    for name in names:
        meant = {row.name: row for row in ROWS if _named(row, name)}
        if not meant:
            near = difflib.get_close_matches(name, [row.name for row in ROWS], n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "See `backend bench --list`."
            raise UserError(f"There is no row {name!r}.", hint)
        found |= meant
    return tuple(found.values())


def _named(row: Row, name: str) -> bool:
    """Whether a name, a number or the number of a goal with several parts means this row."""
    return name in {row.name, row.number, row.number.rstrip("ab")}


def _lines(rows: Sequence[Row], device: str) -> list[tuple[Row, Kind]]:
    kinds: tuple[Kind, ...] = ("cpu", "gpu") if device == "auto" else _KINDS[device]
    return [(row, kind) for kind in kinds for row in rows if row.goals(kind)]


_KINDS: dict[str, tuple[Kind, ...]] = {"cpu": ("cpu",), "cuda": ("gpu",)}


def _cost_s(lines: Sequence[tuple[Row, Kind]]) -> int:
    return round(sum(row.cost_s for row, kind in lines if not _unmeasured(kind)))


def _unmeasured(kind: Kind) -> str | None:
    """Why a line has no figures."""
    return _NO_GPU if kind == "gpu" and not _gpu_there() else None


def _gpu_there() -> bool:
    """Asked without loading torch, which takes seconds, where there is surely no GPU."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and sys.platform == "linux":
        return False
    from torch import cuda

    return bool(cuda.is_available())


def _size(*, full: bool) -> Size:
    return "full" if full else "default"


def _line(row: Row, kind: Kind, *, repeats: int, size: Size, bar: Any) -> dict[str, Any]:
    """One row measured in a process of its own, with what the measurement depends on."""
    told: dict[str, Any] = {
        "number": row.number,
        "name": row.name,
        "path": row.path,
        "peer": row.peer,
        "device": kind,
        "goal": _goals(row, kind),
        "circumstances": circumstances(),
    }
    if why := _unmeasured(kind):
        return told | {"not_measured": why}
    before = bar.n
    bar.set_postfix_str(row.name, refresh=isinstance(bar, Lines))

    def turn(done: int, of: int) -> None:
        bar.update(before + round(row.cost_s * done / of) - bar.n)

    words = command(row.name, size, "cpu" if kind == "cpu" else "cuda", str(repeats))
    try:
        with started(words) as process:
            told |= figures_of(process, turn=turn)
    except RuntimeError as error:
        return told | {"not_measured": f"failed: {error}"}
    finally:
        turn(1, 1)
    return told | {"met": any(goal.met(told) for goal in row.goals(kind))}


def circumstances() -> dict[str, Any]:
    """What figures depend on: machine, versions, threads, commit, and how busy it all is."""
    return {
        "machine": f"{platform.system()} {platform.machine()}, {processor_name()}",
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "threads": os.environ.get("OMP_NUM_THREADS", "one per core"),
        "load": [round(value, 2) for value in psutil.getloadavg()],
        "versions": software_versions(),
        "commit": source_commit(),
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _begun(output: Path | None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": SCHEMA, "rows": []}
    if output is None:
        return content
    require_file_place(output)
    if output.exists():
        try:
            before = json.loads(output.read_text("utf-8"))
        except ValueError:
            before = {}
        if before.get("schema") != SCHEMA:
            raise UserError(f"{output}: holds no figures of this kind.", "Choose another name.")
        return dict(before)
    return content


def _keep(content: dict[str, Any], line: dict[str, Any], output: Path | None) -> None:
    """Put a row into the file, in the order of the table and in place of an older one."""
    keys = [(row.number, kind) for kind in ("cpu", "gpu") for row in ROWS]
    kept = {(old["number"], old["device"]): old for old in content["rows"]}
    kept[line["number"], line["device"]] = line
    content["rows"] = [kept[key] for key in keys if key in kept]
    if output is not None:
        write_json(output, content)


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The rows for people, one line each."""
    if not lines:
        return "Nothing was measured."
    cells = [_HEADINGS, *map(_cells, lines)]
    sizes = [f"  {line['number']:<4} {line['size']}" for line in lines if "size" in line]
    return "\n".join([_aligned(cells), *(["", "Sizes", *sizes] if sizes else [])])


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    number = line["number"] + (" gpu" if line["device"] == "gpu" else "")
    first = (number, line["path"], line["peer"])
    if "not_measured" in line:
        return (*first, "", "", "", "", "", "", line["goal"], line["not_measured"])
    memory = line.get("memory", {})
    return (
        *first,
        told_seconds(line["ours_median_s"]),
        told_seconds(line["peer_median_s"]) if "peer_median_s" in line else "",
        f"{line['ratio']:.2f}" if "ratio" in line else "",
        f"{line['cpu_ratio']:.2f}" if "cpu_ratio" in line else "",
        _spread(line),
        _told_memory(memory),
        line["goal"],
        "met" if line["met"] else "missed",
    )


def _spread(line: dict[str, Any]) -> str:
    """How far the measurements of each side lie apart, as a share of their median."""
    sides = [side for side in ("ours", "peer") if f"{side}_s" in line]
    shares = ((max(line[f"{s}_s"]) - min(line[f"{s}_s"])) / line[f"{s}_median_s"] for s in sides)
    return " ".join(f"{share:.0%}" for share in shares)


def _told_memory(memory: dict[str, Any]) -> str:
    if "ratio" in memory:
        return f"{memory['ratio']:.2f}"
    return f"{memory['ours'] / 1024:.2f} GiB" if memory else ""


def told_seconds(seconds: float) -> str:
    """A duration with its unit, e.g. "1.52 s" or "340 us"."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _goals(row: Row, kind: Kind) -> str:
    return " or ".join(goal.text() for goal in row.goals(kind))


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
