"""The training loop, the same for pretraining and fine-tuning."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from backend.engine.checkpoint import load_checkpoint, save_checkpoint
from backend.engine.device import give_back_memory, trim_memory
from backend.engine.distributed import SOLO, Team, kept_here
from backend.engine.record import RunFolder
from backend.engine.signals import StopRequest
from backend.errors import BackendError, ResourceError, UserError, is_out_of_memory
from backend.losses.processes import alone
from backend.losses.state import StepState
from backend.losses.terms import Losses
from backend.progress import progress_bar

log = logging.getLogger("backend")

BatchT = TypeVar("BatchT")
BatchC = TypeVar("BatchC", contravariant=True)


_UNHEALTHY_STEPS = 20
"""Steps on end that a monitor is out of its bounds before that is told."""


class TrainingError(BackendError):
    """Training cannot go on: a loss that is not finite."""


class Trainable(Protocol[BatchC]):
    """What the loop needs of what it trains."""

    def loss(self, batch: BatchC, progress: float) -> Losses:
        """Losses of a part of a batch; `progress` in [0, 1] tells how far the run is."""

    def after_backward(self, progress: float) -> None:
        """Called when all gradients of a step are there, before clipping."""

    def after_step(self, progress: float) -> dict[str, float]:
        """Called after the optimiser; `progress` counts the step just made.

        Returns what was used for it, for the record.
        """

    def settings(self, progress: float) -> dict[str, float]:
        """What changes over the run, for the record."""

    @property
    def module(self) -> nn.Module:
        """All state there is to save."""

    @property
    def learner(self) -> nn.Module:
        """What `loss` calls: the module, or what averages its gradients over processes."""

    @property
    def healthy(self) -> Mapping[str, tuple[float, float]]:
        """Bounds of monitors by name; outside of them for long, training has collapsed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how a run trains.

    Attributes:
        total_steps: optimizer steps in all.
        steps_per_epoch: may be a fraction; batches run on over the end of an epoch.
        scans_per_step: scans that one step sees, for the rate.
        learning_rate: of a step (counted from 0).
        weight_decay: of a step, for parameters that decay; None leaves the optimiser's.
        clip_norm: largest gradient norm, or None.
        checkpoint_every_steps: or None.
        checkpoint_every_s: a checkpoint is due after this many seconds.
        least_part: samples that a part of a batch must hold at the least.
        shrink: cut the parts of a batch where memory does not suffice for them.
    """

    total_steps: int
    steps_per_epoch: float
    scans_per_step: int
    learning_rate: Callable[[int], float]
    weight_decay: Callable[[int], float] | None
    clip_norm: float | None
    checkpoint_every_steps: int | None
    checkpoint_every_s: float
    least_part: int = 1
    shrink: bool = False


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something to do every so many steps: pictures, validation.

    Attributes:
        every: steps between two calls; the last step is always one.
        action: gets the number of steps made, returns numbers for the record.
        first: whether it is done before the first step as well, with a record of its own.
    """

    every: int
    action: Callable[[int], dict[str, float]]
    first: bool = False


