"""What a warm worker keeps between requests, and how it labels a scan or a part of one.

A part is labelled by exactly those windows that would have a say in it if the whole scan were: the
result is the whole one cut to the part, at the price of the windows around it alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from backend.data.labels import Label
from backend.data.preprocess import preprocess
from backend.data.readers import (
    BRIGHTEST_TISSUE_HU,
    HU_CEILING,
    HU_FLOOR,
    LARGEST_BRIGHT_SHARE,
    SMALLEST_HU_RANGE,
)
from backend.errors import ResourceError, ScanError
from backend.geometry import Geometry, Index3, Volume, index3
from backend.inference.predictor import (
    Predictor,
    Seen,
    intensity_tensor,
    load_predictor,
    told_as_resource_error,
)
from backend.inference.regrid import axis_coordinates, labels_on_grid
from backend.inference.sliding import Progress, Sliding, _starts, stream_logits
from backend.weights import MODEL_FILES, resolve_weights

Stamp = tuple[object, ...]
"""Tells a file from what stood at its path before."""


def file_stamp(path: Path) -> Stamp:
    """What changes whenever a file is written again."""
    found = path.stat()
    return str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@dataclass(frozen=True, kw_only=True)
class Held:
    """A network in memory.

    Attributes:
        file: its weights.
        stamp: of that file when it was read.
        predictor: the network, ready.
        memory: bytes of its parameters and buffers.
    """

    file: Path
    stamp: Stamp
    predictor: Predictor
    memory: int


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A network for a request.

    Attributes:
        held: the network.
        reused: whether it was in memory already.
        unloaded: weights that had to make room for it.
    """

    held: Held
    reused: bool
    unloaded: tuple[Path, ...] = ()


class Models:
    """Networks on one device within a memory budget; the one longest unused goes first.

    Args:
        device: where they live.
        budget: bytes for parameters and buffers of all networks together.
    """

    def __init__(self, device: torch.device, *, budget: int) -> None:
        self.device = device
        self._budget = budget
        # Replaced as a whole, never changed: another thread may be reading it.
        self.held: tuple[Held, ...] = ()

    def take(self, path: Path) -> Taken:
        """The network of a weights file or run folder, loaded if it is not here as it now stands.

        Raises:
            UserError: as `load_predictor`.
            ResourceError: if it alone exceeds the budget, or memory does not suffice.
        """
        file = resolve_weights(path, prefer=MODEL_FILES).resolve()
        stamp = file_stamp(file)
        found = next((held for held in self.held if held.stamp == stamp), None)
        if found is not None:
            self.held = (*(held for held in self.held if held is not found), found)
            return Taken(held=found, reused=True)
        # Outdated weights are of no more use to anybody.
        self.drop(file)
        unloaded = self._make_room(file, file.stat().st_size)
        predictor = load_predictor(file, device=str(self.device))
        tensors = predictor.network.state_dict().values()
        memory = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        held = Held(file=file, stamp=stamp, predictor=predictor, memory=memory)
        self.held = (*self.held, held)
        return Taken(held=held, reused=False, unloaded=unloaded)

    def drop(self, file: Path | None = None) -> tuple[Path, ...]:
        """Forget the network of a weights file, or all of them; those that were held are told."""
        gone = tuple(held.file for held in self.held if file in {None, held.file})
        self.held = tuple(held for held in self.held if held.file not in gone)
        return gone

    def _make_room(self, file: Path, needed: int) -> tuple[Path, ...]:
        if needed > self._budget:
            raise ResourceError(
                f"{file}: needs {needed / 2**20:.0f} MB, more than the worker's "
                f"{self._budget / 2**20:.0f} MB for models.",
                "Start the worker with a larger --model-memory-mb.",
            )
        gone: tuple[Path, ...] = ()
        while sum(held.memory for held in self.held) + needed > self._budget:
            gone += self.drop(self.held[0].file)
        return gone


