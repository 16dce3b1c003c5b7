"""`--devices N`: the command starts itself N times, by the engine of `torch.distributed.run`."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil

from backend.errors import BackendError, Cancelled, Interrupted, UserError

_GRACE_S = 900
"""How long processes may take to end their step and save, before they are killed."""

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")


def launch(processes: int, *, device: str) -> int:
    """Run this same command in several processes that train together.

    Args:
        processes: how many.
        device: as given with --device.

    Returns:
        The exit code of the process that leads.

    Raises:
        UserError: if there are fewer GPUs, or the device is one alone.
        BackendError: if the process that leads was killed.
    """
    check_devices(processes, device)
    os.environ.update(environment_of(processes))
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # It tells at length what the processes themselves tell in a line; each of its loggers has a
    # level of its own.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).disabled = True
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="none",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle=",".join(_SIGNALS),
        shutdown_timeout=_GRACE_S,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "backend", *sys.argv[1:])
    except ChildFailedError as failed:
        return _exit_code(failed.failures)
    except SignalException as ended:
        return Cancelled.exit_code if ended.sigval.name == "SIGINT" else Interrupted.exit_code
    finally:
        # Somebody who asks three times does not want to wait.
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    return 0


def check_devices(processes: int, device: str) -> None:
    """Refuse what so many processes cannot compute on.

    Raises:
        UserError: if there are fewer GPUs, or the device is one alone.
    """
    if device == "mps" or ":" in device:
        raise UserError(
            f"--device {device} is one device, and --devices asks for {processes} processes.",
            "Use --device cuda or cpu, or leave out --devices.",
        )
    if device == "cpu":
        return
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # Without a GPU `auto` is the processor, which several processes can share.
    if (found or device == "cuda") and found < processes:
        raise UserError(
            f"--devices {processes}: PyTorch {torch.__version__} sees {found} CUDA GPUs.",
            f"Use --devices {found}." if found else "Use --device cpu, or see `backend doctor`.",
        )


def environment_of(processes: int) -> dict[str, str]:
    """Each process gets its part of the cores, and they meet on this machine alone.

    What the user has set stays and is left out.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wanted = {"OMP_NUM_THREADS": str(max(1, (cores or 1) // processes))}
    interfaces = {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}
    if interfaces:
        wanted["GLOO_SOCKET_IFNAME"] = interfaces.pop()
    return {name: value for name, value in wanted.items() if name not in os.environ}


def _exit_code(failures: Mapping[int, Any]) -> int:
    """That of the process that leads."""
    first = failures.get(0)
    if first is None:
        return BackendError.exit_code
    if first.exitcode < 0:
        # It could not say so itself.
        raise BackendError(
            f"The first of the processes was ended by {signal.Signals(-first.exitcode).name}.",
            "Continue with --resume: no more than the steps since the last checkpoint is lost.",
        )
    return int(first.exitcode)
