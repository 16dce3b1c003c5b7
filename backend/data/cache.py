"""Preprocessed scans on disk, written once per scan and recipe and read in crops by any run.

An entry is a few files beside each other under `<root>/<recipe key>/`: voxels (`.b2nd`), label map
(`.label.b2nd`), a sample of labelled voxels (`.foreground.b2nd`), and last of all `.json`, which
tells the sizes and checksums of the others. Without a `.json` that agrees there is no entry, so one
that was cut off while being written is simply made anew. Nothing here needs torch.

The same voxels may be kept plain, for about twice the disk: crops are read in a fraction of the
time. Such entries lie in a folder of their own, `<root>/<recipe key>-plain/`, with `.npy` and
`.label.npy` in the place of the first two files.

Block-compressed arrays let a crop be read without decompressing the whole. Chunks of 64 cubed in
blocks of 32 cubed with LZ4HC and byte shuffle took 1.4 ms a crop of 96 cubed and 0.59 of the int16
bytes on a CT of the trunk; chunks of 96 cubed 1.7 ms, and with bit shuffle, as entries were written
before and are read still, 2.5 ms and 0.56.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import blosc2
import numpy as np
import psutil
import SimpleITK
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout
from numpy.typing import NDArray

from backend.data.plain_array import PlainArray, plain_bytes
from backend.data.pool import map_in_processes, usable_cores
from backend.data.preprocess import Recipe, preprocess, preprocess_pair
from backend.data.readers import read_label, read_volume
from backend.data.volume_file import read_volume_header, with_detached
from backend.errors import ResourceError, ScanError, UserError, told_plainly
from backend.geometry import Geometry, Index3, Vec3, direction9, index3, vec3
from backend.progress import progress
from backend.settings.common import CacheForm

if TYPE_CHECKING:
    from backend.data.labelled import LabelledCase

SCHEMA = 2
"""Raised when older entries can no longer be read; they are then made anew."""

FOREGROUND_SAMPLES = 10_000
"""At most so many voxels per label are listed for foreground-balanced crops."""

_CHUNK, _BLOCK = 64, 32
_IMAGE: Mapping[CacheForm, str] = {"compressed": ".b2nd", "plain": ".npy"}
_LABEL: Mapping[CacheForm, str] = {form: f".label{end}" for form, end in _IMAGE.items()}
_FOREGROUND, _META = ".foreground.b2nd", ".json"
_SUFFIXES = (*_LABEL.values(), _FOREGROUND, *_IMAGE.values(), _META)
_PLAIN_FOLDER = "-plain"
_LOCKS = ".locks"

_BYTES_PER_VOXEL: Mapping[CacheForm, float] = {"compressed": 2 * 0.75, "plain": 2}
"""int16 times a compressed share on the safe side: 17 real scans took 0.46 to 0.65 with
bit shuffle, and byte shuffle takes a twentieth more."""
_LABEL_BYTES_PER_VOXEL: Mapping[CacheForm, float] = {"compressed": 0, "plain": 2}
"""Compressed label maps fit into what the scan leaves."""
_DISK_RESERVE = 200 * 2**20
"""Free space that is never planned for, in bytes."""
_WORKER_BYTES_PER_VOXEL = 12
"""Memory of one worker at its peak: source, crop and float32 result."""
_FEW = 3
"""So few scans are done sooner here than new processes start."""
_LOCK_TIMEOUT_S = 900
_ABANDONED_S = 24 * 3600
"""A temporary file this old belongs to no writer any more."""
_PERCENTILES = (0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5)

_log = logging.getLogger(__name__)


class Series(Protocol):
    """What the cache needs of a row of the index."""

    @property
    def id(self) -> str:
        """Name, unique in the index."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The volume's file, or those of a DICOM series."""

    @property
    def size(self) -> Index3 | None:
        """Voxels along (z, y, x)."""

    @property
    def spacing_mm(self) -> Vec3 | None:
        """Distance of voxel centres along (z, y, x)."""


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What building did.

    Attributes:
        built: names of entries that were written.
        reused: names of entries that were there already.
        failed: reason by name, for scans that cannot be used.
        bytes: size of what was written.
    """

    built: tuple[str, ...] = ()
    reused: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class CachedVolume:
    """One entry of the cache. Threads and processes may share it: it holds no open file.

    Attributes:
        id: name of the scan.
        path: its files without their endings.
        recipe: how it was made.
        geometry: grid of the cached voxels.
        source_geometry: grid of the scan they were made from.
        hu_percentiles: HU by percentile of the cached voxels.
        label_voxels: cached voxels by label value; empty for a scan without labels.
        created: seconds since 1970.
        form: in which its arrays are kept.
    """

    id: str
    path: Path
    recipe: Recipe
    geometry: Geometry
    source_geometry: Geometry
    hu_percentiles: Mapping[float, float]
    label_voxels: Mapping[int, int]
    created: float
    form: CacheForm = "compressed"

    def read(self, start: Index3, size: Index3, *, fill: int = -1024) -> NDArray[np.int16]:
        """HU of the box from voxel `start` (z, y, x) on; `fill` where it lies outside the volume.

        Only the blocks that the box touches are decompressed.
        """
        suffix = _IMAGE[self.form]
        result: NDArray[np.int16] = _read_box(self.path, suffix, start, size, fill=fill)
        return result

    def read_all(self) -> NDArray[np.int16]:
        """HU of the whole volume (z, y, x)."""
        return self.read((0, 0, 0), self.geometry.size)

    def read_label(self, start: Index3, size: Index3) -> NDArray[np.integer[Any]]:
        """Label values of the box from voxel `start` (z, y, x) on, 0 outside the volume.

        Raises:
            UserError: if the entry has no label map.
        """
        if not _beside(self.path, _LABEL[self.form]).exists():
            raise UserError(f"{self.id} has no label map.", "Build it from a labelled set.")
        return _read_box(self.path, _LABEL[self.form], start, size, fill=0)

    @cached_property
    def foreground(self) -> dict[int, NDArray[np.int64]]:
        """Voxels (n, 3), in (z, y, x), of every label: all, or an even sample of 10 000."""
        path = _beside(self.path, _FOREGROUND)
        if not self.label_voxels or not path.exists():
            return {}
        counts = [min(n, FOREGROUND_SAMPLES) for n in self.label_voxels.values()]
        with _array(self.path, _FOREGROUND) as array:
            flat = array[:]
        parts = np.split(flat, np.cumsum(counts)[:-1])
        voxels = (np.stack(np.unravel_index(p, self.geometry.size), axis=1) for p in parts)
        return dict(zip(self.label_voxels, voxels, strict=True))


class Cache:
    """The entries of one recipe, in one form, under a root folder.

    Example:
        >>> cache = Cache(Path("cache"), Recipe(spacing_mm=(2.0, 1.5, 1.5)))
        >>> report = cache.build(rows)  # doctest: +SKIP
        >>> crop = cache.open(rows[0].id).read((0, 0, 0), (96, 96, 96))  # doctest: +SKIP

    """

    def __init__(self, root: Path, recipe: Recipe, form: CacheForm = "compressed") -> None:
        """Name the place; nothing is read or written yet.

        Args:
            root: folder that holds the entries of all recipes; made when first written to.
            recipe: how scans are preprocessed.
            form: in which they are kept; both give the same voxels.
        """
        self.root = root
        self.recipe = recipe
        self.form: CacheForm = form
        self._jobs: dict[str, _Job] = {}

    @property
    def folder(self) -> Path:
        """Where the entries of this recipe and form lie."""
        ending = _PLAIN_FOLDER if self.form == "plain" else ""
        return self.root / f"{self.recipe.key()}{ending}"

    def missing(self, rows: Sequence[Series]) -> list[Series]:
        """Rows that have no usable entry: none, cut off, or made from files that have changed."""
        return [rows[i] for i in self._missing([self._series_job(row) for row in rows])]

    def estimate_bytes(self, rows: Sequence[Series]) -> int:
        """Disk space for new entries of all these rows, on the safe side.

        Counted as the whole volume at the recipe's spacing, of which cropping takes away more,
        with 1.5 bytes a voxel (2 in plain form).
        """
        return sum(
            self._entry_bytes(row.size, row.spacing_mm, voxel_bytes=_BYTES_PER_VOXEL[self.form])
            for row in rows
            if row.size is not None and row.spacing_mm is not None
        )

    def free_bytes(self) -> int:
        """Free space of the disk that the entries lie on, or will."""
        return shutil.disk_usage(_existing(self.root)).free

    def require_folder(self) -> None:
        """Refuse a place where no folder can be made, before work is done for it.

        Raises:
            ResourceError: with the reason.
        """
        place = _existing(self.root)
        with _told_as_resource(self.root):
            if not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), place)
            if not os.access(place, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)

    def require_disk(self, rows: Sequence[Series]) -> None:
        """Refuse to write new entries of these rows where they may not fit.

        Raises:
            ResourceError: with what is needed and what is free.
        """
        self._require_disk(self.estimate_bytes(rows))

    def build(
        self,
        rows: Sequence[Series],
        *,
        workers: int | None = None,
        between: Callable[[], None] = lambda: None,
        allow_none: bool = False,
    ) -> BuildReport:
        """Write what is missing, several scans at a time.

        Args:
            rows: scans to be had.
            workers: processes; None takes what processors and memory allow.
            between: called after each scan; what it raises ends the work, and what is written
                stays.
            allow_none: report it if no scan can be used.

        Returns:
            What was built, reused and refused; refused scans are no error as long as one is left.

        Raises:
            UserError: if no scan can be used.
            ResourceError: if disk or memory do not suffice or the folder cannot be written.
        """
        jobs = [self._series_job(row) for row in rows]
        sizes = {row.id: row.size or (1, 1, 1) for row in rows}
        absent = [jobs[i] for i in self._missing(jobs)]
        wanted = {job.id for job in absent}
        self.require_disk([row for row in rows if row.id in wanted])
        workers = workers or _worker_count([sizes[n] for n in wanted])
        report = self._build(jobs, absent, workers, between)
        if not allow_none:
            require_any(report)
        return report

    def missing_pairs(self, cases: Sequence[LabelledCase]) -> list[LabelledCase]:
        """As `missing`, for images with their label maps."""
        return [cases[i] for i in self._missing([self._pair_job(case) for case in cases])]

    def build_pairs(
        self,
        cases: Sequence[LabelledCase],
        *,
        workers: int | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> BuildReport:
        """As `build`, for images with their label maps.

        Names of cases such as "case_001" are common to many sets. So that two sets never share an
        entry, these entries carry a digest of their source files in their file names.

        Raises:
            UserError: if no case can be used.
            ResourceError: if disk or memory do not suffice or the folder cannot be written.
        """
        jobs = [self._pair_job(case) for case in cases]
        labels = {case.id: case.label for case in cases}
        absent = [jobs[i] for i in self._missing(jobs)]
        grids = [grid for job in absent if (grid := _header_grid(labels[job.id])) is not None]
        each = _BYTES_PER_VOXEL[self.form] + _LABEL_BYTES_PER_VOXEL[self.form]
        sizes = (self._entry_bytes(grid.size, grid.spacing_mm, voxel_bytes=each) for grid in grids)
        self._require_disk(sum(sizes))
        workers = workers or _worker_count([grid.size for grid in grids])
        report = self._build(jobs, absent, workers, between)
        require_any(report)
        return report

    def open(self, name: str) -> CachedVolume:
        """The entry of a scan that was built before, by the `id` of its row or case.

        Its checksums are compared when this process opens it for the first time; a damaged one
        is made anew if its source is known here.

        Raises:
            UserError: if there is no entry.
            ScanError: if a damaged entry's source can no longer be read.
        """
        job = self._jobs.get(name)
        stem = job.stem if job else self._find_stem(name)
        path = self.folder / stem
        if _beside(path, _META).exists() and not _intact(path):
            # Without its json a damaged entry counts as missing from now on.
            with _told_as_resource(self.folder):
                _beside(path, _META).unlink(missing_ok=True)
            if job is None:
                raise UserError(
                    f"{path}: the cached scan is damaged.", "Start again: it is made anew."
                )
            _log.warning("The cached %s is damaged and is made anew.", name)
            outcome = _build_entry(job)
            if outcome.reason:
                raise ScanError(f"{name}: {outcome.reason}")
        meta = _read_meta(path)
        if meta is None:
            raise UserError(f"{name} is not in the cache {self.folder}.", "Build it first.")
        _mark_used(path)
        return _cached_volume(path, meta)

    def _series_job(self, row: Series) -> _Job:
        return self._known(
            _Job(
                id=row.id,
                files=row.files,
                stem=_file_name(row.id),
                recipe=self.recipe,
                form=self.form,
                folder=self.folder,
            )
        )

    def _pair_job(self, case: LabelledCase) -> _Job:
        digest = _fingerprint((*case.image, case.label))[:10]
        return self._known(
            _Job(
                id=case.id,
                files=case.image,
                label=case.label,
                recipe=self.recipe,
                form=self.form,
                stem=f"{_file_name(case.id)}~{digest}",
                folder=self.folder,
            )
        )

    def _known(self, job: _Job) -> _Job:
        self._jobs[job.id] = job
        return job

    def _missing(self, jobs: Sequence[_Job]) -> list[int]:
        # Thousands of files are looked at; on a network share waiting is all of the time.
        with ThreadPoolExecutor(max_workers=16) as pool:
            usable = list(pool.map(_usable, jobs))
        return [i for i, there in enumerate(usable) if not there]

    def _find_stem(self, name: str) -> str:
        stem = _file_name(name)
        if _beside(self.folder / stem, _META).exists():
            return stem
        pairs = sorted(self.folder.glob(f"{_glob_escaped(stem)}~*{_META}"))
        if len(pairs) == 1:
            return pairs[0].name.removesuffix(_META)
        found = f"{len(pairs)} times" if pairs else "not"
        raise UserError(f"{name} is {found} in the cache {self.folder}.", "Build its set first.")

    def _entry_bytes(self, size: Index3, spacing_mm: Vec3, *, voxel_bytes: float) -> int:
        extents = (n * s for n, s in zip(size, spacing_mm, strict=True))
        # Only the product counts, so that the order of the axes plays no part.
        voxels = np.prod([*extents]) / np.prod(self.recipe.spacing_mm or spacing_mm)
        return int(voxels * voxel_bytes) + 2**16

    def _require_disk(self, need: int) -> None:
        if not need:
            return
        free = self.free_bytes()
        if need + _DISK_RESERVE > free:
            raise ResourceError(
                f"The cache needs {told_bytes(need)} and {told_bytes(_DISK_RESERVE)} to spare, "
                f"but {self.root} has {told_bytes(free)} free.",
                "Free space (backend cache --prune) or choose another folder with --cache DIR.",
            )

    def _build(
        self,
        jobs: Sequence[_Job],
        absent: Sequence[_Job],
        workers: int,
        between: Callable[[], None],
    ) -> BuildReport:
        count = Counter(job.stem.casefold() for job in jobs)
        if repeated := [j.id for j in jobs if count[j.stem.casefold()] > 1]:
            raise UserError(f"The name {repeated[0]} stands for two scans.", "Rename one of them.")
        absent_ids = {job.id for job in absent}
        reused = [job.id for job in jobs if job.id not in absent_ids]
        if not absent:
            return BuildReport(reused=tuple(reused))
        workers = 1 if len(absent) <= _FEW else min(workers, len(absent))
        # Each worker gets its share of the processors, or they would only wait for each other.
        shared = [replace(job, threads=max(1, usable_cores() // workers)) for job in absent]
        run = map_in_processes(_build_entry, shared, on_crash=_crashed, workers=workers)
        outcomes = {}
        with closing(run):
            for o in progress(run, total=len(absent), what="Preprocessing", unit="scan"):
                outcomes[o.id] = o
                between()
        ordered = [outcomes[job.id] for job in absent]
        failed = {o.id: o.reason for o in ordered if o.reason}
        return BuildReport(
            built=tuple(o.id for o in ordered if o.bytes and not o.reason),
            reused=(*reused, *(o.id for o in ordered if not o.bytes and not o.reason)),
            failed=failed,
            bytes=sum(o.bytes for o in ordered),
        )


def require_any(report: BuildReport) -> None:
    """Refuse to go on without a single scan.

    Raises:
        UserError: naming the first that failed, and why.
    """
    if report.failed and not (report.built or report.reused):
        name, reason = next(iter(report.failed.items()))
        raise UserError(f"None of {len(report.failed)} scans can be used. {name}: {reason}")


def default_cache_dir(beside: Path | None) -> Path:
    """Where the cache lies unless told otherwise.

    Args:
        beside: the index or the run folder, which may not exist yet.

    Returns:
        `cache/` of the project folder that holds it (a folder with project.json, at most three
        levels up), else the user's cache folder of this system.
    """
    if beside is not None:
        place = beside.absolute()
        for folder in (place, *list(place.parents)[:3]):
            if (folder / "project.json").is_file():
                return folder / "cache"
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        told = os.environ.get("XDG_CACHE_HOME", "")
        # The standard says that relative paths there are to be ignored.
        base = Path(told) if told.startswith("/") else home / ".cache"
    return base / "sslsegmentation"


@dataclass(frozen=True, kw_only=True)
class RecipeUse:
    """What the cache holds of one recipe in one form.

    Attributes:
        key: name of its folder.
        recipe: its settings, or None if no entry could be read.
        entries: whole entries.
        bytes: size of all files, those of cut-off entries included.
        last_used: seconds since 1970 when an entry was last written or opened; 0 if there is none.
    """

    key: str
    recipe: Recipe | None
    entries: int
    bytes: int
    last_used: float


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What pruning removed: whole entries, and the size of all files removed."""

    entries: int
    bytes: int


