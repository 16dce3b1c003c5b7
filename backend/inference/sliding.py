"""Sliding windows over a volume, with memory for one row of windows instead of all logits.

Windows overlap by half, weighted by a Gaussian, as MONAI's `sliding_window_inference` does (same
grid of windows, same importance map, same padding), so that both agree where there is no air.
Logits are summed in float32 always: half precision in the sums changes up to 4 % of the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from backend.errors import Cancelled, UserError
from backend.geometry import Index3, index3

Network = Callable[[Float[Tensor, "b 1 z y x"]], Float[Tensor, "b k z y x"]]
Progress = Callable[[int, int], None]
Precision = Literal["fp32", "fp16", "bf16"]

_SIGMA = 0.125
"""Standard deviation of the importance map, in window edges."""
_SLAB_BYTES = 16 << 20
"""A finished slab is handed out in pieces of about this size."""
_SMALL_EDGE = 64
"""Below this edge a window is small: alone, it would not get PyTorch's fast convolutions."""


@dataclass(frozen=True, kw_only=True)
class Sliding:
    """How windows slide over a volume.

    Attributes:
        window: edge lengths of a window in voxels (z, y, x).
        overlap: share of a window that the next one covers again, in [0, 1).
        batch_size: windows per forward pass.
        device: where the network lives; a window is sent there just before its pass.
        accumulate_on: where logits are summed; "cpu" spares a small device's memory.
        precision: of the forward pass alone. "fp16" and "bf16" use autocast; windows whose logits
            overflow are computed again in float32.
        air: value of the darkest there is, which a small volume is padded with; a window in which
            no voxel exceeds it is not evaluated and has no say.
    """

    window: Index3
    overlap: float = 0.5
    batch_size: int = 1
    device: torch.device | str = "cpu"
    accumulate_on: torch.device | str = "cpu"
    precision: Precision = "fp32"
    air: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot slide."""
        if min(self.window) < 1 or not 0 <= self.overlap < 1 or self.batch_size < 1:
            raise ValueError(f"cannot slide with {self}")


def windows_at_once(window: Index3, device: torch.device) -> int:
    """How many windows of this size go through the network in one pass, where nobody chose.

    On a processor PyTorch takes a convolution that is up to ten times slower for a single small
    volume (it looks at batch, channels, z and y alone); with two it does not. Larger windows, and
    those on a GPU, go one by one, which takes the least memory.
    """
    return 2 if device.type == "cpu" and max(window) < _SMALL_EDGE else 1


def sliding_logits(
    network: Network,
    volume: Float[Tensor, "1 z y x"],
    sliding: Sliding,
    *,
    classes: int,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Float[Tensor, "k z y x"]:
    """All logits of a volume at once; `stream_logits` does the same in slabs."""
    result = torch.empty((classes, *volume.shape[1:]), device=sliding.accumulate_on)
    slabs = stream_logits(
        network, volume, sliding, classes=classes, progress=progress, should_stop=should_stop
    )
    for start, logits in slabs:
        result[:, start : start + logits.shape[1]] = logits
    return result


def stream_logits(
    network: Network,
    volume: Float[Tensor, "1 z y x"],
    sliding: Sliding,
    *,
    classes: int,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[tuple[int, Float[Tensor, "k dz y x"]]]:
    """Yield `(first z, logits)` of adjoining slabs, as soon as no later window touches them.

    Voxels that no evaluated window covers (air all round) are background: logit 1 for class 0 and
    0 for the others. A volume smaller than the window is padded with air on both sides.

    Args:
        network: gives `classes` logits per voxel; already on the device and in evaluation mode.
        volume: on any device, values as the network sees them.
        sliding: the windows.
        classes: number of logits per voxel, background included.
        progress: told `(windows done, windows in all)`; a skipped window counts as done.
        should_stop: asked before every forward pass.

    Raises:
        Cancelled: when `should_stop` says so.
        UserError: if the network gives another number of classes, or logits that are no numbers.
    """
    padded, begin = _padded(volume[0], sliding)
    starts = [
        _starts(n, w, sliding.overlap) for n, w in zip(padded.shape, sliding.window, strict=True)
    ]
    in_plane = list(product(starts[1], starts[2]))
    report = progress or (lambda _done, _total: None)
    total = len(starts[0]) * len(in_plane)
    sums = _Sums.empty(classes, padded.shape, sliding)
    importance = importance_map(sliding.window).to(sliding.accumulate_on)
    for row, z in enumerate(starts[0]):
        tissue = [(y, x) for y, x in in_plane if _holds_tissue(padded, (z, y, x), sliding)]
        report(row * len(in_plane) + len(in_plane) - len(tissue), total)
        for first in range(0, len(tissue), sliding.batch_size):
            if should_stop is not None and should_stop():
                raise Cancelled("Segmentation stopped on request.")
            places = tissue[first : first + sliding.batch_size]
            windows = torch.stack([_cut(padded, (z, y, x), sliding.window) for y, x in places])
            # No name is given to the logits: it would keep them during the next forward pass.
            sums.add(places, _forward(network, windows[:, None], sliding, classes), importance)
            done = row * len(in_plane) + len(in_plane) - len(tissue) + first + len(places)
            report(done, total)
        end = starts[0][row + 1] if row + 1 < len(starts[0]) else padded.shape[0]
        yield from _cropped(sums.finished(end - z), z, begin=begin, size=index3(volume.shape[1:]))
        sums.advance(end - z)


def importance_map(window: Index3) -> Float[Tensor, "z y x"]:
    """Gaussian weights of a window's voxels; MONAI's floor keeps the corners above zero."""
    weights = torch.ones(1)
    for edge in window:
        centred = torch.arange(edge, dtype=torch.float32) - (edge - 1) / 2
        gaussian = torch.exp(-0.5 * (centred / (_SIGMA * edge)) ** 2)
        weights = weights[..., None] * gaussian
    weights = weights[0]
    return weights.clamp_(min=max(float(weights.min()), 1e-3))


@dataclass
class _Sums:
    """Weighted logits of the planes that the current row of windows covers."""

    logits: Float[Tensor, "k wz y x"]
    weights: Float[Tensor, "wz y x"]
    window: Index3

    @staticmethod
    def empty(classes: int, size: torch.Size, sliding: Sliding) -> _Sums:
        shape = (sliding.window[0], size[1], size[2])
        return _Sums(
            torch.zeros((classes, *shape), device=sliding.accumulate_on),
            torch.zeros(shape, device=sliding.accumulate_on),
            sliding.window,
        )

    def add(self, places: Sequence[tuple[int, int]], logits: Tensor, importance: Tensor) -> None:
        """Logits (b, k, wz, wy, wx) of windows, which begin at these (y, x)."""
        for place, one in zip(places, logits.to(self.logits.device), strict=True):
            _, y, x = _box((0, *place), self.window)
            self.logits[:, :, y, x].addcmul_(one, importance)
            self.weights[:, y, x] += importance

    def finished(self, planes: int) -> Iterator[tuple[int, Tensor]]:
        """The first `planes` planes as means, in pieces of bounded size that the caller owns."""
        plane_bytes = self.logits[:, 0].numel() * self.logits.element_size()
        step = max(1, _SLAB_BYTES // plane_bytes)
        for start in range(0, planes, step):
            part = slice(start, min(start + step, planes))
            weights = self.weights[part]
            means = self.logits[:, part] / weights.clamp(min=torch.finfo(weights.dtype).tiny)
            means[0] += weights == 0
            yield start, means

    def advance(self, planes: int) -> None:
        """Forget the first `planes` planes and make room behind the others."""
        kept = self.logits.shape[1] - planes
        # Class by class: moving all at once would need a copy of everything.
        for values in (*self.logits, self.weights):
            values[:kept] = values[planes:].clone()
            values[kept:] = 0


def _starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis; the last window ends with the volume."""
    interval = max(1, int(window * (1 - overlap)))
    return [*range(0, size - window, interval), size - window]


