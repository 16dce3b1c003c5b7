"""Kinds of numbers that settings share."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Triple = tuple[Positive, Positive, Positive]
Grid = tuple[int, int, int]
Edges = Count | tuple[Count, Count, Count]
"""Edge of a cube, or the edges of a box (z, y, x)."""


def triple(edges: int | tuple[int, int, int]) -> Grid:
    """The edges of a box, (z, y, x)."""
    return (edges, edges, edges) if isinstance(edges, int) else edges
