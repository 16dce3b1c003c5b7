"""Processes that train one network together: who they are, and what they tell each other.

One leads (rank 0): it alone reads what the user asked for, prepares scans and writes the run
folder. The others are told which run it is, and compute their share of each batch. PyTorch's
DistributedDataParallel averages gradients; all else goes through a store that all of them reach.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from backend import errors
from backend.engine.signals import StopRequest
from backend.errors import BackendError, Cancelled, Interrupted, NotMet, UserError, told_plainly

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

_MEETING, _PATIENCE = timedelta(minutes=5), timedelta(days=7)
"""How long processes may take to find each other, and how long one then waits for another: the
leader may validate for hours meanwhile. One that dies is noticed by its closed connection, or by
what started it."""

_POLL_S = 0.05
_LAST_WORDS_S = 3.0
"""How long after a lost connection the others' errors are waited for."""

_TORCHRUN = {"size": "WORLD_SIZE", "rank": "RANK", "local_rank": "LOCAL_RANK"}
# Only srun sets the number of tasks of a step; a batch script, which is one process, has none.
_SRUN = {"size": "SLURM_STEP_NUM_TASKS", "rank": "SLURM_PROCID", "local_rank": "SLURM_LOCALID"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among those that were started together.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local_rank: its number among those of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """This process' place as torchrun, or srun without it, has written it into the environment.

    Raises:
        UserError: if what is written there is no place.
    """
    for names in (_TORCHRUN, _SRUN):
        told = {key: environment.get(name, "") for key, name in names.items()}
        if told["size"] in {"", "1"}:
            continue
        if all(map(str.isdecimal, told.values())) and int(told["rank"]) < int(told["size"]):
            return Place(**{key: int(number) for key, number in told.items()})
        said = ", ".join(f"{name}={environment.get(name, '(missing)')}" for name in names.values())
        raise UserError(
            f"The environment says {said}, which is no place among several processes.",
            f"{names['rank']} counts from 0; let --devices, torchrun or srun set all three.",
        )
    return Place()


class Team:
    """The processes of a run; one process alone is a team of its own.

    Args:
        here: the place of this one.
        store: reached by all of them; None for one alone.
        attempt: how often they were started together, with this time.
    """

    def __init__(self, here: Place, store: Store | None = None, attempt: int = 1) -> None:
        self.here = here
        self._store = store
        self._parent = os.getppid()
        self._announced = 0
        self._attempt = attempt

    @property
    def size(self) -> int:
        """How many there are."""
        return self.here.size

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes."""
        return self.here.leads

    @property
    def restarted(self) -> bool:
        """Whether an elastic launcher has started all of them anew after one had failed.

        Each launcher counts the failures on its own machine alone.
        """
        counted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        return self.size > 1 and (counted or self._attempt > 1)

    def announce(self, facts: Mapping[str, Any] | None) -> None:
        """Tell the others of the next run; None sends them home.

        Args:
            facts: what JSON can hold.
        """
        if self._store is not None:
            self._store.set(f"run/{self._announced}", json.dumps(facts))
            self._announced += 1

    def announced(self, check: Callable[[], None]) -> Generator[dict[str, Any], None, None]:
        """The runs that the leader tells of, until it sends everyone home.

        Args:
            check: asked while waiting; may raise to end.
        """
        assert self._store is not None, "one alone has nobody to listen to"
        while True:
            key = f"run/{self._announced}"
            while not self._store.check([key]):
                check()
                if self._orphaned:
                    raise _left_alone()
                time.sleep(_POLL_S)
            self._announced += 1
            facts = json.loads(self._store.get(key))
            if facts is None:
                return
            yield facts

    def answer(self, facts: Any) -> None:
        """Tell the leader what came of the announcement heard last.

        Args:
            facts: what JSON can hold.
        """
        assert self._store is not None, "one alone has nobody to answer"
        self._store.set(f"answer/{self._announced}/{self.here.rank}", json.dumps(facts))

    def answers(self, check: Callable[[], None] = lambda: None) -> list[Any]:
        """What the others answer to the announcement made last, in the order of their rank.

        Args:
            check: asked while waiting; may raise to end.
        """
        found = []
        for rank in range(1, self.size):
            assert self._store is not None, "there are others"
            key = f"answer/{self._announced}/{rank}"
            while not self._store.check([key]):
                check()
                if self._store.check([f"error/{rank}"]):
                    raise self._last_words(self._store)
                if self._orphaned:
                    raise _left_alone()
                time.sleep(_POLL_S)
            found.append(json.loads(self._store.get(key)))
        return found

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
            values /= self.size
        return values

    def agreed(self, request: BackendError | None) -> BackendError | None:
        """A request to stop that any process has got, told to all of them at the same step."""
        if self.size == 1:
            return request
        import torch
        import torch.distributed as dist

        if request is None and self._orphaned:
            request = _left_alone()
        kinds = (Interrupted, Cancelled)
        ours = next((n for n, kind in enumerate(kinds, start=1) if isinstance(request, kind)), 0)
        strongest = torch.tensor(ours)
        dist.all_reduce(strongest, dist.ReduceOp.MAX)
        found = int(strongest)
        if found in (0, ours):
            return request
        return kinds[found - 1]("Stopped with the other processes.", "Continue with --resume.")

    def learner(self, module: nn.Module) -> nn.Module:
        """What averages the gradients of a module over all processes when it is called.

        Norms over a batch become norms over the batch of all processes, in place.
        """
        if self.size == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        from backend.engine.norms import over_all_processes

        # Its older name is on its way out.
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        # States such as centres are brought together once a step, by themselves.
        options: dict[str, Any] = {buffers: False}
        return DistributedDataParallel(
            over_all_processes(module),
            # Norms of skips serve fine-tuning alone, and get no gradient before.
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
            **options,
        )

    def between(self, stop: StopRequest) -> Callable[[], None]:
        """What is asked between two samples: of one process alone, whether to stop.

        With several the others would wait for this one for ever; they stop after a step.
        """
        return stop.check if self.size == 1 else lambda: None

    @contextmanager
    def confessing(self) -> Iterator[None]:
        """Tell the leader of the error that ends the block here."""
        try:
            yield
        except BaseException as caught:
            error = told_plainly(caught)
            if self._store is not None and not _is_about_connections(caught):
                self._store.set(f"error/{self.here.rank}", json.dumps(told_of(error)))
            raise

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Raise the error of another process, where that is why this one lost its connection."""
        try:
            yield
        except RuntimeError as caught:
            if self._store is None or not _is_about_connections(caught):
                raise
            raise self._last_words(self._store) from caught

    def _last_words(self, store: Store) -> BackendError:
        """What another process has said before it ended."""
        keys = [f"error/{rank}" for rank in range(self.size) if rank != self.here.rank]
        deadline = time.monotonic() + _LAST_WORDS_S
        while time.monotonic() < deadline:
            for key in keys:
                if store.check([key]):
                    error = repeated(json.loads(store.get(key)))
                    number = key.partition("/")[2]
                    return type(error)(f"Process {number}: {error.message}", error.hint)
            time.sleep(_POLL_S)
        return BackendError(
            f"Another of the {self.size} processes has ended without a word.",
            "Was it killed, or was memory short? Continue with --resume: no more than the steps "
            "since the last checkpoint is lost.",
        )

    @property
    def _orphaned(self) -> bool:
        """Whether what started the processes has died: then nobody would end them."""
        return self.size > 1 and os.getppid() != self._parent


SOLO = Team(Place())
"""One process that trains alone."""


def share_of_device(name: str, here: Place) -> str:
    """The name of the device that a process takes where several compute on devices of one kind.

    Raises:
        UserError: if the name allows one process alone.
    """
    if here.size == 1 or name == "cpu":
        return name
    if name == "mps" or ":" in name:
        raise UserError(
            f"--device {name} is one device, and there are {here.size} processes.",
            "Use --device cuda or cpu, or leave out --devices.",
        )
    import torch

    return f"cuda:{here.local_rank}" if torch.cuda.is_available() else name


@contextmanager
def joined(here: Place) -> Iterator[Team]:
    """Meet the other processes, and leave them at the end.

    Raises:
        NotMet: if they are not found where the environment says.
        BackendError: told by another process, where that ended this one too.
    """
    if here.size == 1:
        yield SOLO
        return
    os.environ.update(_meeting(here))
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore, _set_pg_timeout

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(here.local_rank)
    store, attempt = _met(here, "cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    _set_pg_timeout(_PATIENCE)
    try:
        yield Team(here, PrefixStore("team", store), attempt)
    finally:
        dist.destroy_process_group()


def _met(here: Place, transport: str) -> tuple[Store, int]:
    """Wait for the other processes; what all of them reach then, and which attempt this is.

    Raises:
        NotMet: if they do not come, or the address or port cannot be used.
    """
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    def meet() -> tuple[Store, int]:
        kept = PrefixStore("backend", next(rendezvous("env://"))[0])
        attempt = _attempt(kept, here)
        store = PrefixStore(f"attempt/{attempt}", kept)
        dist.init_process_group(
            transport,
            store=PrefixStore("group", store),
            rank=here.rank,
            world_size=here.size,
            timeout=_MEETING,
        )
        return store, attempt

    try:
        return _interruptible(meet, limit=_MEETING)
    except (RuntimeError, TimeoutError) as error:
        reason = next(iter(str(error).splitlines()), f"not within {_MEETING.seconds} s")
        raise NotMet(
            f"Process {here.rank} of {here.size} has not met the others at "
            f"MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}: "
            f"{reason}.",
            "Were all started, is the port free where RANK is 0, and can it be reached from here?",
        ) from error


def _attempt(store: Store, here: Place) -> int:
    """Which attempt this is, from 1, as the process that leads it tells those that ask.

    An elastic launcher starts all anew after a failure, but keeps the store: what was told in an
    earlier attempt still stands there. Only the answer to a question of now can be no old one.
    """
    if not here.leads:
        question = uuid4().hex
        store.set(f"question/{store.add('questions', 1)}", question)
        attempt = int(store.get(f"answer/{question}"))
        store.add(f"heard/{attempt}", 1)
        return attempt
    attempt = store.add("attempts", 1)
    while store.add(f"heard/{attempt}", 0) < here.size - 1:
        for number in range(1, store.add("questions", 0) + 1):
            if store.check([f"question/{number}"]):
                question = store.get(f"question/{number}").decode()
                store.set(f"answer/{question}", str(attempt))
        time.sleep(_POLL_S)
    return attempt


def _interruptible(work: Callable[[], T], *, limit: timedelta) -> T:
    """What native code comes to, unless a signal or the end of the time comes first.

    Signals are heard by the main thread alone, and only while it runs Python.

    Raises:
        TimeoutError: without words, once the time is over; the work is left to itself.
    """
    outcome: Future[T] = Future()

    def do() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=do, daemon=True).start()
    return outcome.result(timeout=limit.total_seconds())


def kept_here(learner: nn.Module) -> AbstractContextManager[None]:
    """Inside, gradients are added up in this process alone: more of the step's batch follows."""
    from torch.nn.parallel import DistributedDataParallel

    return learner.no_sync() if isinstance(learner, DistributedDataParallel) else nullcontext()


def _meeting(here: Place) -> dict[str, str]:
    """What PyTorch needs in the environment to bring processes together; srun does not say.

    Raises:
        NotMet: if the environment does not say where they meet.
    """
    known = {name: os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT")}
    missing = [name for name, value in known.items() if not value]
    if missing and _SRUN["size"] not in os.environ:
        raise NotMet(
            f"Process {here.rank} of {here.size} cannot meet the others: "
            f"{' and '.join(missing)} missing in the environment.",
            "Start with --devices or torchrun, or export both, the same for all processes.",
        )
    # The same for all tasks of a job, and another one for another job on the same machine.
    port = known["MASTER_PORT"] or str(20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000)
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise NotMet(
            f"MASTER_PORT={port} is no port.", "Export a free one, e.g. 29500, for all processes."
        )
    return {
        "RANK": str(here.rank),
        "WORLD_SIZE": str(here.size),
        "LOCAL_RANK": str(here.local_rank),
        "MASTER_ADDR": known["MASTER_ADDR"] or _first_host(),
        "MASTER_PORT": port,
    }


def _first_host() -> str:
    hosts = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    try:
        told = subprocess.run(
            ["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True
        )
        return told.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        raise UserError(
            f"Which of the machines {hosts!r} is the first could not be found out.",
            "Export MASTER_ADDR with its name before srun.",
        ) from None


def _is_about_connections(error: BaseException) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("gloo", "nccl", "connection", "socket", "peer"))


def told_of(error: BackendError) -> dict[str, str]:
    """An error as JSON can hold it."""
    return {"type": type(error).__name__, "message": error.message, "hint": error.hint}


def repeated(told: Mapping[str, str]) -> BackendError:
    """Another process' error, from what it told of it."""
    kind: type[BackendError] = getattr(errors, told["type"], BackendError)
    return kind(told["message"], told["hint"])


def _left_alone() -> Interrupted:
    return Interrupted("What had started the processes has ended.", "Continue with --resume.")
