"""Shapes written in annotations are checked at run time, in tests only."""

from __future__ import annotations

from jaxtyping import install_import_hook

install_import_hook(
    ["backend.views", "backend.losses", "backend.models", "backend.methods"],
    # A whole number may stand for a float, as everywhere in Python's types.
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
