"""The panel Pretrain: what it says, what it starts, and what it shows of a run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backend.data.index import write_index
from backend.data.phantom import make_phantom
from backend.data.phantom.cohort import write_image
from backend.data.scan import scan
from labelled_set import write_labelled_set

SMALL = (
    "method.encoder.embed_dim=4",
    "method.encoder.heads=[1, 1, 2]",
    "method.head.hidden=16",
    "method.head.bottleneck=8",
    "method.head.prototypes=32",
    "preprocess.spacing_mm=[6, 6, 6]",
    "views.region=40",
    "views.main.size=32",
)
"""Settings of the smallest network."""
ANSWER = {
    "device": "cpu (2 threads)",
    "precision": "fp32",
    "memory_mb": 500,
    "memory_free_mb": 8000,
    "seconds_per_step": 0.5,
    "steps_per_epoch": 1.5,
    "total_steps": 30,
    "scans_to_prepare": 3,
    "preparation_s": 60.0,
    "cache_bytes": 3_000_000,
    "disk_free_bytes": 70_000_000_000,
    "problem": "",
}


@pytest.fixture
def shown(host: Any, window: Any) -> Any:
    """The panel, unfolded, with nothing chosen."""
    return unfolded(host, window)


@pytest.fixture(scope="session")
def examined() -> list[Any]:
    """What is known of this Python: found out by the first test that needs it."""
    return []


@pytest.fixture
def panel(host: Any, window: Any, examined: list[Any], tmp_path: Path) -> Any:
    """The panel, unfolded, in a project without scans; this Python is chosen."""
    from SSLPretrainLogic import environments
    from SSLPretrainLogic.project import create_project

    session = window.session
    session.use_project(create_project(tmp_path / "Projekt ä"))
    session.use_interpreter(environments.chosen_interpreter(Path(sys.executable)))
    if not examined:
        examined.append(environments.examine(session.interpreter, environment=session.variables()))
    session.use_report(examined[0])
    host.wait_until(lambda: window.catalogue.methods or window.catalogue.problem, limit_s=300)
    return unfolded(host, window)


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three coarse phantoms."""
    folder = tmp_path_factory.mktemp("scans ü")
    for seed in range(3):
        ct, _ = make_phantom(seed, size=(36, 60, 60), spacing_mm=(6.0, 6.0, 6.0))
        write_image(folder / f"{seed}.nii.gz", ct)
    return folder


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two more, with their labels."""
    return write_labelled_set(tmp_path_factory.mktemp("labelled ü"), seeds=(3, 4))


def unfolded(host: Any, window: Any) -> Any:
    window.ui.sectionSetup.collapsed = True
    window.ui.sectionPretrain.collapsed = False
    host.settle()
    return window.panels["Pretrain"]


def index(panel: Any, scans: Path) -> None:
    """Give the project its scans."""
    write_index(panel.session.project.index, scan([scans], workers=1).rows)
    panel.session.project_changed.emit()


def choose(combo: Any, data: str) -> None:
    combo.currentIndex = combo.findData(data)


def measured(panel: Any, **changed: Any) -> None:
    """As if what is chosen had been measured just now."""
    from SSLSegmentationLib.pretrain_estimate import parse
    from SSLSegmentationLib.pretrain_panel import Answer

    found = parse({**ANSWER, **changed})
    panel._answer = Answer(choice=panel._choice(), estimate=found, problem=found.problem)
    panel.refresh()


def hindered(panel: Any) -> str:
    """Why nothing can be started; it stands in the panel and in the button's tooltip."""
    assert not panel.ui.pretrainStart.enabled
    assert panel.advice.text == panel.ui.pretrainStart.toolTip
    return str(panel.advice.text)


def pretrain_jobs(panel: Any) -> list[Any]:
    return [w for w in panel.monitor.jobs if w.job.what == "pretrain"]


# What can be chosen


