from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backend.engine import loop as loop_file
from backend.engine.loop import Event, Loop, Plan, TrainingError
from backend.engine.optim import decay_groups
from backend.engine.record import RunFolder, read_metrics, read_status
from backend.engine.signals import StopRequest
from backend.errors import BackendError, Cancelled, Interrupted, ResourceError, UserError
from backend.losses.queue import KeyQueue
from backend.losses.terms import Losses
from backend.methods.smit import Smit
from backend.schedules import cosine, warmed_up
from backend.settings.encoders import SwinConfig
from backend.settings.smit import HeadConfig, SmitConfig
from backend.views.crops import Cut, Regions, ViewSet, cut_views


class _Regression:
    """The smallest thing that the loop can train; it notes what it is told."""

    healthy: Mapping[str, tuple[float, float]] = MappingProxyType({})

    def __init__(self, *, seed: int = 0, width: int = 6) -> None:
        torch.manual_seed(seed)
        self.module: nn.Module = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, 1))
        self.learner = self.module
        self.calls: list[tuple[str, float]] = []

    def loss(self, batch: Tensor, progress: float) -> Losses:
        self.calls.append(("loss", progress))
        near = (self.module(batch) - batch.sum(1, keepdim=True)).square().mean()
        far = self.module(-batch).abs().mean()
        return Losses(near + 0.1 * far, {"near": near.detach(), "far": far.detach()}, {})

    def after_backward(self, progress: float) -> None:
        assert all(p.grad is not None for p in self.module.parameters())
        self.calls.append(("after_backward", progress))

    def after_step(self, progress: float) -> dict[str, float]:
        self.calls.append(("after_step", progress))
        return {}

    def settings(self, progress: float) -> dict[str, float]:
        return {"so_far": progress}


def _batches(first: int = 0, *, parts: int = 1, odd: int | None = None) -> Iterator[list[Tensor]]:
    step = first
    while True:
        batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        if step == odd:
            batch[0] = float("nan")
        yield list(batch.chunk(parts))
        step += 1


def _rate(step: int, *, total: int, peak: float = 0.05) -> float:
    return warmed_up(peak, step, total=total, warmup=0.25, fall=lambda p: cosine(1.0, 0.0, p))


def _plan(total: int = 8, *, peak: float = 0.05, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "total_steps": total,
        "steps_per_epoch": 2.5,
        "scans_per_step": 4,
        "learning_rate": partial(_rate, total=total, peak=peak),
        "weight_decay": None,
        "clip_norm": 1.0,
        "checkpoint_every_steps": None,
        "checkpoint_every_s": 1e9,
    }
    return Plan(**{**values, **changes})


def _loop(task: Any, run: RunFolder, plan: Plan) -> Loop[Any]:
    return Loop(
        task,
        optimizer=torch.optim.AdamW(
            decay_groups(task.module.named_parameters(), weight_decay=0.05), lr=1.0
        ),
        run=run,
        plan=plan,
        autocast=contextlib.nullcontext,
        memory_mb=lambda: 1.0,
    )


@contextlib.contextmanager
def _folder(path: Path, *, resume: bool = False) -> Iterator[RunFolder]:
    with RunFolder(path, kind="pretrain", argv=[], resume=resume) as run:
        run.write_config({})
        yield run


