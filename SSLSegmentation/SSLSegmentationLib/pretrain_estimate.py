"""What a pretraining would cost: the answer of its dry run, reckoned for any length."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from slicer.i18n import tr as _

from SSLPretrainLogic.errors import LogicError

LengthKind = Literal["preset", "epochs", "steps", "hours"]
LENGTHS: tuple[LengthKind, ...] = ("preset", "epochs", "steps", "hours")


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long to learn; the value says nothing where the preset decides."""

    kind: LengthKind
    value: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The answer of `backend pretrain --dry-run --json`; see there."""

    device: str
    precision: str
    memory_mb: int
    memory_free_mb: int
    seconds_per_step: float
    steps_per_epoch: float
    total_steps: int
    scans_to_prepare: int
    preparation_s: float
    cache_bytes: int
    disk_free_bytes: int
    problem: str

    def steps(self, length: Length) -> int:
        """Steps of a run of a length; below 1 if hours do not even suffice to prepare the scans."""
        if length.kind == "preset":
            return self.total_steps
        if length.kind == "steps":
            return int(length.value)
        if length.kind == "epochs":
            return math.ceil(length.value * self.steps_per_epoch)
        left_s = length.value * 3600 - self.preparation_s
        return math.floor(left_s / max(self.seconds_per_step, 1e-6))

    def seconds(self, length: Length) -> float:
        """Time of a run of a length, the preparation of its scans included."""
        return self.preparation_s + self.steps(length) * self.seconds_per_step


def parse(answer: Any) -> Estimate:
    """The estimate in an answer.

    Raises:
        LogicError: if it is none.
    """
    try:
        return Estimate(**{field.name: answer[field.name] for field in fields(Estimate)})
    except (KeyError, TypeError):
        raise LogicError(
            _("The backend's estimate cannot be read."),
            _("Update the Python chosen under 1. Setup."),
        ) from None


def rows(estimate: Estimate, length: Length) -> dict[str, str]:
    """What is shown, by the end of the name of its label."""
    e = estimate
    time = _("{time} for {steps:,} steps").format(
        time=duration(e.seconds(length)), steps=e.steps(length)
    )
    if e.scans_to_prepare:
        time += _(", of it at most {time} to prepare {count} scans").format(
            time=duration(e.preparation_s), count=e.scans_to_prepare
        )
    return {
        "Time": time,
        "Step": _("{seconds:.2g} s").format(seconds=e.seconds_per_step)
        if e.seconds_per_step < 10
        else duration(e.seconds_per_step),
        "Memory": _("{used} of {free} free").format(
            used=size(e.memory_mb * 2**20), free=size(e.memory_free_mb * 2**20)
        ),
        "Disk": _("{used} of {free} free").format(
            used=size(e.cache_bytes), free=size(e.disk_free_bytes)
        ),
        "Device": f"{e.device}, {e.precision}",
    }


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    left = max(round(seconds), 1)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    first = next(i for i, (_name, length) in enumerate(units) if left >= length)
    parts = []
    for name, length in units[first : first + 2]:
        count, left = divmod(left, length)
        parts += [f"{count} {name}"] if count else []
    return " ".join(parts)


def size(count: float) -> str:
    """A size in powers of 1000, as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB" if count < 1000 else f"{count / 1000:.1f} TB"
