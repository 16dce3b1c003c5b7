from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from backend.losses.similarity import info_nce, nt_xent

_LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "info_nce": info_nce,
    "nt_xent": nt_xent,
}


def _views() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)


def _gradient(loss: Callable[[Tensor, Tensor, float], Tensor], rows: slice) -> Tensor:
    """Gradient of a linear layer, and the loss behind it, through which the views have gone."""
    weight = torch.eye(4).add(0.1).requires_grad_()
    first, second = (view[rows] @ weight for view in _views())
    value = loss(first, second, 0.3)
    value.backward()
    assert weight.grad is not None
    return torch.cat([weight.grad.flatten(), value.detach().view(1)])


def _one_of_two(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        for name, loss in _LOSSES.items():
            found = _gradient(loss, slice(3 * rank, 3 * rank + 3))
            # What DistributedDataParallel does with gradients.
            dist.all_reduce(found)
            torch.save(found / 2, f"{folder}/{name}-{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_have_loss_and_gradient_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(_one_of_two, args=(str(tmp_path),), nprocs=2)
    for name, loss in _LOSSES.items():
        wanted = _gradient(loss, slice(None))
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            assert torch.allclose(found, wanted, atol=1e-6), (name, rank)
