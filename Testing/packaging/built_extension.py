"""Where the extension is, and the programs of CMake."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
STUB = Path(__file__).resolve().parent / "slicer_stub"
MODULES = Path("lib") / "Slicer-5.12" / "qt-scripted-modules"
PRIVATE = "SSLSegmentationBackend"


@dataclass(frozen=True, kw_only=True)
class Extension:
    """Where it was built and installed.

    Attributes:
        build: CMake's build tree.
        built: the scripted modules in it.
        installed: the scripted modules where the extension is installed.
    """

    build: Path
    built: Path
    installed: Path


def cmake_program(name: str = "cmake") -> str:
    """A program of CMake, beside this Python or on the path; skips the test without it."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None or shutil.which("cc") is None:
        pytest.skip(f"{name} or a C compiler is not there: pip install cmake")
    return found


def ran(*words: object) -> str:
    """What a program told; it must end well."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
