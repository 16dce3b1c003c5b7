"""Row 15: two processes of one thread against one, on the same batch."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch._C._distributed_c10d import FileStore

from backend.bench.catalogue import Size
from backend.bench.measure import Pair, Told
from backend.bench.training import shared_smit
from backend.engine.distributed import Place, Team, share_of_device

_SAMPLES = 2


def ranks(size: Size, device: str, folder: Path) -> Pair:
    """A step of SMIT on two samples: one in each of two processes, or both in one."""
    two, one = (Ranks(count, size, device, folder) for count in (2, 1))

    def close() -> None:
        two.close()
        one.close()

    return Pair(size=f"SMIT on {_SAMPLES} samples", ours=two.step, peer=one.step, close=close)


class Ranks:
    """Processes that make a step whenever they are told to, and wait for it without work.

    Args:
        count: how many.
        size: of the work.
        device: the processor, or one GPU each.
        folder: where they meet.
    """

    def __init__(self, count: int, size: Size, device: str, folder: Path) -> None:
        context = mp.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(count):
            ours, theirs = context.Pipe()
            here = Place(rank=number, size=count, local_rank=number)
            process = context.Process(
                target=_serve, args=(here, size, device, folder, theirs), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def step(self) -> Told:
        """One step of all of them, and the loss of the whole batch."""
        began = time.perf_counter()
        for pipe in self._pipes:
            pipe.send("step")
        losses = [float(pipe.recv()) for pipe in self._pipes]
        return Told(time.perf_counter() - began, sum(losses) / len(losses))

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send("end")
        for process in self._processes:
            process.join()


def _serve(here: Place, size: Size, device: str, folder: Path, pipe: Connection) -> None:
    torch.set_num_threads(1)
    store = FileStore(str(folder / f"meeting-{here.size}"), here.size)
    if here.size > 1:
        backend = "gloo" if device == "cpu" else "nccl"
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size)
    step = shared_smit(size, share_of_device(device, here), Team(here, store), samples=_SAMPLES)
    while pipe.recv() == "step":
        pipe.send(step())
    if here.size > 1:
        dist.destroy_process_group()
