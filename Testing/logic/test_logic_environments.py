"""Interpreters: found, described, and given an environment of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from SSLPretrainLogic.environments import (
    Interpreter,
    backend_root,
    child_environment,
    chosen_interpreter,
    examine,
    find_interpreters,
    parse_report,
)
from SSLPretrainLogic.errors import LogicError

EXTERNAL = Interpreter(path=Path(sys.executable), kind="external")
SOUND: dict[str, Any] = {
    "schema": 1,
    "ok": False,
    "version": "0.1.0",
    "python": {"version": "3.12.10"},
    "torch": {"version": None, "cuda": None},
    "packages": [{"name": "torch", "version": None, "required": ">=2.5", "ok": False}],
    "devices": [],
    "findings": [{"topic": "packages", "level": "missing", "what": "no torch", "cure": "get it"}],
    "install": "pip install torch",
}


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    """A program that does what the text says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_an_external_python_gets_nothing_of_slicers(tmp_path: Path) -> None:
    home = tmp_path / "Slicer 5.12"
    lists = {
        "PATH": os.pathsep.join([str(home / "bin"), "/usr/bin"]),
        "LD_LIBRARY_PATH": os.pathsep.join([str(home / "lib"), "/opt/cuda/lib"]),
        "DYLD_LIBRARY_PATH": str(home / "lib"),
    }
    base = {
        **lists,
        "PYTHONHOME": str(home),
        "PYTHONPATH": str(home / "lib"),
        "PYTHONNOUSERSITE": "1",
        "QT_PLUGIN_PATH": "x",
        "HTTPS_PROXY": "proxy",
        "CUDA_VISIBLE_DEVICES": "",
    }
    variables = child_environment(EXTERNAL, base=base, slicer_home=home, root=tmp_path)
    assert variables.pop("PYTHONPATH") == str(tmp_path)
    assert variables == {
        "PATH": "/usr/bin",
        "LD_LIBRARY_PATH": "/opt/cuda/lib",
        "HTTPS_PROXY": "proxy",
        # Empty, it hides the GPUs.
        "CUDA_VISIBLE_DEVICES": "",
        "ITK_AUTOLOAD_PATH": "",
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8",
    }


def test_slicers_own_python_keeps_what_it_needs_and_the_backend_comes_first(tmp_path: Path) -> None:
    slicer = Interpreter(path=tmp_path / "PythonSlicer", kind="slicer")
    base = {"PYTHONHOME": "/s", "PYTHONPATH": "/s/lib", "LD_LIBRARY_PATH": "/s/lib", "QT_X": "1"}
    variables = child_environment(slicer, base=base, slicer_home=Path("/s"), root=tmp_path)
    assert variables["PYTHONPATH"].split(os.pathsep) == [str(tmp_path), "/s/lib"]
    assert variables["PYTHONHOME"] == "/s"
    assert variables["LD_LIBRARY_PATH"] == "/s/lib"
    assert "QT_X" not in variables


def test_the_backend_is_found_installed_and_in_a_checkout(tmp_path: Path) -> None:
    package = tmp_path / "qt-scripted-modules" / "SSLPretrainLogic"
    with pytest.raises(LogicError, match="the backend is not there"):
        backend_root(package)
    private = package.parent / "SSLSegmentationBackend"
    program(private / "backend" / "__main__.py")
    assert backend_root(package) == private
    assert backend_root(private / "SSLPretrainLogic") == private


def test_interpreters_are_found_once_each_and_slicers_own_comes_first(tmp_path: Path) -> None:
    slicer = program(tmp_path / "slicer" / "PythonSlicer")
    own = program(tmp_path / "venv" / "bin" / "python3")
    conda = program(tmp_path / "conda" / "bin" / "python")
    listed = tmp_path / ".conda" / "environments.txt"
    listed.parent.mkdir()
    listed.write_text(f"{tmp_path / 'conda'}\n\n{tmp_path / 'gone'}\n")
    search = os.pathsep.join(str(folder) for folder in (own.parent, slicer.parent))
    found = find_interpreters(
        base={"PATH": search, "VIRTUAL_ENV": str(tmp_path / "venv")}, home=tmp_path
    )
    assert [(i.path, i.kind) for i in found] == [
        (slicer, "slicer"),
        (own, "external"),
        (conda, "external"),
    ]


