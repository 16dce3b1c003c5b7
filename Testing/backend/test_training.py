"""From settings to an optimiser and a plan: every kind does what it is known to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backend.config import TrainConfig
from backend.data.stall import StallWatch
from backend.data.stream import Position
from backend.engine.loop import Loop
from backend.engine.record import RunFolder, read_metrics, read_status
from backend.engine.signals import StopRequest
from backend.losses.terms import Losses
from backend.training import Samples, optimizer_of, plan_of, prepared_loop

RATE, DECAY, MOMENTUM = 0.1, 0.05, 0.8


class Adam:
    """One number under Adam (Kingma and Ba 2015, alg. 1), decay in the gradient or beside it."""

    def __init__(self, start: float, *, decay: float, beside: bool) -> None:
        self.value, self._decay, self._beside = start, decay, beside
        self._first = self._second = 0.0
        self._step = 0

    def step(self, gradient: float) -> None:
        self._step += 1
        if self._beside:
            self.value *= 1 - RATE * self._decay
        else:
            gradient += self._decay * self.value
        self._first = 0.9 * self._first + 0.1 * gradient
        self._second = 0.99 * self._second + 0.01 * gradient**2
        size = math.sqrt(self._second / (1 - 0.99**self._step)) + 1e-8
        self.value -= RATE * self._first / (1 - 0.9**self._step) / size


class Sgd:
    """One number under SGD with momentum; `trust` scales the gradient as LARS does."""

    def __init__(self, start: float, *, decay: float, trust: float | None = None) -> None:
        self.value, self._decay, self._trust = start, decay, trust
        self._moment = 0.0

    def step(self, gradient: float) -> None:
        gradient += self._decay * self.value
        if self._trust is not None:
            gradient *= self._trust * abs(self.value) / abs(gradient)
        self._moment = MOMENTUM * self._moment + RATE * gradient
        self.value -= self._moment


BY_HAND: dict[str, tuple[Callable[[float], Any], Callable[[float], Any]]] = {
    "adamw": (partial(Adam, decay=DECAY, beside=True), partial(Adam, decay=0, beside=True)),
    "adam": (partial(Adam, decay=DECAY, beside=False), partial(Adam, decay=0, beside=False)),
    "sgd": (partial(Sgd, decay=DECAY), partial(Sgd, decay=0)),
    "lars": (partial(Sgd, decay=DECAY, trust=1e-3), partial(Sgd, decay=0)),
}
"""How a weight and a bias move under each optimiser, one number at a time."""


def _train(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        **{"learning_rate": RATE, "weight_decay": DECAY, "momentum": MOMENTUM},
        **{"betas": (0.9, 0.99), "batch_size": 4, "epochs": 10, "warmup_epochs": 2},
    }
    return TrainConfig(**(values | changes))


@pytest.mark.parametrize("name", BY_HAND)
def test_steps_are_those_of_the_published_algorithm(name: str) -> None:
    linear = nn.Linear(1, 1)
    starts = {"weight": 2.0, "bias": -1.0}
    with torch.no_grad():
        for parameter, start in zip(linear.parameters(), starts.values(), strict=True):
            parameter.fill_(start)
    optimizer = optimizer_of(_train(optimizer=name), linear.named_parameters())
    known = {n: make(starts[n]) for n, make in zip(starts, BY_HAND[name], strict=True)}
    for gradient in (0.5, -2.0, 3.0):
        for parameter_name, parameter in linear.named_parameters():
            parameter.grad = torch.full_like(parameter, gradient)
            known[parameter_name].step(gradient)
        optimizer.step()
        for parameter_name, parameter in linear.named_parameters():
            assert parameter.item() == pytest.approx(known[parameter_name].value, rel=1e-5)


@pytest.mark.parametrize("name", BY_HAND)
def test_an_optimizer_leaves_frozen_weights_and_the_decay_of_biases_alone(name: str) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    groups = optimizer_of(_train(optimizer=name), network.named_parameters()).param_groups
    assert [[id(p) for p in group["params"]] for group in groups] == [
        [id(network[1].weight)],
        [id(network[1].bias)],
    ]
    assert [group["weight_decay"] for group in groups] == [DECAY, 0.0]


def _halved(share: float, *, every: float) -> float:
    return float(0.5 ** sum(share >= n * every - 1e-9 for n in range(1, 100)))


FALLS: dict[str, Callable[[float], float]] = {
    "cosine": lambda share: 0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2,
    "poly": lambda share: (1 - share) ** 0.9,
    "step": lambda share: _halved(share, every=0.3),
    "constant": lambda _: 1.0,
}
"""Learning rate over its peak, by the share of the run behind the warm-up."""


@pytest.mark.parametrize("schedule", FALLS)
def test_the_learning_rate_warms_up_and_falls_as_it_is_set(schedule: str) -> None:
    train = _train(schedule=schedule, step_epochs=3, learning_rate_end=RATE / 50)
    plan = plan_of(train, samples=20)
    assert (plan.total_steps, plan.steps_per_epoch, plan.scans_per_step) == (50, 5.0, 4)
    for step in range(50):
        share = (step - 10) / 40
        wanted = RATE * ((step + 1) / 10 if step < 10 else FALLS[schedule](share))
        assert plan.learning_rate(step) == pytest.approx(wanted), step


def test_the_last_rates_are_those_that_are_set() -> None:
    train = _train(learning_rate_end=0.03, weight_decay=0.04, weight_decay_end=0.4)
    plan = plan_of(train, samples=4000)
    assert plan.learning_rate(plan.total_steps - 1) == pytest.approx(0.03, rel=1e-4)
    assert plan.weight_decay is not None
    assert plan.weight_decay(0) == pytest.approx(0.04)
    assert plan.weight_decay(plan.total_steps // 2) == pytest.approx(0.22)
    assert plan.weight_decay(plan.total_steps - 1) == pytest.approx(0.4, rel=1e-4)
    assert plan_of(_train(), samples=4).weight_decay is None


def test_a_number_of_steps_goes_before_epochs_and_schedules_end_with_it() -> None:
    plan = plan_of(_train(max_steps=30), samples=999)
    assert plan.total_steps == 30
    assert [plan.learning_rate(step) for step in range(6)] == pytest.approx(
        [RATE * (step + 1) / 6 for step in range(6)]  # two of ten epochs are a fifth of the run
    )
    assert plan.learning_rate(29) < 0.01 * RATE


class _Regression:
    """The smallest thing that learns."""

    healthy: Mapping[str, tuple[float, float]] = MappingProxyType({})

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.module: nn.Module = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 1))
        self.learner = self.module

    def loss(self, batch: Tensor, progress: float) -> Losses:
        del progress
        return Losses((self.module(batch) - batch.sum(1, keepdim=True)).square().mean(), {}, {})

    def after_backward(self, progress: float) -> None:
        pass

    def after_step(self, progress: float) -> dict[str, float]:
        del progress
        return {}

    def settings(self, progress: float) -> dict[str, float]:
        del progress
        return {}


def _sample(at: Position) -> Tensor:
    return torch.randn(3, generator=torch.Generator().manual_seed(1000 * at.epoch + at.sample))


def _batches(train: TrainConfig, *, first_step: int) -> Iterator[list[Tensor]]:
    watch = StallWatch(name=str, tell=[].append, patience_s=600)
    samples = Samples(count=6, read=_sample, collate=torch.stack, workers=0, watch=watch)
    return samples.batches(train, first_step=first_step)


def _run(
    path: Path, train: TrainConfig, *, until: int | None = None, resume: bool = False
) -> Loop[Tensor]:
    """Train to the end, or until the batch of a step never comes."""
    with RunFolder(path, kind="pretrain", argv=[], resume=resume) as run:
        loop = prepared_loop(
            _Regression(99 if resume else 0),
            train,
            plan=plan_of(train, samples=6),
            device=torch.device("cpu"),
            folder=run,
            resume=resume,
        )
        batches = _batches(train, first_step=loop.step)
        if until is None:
            loop.fit(batches, stop=StopRequest(), what="Test")
        else:
            some = (next(batches) for _ in range(until))
            with pytest.raises(StopIteration):
                loop.fit(some, stop=StopRequest(), what="Test")
        return loop


@pytest.mark.parametrize("optimizer", BY_HAND)
def test_every_optimizer_resumes_as_if_it_had_never_stopped(tmp_path: Path, optimizer: str) -> None:
    train = _train(
        **{"optimizer": optimizer, "weight_decay": 0.0, "weight_decay_end": 0.4, "epochs": 5},
        **{"schedule": "poly", "accumulate": 2, "checkpoint_every_steps": 2},
    )
    whole = _run(tmp_path / "whole", train)
    _run(tmp_path / "torn", train, until=5)
    again = _run(tmp_path / "torn", train, resume=True)
    for name, value in whole.trainable.module.state_dict().items():
        assert torch.equal(again.trainable.module.state_dict()[name], value), name
    records = [
        [
            {k: v for k, v in r.items() if k not in {"time_s", "volumes_per_s", "memory_mb"}}
            for r in read_metrics(tmp_path / name)
        ]
        for name in ("whole", "torn")
    ]
    assert records[0] == records[1]
    assert [r["step"] for r in records[0]] == list(range(1, 9))
    # It began at 0 and still rose; biases never decay.
    decays = [group["weight_decay"] for group in again.optimizer.param_groups]
    assert decays == [pytest.approx(0.4 * (1 - math.cos(math.pi * 7 / 8)) / 2), 0.0]
    status = read_status(tmp_path / "torn")
    assert (status["precision"], status["total_steps"]) == ("fp32", 8)
