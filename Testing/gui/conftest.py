"""One host for all tests of the GUI, and what each test must leave behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MODULE = Path(__file__).resolve().parents[2] / "SSLSegmentation" / "SSLSegmentation.py"
BASE_PYTHON = "SLICER_BASE_PYTHON"
"""Names a folder with Slicer's own `Base/Python`; without it small stand-ins are used."""


@pytest.fixture(scope="session")
def running_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    # What the module starts: tests share a machine, and their networks are tiny.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
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


@pytest.fixture
def slicer(host: Any) -> Any:
    return host.python("slicer")


@pytest.fixture
def qt(host: Any) -> Any:
    return host.python("qt")


@pytest.fixture
def window(host: Any) -> Any:
    """The module itself, shown: its `Window`, with no project and no Python chosen."""
    module = host.load(MODULE)
    host.startup_completed()
    host.panel = host.show(module)
    host.hears_clicks = lambda: _hears_clicks(host)
    return module.widgetRepresentation().self().window


def _hears_clicks(host: Any) -> bool:
    """Whether the module that is loaded now, perhaps anew, has got over the last click."""
    module = getattr(host.python("slicer").modules, "sslsegmentation", None)
    window = module.widgetRepresentation().self().window if module is not None else None
    return window is None or not window.session.is_settling


@pytest.fixture
def ready(host: Any, window: Any, tmp_path: Path) -> Any:
    """The module with a project open and the Python chosen that runs these tests."""
    from SSLPretrainLogic import environments
    from SSLPretrainLogic.project import create_project

    session = window.session
    session.use_project(create_project(tmp_path / "Projekt ä", name="Köpfe"))
    python = environments.chosen_interpreter(Path(sys.executable))
    session.use_interpreter(python)
    variables = session.variables()
    session.use_report(environments.examine(python, environment=variables))
    host.wait_until(lambda: window.catalogue.methods or window.catalogue.problem, limit_s=120)
    assert not window.catalogue.problem
    return window
