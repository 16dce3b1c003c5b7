"""Full precision inside autocast, for what half precision would spoil."""

from __future__ import annotations

import contextlib

import torch


def full_precision(device_type: str) -> contextlib.AbstractContextManager[None]:
    """A context in which autocast is off; inputs still have to be made fp32."""
    # Counting on the meta device computes nothing, and knows no autocast.
    if device_type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)
