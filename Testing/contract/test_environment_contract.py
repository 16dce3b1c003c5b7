"""A real doctor in a child process, in interpreters with and without what the backend needs."""

from __future__ import annotations

import json
import os
import sys
import time
import venv
from pathlib import Path

import pytest

import backend
from SSLPretrainLogic.downloads import downloads, told_size
from SSLPretrainLogic.environments import (
    Interpreter,
    backend_root,
    cached_report,
    child_environment,
    chosen_interpreter,
    examine,
    remember,
)
from SSLPretrainLogic.jobs import doctor_command, look, start
from SSLPretrainLogic.project import create_project

HERE = Interpreter(path=Path(sys.executable), kind="external")


def test_this_interpreter_is_ready_and_what_is_known_of_it_is_remembered(tmp_path: Path) -> None:
    cache = tmp_path / "environments.json"
    variables = {**child_environment(HERE), "OMP_NUM_THREADS": "1"}
    report = examine(HERE, environment=variables, cache=cache)
    assert report.ok
    assert report.missing == ()
    assert report.version == backend.__version__
    assert report.python == ".".join(map(str, sys.version_info[:3]))
    assert {"auto", "cpu"} <= set(report.device_names)
    assert report.summary.startswith(f"Ready: Python {report.python}, PyTorch {report.torch}")
    assert downloads(report, gpu=True) == ()

    known = cached_report(HERE, environment=variables, cache=cache)
    assert known is not None
    assert known.findings == report.findings
    # Written again, an interpreter is another one.
    told = json.loads(cache.read_text("utf-8"))
    entry = next(iter(told["entries"].values()))
    entry["stamp"][1] += 1
    cache.write_text(json.dumps(told), "utf-8")
    assert cached_report(HERE, environment=variables, cache=cache) is None


@pytest.mark.skipif(os.name == "nt", reason="the layout of the environment is that of POSIX")
def test_a_bare_interpreter_is_told_to_lack_everything_and_how_much_is_to_come(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "bare Python"
    venv.create(folder, symlinks=True)
    bare = chosen_interpreter(folder)
    assert bare == Interpreter(path=folder / "bin" / "python3", kind="external")
    variables = child_environment(bare, base={"PATH": os.defpath})
    project = create_project(tmp_path / "project")
    job = start(doctor_command(bare, environment=variables), project=project)
    deadline = time.monotonic() + 60
    while look(job).is_active:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    told = job.output.read_text("utf-8")
    remember(bare, told, environment=variables, cache=project.environments)
    report = examine(bare, environment=variables, cache=project.environments, timeout_s=0)
    assert report.examined
    assert not report.ok
    assert report.torch == ""
    lacking = {package.name for package in report.packages if not package.ok}
    assert {"torch", "monai", "tyro", "numpy"} <= lacking
    assert report.summary.startswith("Not ready: ")
    assert all(finding.cure for finding in report.missing)
    assert str(bare.path) in report.install
    plan = downloads(report, gpu=False, system="linux")
    assert (plan[0].name, plan[0].mb) == ("torch", 192)
    assert told_size(plan).endswith(" MB")
    assert told_size(downloads(report, gpu=True, system="linux")) == "about 2.8 GB"


def test_the_backend_of_this_checkout_is_found() -> None:
    assert (backend_root() / "backend" / "__init__.py").samefile(backend.__file__)
