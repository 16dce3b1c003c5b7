"""Which parameters decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

_NEVER_DECAYED = ("relative_bias", "token", "position", "prototype_length")
"""Name endings of tables and tokens; norms and biases are told by having one axis."""


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to norms, biases, tokens and position tables."""
    return parameter.ndim > 1 and not name.endswith(_NEVER_DECAYED)


def decay_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of an optimiser, with weight decay only where it belongs.

    Args:
        parameters: named parameters; those without gradient are left out.
        weight_decay: of the first group, whose `decays` is true; the second has none.
    """
    named = [(n, p) for n, p in parameters if p.requires_grad]
    return [
        {
            "params": [p for n, p in named if decays(n, p) == group],
            "weight_decay": weight_decay if group else 0.0,
            "decays": group,
        }
        for group in (True, False)
    ]
