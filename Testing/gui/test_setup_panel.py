"""The panel Setup and the project bar: from nothing to a Python that is ready."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pip
import pytest

CONSTRAINTS = "SSLSegmentation-constraints.txt"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that lacks everything; it is Slicer's own Python under another name."""
    folder = tmp_path_factory.mktemp("Pythons") / "leere Umgebung"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (folder / "bin" / "PythonSlicer").symlink_to("python")
    return folder


@pytest.fixture
def panel(window: Any, tmp_path: Path) -> Any:
    """The panel, with a project open and no Python chosen."""
    from SSLPretrainLogic.project import create_project

    window.session.use_project(create_project(tmp_path / "Projekt ä & b"))
    return window.panels["Setup"]


@pytest.fixture
def slicers(panel: Any, bare: Path) -> Any:
    """The panel, with a Python chosen that passes for Slicer's own."""
    from SSLPretrainLogic import environments

    panel.session.use_interpreter(environments.chosen_interpreter(bare / "bin" / "PythonSlicer"))
    return panel


def choose(host: Any, panel: Any, path: Path) -> None:
    host.dialogs.answer("getOpenFileName", str(path))
    host.click(panel.ui.setupOtherButton)


def examine(host: Any, panel: Any) -> None:
    """Press Test environment and wait for its end."""
    host.click(panel.ui.setupTestButton)
    assert not panel.ui.setupTestButton.enabled
    wait(host, panel)


def wait(host: Any, panel: Any) -> None:
    host.wait_until(lambda: not panel.ui.setupProgress.visible, limit_s=120)


def rows(panel: Any) -> list[str]:
    """All that the tree of findings shows, line by line."""
    tree = panel.ui.setupFindings
    top = [tree.topLevelItem(i) for i in range(tree.topLevelItemCount)]
    below = [[item.child(i) for i in range(item.childCount())] for item in top]
    both = zip(top, below, strict=True)
    return [item.text(0) for one, more in both for item in (one, *more)]


def hint(panel: Any) -> str:
    return str(panel.hint.text)


# What a newcomer meets


def test_a_newcomer_is_sent_to_the_project_first(window: Any) -> None:
    panel = window.panels["Setup"]
    assert "New… makes a project" in hint(panel)
    assert not panel.ui.setupTestButton.enabled
    assert "project" in panel.ui.setupTestButton.toolTip
    assert not panel.ui.setupFindings.visible
    assert not panel.ui.setupInstallButton.visible


def test_an_empty_environment_tells_what_it_lacks_and_how_much_that_is(
    host: Any, panel: Any, bare: Path
) -> None:
    choose(host, panel, bare / "bin" / "python")
    assert "Press Test environment" in hint(panel)
    examine(host, panel)
    assert "Not ready" in hint(panel)
    assert any(row.startswith("torch is not installed") and "MB" in row for row in rows(panel))
    assert not panel.ui.setupDeviceCombo.enabled
    host.dialogs.answer("confirmOkCancelDisplay", False)
    host.click(panel.ui.setupInstallButton)
    asked = host.dialogs.texts("confirmOkCancelDisplay")[0]
    assert f"install into\n{bare / 'bin' / 'python'}" in asked
    assert "torch: " in asked
    assert panel.monitor.active() is None


def test_a_line_that_is_selected_is_told_in_full_with_its_cure(
    host: Any, panel: Any, bare: Path
) -> None:
    choose(host, panel, bare / "bin" / "python")
    examine(host, panel)
    # What Install does not cure is selected from the start.
    assert "--force-reinstall python-gdcm pydicom" in panel.ui.setupDetail.text
    tree = panel.ui.setupFindings
    tree.setCurrentItem(tree.topLevelItem(0))
    assert panel.ui.setupDetail.text.endswith(str(bare / "bin" / "python"))