def test_a_chosen_folder_or_program_is_checked(tmp_path: Path) -> None:
    python = program(tmp_path / "env" / "bin" / "python3")
    assert chosen_interpreter(tmp_path / "env").path == python
    assert chosen_interpreter(python) == Interpreter(path=python, kind="external")
    own = program(tmp_path / "PythonSlicer")
    assert chosen_interpreter(own).kind == "slicer"
    (tmp_path / "text.txt").touch()
    for path, told in ((tmp_path / "text.txt", "cannot be started"), (tmp_path / "x", "no Python")):
        with pytest.raises(LogicError, match=told):
            chosen_interpreter(path)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("#!/bin/sh\necho hello\n", "answered 'hello' instead of a report"),
        ("#!/bin/sh\n", "answered 'nothing'"),
        ("#!/bin/sh\necho 'no such module' >&2; exit 4\n", "code 4: no such module"),
        ("#!/no/such/shell\n", "cannot be started"),
        ("#!/bin/sh\nexec sleep 100\n", "did not answer within"),
        ("#!/bin/sh\necho '{\"schema\": 9}'\n", "of version 9, not 1"),
    ],
)
def test_a_program_that_is_no_python_is_told(tmp_path: Path, script: str, told: str) -> None:
    liar = Interpreter(path=program(tmp_path / "python", script), kind="external")
    cache = tmp_path / "environments.json"
    with pytest.raises(LogicError, match=told):
        examine(
            liar,
            environment=child_environment(liar),
            cache=cache,
            timeout_s=1 if "sleep" in script else 30,
        )
    assert not cache.exists()


def test_packages_may_chatter_before_the_report() -> None:
    report = parse_report("loading...\n" + json.dumps(SOUND) + "\n")
    assert report.missing == report.findings
    assert report.summary == "Not ready: 1 missing, first: no torch."
    assert (report.torch, report.cuda, report.device_names) == ("", "", ("auto",))


@pytest.mark.parametrize(
    "change",
    [
        {"ok": "yes"},
        {"packages": [{}]},
        {"findings": [{"topic": "x", "level": "awful", "what": "", "cure": ""}]},
        {"devices": [{"name": "cpu"}]},
        {"torch": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_report_of_another_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(LogicError, match="cannot be read"):
        parse_report(json.dumps({**SOUND, **change}))


def test_the_logic_takes_the_standard_library_alone() -> None:
    package = Path(__file__).parents[2] / "SSLPretrainLogic"
    names = [p.stem for p in package.glob("*.py") if p.stem not in {"__init__", "scene"}]
    code = (
        "import sys; before = set(sys.modules); "
        f"sys.path.insert(0, {str(package.parent)!r}); "
        f"import {', '.join(f'SSLPretrainLogic.{name}' for name in names)}; "
        "tops = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "sys.stdout.write(' '.join(tops - sys.stdlib_module_names))"
    )
    # Without its site packages, as Slicer's Python has none of ours.
    done = subprocess.run(
        [sys.executable, "-ISE", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "SSLPretrainLogic"


def test_an_old_python_is_told_as_too_old(tmp_path: Path) -> None:
    # The same question, asked of a Python that says it is of 2021.
    python = program(
        tmp_path / "python",
        f'#!/bin/sh\nexec "{sys.executable}" -c "import sys; sys.version_info = (3, 9, 10); '
        'exec(sys.argv[1])" "$2"\n',
    )
    old = Interpreter(path=python, kind="external")
    report = examine(old, environment=child_environment(old))
    assert not report.ok
    assert "too old" in report.summary
    assert report.missing[0].cure == "Choose a Python of version 3.11 or newer."


def test_the_cache_is_no_reason_to_fail(tmp_path: Path) -> None:
    python = program(tmp_path / "python", f"#!/bin/sh\necho '{json.dumps(SOUND)}'; echo >>count\n")
    liar = Interpreter(path=python, kind="external")
    cache = tmp_path / "environments.json"
    shutil.copy(python, cache)
    variables = child_environment(liar)
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        for refresh in (False, False, True):
            assert examine(liar, environment=variables, cache=cache, refresh=refresh).version
    finally:
        os.chdir(here)
    assert (tmp_path / "count").read_text() == "\n\n"
