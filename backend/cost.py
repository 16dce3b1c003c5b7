"""What a training step costs, told without taking it: arithmetic, traffic and memory.

A step is taken on torch's meta device, where tensors have shapes and no numbers, while an observer
counts what passes: floating point operations of matrix products and convolutions, bytes that
everything else reads and writes, and how many bytes are alive at once. How fast this machine does
each of the three is measured in a moment; the sum is the time of a step (a roofline without
overlap, Williams et al. 2009, doi:10.1145/1498765.1498785).
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from mmap import mmap
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from backend.settings.common import triple
from backend.settings.views import ViewConfig
from backend.tuning import MAP_BYTES, maps_large_blocks
from backend.views.crops import View, ViewSet

if TYPE_CHECKING:
    from backend.config import PretrainConfig

_aten = torch.ops.aten
_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu
_CONVOLUTIONS = frozenset({_aten.convolution, _aten.convolution_backward})
GAPS = 0.15
"""Memory that a processor's tensors leave unused, as a part of theirs: what was freed between them
and fits no other one. From 0.06 to 0.43 with the full-size presets (docs/many_processes.md)."""
_TRIES, _PAUSE_S = 20, 0.1
_FEW = 2
"""Scans that are counted with, and one more: the rest is a line."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one optimizer step.

    Attributes:
        product_flop: operations in matrix products, attention among them.
        convolution_flop: likewise in convolutions.
        traffic_bytes: read and written by everything else.
        mapped_bytes: of tensors so large that each is mapped anew (`backend.tuning`).
        peak_bytes: alive at once at most: weights, gradients, moments and activations in fp32.
    """

    product_flop: float
    convolution_flop: float
    traffic_bytes: float
    mapped_bytes: float
    peak_bytes: float

    def seconds(self, rates: Rates) -> float:
        """The time of a step on a machine of such rates."""
        return (
            self.product_flop / rates.product_flop
            + self.convolution_flop / rates.convolution_flop
            + self.traffic_bytes / rates.traffic_bytes
            + self.mapped_bytes / rates.mapped_bytes
        )


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device does in a second.

    Attributes:
        product_flop: operations in products of long, narrow matrices.
        convolution_flop: likewise in convolutions of one and of 3x3x3 voxels, with gradients.
        traffic_bytes: read and written by operations whose results lie in kept memory.
        mapped_bytes: of pages that the system clears before they are first written to; infinite
            where large tensors lie in kept memory as well.
    """

    product_flop: float
    convolution_flop: float
    traffic_bytes: float
    mapped_bytes: float


def step_cost(config: PretrainConfig) -> Cost:
    """The cost of an optimizer step with the settings of a pretraining run.

    A batch in `accumulate` parts costs the arithmetic of all and the memory of one.
    """
    scans = config.train.batch_size // config.train.accumulate
    # Of one scan the weights' gradients are much of the memory, which then follows no line.
    first = min(scans, _FEW)
    few, more = (_counted(config, samples) for samples in (first, first + 1))
    share = scans - first

    def line(a: float, b: float) -> float:
        return a + (b - a) * share

    # Which tensors are large follows from the size of each, not from their sum; where further scans
    # make further tensors, as chunks do, those of so many scans are counted.
    alike = len(few.made) == len(more.made)
    made = map(line, few.made, more.made) if alike else _counted(config, scans).made
    return Cost(
        product_flop=line(few.product_flop, more.product_flop),
        convolution_flop=line(few.convolution_flop, more.convolution_flop),
        traffic_bytes=line(few.traffic_bytes, more.traffic_bytes),
        mapped_bytes=sum(size for size in made if size > MAP_BYTES),
        peak_bytes=line(few.peak_bytes, more.peak_bytes),
    )


def bytes_per_scan(config: PretrainConfig) -> float:
    """Memory that one more scan in a part of the batch takes, in fp32."""
    few, more = (_counted(config, samples) for samples in (_FEW, _FEW + 1))
    return more.peak_bytes - few.peak_bytes