def _trained(path: Path, plan: Plan | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    task = _Regression()
    with _folder(path) as run:
        loop = _loop(task, run, plan or _plan())
        loop.fit(_batches(), stop=StopRequest(), what="Test")
        return task.module.state_dict(), loop.optimizer.state_dict()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _told(path: Path) -> list[dict[str, Any]]:
    timed = {"time_s", "volumes_per_s"}
    return [{k: v for k, v in r.items() if k not in timed} for r in read_metrics(path)]


@pytest.mark.parametrize("stopped_at", [1, 3, 7])
def test_a_resumed_run_equals_one_that_was_never_stopped_bit_for_bit(
    tmp_path: Path, stopped_at: int
) -> None:
    weights, optimizer = _trained(tmp_path / "whole")
    stop = tmp_path / "torn" / "stop"

    def ask(step: int) -> dict[str, float]:
        if step == stopped_at:
            stop.touch()
        return {}

    with _folder(tmp_path / "torn") as run, pytest.raises(Cancelled):
        _loop(_Regression(), run, _plan()).fit(
            _batches(), stop=StopRequest(stop), events=[Event(every=1, action=ask)], what="Test"
        )
    task = _Regression(seed=99)
    with _folder(tmp_path / "torn", resume=True) as run:
        # A crash after the checkpoint leaves records that the resumed run makes again.
        run.append({"step": stopped_at + 1, "loss/total": 1e9})
        loop = _loop(task, run, _plan())
        loop.resume()
        assert loop.step == stopped_at
        loop.fit(_batches(loop.step), stop=StopRequest(run.stop_file), what="Test")
        assert _same(loop.optimizer.state_dict(), optimizer)
    assert _same(task.module.state_dict(), weights)
    assert _told(tmp_path / "torn") == _told(tmp_path / "whole")
    assert [r["step"] for r in _told(tmp_path / "torn")] == list(range(1, 9))


def test_resuming_before_the_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    with _folder(tmp_path / "run") as run:
        run.append({"step": 1, "loss/total": 1e9})
    with _folder(tmp_path / "run", resume=True) as run:
        loop = _loop(_Regression(), run, _plan())
        loop.resume()
        loop.fit(_batches(loop.step), stop=StopRequest(), what="Test")
    _trained(tmp_path / "whole")
    assert _told(tmp_path / "run") == _told(tmp_path / "whole")


def test_time_goes_on_after_resuming(tmp_path: Path) -> None:
    _trained(tmp_path / "run", _plan(4))
    with _folder(tmp_path / "run", resume=True) as run:
        loop = _loop(_Regression(), run, _plan(8))
        loop.resume()
        loop.fit(_batches(loop.step), stop=StopRequest(), what="Test")
    times = [r["time_s"] for r in read_metrics(tmp_path / "run")]
    assert len(times) == 8
    assert times == sorted(times)


def test_a_checkpoint_of_another_network_is_told_plainly(tmp_path: Path) -> None:
    _trained(tmp_path / "run", _plan(2))
    with _folder(tmp_path / "run", resume=True) as run, pytest.raises(UserError):
        _loop(_Regression(width=7), run, _plan()).resume()


def test_method_is_told_the_progress_of_the_whole_run(tmp_path: Path) -> None:
    task = _Regression()
    with _folder(tmp_path / "run") as run:
        _loop(task, run, _plan(4)).fit(_batches(parts=2), stop=StopRequest(), what="Test")
    wanted = []
    for step in range(4):
        now = step / 4
        wanted += [("loss", now), ("loss", now), ("after_backward", now)]
        wanted += [("after_step", (step + 1) / 4)]
    assert task.calls == wanted
    assert [r["so_far"] for r in read_metrics(tmp_path / "run")] == [0, 0.25, 0.5, 0.75]


def test_record_holds_every_term_the_rate_the_epoch_and_the_gradient(tmp_path: Path) -> None:
    _trained(tmp_path / "run")
    task = _Regression()
    for step, (told, parts) in enumerate(zip(_told(tmp_path / "run"), _batches(), strict=False)):
        assert told["lr"] == pytest.approx(_rate(step, total=8))
        assert told["epoch"] == pytest.approx((step + 1) / 2.5)
        if step == 0:
            losses = task.loss(parts[0], 0.0)
            losses.total.backward()
            square = sum(float(p.grad.square().sum()) for p in task.module.parameters())
            assert told["loss/total"] == pytest.approx(losses.total.item())
            assert told["loss/near"] == pytest.approx(float(losses.terms["near"]))
            assert told["loss/far"] == pytest.approx(float(losses.terms["far"]))
            assert told["gradient_norm"] == pytest.approx(square**0.5)
    records = read_metrics(tmp_path / "run")
    assert {"step", "epoch", "time_s", "lr", "volumes_per_s", "memory_mb"} <= set(records[0])


@pytest.mark.parametrize("clip", [None, 0.01])
def test_gradient_is_clipped_to_its_norm_only_if_asked(tmp_path: Path, clip: float | None) -> None:
    task = _Regression()
    norms: list[float] = []
    with _folder(tmp_path / "run") as run:
        loop = _loop(task, run, _plan(1, clip_norm=clip))
        loop.optimizer.register_step_pre_hook(
            lambda *_: norms.append(
                sum(float(p.grad.square().sum()) for p in task.module.parameters()) ** 0.5
            )
        )
        loop.fit(_batches(), stop=StopRequest(), what="Test")
    told = read_metrics(tmp_path / "run")[0]["gradient_norm"]
    assert told > 0.01
    assert norms == [pytest.approx(told if clip is None else clip, rel=1e-3)]


def test_a_step_in_parts_equals_the_step_as_a_whole(tmp_path: Path) -> None:
    results = []
    for parts in (1, 2, 4):
        task = _Regression()
        with _folder(tmp_path / str(parts)) as run:
            _loop(task, run, _plan()).fit(_batches(parts=parts), stop=StopRequest(), what="Test")
        results.append(task.module.state_dict())
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.allclose(other[name], value, atol=1e-4), name
    for one, two in zip(_told(tmp_path / "1"), _told(tmp_path / "4"), strict=True):
        # The optimiser does not see the scale of a gradient; its norm does.
        for name in ("loss/total", "gradient_norm"):
            assert one[name] == pytest.approx(two[name], rel=1e-3)


def test_a_loss_that_is_not_a_number_stops_with_its_name_and_keeps_the_checkpoint(
    tmp_path: Path,
) -> None:
    task = _Regression()
    with _folder(tmp_path / "run") as run:
        loop = _loop(task, run, _plan(checkpoint_every_steps=2))
        kept: list[bytes] = []
        with pytest.raises(TrainingError, match=r"loss/near is not finite at step 4") as caught:
            loop.fit(
                _batches(odd=3),
                stop=StopRequest(),
                on_save=lambda: kept.append(loop.last.read_bytes()),
                what="Test",
            )
        assert len(kept) == 1
        assert loop.last.read_bytes() == kept[0]
        assert torch.load(loop.last, weights_only=True)["step"] == 2
    assert "last checkpoint is kept" in caught.value.message
    assert "learning_rate" in caught.value.hint
    assert all(bool(p.isfinite().all()) for p in task.module.parameters())
    assert [r["step"] for r in read_metrics(tmp_path / "run")] == [1, 2, 3]
    with _folder(tmp_path / "new") as run, pytest.raises(TrainingError, match="no checkpoint yet"):
        _loop(_Regression(), run, _plan()).fit(_batches(odd=0), stop=StopRequest(), what="Test")


@pytest.mark.parametrize(
    ("number", "kind", "state"),
    [
        (signal.SIGINT, Cancelled, "cancelled"),
        (signal.SIGTERM, Interrupted, "interrupted"),
        (signal.SIGUSR1, Interrupted, "interrupted"),
        (None, Cancelled, "cancelled"),
    ],
)
def test_a_request_to_stop_is_granted_after_the_step_is_saved(
    tmp_path: Path, number: signal.Signals | None, kind: type[BackendError], state: str
) -> None:
    path = tmp_path / "run"

    def ask(step: int) -> dict[str, float]:
        if step == 3 and number is None:
            (path / "stop").touch()
        elif step == 3:
            os.kill(os.getpid(), number)
        return {}

    stop = StopRequest(path / "stop")
    with pytest.raises(kind), _folder(path) as run, stop.listening(), run.outcome():
        _loop(_Regression(), run, _plan()).fit(
            _batches(), stop=stop, events=[Event(every=1, action=ask)], what="Test"
        )
    assert torch.load(path / "checkpoints" / "last.pt", weights_only=True)["step"] == 3
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3]
    status = read_status(path)
    assert (status["state"], status["step"], status["total_steps"]) == (state, 3, 8)


