"""Makes None live for ever in Pythons before 3.12, where it would be counted to death.

PySide 6.12 is built for Pythons whose None is immortal: each of its calls that answers None gives
away a reference that it does not hold. After some thousands of them the interpreter would abort.
"""

from __future__ import annotations

import ctypes
import sys

_MANY = 1 << 40


def keep_none_alive() -> None:
    """Count so many references to None that no number of calls uses them up."""
    if sys.version_info < (3, 12):
        ctypes.c_ssize_t.from_address(id(None)).value += _MANY