@cache
def rates_of(device: torch.device) -> Rates:
    """Measured in some seconds, once in a process, as far as nothing else disturbs.

    Other programs, or other users of a shared host, slow a machine down for moments; so each rate
    is the best of tries that are spread over that time.
    """
    gpu = device.type == "cuda"
    rows, voxels, numbers = (2**20, 64, 2**28) if gpu else (2**14, 24, 2**23)
    tokens, weight = torch.rand(rows, 96, device=device), torch.rand(96, 384, device=device)
    block = torch.rand(numbers // 64, 64, device=device)
    bottleneck = _Bottleneck(device=device)
    image = torch.rand(2, 256, voxels, voxels, voxels, device=device)
    with Observer(()) as seen:
        bottleneck(image)
    large = torch.empty(2 * MAP_BYTES, dtype=torch.uint8)
    product, convolution, traffic, written, mapped = _least(
        lambda: tokens @ weight,
        lambda: bottleneck(image),
        # Much of what is moved in a step is moved out of order.
        lambda: F.layer_norm(block, (64,)).T.contiguous(),
        lambda: large.fill_(1),
        lambda: torch.frombuffer(mmap(-1, large.nbytes), dtype=torch.uint8).fill_(1),
    )
    cleared = max(mapped - written, 1e-3 * mapped)
    kept = gpu or not maps_large_blocks()
    return Rates(
        product_flop=2 * tokens.numel() * 384 / product,
        convolution_flop=seen.convolution_flop / convolution,
        traffic_bytes=4 * block.nbytes / traffic,
        mapped_bytes=math.inf if kept else large.nbytes / cleared,
    )


class _Bottleneck:
    """The three convolutions of a residual block, forward and backward."""

    def __init__(self, *, device: torch.device) -> None:
        sizes = ((64, 256, 1), (64, 64, 3), (256, 64, 1))
        self._kernels = [
            torch.full((out, into, k, k, k), 1e-3, device=device, requires_grad=True)
            for out, into, k in sizes
        ]

    def __call__(self, image: Tensor) -> Tensor:
        x = image
        for kernel in self._kernels:
            x = F.conv3d(x, kernel, padding=kernel.shape[-1] // 2)
        return torch.autograd.grad(x.sum(), self._kernels)[0]


def views_of_noise(config: PretrainConfig, *, samples: int, device: torch.device) -> ViewSet:
    """Views of the shapes that a batch has."""

    def view(edges: Any) -> View:
        image = torch.rand(samples, 1, *triple(edges), device=device)
        affine = torch.eye(4, dtype=torch.float64, device=device).expand(samples, 4, 4)
        return View(image, affine, torch.arange(samples, device=device))

    def views(settings: ViewConfig | None) -> tuple[View, ...]:
        return () if settings is None else tuple(view(settings.size) for _ in range(settings.count))

    return ViewSet(views(config.views.main), views(config.views.local))


def _least(*works: Callable[[], Tensor]) -> list[float]:
    """Seconds of the fastest try of each; they take turns, with pauses between."""
    times = [math.inf for _ in works]
    for _ in range(_TRIES):
        for place, work in enumerate(works):
            began = time.perf_counter()
            # Reading one number waits for the device.
            float(work().flatten()[0])
            times[place] = min(times[place], time.perf_counter() - began)
        time.sleep(_PAUSE_S)
    return times


@cache
def _counted(config: PretrainConfig, samples: int) -> Observer:
    """What a step does with so many scans in each part of the batch."""
    from backend.methods import build_method
    from backend.training import optimizer_of

    with torch.device("meta"):
        method = build_method(config.method, epochs=config.train.epochs).train()
        views = views_of_noise(config, samples=samples, device=torch.device("meta"))
    learned = [p for p in method.parameters() if p.requires_grad]
    optimizer = optimizer_of(config.train, method.named_parameters())
    fused = optimizer.defaults.get("fused")
    moments = [torch.empty_like(p) for p in (*learned, *learned)] if fused else []
    observer = Observer((*method.parameters(), *method.buffers(), *moments))
    with observer, FusedAttention():
        # The first step may make an optimizer's moments; the second is one of many.
        for _ in range(1 if fused else 2):
            optimizer.zero_grad(set_to_none=True)
            observer.reset()
            torch.autograd.backward(method(views, 0.0).total)
            observer.multiply(config.train.accumulate)
            if fused:
                # It does not run without numbers: four are read and three written for each weight.
                observer.traffic_bytes += 7 * sum(p.nbytes for p in learned)
            else:
                optimizer.step()
            method.after_step(0.0)
    return observer


def _attention(q: Tensor, k: Tensor, *_: Any, **__: Any) -> int:
    """Logits and sums, of 2 operations for each pair of tokens and channel."""
    return 2 * 2 * q.numel() * k.shape[-2]


def _attention_backward(_: Tensor, q: Tensor, k: Tensor, *__: Any, **___: Any) -> int:
    """Logits anew, and four gradients."""
    return 5 * 2 * q.numel() * k.shape[-2]


_PRODUCTS: Mapping[Any, Callable[..., int]] = {
    **{op: flop_registry[op] for op in (_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm)},
    _aten.addmm_: flop_registry[_aten.addmm],
    _ATTENTION: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the work of the operations under it, and tells how many bytes live at once.

    Args:
        present: tensors that are there before.

    Attributes:
        product_flop: as in `Cost`.
        convolution_flop: likewise.
        traffic_bytes: likewise.
        peak_bytes: likewise.
        made: bytes of each new tensor.
    """

    def __init__(self, present: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live = 0
        self._known: dict[int, Any] = {}
        self.reset()
        for tensor in present:
            self._see(tensor)

    def reset(self) -> None:
        """Begin anew with what is alive."""
        self.product_flop = self.convolution_flop = self.traffic_bytes = 0.0
        self.peak_bytes: float = self._live
        self.made: list[int] = []

    def multiply(self, times: int) -> None:
        """Take what was done so far so many times."""
        self.product_flop *= times
        self.convolution_flop *= times
        self.traffic_bytes *= times
        self.made *= times

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        # What is read may have been made before: a mask that is kept, or the views.
        for tensor in read:
            self._see(tensor)
        for tensor in made:
            self.made += self._see(tensor)
        kind = func._overloadpacket
        if kind in _CONVOLUTIONS:
            self.convolution_flop += flop_registry[kind](*args, **kwargs, out_val=out)
        elif kind in _PRODUCTS:
            self.product_flop += _PRODUCTS[kind](*args, **kwargs, out_val=out)
        elif func._schema.is_mutable or not _views(made, read):
            self.traffic_bytes += sum(t.nbytes for t in (*read, *made))
        return out

    def _see(self, tensor: Tensor) -> list[int]:
        """Bytes of a tensor's storage if it is a new one."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return []

        def gone(_: Any) -> None:
            self._live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self._live += size
        self.peak_bytes = max(self.peak_bytes, self._live)
        return [size]


def _views(made: Iterable[Tensor], read: Iterable[Tensor]) -> bool:
    """Whether results only look at what was there."""
    there = {tensor.untyped_storage()._cdata for tensor in read}
    return any(tensor.untyped_storage()._cdata in there for tensor in made)


class FusedAttention(TorchFunctionMode):
    """Attention as a device takes it, which never holds all logits.

    By itself the meta device writes them out.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take the fused way where attention is asked for."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _ATTENTION(*args, **kwargs)[0]
        return func(*args, **kwargs)
