"""Commands that start themselves in several processes."""

from __future__ import annotations

import sys
from typing import NoReturn

from backend.engine.distributed import place
from backend.errors import UserError


def to_be_divided(devices: int) -> bool:
    """Whether this process is to start others, and is none of them.

    Raises:
        UserError: if there are to be fewer than one.
    """
    if devices < 1:
        raise UserError(f"--devices {devices}: at least one is needed.", "Leave out --devices.")
    return devices > 1 and place().size == 1


def in_processes(devices: int, device: str) -> NoReturn:
    """Do what this process was asked for in several others, and end as they do.

    Args:
        devices: how many processes.
        device: which each of them is told to compute on.
    """
    from backend.launch import launch

    sys.exit(launch(devices, device=device))
