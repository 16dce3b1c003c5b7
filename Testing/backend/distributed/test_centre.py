from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from backend.losses.distillation import Centre

_STEPS = 3


def _logits(step: int) -> Tensor:
    """What both processes see together: 5 samples of 4 tokens, 6 prototypes."""
    return torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(step))


def _one_of_two(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        centre = Centre(6, momentum=0.9)
        for step in range(_STEPS):
            # Uneven shares, and one of the processes observes its share in two parts.
            mine = _logits(step)[:2] if rank == 0 else _logits(step)[2:]
            for part in mine.split(2):
                centre.observe(part)
            centre.update()
        torch.save(centre.value, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_centre_of_two_processes_is_that_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(_one_of_two, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = Centre(6, momentum=0.9)
    wanted = torch.zeros(6, dtype=torch.float64)
    for step in range(_STEPS):
        alone.observe(_logits(step))
        alone.update()
        wanted = 0.9 * wanted + 0.1 * _logits(step).double().mean((0, 1))
    assert torch.equal(first, second)
    assert torch.allclose(first, alone.value, atol=1e-7)
    assert torch.allclose(first.double(), wanted, atol=1e-6)
