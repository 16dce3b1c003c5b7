"""Batch norms whose batch is that of all processes.

PyTorch's SyncBatchNorm does it on GPUs alone; the one here is for processors, where several
processes are what tests, small servers and clusters without GPUs have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backend.losses.processes import processes, total

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def over_all_processes(module: ModuleT) -> ModuleT:
    """Exchange a module's batch norms in place, with their parameters and statistics."""
    first = next(module.parameters(), None)
    if first is not None and first.is_cuda:
        convert: Callable[[ModuleT], ModuleT] = nn.SyncBatchNorm.convert_sync_batchnorm
        return convert(module)
    for name, child in list(module.named_modules()):
        if isinstance(child, _BatchNorm) and not isinstance(child, BatchNormOverProcesses):
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, BatchNormOverProcesses.of(child))
    return module


class BatchNormOverProcesses(_BatchNorm):
    """As `nn.BatchNorm3d` (Ioffe & Szegedy 2015, alg. 1), for any number of axes."""

    @classmethod
    def of(cls, norm: _BatchNorm) -> BatchNormOverProcesses:
        """The same norm, which shares its tensors."""
        new = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        for names in (norm._parameters, norm._buffers):
            for name, value in names.items():
                setattr(new, name, value)
        return new.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - PyTorch's name
        pass

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """Normalise (b, c, ...) over all but the channels, over all processes."""
        if not self.training or processes() == 1:
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        shape = (1, -1, *[1] * (input.ndim - 2))
        x = input.float()
        count = total(x.new_tensor(x.numel() / x.shape[1]))
        mean = total(x.sum(axes)) / count
        centred = x - mean.view(shape)
        # Twice through the voxels: the mean square less the squared mean would lose digits.
        variance = total(centred.square().sum(axes)) / count
        self._follow(mean.detach(), (variance * count / (count - 1)).detach())
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        out = centred * scale.view(shape)
        if self.affine:
            out = out + self.bias.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
