"""Two processes with half a batch each train as one process with the whole batch does."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from backend.config import PretrainConfig, load_config
from backend.data.stall import StallWatch
from backend.data.stream import Position
from backend.engine.distributed import SOLO, Place, Team
from backend.engine.loop import Loop
from backend.engine.record import FollowedFolder
from backend.methods import build_method
from backend.pretext import PretrainTask, Sample, collated
from backend.training import Samples, optimizer_of, plan_of

STEPS = 20
TOLERANCE = 1e-5
SMALL = {
    "smit": (
        *("method.encoder.embed_dim=8", "method.encoder.heads=[1, 2, 2]"),
        *("method.encoder.depths=[1, 1, 2]", "method.teacher_temperature=[0.04, 0.04]"),
        *("method.head.hidden=32", "method.head.bottleneck=16"),
        *("views.region=48", "views.main.size=32"),
    ),
    "glmae": (
        *("method.encoder.width=48", "method.encoder.depth=3"),
        *("method.decoder.width=48", "method.decoder.depth=1"),
        *("method.projector.hidden=64", "method.projector.output=64"),
        "method.teacher_temperature=[0.04, 0.04]",
        *("views.main.size=24", "views.local.size=16"),
    ),
    # Batch norms under rectifiers make rounding grow: in one process alone, another number of
    # threads moves the loss by a hundredth within 20 steps of the preset's AdamW. Under the paper's
    # LARS, with short steps, what differs is not lost in it.
    "pgl": (
        *("method.encoder.width=4", "method.projector.hidden=32", "method.projector.output=16"),
        *("method.predictor_hidden=32", "views.region=48", "views.main.size=[16, 32, 32]"),
        *("train.optimizer=lars", "train.learning_rate=0.0005", "train.clip_norm=null"),
    ),
}
ACCUMULATED = (
    "train.accumulate=2",
    "train.batch_size=8",
    "train.max_steps=4",
    "train.learning_rate=1e-4",
)


@dataclass(frozen=True)
class Trained:
    """What is compared: the numbers of each step and the weights at the end."""

    records: list[dict[str, float]]
    weights: dict[str, torch.Tensor]


def configuration(method: str, *more: str) -> PretrainConfig:
    overrides = (f"train.max_steps={STEPS}", "train.batch_size=4", *SMALL[method], *more)
    return load_config(PretrainConfig, method=method, preset="tiny", overrides=overrides)


def read(position: Position) -> Sample:
    """Cubes of different tissue, so that samples can be told apart."""
    rng = np.random.default_rng([position.sample, position.epoch])
    hu = rng.integers(-150, 250, (12, 12, 12)).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    noise = rng.normal(0, 10, hu.shape)
    return Sample((hu + noise).astype(np.int16), position, (0.0, 200.0))


def trained(config: PretrainConfig, team: Team) -> Trained:
    torch.manual_seed(config.train.seed)
    method = build_method(config.method, epochs=config.train.epochs).train()
    task = PretrainTask(method, config, torch.device("cpu"), team.learner(method))
    loop = Loop(
        task,
        optimizer=optimizer_of(config.train, method.named_parameters()),
        run=FollowedFolder(Path()),
        plan=plan_of(config.train, samples=6),
        autocast=nullcontext,
        memory_mb=lambda: 0.0,
        team=team,
    )
    seed = config.train.seed
    samples = Samples(
        count=6,
        read=read,
        collate=lambda chosen: collated(chosen, seed=seed),
        workers=0,
        watch=StallWatch(name=str, tell=[].append, patience_s=600),
    )
    records = []
    batches = samples.batches(config.train, first_step=0, team=team)
    for parts in islice(batches, config.train.max_steps):
        records.append(loop.train_step(parts))
        loop.step += 1
    return Trained(records, method.state_dict())


def _one_of_two(rank: int, folder: str, cases: dict[str, PretrainConfig]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/meeting", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        for name, config in cases.items():
            found = trained(config, Team(Place(rank=rank, size=2), store))
            torch.save([found.records, found.weights], f"{folder}/{name}_{rank}.pt")
    finally:
        dist.destroy_process_group()


CASES = {name: (name,) for name in SMALL} | {"smit_accumulated": ("smit", *ACCUMULATED)}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes have found, for all cases: processes are slow to start."""
    folder = tmp_path_factory.mktemp("two")
    cases = {name: configuration(*case) for name, case in CASES.items()}
    mp.spawn(_one_of_two, args=(str(folder), cases), nprocs=2)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_losses_and_weights_are_those_of_one_process_with_the_whole_batch(
    name: str, of_two: Path
) -> None:
    alone = trained(configuration(*CASES[name]), SOLO)
    (records, weights), (others, theirs) = (
        torch.load(of_two / f"{name}_{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert records == others
    assert all(torch.equal(weights[key], theirs[key]) for key in weights)
    for ours, wanted in zip(records, alone.records, strict=True):
        assert ours.keys() == wanted.keys()
        assert ours["loss/total"] == pytest.approx(wanted["loss/total"], rel=TOLERANCE)
        # Each term on its own, before its weight: that of the nearest neighbour rounds the worst.
        terms = {key: value for key, value in wanted.items() if key.startswith("loss/")}
        assert {key: ours[key] for key in terms} == pytest.approx(terms, rel=10 * TOLERANCE)
    assert distance(weights, alone.weights) < TOLERANCE


def distance(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """Relative to the length of all weights together."""
    pairs = [(found[k].double(), w.double()) for k, w in wanted.items() if w.is_floating_point()]
    apart = sum(float((a - b).square().sum()) for a, b in pairs)
    return float(np.sqrt(apart / sum(float(b.square().sum()) for _, b in pairs)))
