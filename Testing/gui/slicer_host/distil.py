"""Distils `api.json`: what Slicer's Python side has, as far as the stand-ins need it.

    python Testing/gui/slicer_host/distil.py slicer_api.json slicer_live_dir.json

The first file holds what Slicer's headers declare, the second what `dir()` shows in a running
Slicer. Only names are kept, no code.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

_PREFIXES = ("ctk", "qMRML", "qSlicer")
_FUNCTIONS = ("slicer.util", "slicer.packaging", "slicer.i18n", "slicer.testing")
_COMMON = 20
"""A name that so many classes show belongs to their bases in Qt."""

_VIRTUAL = {"clearItemData", "create", "initViewItemOption", "multiData", "skipData"}
"""Qt calls these itself; to hide them would break it."""


def distil(api: dict[str, Any], live: dict[str, Any]) -> dict[str, Any]:
    """Keep the own members of widgets, what Qt 5.15 lacks, and signatures of functions.

    Args:
        api: class or module name -> members (`slicer_api.json`).
        live: class name -> names (`slicer_live_dir.json`).
    """
    widgets = sorted(name for name in api if name.startswith(_PREFIXES))
    counts = Counter(name for names in live.values() if isinstance(names, list) for name in names)
    common = {name for name, count in counts.items() if count >= _COMMON}
    return {
        "source": "Slicer 5.12 and main 583e9b37, CTK 5056664a, PythonQt for Qt 5.15",
        "classes": {name: _members(name, api=api, live=live, common=common) for name in widgets},
        "absent": {
            name: sorted(set(entry["not_in_qt515"]) - _VIRTUAL)
            for name, entry in sorted(api.items())
            if entry.get("not_in_qt515")
        },
        "functions": {name: api[name]["function_signatures"] for name in _FUNCTIONS},
    }


def _members(
    name: str, *, api: dict[str, Any], live: dict[str, Any], common: set[str]
) -> dict[str, Any]:
    entry, own = api[name], api[name]["own"]
    properties = {
        p: [entry["property_info"][p]["type"], entry["property_info"][p]["writable"]]
        for p in own["properties"]
    }
    known = common | set(own["methods"]) | {s.partition("(")[0] for s in own["signals"]}
    known |= set(properties) | {v for values in _enums(entry).values() for v in values}
    for base in entry["bases"]:
        known |= set(live.get(base, ())) | set(api.get(base, {}).get("properties", ()))
        known |= set(api.get(base, {}).get("methods", ()))
    return {
        "bases": entry["bases"],
        "properties": properties,
        "methods": own["methods"],
        "signals": [s.replace(" ", "") for s in own["signals"]],
        "enums": _enums(entry),
        "seen": sorted(set(live.get(name, ())) - known),
    }


def _enums(entry: dict[str, Any]) -> dict[str, list[str]]:
    return entry.get("enums") or {}


def main() -> None:
    """Write `api.json` beside this file."""
    api, live = (json.loads(Path(path).read_text("utf-8")) for path in sys.argv[1:3])
    target = Path(__file__).with_name("api.json")
    target.write_text(json.dumps(distil(api, live), indent=0, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
