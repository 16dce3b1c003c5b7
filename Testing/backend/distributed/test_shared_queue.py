from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from backend.losses.queue import KeyQueue

_STEPS = 3


def _keys(step: int) -> Tensor:
    """What both processes see together: the keys of 4 samples."""
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(step))


def _new_queue() -> KeyQueue:
    torch.manual_seed(0)
    return KeyQueue(7, 6)


def _one_of_two(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        queue = _new_queue()
        for step in range(_STEPS):
            for part in _keys(step)[2 * rank : 2 * rank + 2].split(1 + rank):
                queue.observe(part)
            queue.update()
        torch.save(queue.state_dict(), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_queue_of_two_processes_is_that_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(_one_of_two, args=(str(tmp_path),), nprocs=2)
    alone = _new_queue()
    for step in range(_STEPS):
        alone.observe(_keys(step))
        alone.update()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(found[name], value) for name, value in alone.state_dict().items())