@pytest.mark.parametrize(("made", "saved"), [(0, False), (3, True)])
def test_a_request_to_stop_while_a_batch_is_read_saves_the_steps_that_were_made(
    tmp_path: Path, made: int, saved: bool
) -> None:
    path = tmp_path / "run"
    stop = StopRequest(path / "stop")

    def batches() -> Iterator[list[Tensor]]:
        yield from itertools.islice(_batches(), made)
        (path / "stop").touch()
        stop.check()

    with pytest.raises(Cancelled), _folder(path) as run, run.outcome():
        _loop(_Regression(), run, _plan()).fit(batches(), stop=stop, what="Test")
    assert read_status(path)["state"] == "cancelled"
    last = path / "checkpoints" / "last.pt"
    assert last.exists() == saved
    if saved:
        assert torch.load(last, weights_only=True)["step"] == made


def test_checkpoints_are_written_when_due_and_at_the_end(tmp_path: Path) -> None:
    saved: list[int] = []

    def noting(loop: Loop[Any]) -> Callable[[], None]:
        return lambda: saved.append(torch.load(loop.last, weights_only=True)["step"])

    for name, plan in (
        ("steps", _plan(checkpoint_every_steps=3)),
        ("never", _plan()),
        ("always", _plan(2, checkpoint_every_s=0.0)),
    ):
        with _folder(tmp_path / name) as run:
            loop = _loop(_Regression(), run, plan)
            loop.fit(_batches(), stop=StopRequest(), on_save=noting(loop), what="Test")
    assert saved == [3, 6, 8, 8, 1, 2]