def list_cache(root: Path) -> list[RecipeUse]:
    """What lies in a cache folder, most recently used first; empty if there is no such folder."""
    uses = [_recipe_use(folder) for folder in _recipe_folders(root)]
    return sorted(uses, key=lambda use: -use.last_used)


def prune(
    root: Path,
    *,
    older_than_days: float | None = None,
    recipe: str | None = None,
    everything: bool = False,
) -> PruneReport:
    """Remove entries, and what cut-off writers have left; other files are never touched.

    Args:
        root: cache folder.
        older_than_days: remove entries not used for so long.
        recipe: only in the folder of this key; alone it removes all entries there.
        everything: remove all entries.

    Raises:
        UserError: if nothing is chosen, or there is no such recipe.
        ResourceError: if files cannot be removed.
    """
    if older_than_days is None and recipe is None and not everything:
        raise UserError("Nothing is chosen to prune.", "Give an age in days, a recipe, or all.")
    folders = [f for f in _recipe_folders(root) if recipe in (None, f.name)]
    if recipe is not None and not folders:
        known = ", ".join(f.name for f in _recipe_folders(root)) or "none"
        raise UserError(f"{root} has no recipe {recipe!r}.", f"There is: {known}.")
    before = time.time() - (older_than_days or 0.0) * 86400
    removed = [
        _prune_folder(f, before=None if older_than_days is None else before) for f in folders
    ]
    return PruneReport(entries=sum(r.entries for r in removed), bytes=sum(r.bytes for r in removed))


