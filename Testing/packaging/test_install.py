"""The installed extension works by itself: module, `backend doctor` and `backend segment`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from built_extension import PRIVATE, REPOSITORY, Extension, cmake_program, ran

HERE = Path(__file__).resolve().parent


def private_files() -> set[str]:
    """What the private folder must hold, by the source tree."""
    packages = (REPOSITORY / "backend", REPOSITORY / "SSLPretrainLogic")
    files = [p for folder in packages for p in folder.rglob("*") if p.is_file()]
    files += (REPOSITORY / "Resources" / "Terminology").iterdir()
    kept = {p.relative_to(REPOSITORY).as_posix() for p in files if "__pycache__" not in p.parts}
    return {*kept, "pyproject.toml"}


def files_of(folder: Path) -> set[str]:
    """All files below a folder, without Python's own."""
    paths = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {path.relative_to(folder).as_posix() for path in paths}


@pytest.mark.parametrize("tree", ["built", "installed"])
def test_the_private_folder_holds_the_whole_backend(extension: Extension, tree: str) -> None:
    private = getattr(extension, tree) / PRIVATE
    assert files_of(private) == private_files()
    for file in private_files():
        assert (private / file).read_bytes() == (REPOSITORY / file).read_bytes()


def test_what_slicer_scans_for_modules_is_the_module_alone(extension: Extension) -> None:
    assert [path.name for path in extension.installed.glob("*.py")] == ["SSLSegmentation.py"]
    assert not (extension.installed / "backend").exists()
    assert files_of(extension.installed) == files_of(extension.built)


def test_ctest_runs_what_needs_slicer(extension: Extension) -> None:
    told = ran(cmake_program("ctest"), "--test-dir", extension.build, "--show-only=json-v1")
    tests = {test["name"]: test["command"] for test in json.loads(told)["tests"]}
    assert set(tests) == {"py_SSLSegmentation", "py_SSLSegmentationInSlicer"}
    for name, command in tests.items():
        assert str(extension.built) in command
        assert command[-1].endswith(f"'{name.removeprefix('py_')}')")
        folder = Path(command[-1].split("'")[3])
        assert (folder / f"{name.removeprefix('py_')}.py").is_file()


def test_the_entry_of_the_extensions_index_says_what_cmake_says(extension: Extension) -> None:
    entry = json.loads((REPOSITORY / "SSLSegmentation.json").read_text("utf-8"))
    lines = (extension.build / "SSLSegmentation.s4ext").read_text("utf-8").splitlines()
    told = dict(line.split(" ", 1) for line in lines)
    assert entry["build_dependencies"] == told["DEPENDS"].split()
    assert told["HOMEPAGE"].startswith(entry["scm_url"])
    allowed = {"$schema", "build_dependencies", "build_subdirectory", "category", "enabled"}
    assert set(entry) <= {*allowed, "scm_revision", "scm_type", "scm_url", "tier"}
    assert (entry["category"], entry["build_subdirectory"]) == ("Segmentation", ".")
    for name in ("ICONURL", "SCREENSHOTURLS"):
        for url in told[name].split():
            assert (REPOSITORY / url.partition("/main/")[2]).is_file(), url


@pytest.fixture(scope="module")
def told(extension: Extension, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a process tells that has nothing of the source tree but the test host."""
    pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
    pytest.importorskip("slicer_core", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("alone")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    material = os.pathsep.join(map(str, (HERE.parent / "backend", REPOSITORY)))
    make = "from worker_material import *; write_model(Path('m.safetensors'), seed=1)"
    make += "; write_scan(Path('scan.nrrd'))"
    subprocess.run(
        [sys.executable, "-c", make],
        cwd=folder,
        env={**environment, "PYTHONPATH": material},
        check=True,
    )
    host = HERE.parent / "gui"
    done = subprocess.run(
        [sys.executable, str(HERE / "from_prefix.py"), str(extension.installed), str(folder)],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(host), "QT_QPA_PLATFORM": "offscreen"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "told.json").read_text("utf-8"))


def test_the_host_loads_the_installed_module_and_its_own_packages(
    told: Any, extension: Extension
) -> None:
    prefix = str(extension.installed)
    assert told["faults"] == []
    assert told["own"], "nothing of ours was imported"
    assert [file for file in told["own"] if not file.startswith(prefix)] == []
    assert told["sections"] == 6
    assert f"{prefix}/{PRIVATE}" not in told["path"]


def test_backend_doctor_runs_from_the_prefix(told: Any, extension: Extension) -> None:
    assert told["doctor"]["code"] == 0, told["doctor"]["log"]
    report = json.loads(told["doctor"]["output"])
    assert report["ok"]
    assert {package["name"] for package in report["packages"]} >= {"torch", "monai"}
    assert told["where"]["output"].strip().startswith(str(extension.installed / PRIVATE))


def test_backend_segment_runs_from_the_prefix(told: Any) -> None:
    assert told["segment"]["code"] == 0, told["segment"]["log"]
    assert told["segments"] == ["liver", "spleen"]
