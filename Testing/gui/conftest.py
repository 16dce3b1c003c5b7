"""One host for all tests of the GUI, and what each test must leave behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BASE_PYTHON = "SLICER_BASE_PYTHON"
"""Names a folder with Slicer's own `Base/Python`; without it small stand-ins are used."""


@pytest.fixture(scope="session")
def running_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    for package in ("PySide6.QtWidgets", "slicer_core"):
        reason = f"{package} is not installed: pip install PySide6-Essentials slicer-core"
        pytest.importorskip(package, reason=reason, exc_type=ImportError)
    from slicer_host.session import Host

    given = os.environ.get(BASE_PYTHON)
    host = Host(tmp_path_factory.mktemp("slicer"), base_python=Path(given) if given else None)
    yield host
    host.stop()


@pytest.fixture
def host(running_host: Any) -> Iterator[Any]:
    """A host with an empty scene; exceptions in slots fail the test."""
    yield running_host
    try:
        running_host.check()
    finally:
        running_host.clear()
