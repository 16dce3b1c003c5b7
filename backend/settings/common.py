"""Kinds of numbers that settings share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def _no_switch(value: Any) -> Any:
    """Python counts `true` as 1; nobody who writes it means a number."""
    if isinstance(value, bool):
        raise PydanticCustomError("no_number", "Input should be a number")
    return value


NUMBER = BeforeValidator(_no_switch)
Real = Annotated[float, NUMBER]
Fraction = Annotated[float, Field(ge=0, le=1), NUMBER]
HalfOpenFraction = Annotated[float, Field(ge=0, lt=1), NUMBER]
OpenFraction = Annotated[float, Field(gt=0, lt=1), NUMBER]
Positive = Annotated[float, Field(gt=0), NUMBER]
NotNegative = Annotated[float, Field(ge=0), NUMBER]
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
# Finer than any CT and coarser than any: beyond is a wrong unit.
Spacing = Annotated[float, Field(ge=0.05, le=100), NUMBER]

Grid = tuple[int, int, int]
Edges = Edge | tuple[Edge, Edge, Edge]
"""Edge of a cube, or the edges of a box (z, y, x)."""


def triple(edges: int | tuple[int, int, int]) -> Grid:
    """The edges of a box, (z, y, x)."""
    return (edges, edges, edges) if isinstance(edges, int) else edges