def _padded(volume: Tensor, sliding: Sliding) -> tuple[Tensor, Index3]:
    """The volume, at least as large as the window, and where its first voxel now lies."""
    lacks = [max(w - n, 0) for n, w in zip(volume.shape, sliding.window, strict=True)]
    before = [lack // 2 for lack in lacks]
    sides = [side for b, n in zip(before, lacks, strict=True) for side in (n - b, b)][::-1]
    padded = functional.pad(volume, sides, value=sliding.air) if any(lacks) else volume
    return padded, index3(before)


def _cropped(
    slabs: Iterator[tuple[int, Tensor]], offset: int, *, begin: Index3, size: Index3
) -> Iterator[tuple[int, Tensor]]:
    """Slabs without the padding, their start counted from the volume's own first plane."""
    for start, logits in slabs:
        first = offset + start - begin[0]
        low, high = max(first, 0), min(first + logits.shape[1], size[0])
        if low < high:
            _, y, x = _box(begin, size)
            yield low, logits[:, low - first : high - first, y, x]


def _box(start: Index3, size: Index3) -> tuple[slice, slice, slice]:
    z, y, x = (slice(s, s + n) for s, n in zip(start, size, strict=True))
    return z, y, x


def _cut(volume: Tensor, start: Index3, window: Index3) -> Tensor:
    return volume[_box(start, window)]


def _holds_tissue(volume: Tensor, start: Index3, sliding: Sliding) -> bool:
    return bool(_cut(volume, start, sliding.window).amax() > sliding.air)


def _forward(network: Network, windows: Tensor, sliding: Sliding, classes: int) -> Tensor:
    """Float32 logits of a batch of windows, refused if they are not numbers."""
    windows = windows.to(sliding.device)
    logits = _evaluated(network, windows, sliding.precision)
    if sliding.precision != "fp32" and not _finite(logits):
        logits = _evaluated(network, windows, "fp32")
    if logits.shape[1] != classes:
        raise UserError(
            f"The network gives {logits.shape[1]} classes, but {classes} are named (with "
            "background).",
            "The weights and their list of labels do not belong together.",
        )
    if not _finite(logits):
        raise UserError(
            "The network gives logits that are not numbers.",
            "Its weights are damaged or its training diverged; use an earlier checkpoint.",
        )
    return logits


@torch.inference_mode()
def _evaluated(network: Network, windows: Tensor, precision: Precision) -> Tensor:
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    with torch.autocast(windows.device.type, dtype=half, enabled=precision != "fp32"):
        return network(windows).float()


def _finite(logits: Tensor) -> bool:
    low, high = torch.aminmax(logits)
    return bool(torch.isfinite(low) & torch.isfinite(high))