class Loop(Generic[BatchT]):
    """Trains until the plan is fulfilled or somebody asks to stop.

    Args:
        trainable: what learns.
        optimizer: over the trainable's parameters.
        run: the run folder that is written.
        plan: how long.
        autocast: gives the context in which losses are computed.
        memory_mb: tells the memory in use.
        team: the processes that train together; its leader alone writes, looks and judges.
    """

    def __init__(
        self,
        trainable: Trainable[BatchT],
        *,
        optimizer: torch.optim.Optimizer,
        run: RunFolder,
        plan: Plan,
        autocast: Callable[[], AbstractContextManager[None]],
        memory_mb: Callable[[], float],
        team: Team = SOLO,
    ) -> None:
        self.trainable = trainable
        self.optimizer = optimizer
        self.run = run
        self.plan = plan
        self.step = 0
        self.best: dict[str, float] | None = None
        self.extra_state: dict[str, Any] = {}
        self._autocast = autocast
        self._memory_mb = memory_mb
        self._team = team
        self._seconds_before = 0.0
        self._recent: deque[float] = deque(maxlen=50)
        self._streaks: dict[str, int] = {}
        """Steps on end that a monitor is outside of its bounds; below 0: inside."""
        self._collapsing: set[str] = set()
        self._pieces = 1
        """Into how many pieces each part of a batch is cut, for want of memory."""
        self._events_s: dict[int, float] = {}
        """How long each event took the last time."""

    @property
    def last(self) -> Path:
        """The checkpoint that `--resume` reads."""
        return self.run.checkpoints / "last.pt"

    @property
    def seconds(self) -> float:
        """Time the run took so far, over all its parts."""
        return self._seconds_before + self.run.seconds

    def resume(self) -> None:
        """Continue from the last checkpoint; without one, from the beginning.

        Raises:
            UserError: if the checkpoint is damaged or does not fit the network.
        """
        if not self.last.exists():
            # What was recorded before the first step is recorded again.
            self.run.cut_metrics(-1)
            return
        state = load_checkpoint(self.last)
        try:
            self.trainable.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])
            self.best = state["best"]
            self._seconds_before = float(state["seconds"])
            self._pieces = int(state["pieces"])
            epoch = float(state["steps_per_epoch"])
        except (RuntimeError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.last}: belongs to another network, or is damaged.",
                "Start a new run in another folder.",
            ) from None
        if epoch != self.plan.steps_per_epoch:
            raise UserError(
                f"{self.last}: its epochs had {epoch:g} steps, those of the scans that can be read "
                f"now have {self.plan.steps_per_epoch:g}.",
                f"Put back what is missing ({self.run.path / 'log.txt'} names it), or start a new "
                "run.",
            )
        self.run.cut_metrics(self.step)
        log.info("Resumed at step %d", self.step)

    def save(self) -> None:
        """Write the checkpoint."""
        # Files are written from further copies of what they hold: what steps no longer need makes
        # room for them.
        trim_memory()
        state = {
            "module": self.trainable.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
            "pieces": self._pieces,
            "steps_per_epoch": self.plan.steps_per_epoch,
        }
        save_checkpoint(self.last, state)

    def fit(
        self,
        batches: Iterator[Sequence[BatchT]],
        *,
        stop: StopRequest,
        events: Sequence[Event] = (),
        on_save: Callable[[], None] = lambda: None,
        what: str,
    ) -> None:
        """Train to the end of the plan.

        Args:
            batches: the parts of each step's batch, from the current step on; where they raise
                an error of ours, such as what is pending in `stop`, the run is saved first. Of
                several processes none may stop by itself: the others would wait for it.
            stop: asked after every step; then the run is saved and the request raised.
            events: done after a step, before it may be saved.
            on_save: called after each checkpoint.
            what: names the bar on standard error.

        Raises:
            TrainingError: if a loss is not finite; the last checkpoint stays as it is.
            Cancelled, Interrupted: if somebody asked to stop.
            ResourceError: if memory does not suffice.
        """
        if self.step == 0 and (start := self._happened(events)):
            self.run.append({"step": 0, "epoch": 0.0, "time_s": round(self.seconds, 3), **start})
        saved_at, saved_step = time.monotonic(), self.step
        # Closed before an error is told: a bar that is drawn last would stand below the message.
        with progress_bar(
            total=self.plan.total_steps, first=self.step, what=what, unit="step"
        ) as bar:
            while self.step < self.plan.total_steps:
                began = time.monotonic()
                try:
                    parts = next(batches)
                except BackendError:
                    if self.step > saved_step and self._team.leads:
                        self.save()
                        on_save()
                    raise
                record = self.train_step(parts)
                self.step += 1
                self._recent.append(time.monotonic() - began)
                record |= self._happened(events)
                self._watch(record)
                self._tell(record, events)
                bar.set_postfix_str(f"loss {record['loss/total']:.4f}", refresh=False)
                bar.update()
                request = self._team.agreed(stop.pending())
                last = self.step == self.plan.total_steps
                due = last or request is not None or self._checkpoint_due(saved_at)
                if due and self._team.leads:
                    self.save()
                    on_save()
                    saved_at, saved_step = time.monotonic(), self.step
                if request is not None and not last:
                    raise request

    def _happened(self, events: Sequence[Event]) -> dict[str, float]:
        """What is to be done at this step, by the leader alone; returns its numbers."""
        record: dict[str, float] = {}
        if not self._team.leads:
            return record
        for number, event in enumerate(events):
            ends = self.step % event.every == 0 or self.step == self.plan.total_steps
            if event.first if self.step == 0 else ends:
                began = time.monotonic()
                with alone():
                    record |= event.action(self.step)
                self._events_s[number] = time.monotonic() - began
        return record

    def train_step(self, parts: Sequence[BatchT]) -> dict[str, float]:
        """Make the current step, without counting or recording it; returns its numbers.

        Raises:
            TrainingError: if a loss is not finite.
            ResourceError: if memory does not suffice.
        """
        progress = self.step / self.plan.total_steps
        rate = self.plan.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            if self.plan.weight_decay is not None and group["decays"]:
                group["weight_decay"] = self.plan.weight_decay(self.step)
        while (numbers := self._backward(parts, progress)) is None:
            self._shrink(parts)
        self.trainable.after_backward(progress)
        gradient = nn.utils.clip_grad_norm_(
            [p for group in self.optimizer.param_groups for p in group["params"]],
            math.inf if self.plan.clip_norm is None else self.plan.clip_norm,
        )
        # One transfer for all numbers: the only time the step waits for the device.
        values = self._team.mean(torch.stack([*numbers.values(), gradient.float()])).tolist()
        record = dict(zip([*numbers, "gradient_norm"], values, strict=True))
        self._guard(record)
        self.optimizer.step()
        used = self.trainable.after_step((self.step + 1) / self.plan.total_steps)
        return {**record, "lr": rate, **self.trainable.settings(progress), **used}

    def _backward(self, parts: Sequence[BatchT], progress: float) -> dict[str, Tensor] | None:
        """Losses and gradients of a whole batch; None if memory does not suffice.

        What a method keeps of a batch is then as it was before.
        """
        before = [(b, b.clone()) for b in self.trainable.module.buffers() if self.plan.shrink]
        self.optimizer.zero_grad(set_to_none=True)
        try:
            return self._gradients(parts, progress)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        with torch.no_grad():
            for buffer, kept in before:
                buffer.copy_(kept)
        for module in self.trainable.module.modules():
            if isinstance(module, StepState):
                module.forget()
        return None

    def _gradients(self, parts: Sequence[BatchT], progress: float) -> dict[str, Tensor]:
        pieces = [piece for part in parts for piece in _cut(part, self._pieces)]
        numbers: dict[str, Tensor] = {}
        for number, piece in enumerate(pieces, start=1):
            last = number == len(pieces)
            with nullcontext() if last else kept_here(self.trainable.learner):
                with self._autocast():
                    losses = self.trainable.loss(piece, progress)
                torch.autograd.backward(losses.total / len(pieces))
            for name, value in _named(losses).items():
                numbers[name] = numbers.get(name, 0.0) + value.detach().float() / len(pieces)
        return numbers

    def _shrink(self, parts: Sequence[BatchT]) -> None:
        """Cut parts once more, halving them where they are even.

        Raises:
            ResourceError: if they may not be cut, or not any further.
        """
        self.optimizer.zero_grad(set_to_none=True)
        samples = _samples(parts[0]) // self._pieces
        cuts = [n for n in range(2, samples // self.plan.least_part + 1) if samples % n == 0]
        told = f"Memory does not suffice for {samples} samples at once (step {self.step + 1})"
        if not (self.plan.shrink and cuts):
            raise ResourceError(
                f"{told}.",
                f"Lower train.batch_size={self.plan.scans_per_step}"
                + (
                    ", "
                    if self.plan.shrink
                    else f", raise train.accumulate={len(parts)} or set "
                    "train.on_out_of_memory=shrink, "
                )
                + "choose smaller views, a smaller crop or preset, or close other programs.",
            )
        self._pieces *= cuts[0]
        give_back_memory()
        accumulated = len(parts) * self._pieces
        warning = f"{told}: from here on as with train.accumulate={accumulated}."
        self.run.warn("memory", warning)
        self.run.update(accumulate=accumulated)

    def _guard(self, record: dict[str, float]) -> None:
        bad = [name for name, value in record.items() if not math.isfinite(value)]
        # The total and the gradient only follow from the term that is to blame.
        bad.sort(key=lambda name: name in {"loss/total", "gradient_norm"})
        if not bad:
            return
        kept = "The last checkpoint is kept" if self.last.exists() else "There is no checkpoint yet"
        raise TrainingError(
            f"{bad[0]} is not finite at step {self.step + 1}. {kept}.",
            "Lower train.learning_rate, set train.precision=fp32 or train.clip_norm=1, "
            "and start again.",
        )

    def _watch(self, record: dict[str, float]) -> None:
        """Say so when a monitor has been out of its bounds for many steps on end, or is back."""
        for name, (low, high) in self.trainable.healthy.items():
            value = record.get(f"monitor/{name}")
            outside = value is not None and not low <= value <= high
            before = self._streaks.get(name, 0)
            now = max(before, 0) + 1 if outside else min(before, 0) - 1
            self._streaks[name] = now
            if now == _UNHEALTHY_STEPS:
                self._collapsing.add(name)
                self.run.warn(
                    name,
                    f"The features may have collapsed: {name} is {value:.3g}, outside of "
                    f"{low:g} to {high:g} for {_UNHEALTHY_STEPS} steps (now step {self.step}).",
                )
            elif now == -_UNHEALTHY_STEPS and name in self._collapsing:
                self._collapsing.discard(name)
                log.info("%s is within %g to %g again (step %d).", name, low, high, self.step)
                self.run.warn(name, None)

    def _checkpoint_due(self, saved_at: float) -> bool:
        every = self.plan.checkpoint_every_steps
        if every is not None and self.step % every == 0:
            return True
        return time.monotonic() - saved_at >= self.plan.checkpoint_every_s

    def _seconds_left(self, per_step: float, events: Sequence[Event]) -> float:
        """For the steps still to make, and for what comes between them as far as it is known."""
        left = self.plan.total_steps - self.step
        between = sum(
            seconds * (self.plan.total_steps // event.every - self.step // event.every)
            for number, event in enumerate(events)
            if (seconds := self._events_s.get(number)) is not None
        )
        return per_step * left + between

    def _tell(self, record: dict[str, float], events: Sequence[Event]) -> None:
        per_step = sum(self._recent) / len(self._recent)
        epoch = self.step / self.plan.steps_per_epoch
        self.run.append(
            {
                "step": self.step,
                "epoch": round(epoch, 4),
                "time_s": round(self.seconds, 3),
                **record,
                "volumes_per_s": round(self.plan.scans_per_step / max(per_step, 1e-9), 4),
                "memory_mb": round(self._memory_mb(), 1),
            }
        )
        self.run.note(
            step=self.step,
            total_steps=self.plan.total_steps,
            epoch=round(epoch, 3),
            eta_s=round(self._seconds_left(per_step, events), 1),
            best=self.best,
            message="Training",
        )


def _cut(part: Any, pieces: int) -> list[Any]:
    """A tensor, or a tuple of tensors, in equal pieces along the first axis."""
    if pieces == 1:
        return [part]
    if isinstance(part, Tensor):
        return list(part.chunk(pieces))
    return [type(part)(*piece) for piece in zip(*(t.chunk(pieces) for t in part), strict=True)]


def _samples(part: Any) -> int:
    return len(part if isinstance(part, Tensor) else part[0])


def _named(losses: Losses) -> dict[str, Tensor]:
    return {
        "loss/total": losses.total,
        **{f"loss/{name}": value for name, value in losses.terms.items()},
        **{f"monitor/{name}": value for name, value in losses.monitors.items()},
    }
