"""Find every CT series below some folders and say which can be used, and why others cannot."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from backend.data.dicom import shown
from backend.data.grouping import refused, series_rows
from backend.data.headers import FileFacts, read_facts
from backend.data.memory import Decoded, Memory, load_memory, unchanged
from backend.data.native_guard import name_problem, printable
from backend.data.pool import map_in_processes, usable_cores
from backend.data.readers import read_judged
from backend.data.series import SeriesRow
from backend.errors import ScanError, UserError, is_out_of_memory
from backend.progress import progress

MIN_SLICES = 16
"""A series with fewer slices is refused unless told otherwise."""

T = TypeVar("T")

_HEADER_BATCH = 64
_LITTLE_BYTES = 1 << 26
"""Decoded sooner than a process starts, which takes a second."""


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """What a scan found.

    Attributes:
        rows: one per series, sorted by path.
        files: all files seen, hidden ones and other kinds included.
        ignored_files: those that are no images.
        ignored_endings: how many of those there are of each ending.
        reused_files: those not read again as they did not change.
        header_seconds: time for finding files and reading their headers.
        seconds: time for everything.
        memory: what the next scan need not read again.
    """

    rows: list[SeriesRow]
    files: int
    ignored_files: int
    ignored_endings: dict[str, int]
    reused_files: int
    header_seconds: float
    seconds: float
    memory: Memory

    @property
    def usable(self) -> list[SeriesRow]:
        """The rows that can be used."""
        return [row for row in self.rows if row.verdict == "usable"]


@dataclass(frozen=True)
class _Found:
    """Files below the paths; what may not be opened or named, with the reason."""

    files: list[Path]
    hidden: list[Path]
    closed: list[FileFacts]


def scan(
    paths: Sequence[Path],
    *,
    min_slices: int = MIN_SLICES,
    quick: bool = False,
    workers: int | None = None,
    previous: Path | None = None,
) -> ScanResult:
    """Find the CT series below `paths`.

    The headers of all files are read first; then every series that they let pass is decoded once,
    as only its voxels show whether it is whole and holds HU.

    Args:
        paths: files, and folders that are searched to any depth.
        min_slices: series with fewer slices are refused.
        quick: leave the decoding out; HU range, label maps and broken pixel data stay unknown.
        workers: processes; None takes one per core.
        previous: index of an earlier scan; files that did not change since are not read again.

    Raises:
        UserError: if a path does not exist or a number is out of range.
    """
    _check(paths, min_slices=min_slices, workers=workers)
    started = time.monotonic()
    count = workers or usable_cores()
    found = _find(paths)
    memory = load_memory(previous)
    known, unread = unchanged(memory, found.files)
    facts = [*known, *_read_headers(unread, workers=count), *found.closed]
    by_path = {f.path: f for f in facts}
    rows = series_rows(facts, min_slices=min_slices)
    headers_done = time.monotonic()
    decoded: dict[str, Decoded] = {}
    if not quick:
        fingerprints = {r.id: _fingerprint(r, by_path) for r in rows if r.verdict == "usable"}
        decoded = _decode(rows, fingerprints, memory=memory, facts=by_path, workers=count)
        rows = _judged(rows, {i: decoded[f] for i, f in fingerprints.items()})
    ignored = [Path(f.path) for f in facts if not f.format and not f.problem] + found.hidden
    return ScanResult(
        rows=rows,
        files=len(found.files) + len(found.hidden),
        ignored_files=len(ignored),
        ignored_endings=dict(Counter(_ending(p) for p in ignored).most_common()),
        reused_files=len(known),
        header_seconds=headers_done - started,
        seconds=time.monotonic() - started,
        memory=Memory(by_path, decoded or memory.decoded),
    )


def _check(paths: Sequence[Path], *, min_slices: int, workers: int | None) -> None:
    if not paths:
        raise UserError("No path was given to scan.", "Name a folder or a file.")
    for path in paths:
        if not path.exists():
            raise UserError(f"{printable(path)} does not exist.", "Check the spelling of the path.")
        if name_problem(path.resolve()):
            raise UserError(f"{printable(path)}: the name is not valid UTF-8.", "Rename it.")
    if min_slices < 1:
        raise UserError(f"--min-slices is {min_slices}.", "It must be 1 or more.")
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}.", "It must be 1 or more.")


def _find(paths: Sequence[Path]) -> _Found:
    """Every file below the paths once, each folder once even if links lead there again."""
    found = _Found([], [], [])
    visited: set[tuple[int, int]] = set()
    for root in sorted({p.resolve() for p in paths}):
        if root.is_dir():
            _walk(root, found, visited=visited, hidden=False)
        elif root.is_file() or not root.exists():
            found.files.append(root)
        else:
            raise UserError(f"{root}: is neither a file nor a folder.", "Give a file or a folder.")
    return _Found(sorted(set(found.files)), found.hidden, found.closed)


def _walk(root: Path, found: _Found, *, visited: set[tuple[int, int]], hidden: bool) -> None:
    stack = [(str(root), hidden)]
    while stack:
        folder, concealed = stack.pop()
        try:
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    secret = concealed or entry.name.startswith(".") or entry.name == "__MACOSX"
                    kind = _kind(entry)
                    problem = name_problem(Path(entry.path))
                    if problem and not secret:
                        found.closed.append(_closed(entry.path, problem))
                    elif kind == "folder":
                        stack.append((entry.path, secret))
                    elif kind == "file":
                        (found.hidden if secret else found.files).append(Path(entry.path))
        except OSError as error:
            reason = f"unreadable: the folder cannot be opened, {error.strerror or error}"
            found.closed.append(_closed(folder, reason))


def _closed(path: str, reason: str) -> FileFacts:
    return FileFacts(path=printable(path), bytes=0, mtime_ns=0, problem=reason)


def _kind(entry: os.DirEntry[str]) -> Literal["folder", "file", "other"]:
    """What an entry is; links that lead nowhere count as files, so that they are told."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() or _dangles(entry) else "other"
    except OSError:
        # A link that leads to itself: it alone is told, not its whole folder.
        return "file"