def test_events_come_when_they_are_due_and_once_at_the_end(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(step: int) -> dict[str, float]:
        seen.append(step)
        return {"probe/seen": float(step)}

    with _folder(tmp_path / "run") as run:
        _loop(_Regression(), run, _plan()).fit(
            _batches(), stop=StopRequest(), events=[Event(every=3, action=look)], what="Test"
        )
    assert seen == [3, 6, 8]
    told = [r.get("probe/seen") for r in read_metrics(tmp_path / "run")]
    assert told == [None, None, 3, None, None, 6, None, 8]


def test_an_event_of_the_start_stands_once_in_the_record_of_a_run_begun_anew(
    tmp_path: Path,
) -> None:
    event = Event(every=5, action=lambda step: {"probe/seen": float(step)}, first=True)
    for resume in (False, True):
        with _folder(tmp_path / "run", resume=resume) as run:
            loop = _loop(_Regression(), run, _plan())
            if resume:
                # Nothing was saved before it ended.
                loop.last.unlink()
                loop.resume()
            loop.fit(_batches(), stop=StopRequest(), events=[event], what="Test")
        seen = [(r["step"], r.get("probe/seen")) for r in read_metrics(tmp_path / "run")]
        assert seen[0] == (0, 0.0)
        assert [step for step, _ in seen] == list(range(9))
        assert [value for _, value in seen if value is not None] == [0.0, 5.0, 8.0]


class _Watched(_Regression):
    """Its monitor follows a list of numbers; healthy between 0.1 and 10."""

    healthy = MappingProxyType({"spread": (0.1, 10.0), "never told": (0.0, 1.0)})

    def __init__(self, spreads: Sequence[float]) -> None:
        super().__init__()
        self._spreads = iter(spreads)

    def loss(self, batch: Tensor, progress: float) -> Losses:
        return (
            super()
            .loss(batch, progress)
            ._replace(monitors={"spread": torch.tensor(next(self._spreads))})
        )


@pytest.mark.parametrize(
    ("spreads", "told_at"),
    [
        ([1.0] * 5 + [0.05] * 20, [25]),
        ([20.0] * 45, [20]),  # once, not at every step from then on
        ([0.05] * 19 + [1.0] + [0.05] * 19, []),
        ([0.1] * 10 + [10.0] * 20, []),  # the bounds themselves are healthy
        ([0.05] * 20 + [1.0] * 3 + [20.0] * 20, [20, 43]),
        ([0.05] * 20 + [1.0] * 19, [20]),
    ],
)
def test_features_that_collapse_for_20_steps_on_end_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spreads: list[float], told_at: list[int]
) -> None:
    with _folder(tmp_path / "run") as run, caplog.at_level("WARNING", logger="backend"):
        plan = _plan(len(spreads))
        _loop(_Watched(spreads), run, plan).fit(_batches(), stop=StopRequest(), what="Test")
    told = [r.getMessage() for r in caplog.records if "collapsed" in r.getMessage()]
    assert [int(text.split("now step ")[1].split(")")[0]) for text in told] == told_at
    status = read_status(tmp_path / "run")
    assert status.get("warning") == (told[-1] if told else None)
    assert all("spread" in text and "0.1 to 10" in text for text in told)


