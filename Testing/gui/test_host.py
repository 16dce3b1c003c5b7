"""The host itself: it does what Slicer does, and refuses what Slicer would refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).resolve().parent
SAMPLE = HERE / "sample_module" / "SampleModule.py"
EFFECT = HERE / "sample_module" / "SampleEffectLib" / "SegmentEditorEffect.py"


@pytest.fixture
def sample(host: Any) -> Any:
    """The widget object of the sample module, its panel shown."""
    module = host.load(SAMPLE)
    host.startup_completed()
    host.panel = host.show(module)
    return module.widgetRepresentation().self()


@pytest.fixture
def ctk(host: Any) -> Any:
    return host.python("ctk")


def ct(slicer: Any, *, name: str = "CT") -> Any:
    """A volume in which one voxel of sixty is bright."""
    voxels = np.zeros((3, 4, 5), np.int16)
    voxels[1, 2, 3] = 200
    return slicer.util.addVolumeFromArray(voxels, name=name)


# The sample module


def test_a_module_loads_with_its_texts_and_tied_widgets(sample: Any, slicer: Any) -> None:
    assert slicer.modules.samplemodule.title == "Sample module"
    assert Path(slicer.util.modulePath("SampleModule")) == SAMPLE
    assert slicer.util.getModuleWidget("SampleModule") is sample
    assert (sample.ui.thresholdSlider.minimum, sample.ui.thresholdSlider.value) == (-1000, 100)
    assert [sample.ui.methodCombo.itemText(i) for i in range(2)] == ["above", "below"]
    assert sample.ui.advancedSection.collapsed
    assert not sample.ui.methodCombo.visible


def test_a_click_reaches_its_slot_and_the_answer_is_that_of_real_mrml(
    sample: Any, slicer: Any, host: Any
) -> None:
    assert not sample.ui.applyButton.enabled
    sample.ui.volumeSelector.setCurrentNode(ct(slicer))
    host.click(sample.ui.applyButton)
    assert sample.ui.resultLabel.text == "1"
    sample.ui.thresholdSlider.value = 0
    host.click(sample.ui.applyButton)
    assert sample.ui.resultLabel.text == "60"


def test_widgets_and_parameter_node_follow_each_other(sample: Any, slicer: Any) -> None:
    node = ct(slicer)
    sample.parameters.inputVolume = node
    assert sample.ui.volumeSelector.currentNode() is node
    sample.ui.invertBox.checked = True
    assert sample.parameters.invert is True
    sample.ui.methodCombo.currentIndex = 1
    assert sample.parameters.method == "below"
    sample.parameters.threshold = 7.0
    assert sample.ui.thresholdSlider.value == 7.0
    with pytest.raises(ValueError, match="2000"):
        sample.parameters.threshold = 2000.0


def test_a_hidden_or_disabled_widget_cannot_be_clicked(sample: Any, host: Any) -> None:
    with pytest.raises(AssertionError, match="applyButton cannot be clicked"):
        host.click(sample.ui.applyButton)
    with pytest.raises(AssertionError, match="invertBox cannot be clicked"):
        host.click(sample.ui.invertBox)
    host.click(sample.ui.advancedSection)
    host.click(sample.ui.invertBox)
    assert sample.parameters.invert


def test_a_timer_ticks_while_a_process_runs_and_both_end(sample: Any, host: Any) -> None:
    host.click(sample.ui.startButton)
    host.wait_until(lambda: sample.output)
    assert sample.ui.resultLabel.text == "from another process (0)"
    assert not sample.timer.active


def test_closing_the_scene_empties_the_panel_and_it_works_again(
    sample: Any, slicer: Any, host: Any
) -> None:
    sample.ui.volumeSelector.setCurrentNode(ct(slicer))
    assert sample.ui.applyButton.enabled
    slicer.mrmlScene.Clear(0)
    assert sample.ui.volumeSelector.nodeCount() == 0
    assert not sample.ui.applyButton.enabled
    sample.ui.volumeSelector.setCurrentNode(ct(slicer))
    host.click(sample.ui.applyButton)
    assert sample.ui.resultLabel.text == "1"


def test_an_exception_in_a_slot_fails_the_check(sample: Any, host: Any) -> None:
    host.click(sample.ui.failButton)
    with pytest.raises(AssertionError, match="a mistake in a slot"):
        host.check()
    host.check()


def test_an_exception_in_an_observer_or_a_paint_event_is_not_lost(
    host: Any, qt: Any, slicer: Any
) -> None:
    class Painted(qt.QWidget):
        def paintEvent(self, event: Any) -> None:
            raise RuntimeError("a mistake while painting")

    def changed(*_: Any) -> None:
        raise RuntimeError("a mistake in an observer")

    node = ct(slicer)
    node.AddObserver("ModifiedEvent", changed)
    node.Modified()
    widget = Painted()
    widget.resize(9, 9)
    with pytest.raises(RuntimeError, match="while painting"):
        widget.grab()
    with pytest.raises(AssertionError, match="in an observer"):
        host.check()


def test_an_unloaded_module_hears_of_the_scene_no_more(sample: Any, slicer: Any, host: Any) -> None:
    host.unload(slicer.modules.samplemodule)
    slicer.mrmlScene.Clear(0)
    assert sample.parameters is None
    with pytest.raises(AttributeError, match="samplemodule"):
        _ = slicer.modules.samplemodule


@pytest.mark.usefixtures("sample")
def test_pictures_are_made_in_two_themes_and_two_densities(host: Any, tmp_path: Path) -> None:
    light, dark = tmp_path / "light.png", tmp_path / "dark.png"
    host.picture(host.panel, light)
    host.use_theme("dark")
    host.picture(host.panel, dark, scale=2)
    host.use_theme("light")
    with Image.open(light) as small, Image.open(dark) as large:
        assert (2 * small.width, 2 * small.height) == large.size
        # Grounds apart in brightness, and texts on both: more than a flat area.
        grounds = [int(np.median(np.asarray(p.convert("L")))) for p in (small, large)]
        assert grounds[0] > 200
        assert grounds[1] < 80
        assert all(np.asarray(p.convert("L")).std() > 5 for p in (small, large))


def test_an_unfolded_section_shows_what_is_to_be_seen_and_nothing_else(
    host: Any, qt: Any, ctk: Any
) -> None:
    window = qt.QWidget()
    section = ctk.ctkCollapsibleButton("Section")
    qt.QVBoxLayout(window).addWidget(section)
    layout = qt.QVBoxLayout(section)
    plain, hidden, hidden_later, shown_later = (qt.QLabel(text) for text in "abcd")
    hidden.visible = False
    for label in (plain, hidden, hidden_later, shown_later):
        layout.addWidget(label)
    shown_later.visible = False
    window.show()
    host.settle()
    labels = (plain, hidden, hidden_later, shown_later)
    assert [label.visible for label in labels] == [True, False, True, False]
    host.click(section)
    hidden_later.visible, shown_later.visible = False, True
    assert not any(label.visible for label in labels)
    host.click(section)
    assert [label.visible for label in labels] == [True, False, False, True]


# PythonQt's manners


@pytest.mark.parametrize(
    "wrong",
    [
        "w.enbled",
        "setattr(w, 'enbled', True)",
        "w.text()",
        "w.connect('cliked()', print)",
        "w.connect('clicked(int)', print)",
        "w.setText(text='x')",
        "qt.QLabel('x', parent=w)",
        "setattr(w, 'text', Path('x'))",
        "qt.QProcess().startCommand('true')",
        "ctk.ctkCollapsibleButton().setCollapsed(True)",
        "ctk.ctkSliderWidget().setRange(0, 1)",
        "ctk.ctkPathLineEdit().setNameFilters([])",
        "setattr(ctk.ctkPathLineEdit(), 'currentPth', 'x')",
        "setattr(ctk.ctkPathLineEdit(), 'currentPath', Path('x'))",
        "slicer.qMRMLNodeComboBox().setNodeTypes([])",
        "slicer.qMRMLNodeComboBox().connect('currentNodeChanged(str)', print)",
        "slicer.qMRMLNoSuchWidget()",
        "slicer.app.mainWindow()",
        "slicer.util.noSuchFunction()",
    ],
)
def test_what_slicer_lacks_is_refused(wrong: str, qt: Any, ctk: Any, slicer: Any) -> None:
    names = {"w": qt.QPushButton("x"), "qt": qt, "ctk": ctk, "slicer": slicer, "Path": Path}
    with pytest.raises((AttributeError, TypeError, ValueError)):
        eval(wrong, names)


def test_what_only_the_host_lacks_says_so(slicer: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"qMRMLNodeComboBox\.editCurrentNode"):
        slicer.qMRMLNodeComboBox().editCurrentNode()


def test_a_slot_gets_as_many_arguments_as_it_declares(qt: Any) -> None:
    heard: list[Any] = []
    button = qt.QPushButton()
    button.checkable = True
    button.connect("clicked(bool)", lambda: heard.append("none"))
    button.connect("clicked(bool)", lambda on: heard.append(on))
    button.clicked.connect(lambda on="default": heard.append(("clicked", on)))
    button.click()
    assert heard == ["none", True, ("clicked", True)]


def test_a_connection_ends_where_it_is_told_to(qt: Any) -> None:
    heard: list[Any] = []
    button = qt.QPushButton()
    button.connect("clicked(bool)", heard.append)
    assert button.clicked.disconnect(heard.append)
    assert not button.disconnect("clicked(bool)", heard.append)
    button.click()
    assert heard == []


def test_a_deleted_widget_is_refused_instead_of_ending_the_process(qt: Any) -> None:
    button = qt.QPushButton("x")
    button.delete()
    for use in (lambda: button.text, lambda: button.click(), lambda: setattr(button, "text", "")):
        with pytest.raises(ValueError, match="deleted"):
            use()


def test_a_child_is_found_by_name_and_kind(qt: Any) -> None:
    outer = qt.QWidget()
    inner = qt.QPushButton(outer)
    inner.name = "startButton"
    assert outer.startButton is inner
    assert outer.findChild(qt.QPushButton, "startButton") is inner
    assert outer.findChildren("QAbstractButton") == [inner]
    assert outer.findChild(qt.QLabel, "startButton") is None


def test_properties_take_what_pythonqt_converts(qt: Any) -> None:
    spin = qt.QSpinBox()
    spin.value = 7.9
    spin.enabled = 0
    assert (spin.value, spin.enabled) == (7, False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('name="checkable"', 'name="chekable"'), "QPushButton has no property chekable"),
        (('name="collapsed"', 'name="colapsed"'), "colapsed"),
        (("<slot>setMRMLScene", "<slot>setMrmlScene"), "no slot setMrmlScene"),
        (("<signal>mrmlSceneChanged", "<signal>sceneChanged"), "no signal sceneChanged"),
    ],
)
def test_a_typing_error_in_a_ui_file_is_an_error(
    change: tuple[str, str], told: str, slicer: Any, tmp_path: Path
) -> None:
    text = (HERE / "sample_module/Resources/UI/SampleModule.ui").read_text("utf-8")
    checkable = '<property name="checkable"><bool>true</bool></property>'
    text = text.replace('name="applyButton">', f'name="applyButton">{checkable}')
    assert change[0] in text
    file = tmp_path / "Typing.ui"
    file.write_text(text.replace(*change), "utf-8")
    with pytest.raises(ValueError, match=told):
        slicer.util.loadUI(str(file))


# Slicer's widgets


def test_a_node_selector_follows_the_scene(slicer: Any) -> None:
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    heard: list[Any] = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", heard.append)
    selector.connect("currentNodeChanged(bool)", heard.append)
    ct(slicer)
    assert selector.nodeCount() == 0  # it was told no scene yet
    selector.setMRMLScene(slicer.mrmlScene)
    first = selector.currentNode()
    assert heard == [first, True]
    second = ct(slicer, name="second")
    selector.setCurrentNode(second)
    slicer.mrmlScene.RemoveNode(second)
    assert selector.currentNode() is first
    second = selector.addNode()
    second.SetName("renamed")
    assert selector.findChild("QComboBox").currentText == "renamed"


def test_a_label_map_is_shown_only_where_child_types_are(slicer: Any) -> None:
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.setMRMLScene(slicer.mrmlScene)
    assert selector.nodeCount() == 1
    selector.showChildNodeTypes = False
    assert selector.nodeCount() == 0


def test_a_segment_table_shows_and_selects_segments(slicer: Any) -> None:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    table = slicer.qMRMLSegmentsTableView()
    table.setSegmentationNode(node)
    ids = [node.GetSegmentation().AddEmptySegment("", name) for name in ("liver", "spleen")]
    assert table.displayedSegmentIDs() == ids
    table.setSelectedSegmentIDs([ids[1]])
    assert table.selectedSegmentIDs() == [ids[1]]
    node.GetSegmentation().GetSegment(ids[0]).SetName("Liver")
    assert table.tableWidget().item(0, 0).text() == "Liver"
    node.GetSegmentation().RemoveSegment(ids[1])
    assert table.segmentCount == 1


def test_a_segment_selector_offers_the_segments_of_its_node(slicer: Any) -> None:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    selector = slicer.qMRMLSegmentSelectorWidget()
    selector.setMRMLScene(slicer.mrmlScene)
    heard: list[str] = []
    selector.connect("currentSegmentChanged(QString)", heard.append)
    segment = node.GetSegmentation().AddEmptySegment("", "liver")
    selector.setCurrentNode(node)
    assert selector.segmentIDs() == [segment]
    assert heard == [segment]


def test_a_path_edit_tells_whether_its_path_is_there(host: Any, ctk: Any, tmp_path: Path) -> None:
    edit = ctk.ctkPathLineEdit()
    edit.filters = ctk.ctkPathLineEdit.Dirs
    heard: list[Any] = []
    edit.connect("currentPathChanged(QString)", heard.append)
    edit.connect("validInputChanged(bool)", heard.append)
    edit.currentPath = str(tmp_path)
    assert heard == [str(tmp_path), True]
    host.dialogs.answer("getExistingDirectory", str(tmp_path.parent))
    edit.browse()
    assert edit.currentPath == str(tmp_path.parent)


# The application


def test_a_dialog_without_an_answer_fails_instead_of_waiting(
    host: Any, qt: Any, slicer: Any
) -> None:
    with pytest.raises(AssertionError, match="Delete the run"):
        slicer.util.confirmOkCancelDisplay("Delete the run?")
    with pytest.raises(AssertionError, match="waits for a user"):
        qt.QMessageBox().exec_()
    host.dialogs.answer("confirmOkCancelDisplay", True)
    assert slicer.util.confirmOkCancelDisplay("Delete the run?")
    with pytest.raises(RuntimeError), slicer.util.tryWithErrorDisplay("Failed."):
        raise RuntimeError("no such folder")
    assert "no such folder" in host.dialogs.texts("errorDisplay")[0]
    host.dialogs.answer("confirmYesNoDisplay", True)
    with pytest.raises(AssertionError, match="confirmYesNoDisplay"):
        host.check()


def test_an_installation_is_recorded_and_not_done(host: Any, slicer: Any) -> None:
    slicer.util.pip_install("no-such-package-at-all")
    slicer.packaging.pip_ensure(["torch>=2"])
    assert host.dialogs.shown == [
        ("pip_install", "no-such-package-at-all"),
        ("pip_ensure", "['torch>=2']"),
    ]
    assert slicer.packaging.pip_check("numpy>=1")
    assert not slicer.packaging.pip_check("numpy<1")


def test_settings_stay_in_the_folder_of_the_host(host: Any, qt: Any, slicer: Any) -> None:
    slicer.app.userSettings().setValue("SSLSegmentation/Project", "x")
    assert slicer.util.settingsValue("SSLSegmentation/Project", "") in ("x", "")
    for settings in (slicer.app.userSettings(), qt.QSettings()):
        assert Path(settings.fileName()).is_relative_to(host.folder)


def test_volumes_and_segmentations_are_written_and_read(slicer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a volume ü.nrrd"
    assert slicer.util.saveNode(ct(slicer), str(path))
    read = slicer.util.loadVolume(str(path))
    assert np.array_equal(
        slicer.util.arrayFromVolume(read), slicer.util.arrayFromVolume(slicer.util.getNode("CT"))
    )
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    node.SetReferenceImageGeometryParameterFromVolumeNode(read)
    segment = node.GetSegmentation().AddEmptySegment("", "liver")
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        np.uint8(slicer.util.arrayFromVolume(read) > 0), node, segment, read
    )
    slicer.util.saveNode(node, str(tmp_path / "liver.seg.nrrd"))
    again = slicer.util.loadSegmentation(str(tmp_path / "liver.seg.nrrd"))
    assert again.GetSegmentation().GetNthSegment(0).GetName() == "liver"


def test_slices_and_charts_have_their_real_nodes(slicer: Any) -> None:
    node = ct(slicer)
    slicer.util.setSliceViewerLayers(background=node)
    composite = slicer.app.layoutManager().sliceWidget("Red").sliceLogic().GetSliceCompositeNode()
    assert composite.GetBackgroundVolumeID() == node.GetID()
    chart = slicer.util.plot(np.array([[1.0, 3.0], [2.0, 2.0]]), xColumnIndex=0, show=False)
    view = slicer.app.layoutManager().plotWidget(0).mrmlPlotViewNode()
    view.SetPlotChartNodeID(chart.GetID())
    assert view.GetPlotChartNode().GetNumberOfPlotSeriesNodes() == 1


def test_an_effect_fills_its_segment_through_the_real_logic_and_undoes_it(
    host: Any, slicer: Any
) -> None:
    from slicer_host.effects import Editor

    volume = ct(slicer)
    volume.CreateDefaultDisplayNodes()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segment = node.GetSegmentation().AddEmptySegment("", "bright")

    def filled() -> int:
        array = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment, volume)
        return 0 if array is None else int(array.sum())

    editor = Editor(EFFECT, segmentation=node, volume=volume, segment=segment)
    editor.options.show()
    host.settle()
    button = editor.options.findChild("QPushButton")
    host.click(editor.effect.self().button)
    assert button.text == "Apply"
    assert filled() == 1
    editor.effect.self().spin.value = 0
    assert editor.effect.parameter("Threshold") == "0"
    host.click(editor.effect.self().button)
    assert filled() == 60
    editor.undo()
    assert filled() == 1
    clone = editor.effect.self().clone()
    assert (clone.name, clone.self().helpText()) == ("Sample", editor.effect.helpText())
    editor.close()


# The host


def test_the_command_makes_a_picture_of_a_module(tmp_path: Path) -> None:
    pytest.importorskip("slicer_core")
    picture = tmp_path / "panel.png"
    done = subprocess.run(
        [sys.executable, HERE / "host.py", SAMPLE, "--picture", picture, "--scale", "2"],
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with Image.open(picture) as image:
        assert image.size == (800, 1520)


def test_slicers_own_python_code_is_used_where_its_folder_is_given(
    sample: Any, slicer: Any
) -> None:
    given = os.environ.get("SLICER_BASE_PYTHON")
    if not given:
        pytest.skip("SLICER_BASE_PYTHON does not name Base/Python of Slicer's sources")
    for name in ("ScriptedLoadableModule", "parameterNodeWrapper", "i18n"):
        assert Path(getattr(slicer, name).__file__).is_relative_to(given)
    sample.ui.thresholdSlider.value = 33
    assert sample.parameters.threshold == 33


def test_a_million_calls_that_answer_none_do_not_end_the_interpreter(host: Any) -> None:
    """As long waits make; the test fails by taking the whole process with it."""
    timer = host.python("qt").QTimer()
    for _ in range(1_000_000):
        timer.stop()
    assert not timer.isActive()


@pytest.mark.usefixtures("host")
def test_the_application_tells_its_name(slicer: Any) -> None:
    assert slicer.app.applicationName == "Slicer"
    before = slicer.app.applicationVersion
    slicer.app.applicationVersion = "5.12"
    assert slicer.app.applicationVersion == "5.12"
    slicer.app.applicationVersion = before


def test_what_the_host_cannot_do_is_said_in_a_box(host: Any, slicer: Any) -> None:
    from PySide6 import QtCore, QtWidgets

    from host import tell
    from slicer_host.faults import FAULTS

    FAULTS.listener = tell
    try:
        QtCore.QTimer.singleShot(0, lambda: slicer.packaging.load_requirements("x"))
        host.settle()
    finally:
        FAULTS.listener = None
    kind = QtWidgets.QMessageBox
    shown = [w for w in QtWidgets.QApplication.topLevelWidgets() if isinstance(w, kind)]
    assert [box.text for box in shown if box.isVisible()] == [
        "Slicer has slicer.packaging.load_requirements; the test host does not."
    ]
    assert len(host.faults()) == 1