class Phases:
    """How long each phase of a request takes.

    Args:
        between: told the name of every phase that begins; may raise to end the work.
    """

    def __init__(self, between: Callable[[str], None] = lambda _name: None) -> None:
        self.seconds: dict[str, float] = {}
        self._between = between
        self._name = ""
        self._since = time.perf_counter()

    def begin(self, name: str = "") -> None:
        """End the current phase and begin another, or none."""
        now = time.perf_counter()
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now
        if name:
            self._between(name)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A scan as a network sees it.

    Attributes:
        source: the scan's own grid.
        geometry: the grid of the network's input.
        seen: the input.
    """

    source: Geometry
    geometry: Geometry
    seen: Seen


@dataclass(frozen=True, kw_only=True)
class Region:
    """A box of voxels along (z, y, x)."""

    start: Index3
    size: Index3

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index."""
        z, y, x = (slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))
        return z, y, x


def preparation_key(predictor: Predictor) -> str:
    """Equal keys prepare a scan equally."""
    return predictor.recipe.key() + json.dumps(
        [predictor.header.preprocessing[name] for name in ("hu_window", "intensity")]
    )


def prepare(predictor: Predictor, volume: Volume) -> Prepared:
    """Bring a scan, HU on any grid, to the network's grid and values.

    Raises:
        ResourceError: if memory does not suffice.
    """
    with told_as_resource_error(predictor.batch_size, predictor.device):
        brought = preprocess(volume, predictor.recipe)
        seen = intensity_tensor(brought.voxels, predictor.header.preprocessing)
    return Prepared(source=volume.geometry, geometry=brought.geometry, seen=seen)


def label_region(
    predictor: Predictor,
    scan: Prepared,
    region: Region | None,
    *,
    labels: Sequence[Label] | None = None,
    phases: Phases,
    should_stop: Callable[[], bool] | None = None,
    progress: Progress | None = None,
) -> Volume:
    """Labels of a box of the scan, or of all of it, as `Predictor.segment` would give there.

    Args:
        predictor: the network.
        scan: prepared for it.
        region: in voxels of the scan's own grid, inside it; None means the whole scan.
        labels: that are wanted, all others become background; None means all.
        phases: gets the time of "network" and "labels".
        should_stop: asked before every forward pass.
        progress: told `(windows done, windows in all)`.

    Returns:
        uint8 or int16 label values on the grid of the box.

    Raises:
        Cancelled: when `should_stop` says so.
        ResourceError: if memory does not suffice.
        UserError: if network and labels do not belong together.
    """
    wanted = predictor.labels if labels is None else labels
    values = (0, *(label.value if label in wanted else 0 for label in predictor.labels))
    target = scan.source if region is None else scan.source.cropped(region.start, region.size)
    # The package's own choice of batch, precision and place, so that it is made once.
    sliding = replace(
        predictor._sliding(scan.geometry.size, classes=len(values)), air=scan.seen.air
    )
    part = _reach(scan.geometry, target, sliding)
    with told_as_resource_error(predictor.batch_size, predictor.device):
        slabs = stream_logits(
            predictor.network,
            scan.seen.image[(slice(None), *part.slices)],
            sliding,
            classes=len(values),
            should_stop=should_stop,
            progress=progress,
        )
        return labels_on_grid(
            _timed(slabs, phases),
            from_geometry=scan.geometry.cropped(part.start, part.size),
            to_geometry=target,
            values=values,
        )


