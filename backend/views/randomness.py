"""Random numbers that follow from a key alone, drawn for a whole batch on any device.

A view, a mask or a dropped branch must be the same whatever the device, the number of processes or
the step a run was resumed at. So every sample carries a 64-bit key, and numbers are a hash of key
and position (SplitMix64, doi:10.1145/2660193.2660195) instead of the state of a generator.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
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
    if keys.device.type == "cpu":
        return torch.from_numpy(_uniform_by_numpy(first.numpy().view(np.uint64), count))
    return _uniform_by_torch(first, count)


def _uniform_by_torch(first: Int64[Tensor, "b 1"], count: int) -> Float[Tensor, "b count"]:
    """All at once, as suits a GPU."""
    steps = torch.arange(1, count + 1, device=first.device, dtype=torch.int64)
    states = _mix_tensor(first + steps * _signed(_GOLDEN))
    # The upper 24 bits fill the mantissa of an fp32 exactly.
    return _shift_right(states, 40).float().mul_(2.0**-24)


def _uniform_by_numpy(first: NDArray[np.uint64], count: int) -> NDArray[np.float32]:
    """The same numbers, in parts that fit a processor's cache: several times faster there.

    NumPy shifts without sign in one pass, where torch needs two.

    Args:
        first: state before the first number, (b, 1).
        count: how many for each.
    """
    result = np.empty((len(first), count), dtype=np.float32)
    chunk = max(1, _IN_CACHE // max(1, len(first)))
    steps = np.arange(1, min(chunk, count) + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    for start in range(0, count, chunk):
        part = result[:, start : start + chunk]
        states = steps[: part.shape[1]] + np.uint64((start * _GOLDEN) & _MASK_64) + first
        shifted = np.empty_like(states)
        for bits, factor in ((30, _MIX_1), (27, _MIX_2)):
            states ^= np.right_shift(states, np.uint64(bits), out=shifted)
            states *= np.uint64(factor)
        states ^= np.right_shift(states, np.uint64(31), out=shifted)
        states >>= np.uint64(40)
        # Signed numbers are converted faster, and these have 24 bits.
        part[:] = states.view(np.int64)
        part *= np.float32(2.0**-24)
    return result


def normal(keys: Int64[Tensor, " b"], count: int, *, stream: int) -> Float[Tensor, "b count"]:
    """Normal numbers of mean 0 and deviation 1, `count` for each key."""
    # Box and Muller: two uniform numbers give two normal ones.
    half = (count + 1) // 2
    u = uniform(keys, 2 * half, stream=stream).view(-1, 2, half)
    radius = u[:, 0].neg().log1p_().mul_(-2).sqrt_()
    angle = u[:, 1].mul_(2 * math.pi)
    torch.mul(angle.cos(), radius, out=u[:, 0])
    angle.sin_().mul_(radius)
    return u.flatten(1)[:, :count]


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
