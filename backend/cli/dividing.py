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
    require_count("--devices", devices)
    return devices > 1 and place().size == 1


def require_count(option: str, count: int | None, *, most: int | None = None) -> None:
    """Refuse a number of processes that cannot be; None is left to the command.

    Args:
        option: that it was given with.
        count: how many.
        most: are allowed; None: any.

    Raises:
        UserError: naming option and number.
    """
    if count is None:
        return
    if count < 1:
        raise UserError(f"{option} {count}: at least one is needed.", f"Leave out {option}.")
    if most is not None and count > most:
        raise UserError(f"{option} {count}: at most {most} are allowed.", "Lower it.")


def in_processes(devices: int, device: str) -> NoReturn:
    """Do what this process was asked for in several others, and end as they do.

    Args:
        devices: how many processes.
        device: which each of them is told to compute on.
    """
    from backend.launch import launch

    sys.exit(launch(devices, device=device))