def test_without_a_project_it_says_what_to_do_first(shown: Any) -> None:
    assert "Open or make one at the top" in hindered(shown)
    assert not shown.ui.pretrainEstimateButton.enabled
    assert not shown.ui.pretrainRunSection.visible


def test_a_method_tells_what_it_does_and_a_small_preset_comes_first_without_a_gpu(
    panel: Any, scans: Path
) -> None:
    ui = panel.ui
    assert "Add folders under 2. Data" in hindered(panel)
    index(panel, scans)
    assert panel.ui.pretrainStart.enabled
    assert panel.advice.text == ""
    choose(ui.pretrainMethod, "pgl")
    assert "recognising the same spot of the body" in ui.pretrainMethodText.text
    assert "3D ResNet-50" in ui.pretrainMethodText.text
    assert "PGL, arXiv 2020" in ui.pretrainMethod.currentText
    assert [ui.pretrainPreset.itemText(i) for i in range(3)] == ["paper", "iso", "tiny"]
    report = panel.session.report
    if set(report.device_names) == {"auto", "cpu"}:
        assert ui.pretrainPreset.currentText == "tiny"
        assert "two CPU cores" in ui.pretrainPresetText.text
        assert ui.pretrainDevice.text.startswith("auto: cpu")
    choose(ui.pretrainPreset, "tiny")
    assert ui.pretrainLength.currentText == "As the preset says: 100 epochs"
    choose(ui.pretrainPreset, "iso")
    assert "GPU" in ui.pretrainPresetText.text
    assert ui.pretrainName.text == "pgl iso"
    ui.pretrainName.text = "mine"
    choose(ui.pretrainPreset, "paper")
    assert ui.pretrainName.text == "mine"
    panel.session.environment_changed.emit()
    assert (ui.pretrainMethod.currentData, ui.pretrainPreset.currentText) == ("pgl", "paper")


def test_settings_that_are_left_alone_are_left_to_the_preset(panel: Any, scans: Path) -> None:
    index(panel, scans)
    ui = panel.ui
    assert panel.settings.overrides() == ()
    ui.pretrainSeed.value = 0
    ui.pretrainBatch.value = 2
    ui.pretrainPrecision.currentIndex = ui.pretrainPrecision.findText("fp32")
    ui.pretrainFurther.plainText = "train.learning_rate = 0.001\n\n"
    assert panel.settings.overrides() == (
        "train.seed=0",
        "train.batch_size=2",
        "train.precision=fp32",
        "train.learning_rate=0.001",
    )
    for wrong, told in (("batch 4", "is no setting"), ("train.seed=1", "has a field of its own")):
        ui.pretrainFurther.plainText = wrong
        assert told in hindered(panel)
    ui.pretrainFurther.plainText = ""
    assert ui.pretrainStart.enabled


def test_weights_to_start_from_are_a_run_or_a_file(
    host: Any, panel: Any, scans: Path, tmp_path: Path
) -> None:
    index(panel, scans)
    ui = panel.ui
    weights = tmp_path / "weights ä.safetensors"
    weights.touch()
    ui.pretrainAdvanced.collapsed = False
    host.settle()
    host.dialogs.answer("getOpenFileName", "", str(weights))
    host.click(ui.pretrainInitButton)
    assert panel._choice().init is None
    host.click(ui.pretrainInitButton)
    assert panel._choice().init == weights
    panel.monitor.changed.emit()
    assert panel._choice().init == weights
    ui.pretrainInit.currentIndex = 0
    assert panel._choice().init is None