def test_a_good_python_makes_the_panel_ready(host: Any, panel: Any) -> None:
    choose(host, panel, Path(sys.executable))
    examine(host, panel)
    assert hint(panel).startswith("Ready: Python")
    assert not panel.ui.setupInstallButton.visible
    combo = panel.ui.setupDeviceCombo
    assert combo.enabled
    assert [combo.itemData(i) for i in range(2)] == ["auto", "cpu"]
    combo.currentIndex = 1
    assert panel.session.device == "cpu"
    host.wait_until(lambda: panel.catalogue.methods, limit_s=60)


# What goes wrong


def test_a_text_file_is_no_python(host: Any, panel: Any, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no Python")
    choose(host, panel, text)
    assert panel.message.text == f"{text}: cannot be started. Choose the program python itself."
    text.chmod(0o755)
    choose(host, panel, text)
    host.click(panel.ui.setupTestButton)
    assert f"{text}: cannot be started" in panel.message.text
    assert panel.session.report is None


def test_a_program_that_is_no_python_is_told_by_its_name(
    host: Any, panel: Any, tmp_path: Path
) -> None:
    program = tmp_path / "true"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    choose(host, panel, program)
    examine(host, panel)
    assert f"{program}: cannot be tested." in panel.message.text
    assert panel.message.text.endswith("Choose another Python.")


def test_a_python_that_is_gone_is_told_and_the_one_before_stays(
    host: Any, panel: Any, bare: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "python"
    gone.symlink_to(sys.executable)
    choose(host, panel, gone)
    choose(host, panel, bare / "bin" / "python")
    gone.unlink()
    combo = panel.ui.setupPythonCombo
    combo.currentIndex = combo.findData(str(gone))
    assert f"{gone}: there is no Python" in panel.message.text
    assert combo.currentData == str(bare / "bin" / "python")


def test_a_test_can_be_cancelled(host: Any, panel: Any) -> None:
    choose(host, panel, Path(sys.executable))
    host.click(panel.ui.setupTestButton)
    host.wait_until(lambda: not panel.session.is_settling)
    host.click(panel.ui.setupCancelButton)
    wait(host, panel)
    assert panel.message.text == "The test was cancelled."
    assert panel.session.report is None


# Installing


def a_wheel(folder: Path, name: str) -> None:
    """A package without content."""
    plain = name.replace("-", "_")
    info = f"{plain}-99.0.dist-info"
    with zipfile.ZipFile(folder / f"{plain}-99.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def wheels(host: Any, tmp_path: Path) -> Iterator[Path]:
    """The only place where pip looks for packages."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    environment = host.python("slicer").app.setEnvironmentVariable
    wanted = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": folder.as_uri(), "PIP_EXTRA_INDEX_URL": ""}
    for name, value in wanted.items():
        environment(name, value)
    yield folder
    for name in wanted:
        environment(name, os.environ.get(name, ""))


@pytest.fixture
def with_pip(tmp_path: Path) -> Path:
    """An environment that has pip and nothing else."""
    folder = tmp_path / "mit pip"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = next(folder.glob("lib/python3*/site-packages"))
    (packages / "pip").symlink_to(Path(pip.__file__).parent)
    return folder / "bin" / "python"


def test_what_is_missing_is_installed_as_a_job_and_tested_again(
    host: Any, panel: Any, with_pip: Path, wheels: Path
) -> None:
    choose(host, panel, with_pip)
    examine(host, panel)
    before = panel.session.report
    host.dialogs.answer("confirmOkCancelDisplay", True, True)

    host.click(panel.ui.setupInstallButton)
    wait(host, panel)
    assert panel.message.text.startswith("The packages could not be installed.")
    assert "No matching distribution" in panel.message.text

    for package in before.packages:
        a_wheel(wheels, package.name)
    host.click(panel.ui.setupInstallButton)
    host.wait_until(lambda: panel.session.report not in (None, before), limit_s=60)
    assert {package.version for package in panel.session.report.packages} == {"99.0"}
    # They have no content; nothing more can be installed.
    assert "A line below tells its cure" in hint(panel)
    assert "--force-reinstall" in panel.ui.setupDetail.text
    assert not panel.ui.setupInstallButton.visible


def test_slicers_own_python_needs_the_extension_pytorch(
    host: Any, slicers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert slicers.ui.setupPythonCombo.currentText == "Slicer's own Python"
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    examine(host, slicers)
    host.dialogs.answer("confirmOkCancelDisplay", True)
    host.click(slicers.ui.setupInstallButton)
    assert "Install it in the Extensions Manager" in slicers.message.text
    assert slicers.session.setting("setupAfterRestart") == "install"
    assert slicers.monitor.active() is None
    assert slicers.ui.setupInstallButton.enabled


def the_extension(asked: list[dict[str, Any]]) -> ModuleType:
    """Stands in for the extension PyTorch, which is not ours; tells what it was asked."""

    def install_torch(_: Any, **options: Any) -> object:
        asked.append(options)
        return object()

    module = ModuleType("PyTorchUtils")
    module.PyTorchUtilsLogic = type("PyTorchUtilsLogic", (), {"installTorch": install_torch})
    return module


@pytest.mark.parametrize("is_new", [True, False], ids=["since 5.12", "before 5.12"])
def test_slicers_own_python_is_completed_by_slicers_own_means(
    host: Any, slicers: Any, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, "PyTorchUtils", the_extension(asked))
    if not is_new:
        monkeypatch.delattr(host.python("slicer"), "packaging")
    examine(host, slicers)
    host.dialogs.answer("confirmOkCancelDisplay", True)
    host.click(slicers.ui.setupInstallButton)
    wait(host, slicers)
    assert "Slicer stands still" in host.dialogs.texts("confirmOkCancelDisplay")[0]
    wanted = {"askConfirmation": False, "forceComputationBackend": "cpu"}
    assert asked == [{**wanted, "torchVersionRequirement": ">=2.5"}]
    (installed,) = host.dialogs.texts("pip_install")
    assert "'tyro>=" in installed
    # Slicer's own packages are not touched.
    assert "numpy" not in installed
    assert "torch" not in installed
    assert "numpy==" in (Path(host.python("slicer").app.temporaryPath) / CONSTRAINTS).read_text()
    # It was tested again.
    assert "Not ready" in hint(slicers)


def test_an_installation_into_slicer_that_fails_is_told(
    host: Any, slicers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PyTorchUtils", the_extension([]))
    examine(host, slicers)
    host.dialogs.answer("confirmOkCancelDisplay", True)
    host.dialogs.answer("pip_install", 1)
    host.click(slicers.ui.setupInstallButton)
    host.wait_until(lambda: slicers.message.text)
    assert slicers.message.text.startswith("The packages could not be installed.")
    assert slicers.ui.setupInstallButton.enabled


# After a start of Slicer


def test_slicer_goes_on_where_it_was_closed(
    host: Any, slicers: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slicer = host.python("slicer")
    choose(host, slicers, Path(sys.executable))
    combo = slicers.ui.setupPythonCombo
    listed = [combo.itemText(i) for i in range(combo.count)]
    slicers.session.remember("setupAfterRestart", "test")
    host.unload(slicer.modules.sslsegmentation)
    monkeypatch.setenv("PATH", os.defpath)
    module = host.load(Path(__file__).parents[2] / "SSLSegmentation" / "SSLSegmentation.py")
    host.panel = host.show(module)
    again = module.widgetRepresentation().self().window.panels["Setup"]
    combo = again.ui.setupPythonCombo
    assert combo.currentData == sys.executable
    assert combo.currentText in listed
    assert "Go on with Test environment" in again.message.text
    assert again.session.project.folder == tmp_path / "Projekt ä & b"


def test_a_project_is_opened_again_from_the_list(host: Any, window: Any, tmp_path: Path) -> None:
    assert not window.ui.recentProjectsButton.enabled
    for name in ("one", "two & three"):
        host.dialogs.answer("getExistingDirectory", str(tmp_path / name))
        host.click(window.ui.newProjectButton)
    menu = window.ui.recentProjectsButton.menu()
    menu.aboutToShow.emit()
    assert [action.data() for action in menu.actions()] == [
        str(tmp_path / "two & three"),
        str(tmp_path / "one"),
    ]
    menu.actions()[1].trigger()
    assert window.ui.projectName.text == "one"


# Plans and progress


def a_report(*, gpu: str = "", missing: bool = True) -> Any:
    from SSLPretrainLogic.environments import Finding, Package, Report

    level = "missing" if missing else "ok"
    findings = [Finding(topic="packages", level=level, what="torch", cure="")]
    cure = f"pip install --force-reinstall torch --index-url {gpu}"
    findings += [Finding(topic="devices", level="warning", what="GPU", cure=cure)] if gpu else []
    return Report(
        ok=not missing,
        version="1",
        python="3.12",
        torch="",
        cuda="",
        packages=(Package(name="torch", version=None, required=">=2.5", ok=not missing),),
        devices=(),
        findings=tuple(findings),
        install='"/a b/O\'Neil/python" -m pip install "torch>=2.5"' if missing else "",
        examined="",
    )


@pytest.mark.usefixtures("window")
def test_the_build_of_pytorch_fits_the_machine() -> None:
    from SSLSegmentationLib.installation import make_plan

    index = "https://download.pytorch.org/whl/cu128"
    plan = make_plan(a_report(), gpu=False, system="linux")
    assert plan.words == (
        "torch>=2.5",
        "--extra-index-url",
        "https://download.pytorch.org/whl/cpu",
    )
    assert make_plan(a_report(), gpu=False, system="win32").words == ("torch>=2.5",)
    plan = make_plan(a_report(gpu=index), gpu=True, system="linux")
    assert plan.words == ("torch>=2.5", "--extra-index-url", index)
    assert plan.size == "about 2.6 GB"
    again = make_plan(a_report(gpu=index, missing=False), gpu=True)
    assert again.words == ("--force-reinstall", "torch", "--index-url", index)
    assert make_plan(a_report(missing=False), gpu=False) is None


@pytest.mark.usefixtures("window")
def test_the_progress_of_pip_is_read_from_what_it_writes() -> None:
    from SSLSegmentationLib.installation import progress, time_left

    lines = [
        "Collecting numpy>=1.26",
        "  Downloading numpy-2.4.6-cp312-cp312-manylinux_2_27_x86_64.whl (16.0 MB)",
        "Collecting torch",
        "  Downloading https://download.pytorch.org/whl/torch-2.13.0-cp312-none.whl (1.5 GB)",
    ]
    assert progress(lines[:1], mb=1600).fraction == 0
    first, second = (progress(lines[:count], mb=1600) for count in (2, 4))
    assert (first.fraction, first.what) == (0, "downloads numpy (16.0 MB)")
    assert second.fraction == pytest.approx(0.009)
    assert second.what == "downloads torch (1.5 GB)"
    unpacks = progress([*lines, "Installing collected packages: numpy, torch"], mb=1600)
    assert unpacks.fraction == 0.9
    assert time_left(0.25, 60) == "about 3 min left"
    assert time_left(0.9, 60) == "less than a minute left"
    assert time_left(0.01, 60) == ""


def test_limits_of_the_warm_worker_are_kept_and_given_to_it(host: Any, panel: Any) -> None:
    from SSLSegmentationLib import worker

    ui, session = panel.ui, panel.session
    assert ui.setupWorkerBox.collapsed
    assert (ui.setupIdleMinutes.value, ui.setupMemoryMb.value) == (15, 4096)
    ui.setupWorkerBox.collapsed = False
    host.settle()
    ui.setupIdleMinutes.value, ui.setupMemoryMb.value = 3, 512
    assert worker.limit(session, worker.IDLE_MINUTES) == 3
    words = worker.words(session)
    assert words[words.index("--idle-minutes") + 1] == "3"
    assert words[words.index("--model-memory-mb") + 1] == "512"
    session.remember(worker.MEMORY_MB, "much")
    assert worker.limit(session, worker.MEMORY_MB) == 4096
    host.click(ui.setupUnloadButton)
    assert panel.message.text == "No model is in memory."
