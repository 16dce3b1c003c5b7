"""What a run needs to continue exactly: plain containers, whole files, no unpickling."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from backend.errors import UserError
from backend.files import written_whole

SCHEMA = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, texts, lists, dicts) so that it is whole or not there."""
    with written_whole(path) as part, part.open("wb") as stream:
        try:
            torch.save({"schema": SCHEMA, **state}, stream)
        except RuntimeError as error:
            # torch covers the system's error with one of its own.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU.

    Raises:
        UserError: if the file is missing, damaged or of another version.
    """
    if not path.exists():
        raise UserError(
            f"{path}: there is no checkpoint yet.", "Delete the run folder and start again."
        )
    try:
        # torch writes a checksum of every tensor and never looks at it.
        with zipfile.ZipFile(path) as archive:
            spoilt = archive.testzip()
        if spoilt is not None:
            raise ValueError(f"{spoilt} has another checksum")
        state: dict[str, Any] = dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        # torch raises many kinds here (RuntimeError, EOFError, UnpicklingError, KeyError ...).
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path}: is damaged ({first[:80]}).", "Delete the run folder and start again."
        ) from None
    if state.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: has version {state.get('schema')}, this program reads {SCHEMA}.",
            "Resume with the version that wrote it.",
        )
    return state
