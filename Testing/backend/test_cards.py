"""README and docs say of the methods what the program says."""

from __future__ import annotations

import pytest
from method_pages import BLOCKS, Rows, between_marks


@pytest.mark.parametrize(
    ("path", "name", "rows"), BLOCKS, ids=[f"{path}-{name}" for path, name, _ in BLOCKS]
)
def test_what_is_written_is_what_the_program_says(path: str, name: str, rows: Rows) -> None:
    wanted = "\n".join(rows()) + "\n"
    assert between_marks(path, name) == wanted, "run python Testing/backend/method_pages.py"
