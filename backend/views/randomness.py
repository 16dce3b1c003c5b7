"""Random numbers that follow from a key alone, drawn for a whole batch on any device.

A view, a mask or a dropped branch must be the same whatever the device, the number of processes or
the step a run was resumed at. So every sample carries a 64-bit key, and numbers are a hash of key
and position (SplitMix64, doi:10.1145/2660193.2660195) instead of the state of a generator.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK_64 = (1 << 64) - 1
_IN_CACHE = 1 << 15
"""Numbers of 64 bits that a core's second level of cache holds with room to spare."""


def derive_key(*parts: int) -> int:
    """One signed 64-bit key of several whole numbers; their order matters."""
    state = 0
    for part in parts:
        state = _mix((state + _GOLDEN + (part & _MASK_64)) & _MASK_64)
    return _signed(state)


def derive_keys(keys: Int64[Tensor, " b"], stream: int) -> Int64[Tensor, " b"]:
    """A key of its own for each purpose or view of each sample."""
    return _mix_tensor(keys + _signed(_mix(stream & _MASK_64)))


def uniform(keys: Int64[Tensor, " b"], count: int, *, stream: int) -> Float[Tensor, "b count"]:
    """Numbers in [0, 1), fp32, `count` for each key.

    Args:
        keys: one for each sample.
        count: how many.
        stream: what they are for; other streams give independent numbers.
    """
    first = derive_keys(keys, stream).unsqueeze(1)
    result = torch.empty(len(keys), count, device=keys.device)
    # A processor mixes what fits its cache several times faster; a GPU does all at once.
    chunk = max(1, _IN_CACHE // max(1, len(keys))) if keys.device.type == "cpu" else max(1, count)
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        steps = torch.arange(start + 1, stop + 1, device=keys.device, dtype=torch.int64)
        states = _mix_tensor(first + steps * _signed(_GOLDEN))
        # The upper 24 bits fill the mantissa of an fp32 exactly.
        result[:, start:stop] = _shift_right(states, 40)
    return result.mul_(2.0**-24)


def normal(keys: Int64[Tensor, " b"], count: int, *, stream: int) -> Float[Tensor, "b count"]:
    """Normal numbers of mean 0 and deviation 1, `count` for each key."""
    # Box and Muller: two uniform numbers give two normal ones.
    half = (count + 1) // 2
    u = uniform(keys, 2 * half, stream=stream).view(-1, 2, half)
    radius = u[:, 0].neg().log1p_().mul_(-2).sqrt_()
    angle = 2 * math.pi * u[:, 1]
    return torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=1)[:, :count]


def integers(
    keys: Int64[Tensor, " b"],
    high: Int64[Tensor, "b count"] | Int64[Tensor, " count"] | int,
    count: int,
    *,
    stream: int,
) -> Int64[Tensor, "b count"]:
    """Whole numbers in [0, high); `high` may differ by number, and by key as well."""
    return (uniform(keys, count, stream=stream).double() * high).floor().to(torch.int64)


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK_64
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK_64
    return z ^ (z >> 31)


def _mix_tensor(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)).mul_(_signed(_MIX_1))
    z = z.bitwise_xor_(_shift_right(z, 27)).mul_(_signed(_MIX_2))
    return z.bitwise_xor_(_shift_right(z, 31))


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # torch has no unsigned 64-bit shift: shift with the sign and cut the sign's copies off.
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