def told_bytes(count: float) -> str:
    """A size as people read it, e.g. "1.5 GB" (powers of 1000, as disks are sold)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB" if count < 1000 else f"{count / 1000:.1f} TB"


# Writing


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One entry to be made; travels to worker processes."""

    id: str
    files: tuple[Path, ...]
    label: Path | None = None
    recipe: Recipe
    form: CacheForm
    folder: Path
    stem: str
    threads: int = 1

    @property
    def path(self) -> Path:
        """The entry's files without their endings."""
        return self.folder / self.stem

    @property
    def sources(self) -> tuple[Path, ...]:
        """All files that the entry is made from."""
        return self.files if self.label is None else (*self.files, self.label)


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """`reason` tells why the scan cannot be used; `bytes` is 0 if another process was faster."""

    id: str
    bytes: int = 0
    reason: str = ""


def _crashed(job: _Job) -> _Outcome:
    return _Outcome(
        id=job.id,
        reason="its process was ended by the system, most often for want of memory. "
        "Leave the scan out or use a larger spacing.",
    )


def _worker_count(sizes: Sequence[Index3]) -> int:
    """As many as processors and memory allow for scans of these sizes (z, y, x)."""
    need = max((int(np.prod(size)) for size in sizes), default=1) * _WORKER_BYTES_PER_VOXEL
    fitting = int(psutil.virtual_memory().available * 0.8) // (need + 300 * 2**20)
    return max(1, min(usable_cores(), fitting, 32))


