"""Which device to compute on, and what arithmetic it is good at."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from typing import Literal

import torch

from backend.errors import UserError

Precision = Literal["auto", "fp32", "bf16"]


def resolve_device(name: str) -> torch.device:
    """The device of a name: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.

    `auto` takes the first GPU, else Apple's, else the processor.

    Raises:
        UserError: if the name is unknown or the machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"There is no device {name!r}.", "Use auto, cpu, cuda, cuda:0, cuda:1 ... or mps."
        ) from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(
                f"Device {name!r} is not there: PyTorch {torch.__version__} sees "
                f"{count} CUDA GPUs.",
                "Use --device auto or cpu, or see `backend doctor`.",
            )
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(f"Device {name!r} is not there.", "Use --device auto or cpu.")
    elif device.type != "cpu":
        raise UserError(f"Device {name!r} is not supported.", "Use auto, cpu, cuda or mps.")
    return device


def device_text(device: torch.device, *, processes: int = 1) -> str:
    """The device in words, for the log and the report; of several processes that of the first."""
    several = "" if processes == 1 else f", one of {processes} processes"
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)}{several})"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'s' * (threads != 1)}{several})"
    return str(device)


def use_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether to compute in bf16: on request, or where a GPU does it natively.

    Never by itself on a processor, most of which are many times slower in bf16.
    """
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


def autocast(device: torch.device, *, bf16: bool) -> contextlib.AbstractContextManager[None]:
    """Context in which matrix products are computed in bf16, if asked."""
    if not bf16:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def memory_mb(device: torch.device) -> float:
    """Peak memory so far: the GPU's where there is one, else the process's; MB of 1024 squared."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device) / 2**20)
    import psutil

    return float(psutil.Process().memory_info().rss / 2**20)


def give_back_memory() -> None:
    """Return to the system what was freed: pieces of it do not serve a request of another size.

    An error that broke a computation off may hold its tensors in a cycle, so these are looked for.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_memory()


def trim_memory() -> None:
    """Return freed memory of the processor alone; C libraries other than glibc are left alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