def test_the_warning_goes_when_features_were_healthy_for_20_steps_on_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spreads = [0.05] * 20 + [1.0] * 20
    with _folder(tmp_path / "run") as run, caplog.at_level("INFO", logger="backend"):
        plan = _plan(len(spreads))
        _loop(_Watched(spreads), run, plan).fit(_batches(), stop=StopRequest(), what="Test")
    assert read_status(tmp_path / "run")["warning"] is None
    assert "spread is within 0.1 to 10 again (step 40)" in caplog.text


def test_the_time_left_counts_what_comes_between_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    # A clock of its own: how long a step really takes depends on what else the machine does.
    clock = [0.0]
    monkeypatch.setattr(loop_file, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def slow(_step: int) -> dict[str, float]:
        clock[0] += 0.3
        return {}

    with _folder(tmp_path / "run") as run:
        noted = run.note

        def note(**values: Any) -> None:
            told.append(values["eta_s"])
            noted(**values)

        monkeypatch.setattr(run, "note", note)
        event = Event(every=2, action=slow)
        _loop(_Regression(), run, _plan()).fit(
            _batches(), stop=StopRequest(), events=[event], what="Test"
        )
    # After steps 2 to 7 of 8 three, three, two, two, one and one of the slow pauses are left.
    assert [round(seconds / 0.3) for seconds in told[1:]] == [3, 3, 2, 2, 1, 1, 0]


class _SmitTask:
    """SMIT on views that are there already."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = Smit(
            SmitConfig(
                encoder=SwinConfig(
                    embed_dim=4, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), drop_path=0.3
                ),
                head=HeadConfig(hidden=8, bottleneck=4, prototypes=8),
                freeze_prototypes_epochs=1,
            ),
            epochs=3,
        ).train()
        self.learner = self.module
        self.healthy = self.module.healthy
        self.loss = self.module.forward
        self.after_backward = self.module.after_backward
        self.after_step = self.module.after_step
        self.settings = self.module.settings


def _view_batches(first: int = 0, *, parts: int = 1) -> Iterator[list[ViewSet]]:
    step = first
    cut = Cut(count=2, size=(32, 32, 32))
    while True:
        generator = torch.Generator().manual_seed(step)
        hu = torch.randint(-300, 400, (2, 1, 36, 36, 36), generator=generator).to(torch.int16)
        sizes, moments = torch.full((2, 3), 36), torch.tensor([[0.0, 1.0]] * 2)
        whole = Regions(hu, sizes, torch.tensor([2 * step, 2 * step + 1]), moments)
        chunks = zip(*(part.chunk(parts) for part in whole), strict=True)
        yield [
            ViewSet(cut_views(Regions(*chunk), cut, hu_window=(-175.0, 250.0))) for chunk in chunks
        ]
        step += 1


def test_smit_in_parts_learns_the_same_as_in_whole_batches(tmp_path: Path) -> None:
    states = []
    for parts in (1, 2):
        task = _SmitTask()
        with _folder(tmp_path / str(parts)) as run:
            plan = _plan(3, peak=1e-3)
            _loop(task, run, plan).fit(_view_batches(parts=parts), stop=StopRequest(), what="Test")
        states.append(task.module.state_dict())
    for name, value in states[0].items():
        assert torch.allclose(states[1][name], value, atol=2e-4), name
    moved = states[0]["patch_centre.value"].abs().max()
    assert float(moved) > 1e-4
    assert torch.allclose(
        states[0]["patch_centre.value"], states[1]["patch_centre.value"], atol=1e-5
    )
    for one, two in zip(_told(tmp_path / "1"), _told(tmp_path / "2"), strict=True):
        for name in ("loss/total", "loss/mip", "loss/mpd", "loss/itd", "gradient_norm"):
            assert one[name] == pytest.approx(two[name], rel=1e-3)


def test_smit_resumes_bit_for_bit_with_its_teacher_and_centres(tmp_path: Path) -> None:
    plan = _plan(4, checkpoint_every_steps=2)
    whole = _SmitTask()
    with _folder(tmp_path / "whole") as run:
        _loop(whole, run, plan).fit(_view_batches(), stop=StopRequest(), what="Test")
    with _folder(tmp_path / "torn") as run, contextlib.suppress(KeyError):
        # A crash in the fourth step: its batch never comes.
        batches = _view_batches()

        def three() -> Iterator[list[ViewSet]]:
            for _ in range(3):
                yield next(batches)
            raise KeyError

        _loop(_SmitTask(), run, plan).fit(three(), stop=StopRequest(), what="Test")
    task = _SmitTask()
    with _folder(tmp_path / "torn", resume=True) as run:
        loop = _loop(task, run, plan)
        loop.resume()
        assert loop.step == 2
        loop.fit(_view_batches(loop.step), stop=StopRequest(), what="Test")
    assert _same(task.module.state_dict(), whole.module.state_dict())
    assert _told(tmp_path / "torn") == _told(tmp_path / "whole")


class _Hungry(_Regression):
    """Has memory for one sample at a time, and runs out of it once a part is observed."""

    def __init__(self, *, most: int = 1) -> None:
        super().__init__()
        self._most = most
        self.queue = KeyQueue(8, 3)
        self.module.add_module("queue", self.queue)
        self.module.register_buffer("seen", torch.zeros(()))

    def loss(self, batch: Tensor, progress: float) -> Losses:
        del progress
        self.module.seen += len(batch)
        self.queue.observe(batch)
        if len(batch) > self._most:
            raise MemoryError
        near = (self.module[:3](batch) - batch.sum(1, keepdim=True)).square().mean()
        return Losses(near, {}, {})

    def after_step(self, progress: float) -> dict[str, float]:
        self.queue.update()
        return super().after_step(progress)


def _fed(path: Path, task: _Hungry, *, parts: int, **changes: Any) -> dict[str, Tensor]:
    with _folder(path) as run:
        _loop(task, run, _plan(**changes)).fit(
            _batches(parts=parts), stop=StopRequest(), what="Test"
        )
    return task.module.state_dict()


def test_a_batch_cut_for_want_of_memory_trains_as_one_that_came_in_parts(tmp_path: Path) -> None:
    apart = _fed(tmp_path / "apart", _Hungry(), parts=4)
    whole = _fed(tmp_path / "whole", _Hungry(most=4), parts=1)
    shrunk = _fed(tmp_path / "shrunk", _Hungry(), parts=1, shrink=True)
    # What was observed before memory ran out does not count.
    assert _same(shrunk, apart)
    assert _told(tmp_path / "shrunk") == _told(tmp_path / "apart")
    for one, two in zip(_told(tmp_path / "shrunk"), _told(tmp_path / "whole"), strict=True):
        assert one["loss/total"] == pytest.approx(two["loss/total"], rel=1e-3)
    assert torch.equal(shrunk["queue.keys"], whole["queue.keys"])
    status = read_status(tmp_path / "shrunk")
    assert status["accumulate"] == 4
    assert "train.accumulate=4" in status["warning"]


def test_a_batch_is_cut_no_further_than_its_method_can_tell_apart(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="2 samples at once"):
        _fed(tmp_path / "least", _Hungry(), parts=1, shrink=True, least_part=2)
    with pytest.raises(ResourceError, match="4 samples at once") as caught:
        _fed(tmp_path / "never", _Hungry(), parts=1)
    assert "train.batch_size=4" in caught.value.hint
    assert "train.on_out_of_memory=shrink" in caught.value.hint


def test_a_resumed_run_cuts_its_batches_as_before_and_refuses_other_scans(tmp_path: Path) -> None:
    _fed(tmp_path / "run", _Hungry(), parts=1, shrink=True, total=4)
    with _folder(tmp_path / "run", resume=True) as run:
        task = _Hungry()
        loop = _loop(task, run, _plan(8, shrink=True))
        loop.resume()
        loop.fit(_batches(loop.step), stop=StopRequest(), what="Test")
        assert len([name for name, _ in task.calls if name == "after_step"]) == 4
    assert "warning" not in read_status(tmp_path / "run")
    with _folder(tmp_path / "run", resume=True) as run:
        other = _loop(_Hungry(), run, _plan(8, steps_per_epoch=2.0))
        with pytest.raises(UserError, match=r"epochs had 2\.5 steps"):
            other.resume()