def _build_entry(job: _Job) -> _Outcome:
    """Make one entry unless another process has just done so."""
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(job.threads)
    with _locked(job):
        if _usable(job):
            return _Outcome(id=job.id)
        try:
            return _Outcome(id=job.id, bytes=_write_entry(job))
        except ScanError as error:
            return _Outcome(id=job.id, reason=str(error))
        except MemoryError as error:
            raise ResourceError(
                f"Memory does not suffice to preprocess {job.id}.",
                "Use fewer workers, a larger spacing, or leave this scan out.",
            ) from error


def _write_entry(job: _Job) -> int:
    """Read, preprocess and write one scan; its json comes last. Returns the bytes written."""
    fingerprint = _fingerprint(job.sources)
    source = read_volume(job.files)
    if job.label is None:
        image, label = preprocess(source, job.recipe), None
    else:
        image, label = preprocess_pair(source, read_label(job.label), job.recipe)
    stored = plain_bytes if job.form == "plain" else partial(_compressed, threads=job.threads)
    arrays = {_IMAGE[job.form]: stored(image.voxels)}
    counts: dict[int, int] = {}
    if label is not None:
        arrays[_LABEL[job.form]] = stored(label.voxels)
        counts, sample = _foreground_sample(label.voxels)
        arrays[_FOREGROUND] = _compressed(sample, threads=1)
    meta = {
        "schema": SCHEMA,
        "id": job.id,
        "created": time.time(),
        "recipe": asdict(job.recipe),
        "geometry": asdict(image.geometry),
        "source_geometry": asdict(source.geometry),
        "source": {"files": len(job.sources), "fingerprint": fingerprint},
        "files": {
            suffix: {"bytes": len(data), "crc32": zlib.crc32(data)}
            for suffix, data in arrays.items()
        },
        "hu_percentiles": _percentiles(image.voxels),
        "label_voxels": counts,
    }
    meta["crc32"] = _digest_of(json.loads(json.dumps(meta)))
    with _told_as_resource(job.folder):
        # A json that stays from an earlier entry must not vouch for the new arrays.
        _beside(job.path, _META).unlink(missing_ok=True)
        for suffix, data in arrays.items():
            _write_whole(_beside(job.path, suffix), data)
        _write_whole(_beside(job.path, _META), json.dumps(meta, indent=1).encode())
    return sum(len(data) for data in arrays.values())


