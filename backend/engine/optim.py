"""The optimiser and which parameters decay."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

_NEVER_DECAYED = ("relative_bias", "token", "position", "prototype_length")
"""Name endings of tables and tokens; norms and biases are told by having one axis."""


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to norms, biases, tokens and position tables."""
    return parameter.ndim > 1 and not name.endswith(_NEVER_DECAYED)


def adamw(
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) with decay only where it belongs, in one fused kernel.

    Args:
        parameters: named parameters; those without gradient are left out.
        learning_rate: its peak; the loop sets it at each step.
        weight_decay: decoupled decay.
        betas: decay of the running moments.
    """
    named = [(n, p) for n, p in parameters if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in {"cpu", "cuda", "mps"} for _, p in named)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)
