"""LARS (You et al. 2017, arXiv 1708.03888, alg. 1): steps as long as each layer's weights allow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from backend.engine.optim import decay_groups


class Lars(torch.optim.Optimizer):
    """SGD with momentum whose gradients are scaled for each tensor on its own.

    As in BYOL (Grill et al. 2020, sec. 3.3), which PGL follows, decay is part of the gradient:
    g <- g + wd p, then g <- trust |p| / |g| g, v <- m v + lr g, p <- p - v. Where |p| or |g| is 0
    the gradient stays. Groups with `adapted` false take g as it is.

    Args:
        groups: parameters with `weight_decay` and `adapted`.
        learning_rate: the loop sets it at each step.
        momentum: m.
        trust: length of a step over the length of the weights, at a learning rate of 1.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        learning_rate: float,
        momentum: float = 0.9,
        trust: float = 1e-3,
    ) -> None:
        defaults = {
            "lr": learning_rate,
            "momentum": momentum,
            "trust": trust,
            "weight_decay": 0.0,
            "adapted": True,
        }
        super().__init__(groups, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move all parameters that have a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        with torch.no_grad():
            for group in self.param_groups:
                self._step(group)
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        weights: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        if not weights:
            return
        gradients: list[Tensor] = [p.grad for p in weights if p.grad is not None]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
        if group["adapted"]:
            gradients = _adapted(gradients, weights, group["trust"])
        moments = [self._moment(weight) for weight in weights]
        torch._foreach_mul_(moments, group["momentum"])
        torch._foreach_add_(moments, gradients, alpha=group["lr"])
        torch._foreach_sub_(weights, moments)

    def _moment(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "moment" not in state:
            state["moment"] = torch.zeros_like(weight)
        moment: Tensor = state["moment"]
        return moment


def lars(
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    weight_decay: float,
    momentum: float = 0.9,
    trust: float = 1e-3,
) -> Lars:
    """LARS with decay and adaptation on neither norms nor biases (BYOL, sec. 3.3).

    Args:
        parameters: named parameters; those without gradient are left out.
        learning_rate: its peak; the loop sets it at each step.
        weight_decay: decay of the other parameters.
        momentum: share of the last step in the next.
        trust: see `Lars`.
    """
    matrices, vectors = decay_groups(parameters, weight_decay=weight_decay)
    groups = [{**matrices, "adapted": True}, {**vectors, "adapted": False}]
    return Lars(groups, learning_rate=learning_rate, momentum=momentum, trust=trust)


def _adapted(gradients: list[Tensor], weights: list[Tensor], trust: float) -> list[Tensor]:
    """Gradients as long as `trust` times their weights; decided on the device, without waiting."""
    lengths = torch.stack(torch._foreach_norm(gradients))
    weight_lengths = torch.stack(torch._foreach_norm(weights))
    scale = torch.where((lengths > 0) & (weight_lengths > 0), trust * weight_lengths / lengths, 1.0)
    return list(torch._foreach_mul(gradients, list(scale.unbind())))