def _compressed(voxels: NDArray[np.generic], *, threads: int) -> bytes:
    """An array in blosc2's file format; in memory, so that a full disk is an ordinary error."""
    chunks = [min(_CHUNK, max(1, n)) for n in voxels.shape] if voxels.ndim == 3 else None
    blocks = [min(_BLOCK, n) for n in chunks] if chunks else None
    array = blosc2.asarray(
        np.ascontiguousarray(voxels),
        chunks=chunks,
        blocks=blocks,
        cparams={
            "codec": blosc2.Codec.LZ4HC,
            "clevel": 5,
            "filters": [blosc2.Filter.SHUFFLE],
            "filters_meta": [0],
            "typesize": voxels.dtype.itemsize,
            "nthreads": threads,
        },
    )
    data: bytes = array.to_cframe()
    return data


def _foreground_sample(
    label: NDArray[np.generic],
) -> tuple[dict[int, int], NDArray[np.int64]]:
    """Voxels by value, and flat indices of a sample of each value, one value after the other."""
    flat = np.asarray(label, dtype=np.int64).ravel()
    places = np.flatnonzero(flat)
    places = places[np.argsort(flat[places], kind="stable")]
    values, counts = np.unique(flat[places], return_counts=True)
    rng = np.random.default_rng(0)
    parts = [
        part
        if len(part) <= FOREGROUND_SAMPLES
        else np.sort(rng.choice(part, FOREGROUND_SAMPLES, replace=False, shuffle=False))
        for part in np.split(places, np.cumsum(counts)[:-1])
    ]
    table = {int(v): int(n) for v, n in zip(values, counts, strict=True)}
    return table, np.concatenate(parts).astype(np.int64)


