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
Whole = Annotated[int, NUMBER]
Fraction = Annotated[float, Field(ge=0, le=1), NUMBER]
HalfOpenFraction = Annotated[float, Field(ge=0, lt=1), NUMBER]
OpenFraction = Annotated[float, Field(gt=0, lt=1), NUMBER]
Positive = Annotated[float, Field(gt=0), NUMBER]
NotNegative = Annotated[float, Field(ge=0), NUMBER]
Count = Annotated[int, Field(ge=1), NUMBER]
# Finer than any CT and coarser than any: beyond is a wrong unit.
Spacing = Annotated[float, Field(ge=0.05, le=100), NUMBER]

Grid = tuple[int, int, int]
Edges = Count | tuple[Count, Count, Count]
"""Edge of a cube, or the edges of a box (z, y, x)."""


def triple(edges: int | tuple[int, int, int]) -> Grid:
    """The edges of a box, (z, y, x)."""
    return (edges, edges, edges) if isinstance(edges, int) else edges