def read_array(file: Path, geometry: Geometry, *, kind: str) -> Volume:
    """A CT from a plain array file, mapped into memory, as `read_volume` would give it.

    Args:
        file: NumPy's .npy, or bare numbers in C order and this machine's byte order.
        geometry: its grid; array and `geometry.size` are (z, y, x).
        kind: NumPy's name for the type of bare numbers; that of a .npy must be equal.

    Returns:
        int16 HU, rounded, clipped into -1024 to 32767.

    Raises:
        ScanError: if the file does not hold such an array, or its values cannot be HU.
    """
    if not file.is_file():
        raise ScanError(f"{file}: no such file.", "Write the array before asking for it.")
    stored = _mapped(file, geometry.size, kind)
    voxels = np.empty(geometry.size, dtype=np.int16)
    low, high, bright = np.inf, -np.inf, 0
    for z, plane in enumerate(stored):
        if not np.isfinite(plane).all():
            raise ScanError(f"{file}: NaN or infinite voxels in plane {z}.", "Give HU.")
        low, high = min(low, float(plane.min())), max(high, float(plane.max()))
        bright += int(np.count_nonzero(plane > BRIGHTEST_TISSUE_HU))
        # Unsigned numbers hold no floor to clip to.
        wide = plane if plane.dtype.kind == "f" else plane.astype(np.int32)
        voxels[z] = np.rint(np.clip(wide, HU_FLOOR, HU_CEILING))
    if low >= 0 or high - low < SMALLEST_HU_RANGE or bright > LARGEST_BRIGHT_SHARE * voxels.size:
        raise ScanError(
            f"{file}: not HU: values from {low:.6g} to {high:.6g}, {bright} of {voxels.size} "
            f"above {BRIGHTEST_TISSUE_HU}.",
            "Give a CT in Hounsfield units.",
        )
    return Volume(voxels, geometry)


def _mapped(file: Path, size: Index3, kind: str) -> NDArray[Any]:
    wanted = np.dtype(kind)
    if file.suffix == ".npy":
        try:
            stored = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as e:
            raise ScanError(f"{file}: no array file ({e}).", "Write it by numpy.save.") from None
        if stored.shape != size or stored.dtype != wanted:
            raise ScanError(
                f"{file}: holds {stored.dtype} {stored.shape}, not {wanted} {size}.",
                "Tell size (z, y, x) and type of the array as it is.",
            )
        return np.asarray(stored)
    present, needed = file.stat().st_size, wanted.itemsize * int(np.prod(size, dtype=object))
    if present != needed:
        raise ScanError(
            f"{file}: {present} bytes where {wanted} {size} needs {needed}.",
            "Tell size (z, y, x) and type of the array as it is.",
        )
    return np.memmap(file, dtype=wanted, mode="r", shape=size)


def _reach(grid: Geometry, target: Geometry, sliding: Sliding) -> Region:
    """The part of `grid` that is covered by all windows with a say in a voxel of `target`.

    Windows begin at multiples of one step, the last ends with the grid; so on this part they lie
    where they would lie on the whole grid.
    """
    _, coordinates = axis_coordinates(grid, target)
    spans = [
        _span(c, size=n, window=w, overlap=sliding.overlap)
        for c, n, w in zip(coordinates, grid.size, sliding.window, strict=True)
    ]
    return Region(
        start=index3([first for first, _ in spans]), size=index3([b - a for a, b in spans])
    )


def _span(
    coordinates: NDArray[np.float64], *, size: int, window: int, overlap: float
) -> tuple[int, int]:
    """First and one past the last voxel along an axis; what lies beyond the grid takes its end."""
    if size <= window:
        return 0, size
    # Interpolation asks the planes on both sides.
    low = int(np.clip(np.floor(coordinates.min()), 0, size - 2))
    high = int(np.clip(np.floor(coordinates.max()) + 1, 1, size - 1))
    starts = _starts(size, window, overlap)
    touching = [start for start in starts if start <= high and start + window > low]
    return touching[0], touching[-1] + window


def _timed(
    slabs: Iterator[tuple[int, Float[Tensor, "k dz y x"]]], phases: Phases
) -> Iterator[tuple[int, Float[Tensor, "k dz y x"]]]:
    """The same slabs; what makes them is "network", what is done with them "labels"."""
    while True:
        phases.begin("network")
        slab = next(slabs, None)
        phases.begin("labels")
        if slab is None:
            return
        yield slab
