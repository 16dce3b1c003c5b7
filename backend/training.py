"""What pretraining and fine-tuning share: from a configuration to a loop that can run."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from backend.config import TrainConfig
from backend.data.stall import StallWatch
from backend.data.stream import Batches, Position, stream
from backend.engine.device import autocast, device_text, memory_mb, use_bf16
from backend.engine.distributed import SOLO, Team
from backend.engine.lars import lars
from backend.engine.loop import Loop, Plan, Trainable
from backend.engine.optim import decay_groups
from backend.engine.record import RunFolder
from backend.schedules import cosine, halving, polynomial, warmed_up

log = logging.getLogger("backend")

_LARGE = 20_000_000
"""Parameters from which on a step takes a processor many seconds."""

BatchT = TypeVar("BatchT")
SampleT = TypeVar("SampleT")


@dataclass(frozen=True, kw_only=True)
class Samples(Generic[SampleT, BatchT]):
    """Where batches come from.

    Attributes:
        count: samples in an epoch.
        read: reads the sample at a position.
        collate: makes a part of a batch of samples.
        workers: threads that read ahead.
        watch: tells when a batch does not come.
    """

    count: int
    read: Callable[[Position], SampleT]
    collate: Callable[[Sequence[SampleT]], BatchT]
    workers: int
    watch: StallWatch

    def batches(
        self,
        train: TrainConfig,
        *,
        first_step: int,
        between: Callable[[], None] = lambda: None,
        team: Team = SOLO,
    ) -> Generator[list[BatchT], None, None]:
        """The parts of each step's batch, from `first_step` on.

        Args:
            train: how large batches are, and the seed.
            first_step: step of the first batch.
            between: called between samples; may raise to end.
            team: each of its processes reads its share of each part.
        """

        def look() -> None:
            between()
            self.watch.look()

        share = Batches(
            samples=self.count,
            size=train.batch_size,
            seed=train.seed,
            parts=train.accumulate,
            processes=team.size,
            number=team.here.rank,
        )
        size = train.batch_size // train.accumulate // team.size
        batches = stream(
            *(self.watch.noting(self.read), share),
            first_step=first_step,
            workers=self.workers,
            between=look,
        )
        with closing(batches):
            while True:
                with self.watch.waiting():
                    samples = next(batches)
                yield [self.collate(samples[i : i + size]) for i in range(0, len(samples), size)]


def plan_of(train: TrainConfig, *, samples: int, least_part: int = 1) -> Plan:
    """How long a run with so many samples in an epoch is, and into what its batches may be cut."""
    steps_per_epoch = samples / train.batch_size
    total = train.max_steps or math.ceil(train.epochs * steps_per_epoch)
    warmup = min(1.0, train.warmup_epochs / train.epochs)
    decay, end = train.weight_decay, train.weight_decay_end
    return Plan(
        total_steps=total,
        steps_per_epoch=steps_per_epoch,
        scans_per_step=train.batch_size,
        learning_rate=lambda step: warmed_up(
            train.learning_rate, step, total=total, warmup=warmup, fall=_fall(train)
        ),
        weight_decay=None if end is None else lambda step: cosine(decay, end, step / total),
        clip_norm=train.clip_norm,
        checkpoint_every_steps=train.checkpoint_every_steps,
        checkpoint_every_s=60 * train.checkpoint_every_minutes,
        least_part=least_part,
        shrink=train.on_out_of_memory == "shrink",
    )


def told_checkpoints(train: TrainConfig) -> str:
    """When a run writes a checkpoint, in words."""
    minutes, steps = train.checkpoint_every_minutes, train.checkpoint_every_steps
    by_time = f"every {minutes:g} minutes"
    return by_time if steps is None else f"every {steps} steps, else {by_time}"


def _fall(train: TrainConfig) -> Callable[[float], float]:
    """How the learning rate falls from its peak, 1, as the run goes on."""
    low = train.learning_rate_end / train.learning_rate
    falls: dict[str, Callable[[float], float]] = {
        "cosine": lambda progress: cosine(1.0, low, progress),
        "poly": polynomial,
        "step": lambda progress: halving(progress, every=train.step_epochs / train.epochs),
        "constant": lambda progress: 1.0,  # noqa: ARG005 - it is the same throughout
    }
    return falls[train.schedule]


def optimizer_of(
    train: TrainConfig, parameters: Iterable[tuple[str, nn.Parameter]]
) -> torch.optim.Optimizer:
    """The optimiser that is set, over named parameters that learn."""
    rate = train.learning_rate
    if train.optimizer == "lars":
        return lars(
            parameters,
            learning_rate=rate,
            weight_decay=train.weight_decay,
            momentum=train.momentum,
        )
    groups = decay_groups(parameters, weight_decay=train.weight_decay)
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=train.momentum, foreach=True)
    kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    # One kernel for all parameters; the same numbers as the plain loop.
    return kind(groups, lr=rate, betas=train.betas, fused=True)


def prepared_loop(
    task: Trainable[BatchT],
    train: TrainConfig,
    *,
    plan: Plan,
    device: torch.device,
    folder: RunFolder,
    resume: bool,
    team: Team = SOLO,
) -> Loop[BatchT]:
    """The loop of a run, at its first step or where it was left.

    Args:
        task: what learns.
        train: how.
        plan: how long.
        device: where the task's module lives.
        folder: the run.
        resume: continue from its last checkpoint.
        team: the processes that train together.
    """
    if train.warmup_epochs >= train.epochs:
        log.warning(
            "The learning rate warms up over the whole run: train.warmup_epochs=%g of %d epochs.",
            train.warmup_epochs,
            train.epochs,
        )
    if device.type == "cpu" and sum(p.numel() for p in task.module.parameters()) > _LARGE:
        log.warning("This network is made for a GPU and slow here; --preset tiny is not.")
    bf16 = use_bf16(train.precision, device)
    optimizer = optimizer_of(train, task.module.named_parameters())
    loop = Loop(
        task,
        optimizer=optimizer,
        run=folder,
        plan=plan,
        autocast=lambda: autocast(device, bf16=bf16),
        memory_mb=lambda: memory_mb(device),
        team=team,
    )
    if resume:
        loop.resume()
    facts: dict[str, Any] = {
        "device": device_text(device, processes=team.size),
        "precision": "bf16" if bf16 else "fp32",
        "total_steps": plan.total_steps,
        "step": loop.step,
    }
    log.info("%(device)s, %(precision)s, step %(step)d of %(total_steps)d", facts)
    log.info("A checkpoint %s", told_checkpoints(train))
    folder.update(**facts)
    return loop
