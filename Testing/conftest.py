"""What holds for all tests.

Shapes written in annotations are checked at run time. Files whose tests take minutes come first:
where processes share the files, the last ones would otherwise work on while others have nothing to
do.
"""

from __future__ import annotations

import pytest
from jaxtyping import install_import_hook

install_import_hook(
    ["backend.views", "backend.losses", "backend.models", "backend.methods"],
    # A whole number may stand for a float, as everywhere in Python's types.
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files marked `early` first, and leave the order of all others as it is."""
    items.sort(key=lambda item: item.get_closest_marker("early") is None)
