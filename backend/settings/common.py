"""Kinds of numbers that settings share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

CacheForm = Literal["compressed", "plain"]
"""How the cache keeps arrays: in compressed blocks, or as they are."""


def _no_switch(value: Any) -> Any:
    """Python counts `true` as 1; nobody who writes it means a number."""
    if isinstance(value, bool):
        raise PydanticCustomError("no_number", "Input should be a number")
    return value


def _one_or_three(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) != 3:
        raise PydanticCustomError(
            "edges", "Input should be one whole number, or three as [z, y, x]"
        )
    return value


def _not_falling(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if low > high:
        raise PydanticCustomError(
            "falling",
            "Input must not fall, as [{low}, {high}] does",
            {"low": f"{low:g}", "high": f"{high:g}"},
        )
    return value


NUMBER = BeforeValidator(_no_switch)
RISING = AfterValidator(_not_falling)
"""Of two numbers: the second is no less than the first."""
Fraction = Annotated[float, Field(ge=0, le=1), NUMBER]
HalfOpenFraction = Annotated[float, Field(ge=0, lt=1), NUMBER]
OpenFraction = Annotated[float, Field(gt=0, lt=1), NUMBER]
# Beyond these ends the arithmetic overflows, or nothing is learned: a power of ten went wrong.
Positive = Annotated[float, Field(ge=1e-6, le=1e6), NUMBER]
NotNegative = Annotated[float, Field(ge=0, le=1e6), NUMBER]
Temperature = Annotated[float, Field(ge=1e-4, le=100), NUMBER]
# Less changes nothing that can be seen.
Chance = Annotated[float, Field(ge=0.01, le=1), NUMBER]
# Whole numbers end where no machine could follow: a typing error must not cost a night or memory.
_MOST = 1_000_000
Whole = Annotated[int, Field(ge=-_MOST, le=_MOST), NUMBER]
Count = Annotated[int, Field(ge=1, le=_MOST), NUMBER]
CountFromZero = Annotated[int, Field(ge=0, le=_MOST), NUMBER]
Width = Annotated[int, Field(ge=1, le=8192), NUMBER]
Depth = Annotated[int, Field(ge=1, le=256), NUMBER]
Edge = Annotated[int, Field(ge=1, le=1024), NUMBER]
Widths = Annotated[tuple[Width, ...], Field(min_length=1, max_length=10)]
Depths = Annotated[tuple[Depth, ...], Field(min_length=1, max_length=10)]
# One answer, or a vector of one number, is the same for everything.
Answers = Annotated[int, Field(ge=2, le=_MOST), NUMBER]
TeacherMomentum = Annotated[tuple[HalfOpenFraction, Fraction], RISING]
"""Of a moving average at the first and the last step; with 1 throughout it would never learn."""
NoiseVariance = Annotated[
    tuple[
        Annotated[float, Field(ge=0, le=100), NUMBER],
        Annotated[float, Field(ge=0, le=100), NUMBER],
    ],
    RISING,
]
# The kernel ends at three deviations of the widest.
_Sigma = Annotated[float, Field(ge=0.01, le=2), NUMBER]
BlurSigma = Annotated[tuple[_Sigma, _Sigma], RISING]
_Factor = Annotated[float, Field(ge=0.01, le=100), NUMBER]
Factors = Annotated[tuple[_Factor, _Factor], RISING]
# Finer than any CT and coarser than any: beyond is a wrong unit.
Spacing = Annotated[float, Field(ge=0.05, le=100), NUMBER]

Grid = tuple[int, int, int]
Edges = Annotated[Edge | tuple[Edge, Edge, Edge], BeforeValidator(_one_or_three)]
"""Edge of a cube, or the edges of a box (z, y, x)."""


def triple(edges: int | tuple[int, int, int]) -> Grid:
    """The edges of a box, (z, y, x)."""
    return (edges, edges, edges) if isinstance(edges, int) else edges
