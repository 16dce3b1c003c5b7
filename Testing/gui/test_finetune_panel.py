"""Fine-tune: from segments of the scene or a labelled folder to a model, with the mouse."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recorded_runs import ended
from story import enter

SHAPE = (8, 16, 16)
LEFT, RIGHT = np.s_[2:6, 2:10, 2:6], np.s_[2:6, 2:10, 10:14]
OVER_LEFT = np.s_[2:6, 2:10, 4:8]


@pytest.fixture
def opened(host: Any, window: Any, tmp_path: Path) -> Any:
    """The panel, with a project and a Python of which nothing more is known."""
    from SSLPretrainLogic import environments
    from SSLPretrainLogic.project import create_project

    window.session.use_project(create_project(tmp_path / "Projekt ä"))
    window.session.use_interpreter(environments.chosen_interpreter(Path(sys.executable)))
    return unfolded(host, window)


@pytest.fixture
def weighted(opened: Any, tmp_path: Path) -> Any:
    """The panel, with everything chosen but the labels; the weights are no real ones."""
    weights = tmp_path / "encoder.safetensors"
    weights.write_bytes(b"")
    opened.ui.finetuneStart.currentIndex = 0
    opened.ui.finetuneWeights.currentPath = str(weights)
    return opened


def unfolded(host: Any, window: Any) -> Any:
    window.ui.sectionFinetune.collapsed = False
    host.settle()
    return window.panels["Finetune"]


@pytest.fixture
def add(host: Any, slicer: Any) -> Callable[..., Any]:
    """Adds a volume with a segmentation; answers the segmentation."""

    def added(name: str, segments: Mapping[str, Any], *, refers: bool = True) -> Any:
        volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE, np.int16), name=name)
        return segmentation(name, segments, volume, refers=refers)

    def segmentation(name: str, segments: Mapping[str, Any], volume: Any, *, refers: bool) -> Any:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"Segments of {name}")
        for title, where in segments.items():
            segment_id = node.GetSegmentation().AddEmptySegment("", title)
            if where is not None:
                mask = np.zeros(slicer.util.arrayFromVolume(volume).shape, np.uint8)
                mask[where] = 1
                slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment_id, volume)
        if refers:
            node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        wait_for_list(host)
        return node

    return added


def wait_for_list(host: Any) -> None:
    """Let the list of cases follow the scene."""
    panel = host.python("slicer").modules.sslsegmentation.widgetRepresentation().self().window
    later = panel.panels["Finetune"].cases._later
    host.wait_until(lambda: not later.active)


def shown(table: Any) -> list[list[str]]:
    columns = [c for c in range(table.columnCount) if not table.isColumnHidden(c)]
    return [[table.item(row, c).text() for c in columns] for row in range(table.rowCount)]


def check_case(panel: Any, row: int, *, on: bool) -> None:
    qt = sys.modules["qt"]
    panel.ui.finetuneCases.item(row, 0).setCheckState(qt.Qt.Checked if on else qt.Qt.Unchecked)


def select(panel: Any, *rows: int) -> None:
    qt = sys.modules["qt"]
    table = panel.ui.finetuneStructures
    table.clearSelection()
    for row in rows:
        index = table.model().index(row, 0)
        flags = qt.QItemSelectionModel.Select | qt.QItemSelectionModel.Rows
        table.selectionModel().select(index, flags)


def click_rows(host: Any, panel: Any, *rows: int) -> None:
    """Select rows of the structures with the mouse, all but the first with Ctrl held down."""
    from PySide6 import QtCore, QtTest

    table = panel.ui.finetuneStructures
    keys = QtCore.Qt.KeyboardModifier.NoModifier
    for row in rows:
        where = table.visualItemRect(table.item(row, 1)).center()
        QtTest.QTest.mouseClick(table.viewport(), QtCore.Qt.MouseButton.LeftButton, keys, where)
        keys = QtCore.Qt.KeyboardModifier.ControlModifier
    host.settle()


# Labels of the scene


def test_without_a_project_and_a_segmentation_both_are_explained(host: Any, window: Any) -> None:
    panel = unfolded(host, window)
    assert panel.ui.finetuneNoCases.visible
    assert not panel.ui.finetuneStartButton.enabled
    assert "No project is open" in panel.ui.finetuneReason.text
    assert panel.ui.finetuneStartButton.toolTip == panel.ui.finetuneReason.text


def test_names_however_written_are_one_row_that_tells_what_is_missing(
    opened: Any, add: Callable[..., Any]
) -> None:
    add("CT 1", {"Left_Kidney": LEFT, "Liver": RIGHT})
    add("CT 2", {"left kidney": LEFT})
    assert shown(opened.ui.finetuneStructures) == [
        ["1", "Left_Kidney", "Left_Kidney, left kidney", "2 of 2"],
        ["2", "Liver", "Liver", "1 of 2"],
    ]
    lacking = opened.ui.finetuneStructures.item(1, 3)
    assert lacking.toolTip() == "Missing on: CT 2"
    assert not lacking.icon().isNull()
    assert opened.ui.finetuneStructures.item(0, 3).icon().isNull()


def test_structures_are_merged_renamed_left_out_and_proposed_again(
    host: Any, opened: Any, add: Callable[..., Any]
) -> None:
    add("CT 1", {"Liver": LEFT, "Spleen": RIGHT})
    add("CT 2", {"Leber": LEFT, "Vessel": RIGHT})
    ui = opened.ui
    proposal = shown(ui.finetuneStructures)
    assert not ui.finetuneMerge.enabled
    assert "two or more" in ui.finetuneMerge.toolTip
    select(opened, 0, 1)
    host.click(ui.finetuneMerge)
    ui.finetuneStructures.item(0, 1).setText("liver")
    select(opened, 2)
    host.click(ui.finetuneLeaveOut)
    changed = [["1", "liver", "Liver, Leber", "2 of 2"], ["3", "Spleen", "Spleen", "1 of 2"]]
    assert shown(ui.finetuneStructures) == changed
    assert "Left out: Vessel." in ui.finetuneNotes.text
    check_case(opened, 1, on=False)
    assert [row[1] for row in shown(ui.finetuneStructures)] == ["Liver", "Spleen"]
    check_case(opened, 1, on=True)
    assert shown(ui.finetuneStructures) == changed
    host.click(ui.finetuneProposeAgain)
    assert shown(ui.finetuneStructures) == proposal
    assert not ui.finetuneProposeAgain.enabled


def test_after_a_change_no_row_is_selected_that_only_moved_there(
    host: Any, opened: Any, add: Callable[..., Any]
) -> None:
    names = ("aorta", "kidney left", "kidney right", "liver", "spleen")
    add("CT 1", dict.fromkeys(names, LEFT))
    ui = opened.ui
    click_rows(host, opened, 1, 2)
    host.click(ui.finetuneMerge)
    assert opened.structures.selected == ("kidney left",)
    assert not ui.finetuneMerge.enabled
    click_rows(host, opened, 0, 2)
    host.click(ui.finetuneLeaveOut)
    assert opened.structures.selected == ()
    assert not ui.finetuneMerge.enabled
    assert not ui.finetuneLeaveOut.enabled
    assert [row[1] for row in shown(ui.finetuneStructures)] == ["kidney left", "spleen"]


def test_a_name_that_is_taken_or_blank_is_refused_in_a_sentence(
    opened: Any, add: Callable[..., Any]
) -> None:
    add("CT 1", {"Liver": LEFT, "Spleen": RIGHT})
    table = opened.ui.finetuneStructures
    table.item(1, 1).setText("LIVER")
    assert "already" in opened.message.text
    table.item(1, 1).setText("  ")
    assert "no name for a structure" in opened.message.text
    assert [row[1] for row in shown(table)] == ["Liver", "Spleen"]


def test_two_segments_of_a_case_that_read_the_same_are_told(
    opened: Any, add: Callable[..., Any]
) -> None:
    add("CT 1", {"Rib": LEFT, "rib ": RIGHT})
    assert "CT 1 has 2 segments that read “rib”" in opened.ui.finetuneNotes.text


def test_what_is_drawn_and_renamed_later_is_followed(
    host: Any, opened: Any, add: Callable[..., Any]
) -> None:
    node = add("CT 1", {"Liver": LEFT})
    node.GetSegmentation().GetNthSegment(0).SetName("Hepar")
    host.wait_until(lambda: shown(opened.ui.finetuneStructures)[0][1] == "Hepar")
    node.GetSegmentation().AddEmptySegment("", "Spleen")
    host.wait_until(lambda: len(shown(opened.ui.finetuneStructures)) == 2)


def test_a_volume_is_proposed_by_reference_then_geometry_then_as_the_only_one(
    host: Any, opened: Any, slicer: Any, add: Callable[..., Any]
) -> None:
    node = add("CT 1", {"Liver": LEFT}, refers=False)
    selector = opened.cases._selectors[0]
    assert selector.currentNode().GetName() == "CT 1"
    other = slicer.util.addVolumeFromArray(np.zeros((4, 4, 4), np.int16), name="Other")
    wait_for_list(host)
    assert selector.currentNode() is None
    role = node.GetReferenceImageGeometryReferenceRole()
    node.SetReferenceImageGeometryParameterFromVolumeNode(slicer.util.getNode("CT 1"))
    node.SetNodeReferenceID(role, None)
    host.wait_until(lambda: selector.currentNode())
    assert selector.currentNode().GetName() == "CT 1"
    node.SetNodeReferenceID(role, other.GetID())
    host.wait_until(lambda: selector.currentNode().GetName() == "Other")


def test_segmentations_on_one_volume_are_one_case_and_the_user_decides(
    host: Any, opened: Any, slicer: Any, add: Callable[..., Any]
) -> None:
    add("CT 1", {"Liver": LEFT})
    add("CT 2", {"Spleen": RIGHT})
    assert len(opened.cases.cases()) == 2
    selector = opened.cases._selectors[1]
    selector.setCurrentNode(slicer.util.getNode("CT 1"))
    (case,) = opened.cases.cases()
    assert (case.volume.GetName(), len(case.segmentations)) == ("CT 1", 2)
    slicer.util.getNode("Segments of CT 2").SetName("renamed")
    wait_for_list(host)
    assert selector.currentNode().GetName() == "CT 1"


def test_what_cannot_be_learnt_from_says_why(
    opened: Any, slicer: Any, add: Callable[..., Any]
) -> None:
    reason = opened.ui.finetuneReason
    assert reason.text == "The scene has no segmentation: load or draw one."
    add("CT 1", {})
    assert "has no segments" in reason.text
    opened.cases._selectors[0].setCurrentNode(None)
    assert "choose the volume that it lies on" in reason.text
    check_case(opened, 0, on=False)
    assert reason.text == "No segmentation is checked."
    add("CT 2", {"Liver": LEFT})
    assert reason.text == "The methods are being listed…"
    select(opened, 0)
    opened.ui.finetuneLeaveOut.click()
    assert reason.text == "No structure is left to learn."
    slicer.mrmlScene.Clear(0)
    assert reason.text == "The scene has no segmentation: load or draw one."


def test_how_cases_are_divided_is_told_before_the_start(
    weighted: Any, add: Callable[..., Any]
) -> None:
    ui = weighted.ui
    add("CT 1", {"Liver": LEFT})
    assert ui.finetuneReason.text.startswith("One case only")
    add("CT 2", {"Liver": LEFT})
    assert ui.finetuneReason.text.startswith("1 to learn from, 1 to validate")
    ui.finetuneValidation.currentIndex = 1
    assert ui.finetuneReason.text == "5 folds need as many cases, and there are 2: choose fewer."
    assert not ui.finetuneStartButton.enabled
    ui.finetuneFolds.value = 2
    assert ui.finetuneReason.text.startswith("2 runs, one after the other")
    ui.finetuneValidation.currentIndex = 2
    assert ui.finetuneReason.text.startswith("All cases are learnt from")
    assert ui.finetuneStartButton.enabled


@pytest.mark.parametrize(
    ("segments", "told"),
    [
        (
            {"Liver": LEFT, "Spleen": OVER_LEFT},
            "CT 1: 'Spleen' overlaps 'Liver' in 64 voxels",
        ),
        ({"Liver": LEFT, "Spleen": None}, "No case has a voxel of Spleen: it cannot be learnt."),
    ],
)
def test_labels_that_make_no_set_are_refused_and_leave_nothing_behind(
    host: Any, weighted: Any, add: Callable[..., Any], segments: Mapping[str, Any], told: str
) -> None:
    add("CT 1", segments)
    host.click(weighted.ui.finetuneStartButton)
    assert told in weighted.message.text
    project = weighted.session.project
    assert not list(project.labels.iterdir())
    assert not list(project.runs.iterdir())
    assert not weighted.monitor.jobs


def test_why_a_run_did_not_even_begin_is_told(
    host: Any, weighted: Any, add: Callable[..., Any]
) -> None:
    add("CT 1", {"Liver": LEFT})
    host.click(weighted.ui.finetuneStartButton)
    host.wait_until(lambda: not weighted.monitor.active(), limit_s=60)
    assert "encoder.safetensors" in weighted.message.text
    assert weighted.ui.finetuneStartButton.enabled


def test_a_closed_scene_takes_its_changes_along(
    host: Any, opened: Any, slicer: Any, add: Callable[..., Any]
) -> None:
    add("CT 1", {"Liver": LEFT})
    opened.ui.finetuneStructures.item(0, 1).setText("Leber")
    slicer.mrmlScene.Clear(0)
    wait_for_list(host)
    add("CT 1", {"Liver": LEFT})
    assert [row[1] for row in shown(opened.ui.finetuneStructures)] == ["Liver"]


# A labelled folder


def test_a_labelled_folder_shows_its_names_and_what_is_wrong_with_it(
    host: Any, weighted: Any, tmp_path: Path
) -> None:
    ui = weighted.ui
    host.click(ui.finetuneFromFolder)
    assert ui.finetuneReason.text == "Choose a labelled folder."
    ui.finetuneFolder.currentPath = str(tmp_path / "nowhere")
    assert "does not exist" in ui.finetuneReason.text
    labels = tmp_path / "set" / "labels.json"
    labels.parent.mkdir()
    ui.finetuneFolder.currentPath = str(labels.parent)
    assert "no labels.json" in ui.finetuneStructuresText.text
    labels.write_text(json.dumps({"labels": {"2": {"name": "liver", "color": [1, 2, 3]}}}))
    host.click(ui.finetuneFromScene)
    host.click(ui.finetuneFromFolder)
    assert shown(ui.finetuneStructures) == [["2", "liver"]]
    assert not ui.finetuneStructureButtons.visible
    assert ui.finetuneStartButton.enabled
    labels.write_text('{"labels": {"2": 7}}')
    host.click(ui.finetuneFromScene)
    host.click(ui.finetuneFromFolder)
    assert "names no structures" in ui.finetuneReason.text
    assert not ui.finetuneStartButton.enabled


# Choices


def test_choices_become_exactly_the_options_of_the_command(weighted: Any, tmp_path: Path) -> None:
    from SSLPretrainLogic.commands import words

    ui = weighted.ui
    ui.finetuneFreeze.checked = True
    ui.finetuneShare.value = 25
    ui.finetuneLength.currentIndex = 2
    ui.finetuneEpochs.value = 7
    ui.finetuneBatch.value = 3
    ui.finetuneOverrides.plainText = "crop=32\n\n data.workers=0 "
    data, run = tmp_path / "data", tmp_path / "run"
    said = words(weighted.choices.request(data=data, output=run))
    weights = str(tmp_path / "encoder.safetensors")
    sets = ["validation_fraction=0.25", "train.seed=0", "train.batch_size=3"]
    sets += ["crop=32", "data.workers=0"]
    wanted = ["finetune", "--output", str(run), "--epochs", "7", "--device", "auto"]
    wanted += [word for one in sets for word in ("--set", one)]
    wanted += ["--data", str(data), "--init", weights, "--freeze-encoder"]
    assert sorted(said) == sorted(wanted)
    ui.finetuneValidation.currentIndex = 1
    request = weighted.choices.request(data=data, output=run)
    assert request.folds == 5
    assert not any(setting.startswith("validation_fraction") for setting in request.overrides)


def test_the_newest_finished_pretraining_is_proposed_until_one_is_chosen(opened: Any) -> None:
    runs = opened.session.project.runs
    for name, state in (("first", "done"), ("second", "done"), ("stopped", "cancelled")):
        pretraining(runs / name, state=state)
        opened.choices.refresh_runs()
    assert opened.choices.start == str(runs / "second")
    combo = opened.ui.finetuneStart
    assert combo.itemText(0) == "stopped (stopped)"
    combo.currentIndex = combo.findData(str(runs / "first"))
    pretraining(runs / "third")
    opened.choices.refresh_runs()
    assert opened.choices.start == str(runs / "first")


def pretraining(run: Path, *, state: str = "done", best: Mapping[str, Any] | None = None) -> None:
    """A run that one can start from, as far as the list looks at it."""
    checkpoints = ended(run, state=state, best=best) / "checkpoints"
    for name in ("encoder.safetensors", *(("best.safetensors",) if best else ())):
        (checkpoints / name).write_bytes(b"")


def test_which_encoder_of_a_probed_run_is_taken_is_told_and_can_be_chosen(
    opened: Any, tmp_path: Path
) -> None:
    runs, ui = opened.session.project.runs, opened.ui
    pretraining(runs / "1 plain")
    opened.choices.refresh_runs()
    assert ui.finetuneStartText.text == "Its last encoder is taken."
    pretraining(runs / "2 whole", best={"step": 40, "probe/linear": 0.5})
    opened.choices.refresh_runs()
    assert "which also did best in the probe" in ui.finetuneStartText.text
    pretraining(runs / "3 probed", best={"step": 30, "probe/linear": 0.5})
    opened.choices.refresh_runs()
    # What did best is offered, and not taken unasked: scans that chose it are no fair test of it.
    assert opened.choices.start == str(runs / "3 probed")
    assert "in the probe that of step 30 did best: 0.500." in ui.finetuneStartText.text
    assert ui.finetuneStart.itemText(1) == "3 probed, best in the probe (step 30)"
    assert ui.finetuneStart.count == 6
    ui.finetuneStart.currentIndex = 1
    assert "encoder of step 30 is taken" in ui.finetuneStartText.text
    request = opened.choices.request(data=tmp_path / "data", output=tmp_path / "run")
    assert request.init == runs / "3 probed" / "checkpoints" / "best.safetensors"
    ui.finetuneStart.currentIndex = ui.finetuneStart.count - 1
    assert not ui.finetuneStartText.visible


def test_a_setting_that_is_none_and_weights_that_are_gone_are_named(
    weighted: Any, tmp_path: Path, add: Callable[..., Any]
) -> None:
    add("CT 1", {"Liver": LEFT})
    weighted.ui.finetuneOverrides.plainText = "crop 32"
    assert weighted.ui.finetuneReason.text == "“crop 32” is no setting: write key=value."
    weighted.ui.finetuneWeights.currentPath = str(tmp_path / "gone.safetensors")
    assert "gone.safetensors: there is no such file" in weighted.ui.finetuneReason.text


def test_of_a_cross_validation_the_newest_fold_is_shown(tmp_path: Path) -> None:
    from SSLSegmentationLib.finetune_panel import part_of

    assert part_of(tmp_path) == tmp_path
    for number in (1, 2, 10):
        fold = tmp_path / f"fold_{number}"
        fold.mkdir()
        (fold / "status.json").write_text("{}")
    assert part_of(tmp_path).name == "fold_10"


def test_what_all_folds_have_found_is_told_once_they_are_over(tmp_path: Path) -> None:
    from SSLSegmentationLib.finetune_panel import folds_told

    assert folds_told(tmp_path) == ()
    summary = {"folds": [{"fold": 1}, {"fold": 2}], "dice_mean": 0.815, "dice_sd_over_folds": 0.04}
    file = tmp_path / "cross_validation.json"
    file.write_text(json.dumps(summary))
    assert folds_told(tmp_path) == ("All 2 folds: mean Dice 0.81, standard deviation 0.04.",)
    file.write_text(json.dumps({**summary, "dice_mean": None}))
    assert folds_told(tmp_path) == ()


# The whole way


def test_from_a_pretraining_run_to_a_model_that_segments(
    host: Any, ready: Any, slicer: Any, tmp_path: Path
) -> None:
    panel = unfolded(host, ready)
    ui = panel.ui
    assert panel.choices.start == "nothing"
    run = pretrained(host, panel, phantoms(slicer, tmp_path / "scans"))
    assert ui.finetuneStart.itemText(0) == "smit (done)"
    assert panel.choices.start == str(run)

    assert ui.finetuneLength.itemText(0) == "As the preset says: 200 epochs"
    choose_two_steps(ui)
    enter(ui.finetuneName, "Leber & Milz")
    host.click(ui.finetuneStartButton)
    assert not panel.message.text
    assert "is running" in ui.finetuneReason.text
    assert ui.finetuneNewSection.collapsed
    assert ui.finetuneRunSection.text == "Newest run: Leber-Milz"
    assert is_in_sight(panel.run_view.ui.runStopButton)
    host.wait_until(lambda: not panel.monitor.active(), limit_s=180)
    assert panel.monitor.jobs[0].status.state == "done", panel.monitor.jobs[0].job.log.read_text()
    host.wait_until(lambda: panel.dice.is_empty is False)
    dice = shown(ui.finetuneDice)
    assert [row[0] for row in dice] == ["Mean", "liver", "spleen"]
    assert all(row[1] == row[2] and 0 <= float(row[1]) <= 1 for row in dice)
    assert ui.finetuneStartButton.enabled

    told: list[str] = []
    panel.session.model_changed.connect(lambda: told.append(panel.session.model))
    host.click(ui.finetuneUseModel)
    model = panel.session.project.runs / "Leber-Milz" / "checkpoints" / "best.safetensors"
    assert told == [str(model)]
    assert "Go on with 5. Segment" in panel.used.text
    assert is_in_sight(panel.used.widget)
    assert not ready.ui.sectionSegment.collapsed
    assert ui.finetuneModel.text.startswith("Best model: mean Dice")
    config = json.loads((model.parents[1] / "config.json").read_text())
    assert config["config"]["freeze_encoder"] is True
    assert config["request"]["init"] == str(run)

    panel._show_run(None)
    assert not ui.finetuneUseModel.visible
    panel.session.use_project(panel.session.project)
    assert panel.model == model
    assert shown(ui.finetuneDice) == dice


def choose_two_steps(ui: Any) -> None:
    ui.finetuneFreeze.checked = True
    ui.finetuneLength.currentIndex = 1
    ui.finetuneSteps.value = 2
    ui.finetuneOverrides.plainText = "data.workers=0"


def is_in_sight(widget: Any) -> bool:
    """Whether a widget is seen as a whole, without scrolling."""
    return bool(widget.visibleRegion().boundingRect() == widget.rect)


def pretrained(host: Any, panel: Any, scans: Path) -> Path:
    """A real pretraining run of one step."""
    from SSLPretrainLogic.commands import PretrainRequest

    run: Path = panel.session.project.runs / "smit"
    fast = ("train.batch_size=2", "data.workers=0")
    request = PretrainRequest(
        output=run, data=(scans,), method="smit", preset="tiny", max_steps=1, overrides=fast
    )
    panel.session.start(request, title="Pretrain")
    host.wait_until(lambda: not panel.monitor.active(), limit_s=180)
    return run


def phantoms(slicer: Any, folder: Path) -> Path:
    """Two patients in the scene with two organs each, and their scans in a folder."""
    from backend.data.phantom import LABELS, make_phantom

    folder.mkdir()
    values = {name: value for value, name in LABELS.items()}
    for seed in (1, 2):
        ct, labels = make_phantom(seed, size=(24, 64, 64), spacing_mm=(8.0, 6.0, 6.0))
        volume = slicer.util.addVolumeFromArray(ct.voxels, name=f"CT {seed}")
        volume.SetSpacing(6, 6, 8)
        slicer.util.saveNode(volume, str(folder / f"ct_{seed}.nrrd"))
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"Organs {seed}")
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        for name in ("liver", "spleen"):
            segment_id = node.GetSegmentation().AddEmptySegment("", name)
            mask = (labels.voxels == values[name]).astype(np.uint8)
            slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment_id, volume)
    return folder
