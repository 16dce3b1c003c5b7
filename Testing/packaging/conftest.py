"""The extension, configured, built and installed by CMake against a stub of a Slicer tree."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

import pytest
from built_extension import MODULES, REPOSITORY, STUB, Extension, cmake_program, ran


@pytest.fixture(scope="session")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Extension]:
    cmake, root = cmake_program(), tmp_path_factory.mktemp("extension")
    build, prefix = root / "build", root / "Slicer 5.12 ä"
    # CTest tells the command of a test only if its program exists.
    given = {"Slicer_DIR": STUB, "Slicer_LAUNCHER_EXECUTABLE": sys.executable}
    options = [f"-D{name}={value}" for name, value in given.items()]
    ran(cmake, "-S", REPOSITORY, "-B", build, "-DBUILD_TESTING=ON", *options)
    ran(cmake, "--build", build)
    ran(cmake, "--install", build, "--prefix", prefix)
    yield Extension(build=build, built=build / MODULES, installed=prefix / MODULES)
    shutil.rmtree(root)
