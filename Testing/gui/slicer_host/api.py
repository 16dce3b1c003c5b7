"""What Slicer's Python side has: the names in `api.json`, by class."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Members:
    """What a class of CTK or Slicer declares itself.

    Attributes:
        bases: from the nearest to the farthest, Qt's included.
        properties: name -> (C++ type, writable).
        methods: slots and invokable methods.
        signals: normalised signatures.
        enums: name -> values in their order.
        seen: further names that a running Slicer shows.
    """

    bases: list[str]
    properties: dict[str, tuple[str, bool]]
    methods: list[str]
    signals: list[str]
    enums: dict[str, list[str]]
    seen: list[str]


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(__file__).with_name("api.json").read_text("utf-8"))
    return content


@cache
def members(name: str) -> Members:
    """The members of a class; a class that Slicer lacks raises KeyError."""
    return Members(**_content()["classes"][name])


def class_names() -> list[str]:
    """All classes that are known."""
    return list(_content()["classes"])


@cache
def absent(name: str) -> frozenset[str]:
    """Members of a Qt class that Qt 6 has and Slicer's Qt 5.15 lacks."""
    return frozenset(_content()["absent"].get(name, ()))


def function_names(module: str) -> frozenset[str]:
    """The functions of a Python module of Slicer."""
    return frozenset(_content()["functions"][module])