def _dangles(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not Path(entry.path).exists()


def _read_headers(paths: Sequence[Path], *, workers: int) -> list[FileFacts]:
    results = map_in_processes(
        facts_of, paths, on_crash=_crashed_header, workers=workers, batch=_HEADER_BATCH
    )
    return list(_shown(results, total=len(paths), what="Reading headers", unit="files"))


def _shown(results: Iterator[T], *, total: int, what: str, unit: str) -> Iterator[T]:
    """A bar, unless there is nothing to do."""
    return progress(results, total=total, what=what, unit=unit) if total else results


def facts_of(path: Path) -> FileFacts:
    """The facts of one file, as the scan reads them in its processes."""
    try:
        return read_facts(path)
    except Exception as error:
        return FileFacts(path=str(path), bytes=0, mtime_ns=0, problem=_reason(error))


def _reason(error: Exception) -> str:
    """Why one file is refused: whatever it brings about, the other files are read."""
    if isinstance(error, ScanError):
        return error.message
    if is_out_of_memory(error):
        return "unreadable: it does not fit into memory"
    first = next(iter(str(error).strip().splitlines()), "no message")
    return f"unreadable: unexpected {type(error).__name__}, {shown(first)}"


def _crashed_header(path: Path) -> FileFacts:
    problem = "unreadable: reading its header crashes the reader"
    return FileFacts(path=str(path), bytes=0, mtime_ns=0, problem=problem)


def _fingerprint(row: SeriesRow, facts: dict[str, FileFacts]) -> str:
    """Stands for the files of a series in their present state."""
    digest = hashlib.sha256()
    for name in sorted(str(f) for f in row.files):
        if name in facts:
            digest.update(f"{name}|{facts[name].bytes}|{facts[name].mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _decode(
    rows: Sequence[SeriesRow],
    fingerprints: dict[str, str],
    *,
    memory: Memory,
    facts: dict[str, FileFacts],
    workers: int,
) -> dict[str, Decoded]:
    """By fingerprint, what decoding shows of each row that has one."""
    known = {f: memory.decoded[f] for f in fingerprints.values() if f in memory.decoded}
    todo = [r for r in rows if r.id in fingerprints and fingerprints[r.id] not in known]
    files = [facts[name] for r in todo for name in map(str, r.files) if name in facts]
    results = map_in_processes(
        decode_series,
        [_volume_files(r) for r in todo],
        on_crash=_crashed_decoding,
        workers=1 if sum(f.bytes for f in files) < _LITTLE_BYTES else workers,
        # Some corrupt streams end the process of whoever unpacks them.
        apart=any(f.compressed for f in files),
    )
    bar = _shown(results, total=len(todo), what="Decoding", unit="series")
    fresh = {fingerprints[r.id]: d for r, d in zip(todo, bar, strict=True)}
    return known | fresh


def _volume_files(row: SeriesRow) -> tuple[Path, ...]:
    """What the reader takes: a header finds its data file by itself."""
    return row.files if row.format == "DICOM" else row.files[:1]


def decode_series(files: tuple[Path, ...]) -> Decoded:
    """Decode one series, as the scan does in its processes."""
    try:
        volume, problem = read_judged(files)
    except Exception as error:
        return Decoded(problem=_reason(error))
    digest = hashlib.blake2b(volume.voxels.data, digest_size=16)
    digest.update(repr(volume.geometry.size).encode())
    return Decoded(
        hu_min=int(volume.voxels.min()),
        hu_max=int(volume.voxels.max()),
        problem=problem,
        digest=digest.hexdigest(),
    )


def _crashed_decoding(files: tuple[Path, ...]) -> Decoded:
    del files
    return Decoded(problem="unreadable: decoding it crashes the decoder")


def _judged(rows: Sequence[SeriesRow], decoded: dict[str, Decoded]) -> list[SeriesRow]:
    """The rows with what decoding showed; of series with equal voxels the first is kept."""
    originals: dict[str, str] = {}
    result = []
    for row in rows:
        seen = decoded.get(row.id)
        if seen is not None:
            row = replace(row, hu_min=seen.hu_min, hu_max=seen.hu_max)
            original = originals.setdefault(seen.digest, row.id) if seen.digest else row.id
            if seen.problem:
                row = refused(row, seen.problem)
            elif original != row.id:
                row = refused(row, f"duplicate: the same voxels as {original}")
        result.append(row)
    return result


def _ending(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden"
    return path.suffix.lower() or "no ending"