def _percentiles(voxels: NDArray[np.generic]) -> dict[str, float]:
    """HU by percentile, of every n-th voxel where there are millions."""
    sample = voxels.ravel()[:: max(1, voxels.size // 1_000_000)].astype(np.float32)
    values = np.percentile(sample, _PERCENTILES)
    return {str(p): float(v) for p, v in zip(_PERCENTILES, values, strict=True)}


@contextmanager
def _locked(job: _Job) -> Iterator[None]:
    """One writer at a time for an entry, over all processes and, where it can, machines."""
    path = job.folder / _LOCKS / f"{job.stem}.lock"
    lock = _acquired(path)
    try:
        yield
    finally:
        lock.release()


def _acquired(path: Path) -> BaseFileLock:
    with _told_as_resource(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        for kind in (FileLock, SoftFileLock):
            lock = kind(path, timeout=_LOCK_TIMEOUT_S)
            try:
                lock.acquire()
            except NotImplementedError:
                # Some cluster file systems have no locks; a file that exists serves as one.
                continue
            except Timeout as error:
                raise ResourceError(
                    f"Another process has held {path} for {_LOCK_TIMEOUT_S // 60} minutes.",
                    "End that process, or remove the file if there is none.",
                ) from error
            return lock
    raise ResourceError(f"{path.parent} cannot be locked.", "Choose another folder with --cache.")


@contextmanager
def _told_as_resource(folder: Path) -> Iterator[None]:
    """Turn a failed write into an error that names folder, reason and cure."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"The cache {folder} cannot be written: {error.strerror or error}.",
            "Free space, or choose another folder with --cache DIR.",
        ) from error


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that its name never stands for half of it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# Reading


def _usable(job: _Job) -> bool:
    """Whether a whole entry is there, of this recipe and made from the sources as they are."""
    meta = _read_meta(job.path)
    if meta is None or meta["recipe"] != json.loads(json.dumps(asdict(job.recipe))):
        return False
    fingerprint: str = meta["source"]["fingerprint"]
    return fingerprint == _fingerprint(job.sources)


def _read_meta(path: Path) -> dict[str, Any] | None:
    """The json of an entry whose files all have the sizes it tells, else None."""
    try:
        meta = json.loads(_beside(path, _META).read_bytes())
        if meta["schema"] != SCHEMA or meta.pop("crc32") != _digest_of(meta):
            return None
        for suffix, told in meta["files"].items():
            if _beside(path, suffix).stat().st_size != told["bytes"]:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return dict(meta)


def _digest_of(meta: Mapping[str, Any]) -> int:
    """A checksum of what an entry's json tells, however it is laid out."""
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


_compared: dict[str, tuple[int, int]] = {}
"""Files whose checksums this process has compared, and what they were like then."""


def _intact(path: Path) -> bool:
    """Whether an entry's files have the checksums that its json tells.

    Compared once, and again when a file looks another: whatever writes to one changes its time. For
    each crop that would take longer than reading it.
    """
    meta = _read_meta(path)
    if meta is None:
        return False
    for suffix, told in meta["files"].items():
        file = _beside(path, suffix)
        look = _look(file)
        if _compared.get(str(file)) != look:
            if zlib.crc32(file.read_bytes()) != told["crc32"]:
                return False
            _compared[str(file)] = look
    return True


def _look(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _cached_volume(path: Path, meta: Mapping[str, Any]) -> CachedVolume:
    return CachedVolume(
        id=meta["id"],
        path=path,
        recipe=Recipe(**meta["recipe"]),
        geometry=_geometry(meta["geometry"]),
        source_geometry=_geometry(meta["source_geometry"]),
        hu_percentiles={float(p): float(v) for p, v in meta["hu_percentiles"].items()},
        label_voxels={int(v): int(n) for v, n in meta["label_voxels"].items()},
        created=float(meta["created"]),
        form="plain" if _IMAGE["plain"] in meta["files"] else "compressed",
    )


def _geometry(told: Mapping[str, Any]) -> Geometry:
    return Geometry(
        size=index3(told["size"]),
        spacing_mm=vec3(told["spacing_mm"]),
        origin_mm=vec3(told["origin_mm"]),
        direction=direction9(told["direction"]),
    )


@contextmanager
def _array(entry: Path, suffix: str) -> Iterator[Any]:
    """One array of an entry, which must not have been changed under way.

    Raises:
        UserError: if it was, naming the file, which the libraries' own errors do not.
    """
    path = _beside(entry, suffix)
    try:
        # A disk that does not answer is waited for here, where other threads go on meanwhile:
        # blosc2 holds them all up.
        with path.open("rb", buffering=0) as stream:
            stream.read(1)
            if _compared.get(str(path)) != _look(path) and not _intact(entry):
                raise _damaged(path)
            yield _opened(path, stream)
    except FileNotFoundError:
        raise UserError(
            f"{path} was removed from the cache while in use.",
            "Continue with --resume: it is made anew.",
        ) from None
    except OSError as error:
        raise told_plainly(error, path) from error
    except (RuntimeError, ValueError, TypeError) as error:
        raise _damaged(path) from error


def _opened(path: Path, stream: FileIO) -> Any:
    if path.suffix == _IMAGE["plain"]:
        return PlainArray(stream)
    # Opening takes 0.2 ms, a crop 1.5 ms: not worth an open file for each of thousands of scans,
    # and no handle is ever shared between threads. Blosc2 cannot map files on Windows.
    how: dict[str, Any] = {"mode": "r"} if sys.platform == "win32" else {"mmap_mode": "r"}
    return blosc2.open(str(path), dparams={"nthreads": 1}, **how)


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path}: the cached scan was damaged while in use.",
        "Continue with --resume: it is made anew.",
    )


def _read_box(entry: Path, suffix: str, start: Index3, size: Index3, *, fill: int) -> NDArray[Any]:
    with _array(entry, suffix) as array:
        return _box(array, start, size, fill=fill)


def _box(array: Any, start: Index3, size: Index3, *, fill: int) -> NDArray[Any]:
    low = [min(max(a, 0), n) for a, n in zip(start, array.shape, strict=True)]
    high = [
        min(max(a + length, b), n)
        for a, length, b, n in zip(start, size, low, array.shape, strict=True)
    ]
    inside: NDArray[Any] = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    if inside.shape == size:
        return inside
    box = np.full(size, fill, dtype=array.dtype)
    at = tuple(slice(a - first, b - first) for a, b, first in zip(low, high, start, strict=True))
    if inside.size:
        box[at] = inside
    return box


def _mark_used(path: Path) -> None:
    """Note in the file system that an entry is in use; a shared cache may be read-only."""
    try:
        os.utime(_beside(path, _META))
    except OSError:
        _log.debug("%s cannot be marked as used.", path)


def _header_grid(path: Path) -> Geometry | None:
    """A label map's grid, which is its image's too; None if building will refuse it anyway."""
    try:
        return read_volume_header(path).geometry
    except (ScanError, OSError):
        return None


def _fingerprint(files: Iterable[Path]) -> str:
    """A digest of names, sizes and times (in seconds) of the files; "" if one is missing.

    A file that holds the voxels of a header among them is one of them.

    Only a digest, because the names of DICOM files may tell who the patient is.
    """
    try:
        stats = [(file.name, file.stat()) for file in with_detached(files)]
    except OSError:
        return ""
    lines = sorted(f"{name}|{stat.st_size}|{int(stat.st_mtime)}" for name, stat in stats)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# Names and folders


def _beside(path: Path, suffix: str) -> Path:
    """The file of an entry with this ending; names of scans may hold dots."""
    return path.with_name(path.name + suffix)


def _file_name(name: str) -> str:
    """A scan's name as a file name on every system."""
    safe = quote(name, safe=" ()+,=@").replace("~", "%7E")
    if safe[0] in ". " or safe[-1] in ". ":
        safe = f"_{safe}_"
    if len(safe) <= 120:
        return safe
    return f"{safe[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _glob_escaped(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _existing(folder: Path) -> Path:
    """The folder itself or the nearest one above it that exists."""
    place = folder.absolute()
    return next((p for p in (place, *place.parents) if p.exists()), place)


def _recipe_folders(root: Path) -> list[Path]:
    """Folders named like the key of a recipe: no other folder is ever looked into."""
    if not root.is_dir():
        return []
    named = re.compile(rf"[0-9a-f]{{12}}({_PLAIN_FOLDER})?")
    return sorted(p for p in root.iterdir() if named.fullmatch(p.name) and p.is_dir())


def _stem(file: Path) -> str:
    suffix = next((s for s in _SUFFIXES if file.name.endswith(s)), None)
    return file.name.removesuffix(suffix) if suffix else ""


def _entries(folder: Path) -> dict[str, list[Path]]:
    """Files of a recipe's folder by entry; files that are none of ours are left out."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if file.name[0] != "." and (stem := _stem(file)):
            found.setdefault(stem, []).append(file)
    return found


def _recipe_use(folder: Path) -> RecipeUse:
    entries = _entries(folder)
    metas = {stem: meta for stem in entries if (meta := _read_meta(folder / stem)) is not None}
    used = [_beside(folder / stem, _META).stat().st_mtime for stem in metas]
    sizes = [file.stat().st_size for files in entries.values() for file in files]
    recipe = next((Recipe(**meta["recipe"]) for meta in metas.values()), None)
    return RecipeUse(
        key=folder.name,
        recipe=recipe,
        entries=len(metas),
        bytes=sum(sizes),
        last_used=max(used, default=0.0),
    )


def _prune_folder(folder: Path, *, before: float | None) -> PruneReport:
    entries = size = 0
    with _told_as_resource(folder):
        for stem, files in _entries(folder).items():
            meta = _beside(folder / stem, _META)
            # An entry without json is cut off, or being written at this moment.
            newest = max(file.stat().st_mtime for file in ([meta] if meta in files else files))
            limit = before if meta in files else time.time() - _ABANDONED_S
            if limit is not None and newest >= limit:
                continue
            size += sum(file.stat().st_size for file in files)
            entries += meta in files
            # The json first: without it the rest is no entry for anybody.
            for file in sorted(files, key=lambda f: f != meta):
                file.unlink(missing_ok=True)
            (folder / _LOCKS / f"{stem}.lock").unlink(missing_ok=True)
        size += _remove_abandoned(folder)
        _remove_empty(folder)
    return PruneReport(entries=entries, bytes=size)


def _remove_abandoned(folder: Path) -> int:
    """Remove temporary files that no writer can still be at; returns their size."""
    size = 0
    for file in folder.glob(".*.tmp"):
        if file.stat().st_mtime < time.time() - _ABANDONED_S:
            size += file.stat().st_size
            file.unlink(missing_ok=True)
    return size


def _remove_empty(folder: Path) -> None:
    for place in (folder / _LOCKS, folder):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
