"""The tests that are meant for a machine with Slicer are sound: they pass in the host."""

from __future__ import annotations

import importlib.util
import os
import sys
import unittest
from pathlib import Path
from typing import Any

import pytest

IN_SLICER = Path(__file__).resolve().parents[1] / "slicer" / "SSLSegmentationInSlicer.py"


def passed(suite: unittest.TestSuite) -> unittest.TestResult:
    """The result of a suite that must not fail."""
    result = unittest.TestResult()
    suite.run(result)
    assert not result.errors + result.failures, (result.errors + result.failures)[0][1]
    return result


@pytest.mark.usefixtures("window")
def test_what_ctest_runs_in_slicer_passes_in_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests of the backend may have run in this process.
    for name in [name for name in sys.modules if name.split(".")[0] == "backend"]:
        monkeypatch.delitem(sys.modules, name)
    spec = importlib.util.spec_from_file_location(IN_SLICER.stem, IN_SLICER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = passed(unittest.TestLoader().loadTestsFromModule(module))
    assert result.testsRun == 4


@pytest.mark.slow
def test_the_story_of_the_module_passes_and_leaves_the_settings(
    window: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLSEGMENTATION_PYTHON", sys.executable)
    window.session.remember("project", os.sep)
    suite = unittest.TestLoader().loadTestsFromTestCase(
        sys.modules["SSLSegmentation"].SSLSegmentationTest
    )
    assert passed(suite).testsRun == 1
    assert window.session.setting("project") == os.sep
    assert window.session.setting("interpreter") == ""