def test_a_set_to_probe_with_is_chosen_checked_and_remembered_with_the_project(
    host: Any, panel: Any, scans: Path, labelled: Path, tmp_path: Path
) -> None:
    from SSLPretrainLogic.project import create_project, open_project

    index(panel, scans)
    ui, project = panel.ui, panel.session.project
    assert (ui.pretrainProbe.currentText, panel._choice().probe_data) == ("Do not probe", None)
    assert ui.pretrainProbe.count == 2
    ui.pretrainAdvanced.collapsed = False
    host.settle()
    assert (ui.pretrainProbeText.visible, ui.pretrainProbePath.visible) == (False, False)
    choose(ui.pretrainProbe, "other")
    assert "no labelled set is chosen" in hindered(panel)
    ui.pretrainProbePath.currentPath = str(tmp_path / "nowhere")
    assert "nowhere: does not exist. Choose another set to probe with" in hindered(panel)
    assert open_project(project.folder).probe_data == ""
    ui.pretrainProbePath.currentPath = str(labelled)
    assert ui.pretrainStart.enabled
    assert panel._request(panel._choice()).probe_data == labelled
    assert (ui.pretrainProbeText.visible, ui.pretrainProbePath.visible) == (True, True)
    assert "do not belong here" in ui.pretrainProbeText.text

    report = panel.session.report
    panel.session.use_project(create_project(tmp_path / "other"))
    assert (panel.probe.chosen(), ui.pretrainProbePath.currentPath) == (None, "")
    panel.session.use_project(open_project(project.folder))
    panel.session.use_report(report)
    assert panel.probe.chosen() == labelled
    shutil.copytree(labelled, project.labels / "Organe")
    panel.monitor.changed.emit()
    assert panel.probe.chosen() == labelled
    choose(ui.pretrainProbe, str(project.labels / "Organe"))
    assert ui.pretrainProbe.currentText == "Segments of this project: Organe"
    assert open_project(project.folder).probe_data == "labels/Organe"
    shutil.rmtree(project.labels / "Organe")
    panel.monitor.changed.emit()
    assert "Organe: does not exist" in hindered(panel)
    choose(ui.pretrainProbe, "")
    assert open_project(project.folder).probe_data == ""


# What it costs


def test_hours_become_steps_by_the_measured_time_of_a_step(panel: Any, scans: Path) -> None:
    index(panel, scans)
    ui = panel.ui
    assert not ui.pretrainLengthValue.visible
    ui.pretrainLength.currentIndex = 3
    assert ui.pretrainLengthValue.visible
    assert "Press Estimate first" in hindered(panel)
    measured(panel)
    ui.pretrainLengthValue.value = 0.5
    # Half an hour, less a minute of preparation, in steps of half a second.
    assert ui.pretrainLengthText.text == "About 3,480 steps."
    assert ui.pretrainEstimateTime.text.startswith("30 min for 3,480 steps")
    assert ui.pretrainStart.enabled
    measured(panel, preparation_s=7200.0)
    assert "Preparing the scans alone takes about 2 h. Give more hours." in hindered(panel)
    ui.pretrainLength.currentIndex = 1
    ui.pretrainLengthValue.value = 3
    measured(panel)
    assert ui.pretrainEstimateTime.text.startswith("1 min 2 s for 5 steps")
    assert ui.pretrainEstimateMemory.text == "524 MB of 8.4 GB free"
    assert ui.pretrainEstimateDisk.text == "3 MB of 70.0 GB free"


def test_what_does_not_fit_is_warned_of_and_other_settings_need_another_estimate(
    panel: Any, scans: Path
) -> None:
    index(panel, scans)
    measured(panel, problem="It does not fit: a step takes 9,000 MB.")
    assert panel.advice.text == "It does not fit: a step takes 9,000 MB."
    assert panel.ui.pretrainStart.enabled
    panel.ui.pretrainBatch.value = 1
    assert panel.advice.text == ""
    assert not panel.ui.pretrainEstimateFrame.visible
    assert "for other settings" in panel.ui.pretrainEstimateText.text


@pytest.mark.parametrize("answer", [{}, [], {**ANSWER, "problem": None} | {"device": ...}, None])
def test_an_answer_of_another_backend_is_refused_or_read_whole(answer: Any, window: Any) -> None:
    from SSLPretrainLogic.errors import LogicError
    from SSLSegmentationLib.pretrain_estimate import parse

    assert window
    if answer:
        assert parse(answer).total_steps == 30
        return
    with pytest.raises(LogicError, match="cannot be read"):
        parse(answer)


def test_an_estimate_that_ran_out_of_memory_or_failed_is_told(panel: Any, scans: Path) -> None:
    index(panel, scans)

    def ended(**status: Any) -> None:
        job = SimpleNamespace(folder=Path("estimate"))
        panel._asked = (job, panel._choice())
        panel.on_ended(SimpleNamespace(job=job, status=SimpleNamespace(**status)))

    ended(state="failed", code=4, message="Memory does not suffice.")
    assert panel.advice.text == "Memory does not suffice."
    assert not panel.ui.pretrainEstimateFrame.visible
    ended(state="failed", code=2, message="train.batch: no such setting.")
    assert panel.message.text == "train.batch: no such setting."
    ended(state="cancelled", code=3, message="")
    assert panel.message.text == ""


# From the estimate to the encoder


def test_an_estimate_can_be_cancelled(host: Any, panel: Any, scans: Path) -> None:
    index(panel, scans)
    ui = panel.ui
    host.click(ui.pretrainEstimateButton)
    assert ui.pretrainEstimateButton.text == "Cancel estimate"
    assert ui.pretrainEstimateBar.visible
    host.click(ui.pretrainEstimateButton)
    host.wait_until(lambda: panel._asked is None, limit_s=300)
    assert panel._answer is None
    assert (panel.message.text, ui.pretrainEstimateButton.text) == ("", "Estimate")
    assert not ui.pretrainEstimateBar.visible


def test_a_run_is_estimated_started_shown_and_found_again(
    host: Any, panel: Any, scans: Path, labelled: Path
) -> None:
    index(panel, scans)
    ui = panel.ui
    choose(ui.pretrainProbe, "other")
    ui.pretrainProbePath.currentPath = str(labelled)
    ui.pretrainFurther.plainText = "\n".join(SMALL)
    ui.pretrainBatch.value = 2
    host.click(ui.pretrainEstimateButton)
    host.wait_until(lambda: panel._asked is None, limit_s=300)
    assert panel.message.text == ""
    assert ui.pretrainEstimateFrame.visible
    estimate = panel._answer.estimate
    assert (estimate.steps_per_epoch, estimate.scans_to_prepare) == (1.5, 3)
    project = panel.session.project
    assert list(project.runs.iterdir()) == []

    ui.pretrainLength.currentIndex = 2
    ui.pretrainLengthValue.value = 2
    ui.pretrainName.text = "Erster Lauf"
    host.click(ui.pretrainStart)
    run = project.runs / "Erster-Lauf"
    assert panel._run == run
    assert "Erster-Lauf" in ui.pretrainRunSection.text
    assert ui.pretrainNewSection.collapsed
    ui.pretrainNewSection.collapsed = False
    assert "goes on" in hindered(panel)
    host.wait_until(lambda: panel._running() is None, limit_s=300)
    assert [w.status.state for w in pretrain_jobs(panel) if w.job.run == run] == ["done"]
    host.wait_until(lambda: ui.pretrainNext.visible)
    assert "Erster-Lauf/checkpoints/encoder.safetensors" in ui.pretrainNext.text
    assert "4. Fine-tune" in ui.pretrainNext.text
    assert panel.view.ui.runProbeText.text.startswith("Probe: 0.")
    assert [curve.steps for curve in panel.view._groups[1].curves] == [[0, 2]]
    kept = json.loads((run / "config.json").read_text("utf-8"))["config"]["train"]
    assert (kept["max_steps"], kept["batch_size"]) == (2, 2)
    assert ui.pretrainStart.enabled
    assert ui.pretrainInit.findText("Erster-Lauf") == 1

    panel._follow(None)
    panel.session.use_project(project)
    assert panel._run == run
