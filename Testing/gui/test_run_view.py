"""RunView: one run as it goes on, or as it ended."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from recorded_runs import append, draw, ended, going_on, rewrite_status


@pytest.fixture
def opened(host: Any, window: Any, tmp_path: Path) -> Any:
    """The module with a new project open and no Python chosen."""
    from SSLPretrainLogic.project import create_project

    window.session.use_project(create_project(tmp_path / "Projekt ä", name="Köpfe"))
    window.ui.sectionSetup.collapsed = True
    host.settle()
    return window


@pytest.fixture
def make_view(host: Any, opened: Any) -> Iterator[Any]:
    """Makes views, each in a window of its own."""
    from SSLSegmentationLib.run_view import RunView

    qt, views = host.python("qt"), []

    def make() -> Any:
        view = RunView(opened.folder, session=opened.session, monitor=opened.monitor)
        view.parent = qt.QWidget()
        qt.QVBoxLayout(view.parent).addWidget(view.widget)
        view.parent.resize(400, 760)
        view.parent.show()
        views.append(view)
        return view

    yield make
    for view in views:
        view.cleanup()


@pytest.fixture
def view(make_view: Any) -> Any:
    return make_view()


@pytest.fixture
def runs(opened: Any) -> Path:
    folder: Path = opened.session.project.runs
    return folder


@pytest.fixture
def opened_urls(host: Any) -> Iterator[list[str]]:
    """What was handed to the system to be opened."""
    from PySide6.QtCore import QUrl, Slot

    qt = host.python("qt")
    urls: list[str] = []

    class Desktop(qt.QObject):
        @Slot(QUrl)
        def take(self, url: QUrl) -> None:
            urls.append(url.toLocalFile())

    desktop = Desktop()
    qt.QDesktopServices.setUrlHandler("file", desktop, "take")
    yield urls
    qt.QDesktopServices.unsetUrlHandler("file")


def notice(view: Any) -> str:
    return str(view._notice.text)


def image_of(host: Any, widget: Any, folder: Path) -> bytes:
    """A picture of a widget, as bytes to compare."""
    path = folder / "picture.png"
    host.picture(widget, path)
    return path.read_bytes()


# State


def test_without_a_run_a_sentence_says_what_will_appear(view: Any) -> None:
    assert view.ui.runEmptyLabel.visible
    assert "appears here" in view.ui.runEmptyLabel.text
    assert not view.ui.runContent.visible


def test_a_run_that_goes_on_tells_step_time_left_and_what_it_does(view: Any, runs: Path) -> None:
    with going_on(runs / "smit"):
        view.show_run(runs / "smit")
        ui = view.ui
        assert ui.runStateLabel.text == "Pretrain: Running"
        assert (ui.runProgressBar.value, ui.runProgressBar.maximum) == (40, 200)
        assert ui.runProgressBar.format == "step 40 of 200"
        assert ui.runTimeLabel.text == "about 12 minutes left"
        assert ui.runMessageLabel.text == "Training"
        assert notice(view) == ""
        assert ui.runStopButton.enabled
        assert not ui.runResumeButton.enabled
        assert ui.runResumeButton.toolTip == "It goes on already."
        assert ui.runReportButton.toolTip == "The report is written when the run ends."


def test_it_follows_and_the_curves_grow(view: Any, runs: Path, opened: Any) -> None:
    with going_on(runs / "smit") as run:
        view.show_run(runs / "smit")
        append(run, range(41, 61))
        run.update(step=60)
        opened.monitor.tick()
        assert view.ui.runProgressBar.value == 60
        assert view._group.curves[0].steps == list(range(1, 61))


def test_after_resuming_each_step_stands_once(view: Any, runs: Path, opened: Any) -> None:
    with going_on(runs / "smit") as run:
        view.show_run(runs / "smit")
        run.cut_metrics(20)
        append(run, range(21, 31))
        opened.monitor.tick()
        assert view._group.curves[0].steps == list(range(1, 31))


def test_a_failed_run_tells_why_and_what_to_do(view: Any, runs: Path) -> None:
    error = {"type": "ResourceError", "message": "Memory ran out.", "hint": "Use a smaller crop."}
    view.show_run(ended(runs / "smit", state="failed", error=error, message="Failed"))
    assert view.ui.runStateLabel.text == "Pretrain: Failed"
    assert notice(view) == "Memory ran out. Use a smaller crop."
    assert not view.ui.runStopButton.enabled
    assert "No checkpoint" in view.ui.runResumeButton.toolTip


def test_a_stopped_run_with_a_checkpoint_can_be_resumed(
    view: Any, runs: Path, opened: Any, host: Any
) -> None:
    run = ended(runs / "smit", state="cancelled", message="Cancelled; can be resumed")
    (run / "config.json").write_text("{}", "utf-8")
    view.show_run(run)
    assert view.ui.runStateLabel.text == "Pretrain: Stopped"
    assert notice(view) == ""
    for name in ("last.pt", "encoder.safetensors"):
        (run / "checkpoints" / name).write_bytes(b"")
    opened.monitor.tick()
    assert notice(view).startswith("Kept as it was at step 40. Resume goes on from there.")
    assert "Fine-tune can start from it" in notice(view)
    host.click(view.ui.runResumeButton)
    assert view.message.text == "No Python is chosen. Choose one under Setup."
    assert opened.monitor.jobs == ()


def test_a_run_whose_process_died_is_interrupted(view: Any, runs: Path) -> None:
    view.show_run(ended(runs / "smit", state="running", process_started=1.0))
    assert view.ui.runStateLabel.text == "Pretrain: Interrupted"
    assert notice(view) == "Interrupted; can be resumed"


def test_a_run_that_is_deleted_while_it_is_watched_is_a_sentence(
    view: Any, runs: Path, opened: Any
) -> None:
    view.show_run(ended(runs / "smit"))
    shutil.rmtree(runs / "smit")
    opened.monitor.tick()
    assert notice(view).startswith(f"{runs / 'smit'}: was deleted or moved.")
    buttons = (view.ui.runStopButton, view.ui.runReportButton, view.ui.runFolderButton)
    assert not any(button.enabled for button in buttons)


def test_a_damaged_status_is_a_sentence(view: Any, runs: Path, opened: Any) -> None:
    view.show_run(ended(runs / "smit"))
    (runs / "smit" / "status.json").write_text("{", "utf-8")
    opened.monitor.tick()
    assert view.ui.runStateLabel.text == "Run: Damaged"
    assert "Start the run again." in notice(view)


# The probe


def probe(run: Any, *scores: float, first: int = 0) -> None:
    """Probes ten steps apart."""
    for number, score in enumerate(scores, start=first):
        run.append({"step": 10 * number, "probe/linear": score})


def test_the_probe_stands_beside_the_loss_and_tells_whether_going_on_helps(
    view: Any, runs: Path, opened: Any
) -> None:
    ui = view.ui
    with going_on(runs / "smit") as run:
        view.show_run(runs / "smit")
        assert not ui.runProbeBox.visible
        probe(run, 0.3)
        opened.monitor.tick()
        assert ui.runProbeText.text.startswith("Probe: 0.300 at step 0. So much the weights know")
        for scores, told in (
            ([0.2], "0.200 at step 10; the weights that it began with had 0.300: nothing is"),
            ([0.5], "0.500 at step 20, the best so far. The features still get better."),
            ([0.4, 0.4], "0.400 at step 40; best 0.500 at step 20, not better for 2 probes."),
            ([0.4], "best 0.500 at step 20, not better for 3 probes: more steps will hardly help."),
            ([0.5], "0.500 at step 60, the best so far. The features still get better."),
        ):
            probe(run, *scores, first=view._groups[1].curves[0].steps[-1] // 10 + 1)
            opened.monitor.tick()
            assert told in ui.runProbeText.text
        assert ui.runCurveChoice.currentText == "Loss"
        assert (ui.runProbePlace.visible, view._probe._plot._group.key) == (True, "probe/linear")
        # What is chosen above is not drawn a second time.
        ui.runCurveChoice.currentIndex = 1
        assert ui.runCurveChoice.currentText == "Linear probe (labelled scans)"
        assert (ui.runProbePlace.visible, ui.runProbeText.visible) == (False, True)
        run.update(state="done", message="Done")
        opened.monitor.tick()
        assert "at the end: more steps may help" in ui.runProbeText.text
    view.show_run(ended(runs / "other"))
    assert not ui.runProbeBox.visible


def test_the_loss_is_shown_though_a_probe_came_first_until_another_curve_is_chosen(
    view: Any, runs: Path, opened: Any
) -> None:
    choice = view.ui.runCurveChoice
    with going_on(runs / "smit", steps=0) as run:
        probe(run, 0.3)
        view.show_run(runs / "smit")
        assert choice.currentText == "Linear probe (labelled scans)"
        append(run, [1])
        opened.monitor.tick()
        assert choice.currentText == "Loss"
        choice.currentIndex = 1
        append(run, [10])
        opened.monitor.tick()
        assert choice.count > 4
        assert choice.currentText == "Linear probe (labelled scans)"


# Warnings


def test_a_collapse_is_told_with_what_to_do(view: Any, runs: Path) -> None:
    with going_on(runs / "smit") as run:
        run.update(warning="The features may have collapsed: feature_std is 0.001.")
        view.show_run(runs / "smit")
        assert notice(view).startswith("The features may have collapsed: feature_std is 0.001.")
        assert "lower the learning rate" in notice(view)


def test_a_run_that_is_silent_for_minutes_is_told_with_what_to_do(view: Any, runs: Path) -> None:
    with going_on(runs / "smit"):
        long_ago = datetime.now(UTC) - timedelta(minutes=10)
        rewrite_status(runs / "smit", updated=long_ago.isoformat())
        view.show_run(runs / "smit")
        assert "Nothing has changed for 10 min" in notice(view)
        assert "stop the run and resume it" in notice(view)


@pytest.mark.usefixtures("view")
def test_stillness_counts_from_the_last_change() -> None:
    from SSLSegmentationLib.run_view import Stillness

    still = Stillness()
    assert still.seconds((1, "Training"), now=10.0) == 0.0
    assert still.seconds((1, "Training"), now=200.0) == 190.0
    assert still.seconds((2, "Training"), now=210.0) == 0.0


# Curves


def test_the_loss_comes_first_and_others_are_chosen(
    view: Any, runs: Path, host: Any, tmp_path: Path
) -> None:
    view.show_run(ended(runs / "fine", kind="finetune"))
    choice = view.ui.runCurveChoice
    titles = [choice.itemText(i) for i in range(choice.count)]
    assert titles[:4] == [
        "Loss",
        "Loss terms",
        "Dice per structure (validation)",
        "Health monitors",
    ]
    host.settle()
    before = image_of(host, view._plot, tmp_path)
    choice.currentIndex = 2
    assert [curve.name for curve in view._group.curves] == ["liver", "spleen", "dice mean"]
    assert image_of(host, view._plot, tmp_path) != before


def test_the_values_under_the_mouse_are_told(
    view: Any, runs: Path, host: Any, tmp_path: Path
) -> None:
    from PySide6 import QtCore, QtGui

    view.show_run(ended(runs / "smit"))
    host.settle()
    before = image_of(host, view._plot, tmp_path)
    none = QtCore.Qt.MouseButton.NoButton
    place = QtCore.QPointF(200, 60)
    kind, keys = QtCore.QEvent.Type.MouseMove, QtCore.Qt.KeyboardModifier.NoModifier
    moved = QtGui.QMouseEvent(kind, place, view._plot.mapToGlobal(place), none, none, keys)
    QtCore.QCoreApplication.sendEvent(view._plot, moved)
    host.settle()
    host.picture(view._plot, tmp_path / "drawn.png")
    assert 15 < view._plot.hovered_step < 30
    assert image_of(host, view._plot, tmp_path) != before


def test_terms_of_different_size_get_a_logarithmic_axis(view: Any, runs: Path) -> None:
    view.show_run(ended(runs / "smit"))
    total, terms = view._groups[:2]
    assert not total.is_logarithmic
    assert terms.is_logarithmic


@pytest.mark.usefixtures("view")
def test_a_hundred_thousand_values_are_thinned_before_they_are_drawn() -> None:
    from SSLSegmentationLib.curves import Book

    book = Book()
    book.add({"step": step, "loss/total": step / 1000} for step in range(1, 100_001))
    curve = book.groups()[0].curves[0]
    assert 4000 <= len(curve.values) < 8000
    assert curve.values == pytest.approx([s / 1000 for s in curve.steps], abs=0.02)
    assert curve.steps[-1] > 99_900


@pytest.mark.usefixtures("view")
def test_thinning_keeps_every_outlier() -> None:
    from SSLSegmentationLib.curves import thinned

    points = [(float(x), 100.0 if x == 777 else -50.0 if x == 1234 else 0.0) for x in range(5000)]
    kept = thinned(points, columns=50)
    assert len(kept) <= 102
    assert {points[0], points[777], points[1234], points[-1]} <= set(kept)
    assert kept == sorted(kept)


@pytest.mark.usefixtures("view")
def test_axes_are_labelled_with_round_numbers() -> None:
    from SSLSegmentationLib.curves import decades, number_words, ticks

    assert ticks(0.0, 1.0, count=5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(3.0, 3.0, count=5) == [3.0]
    assert decades(0.5, 200.0) == [1, 10, 100]
    assert decades(0.8, 6.0) == [1, 2, 5]
    assert [number_words(v) for v in (0.0, 1.2345, 1.5e-7)] == ["0", "1.23", "1.5e-07"]


@pytest.mark.usefixtures("view")
def test_times_are_told_as_people_say_them() -> None:
    from SSLSegmentationLib.wording import duration_words, left_words

    assert [left_words(s) for s in (None, 20, 70, 720, 7500, 200000)] == [
        "",
        "less than a minute left",
        "about a minute left",
        "about 12 minutes left",
        "about 2 h 5 min left",
        "about 2.3 days left",
    ]
    assert [duration_words(s) for s in (5, 59.9, 90000)] == ["5 s", "1 min", "1 d 1 h"]


# Pictures


def test_the_newest_picture_is_shown_and_the_older_by_arrows(
    view: Any, runs: Path, opened: Any, host: Any
) -> None:
    with going_on(runs / "smit") as run:
        view.show_run(runs / "smit")
        assert not view.ui.runPreviewBox.visible
        draw(run, 20)
        opened.monitor.tick()
        draw(run, 40)
        opened.monitor.tick()
        host.settle()
        assert view.ui.runPreviewStep.text == "Step 40"
        assert not view.ui.runPreviewForward.enabled
        host.click(view.ui.runPreviewBack)
        assert view.ui.runPreviewStep.text == "Step 20"
        draw(run, 60)
        opened.monitor.tick()
        assert view.ui.runPreviewStep.text == "Step 20"


def test_a_click_on_the_picture_opens_it_large_and_it_follows_the_steps(
    view: Any, runs: Path, host: Any
) -> None:
    with going_on(runs / "smit") as run:
        draw(run, 20)
        draw(run, 40)
        view.show_run(runs / "smit")
        host.settle()
        assert "begins with noise" in view.ui.runPreviewCaption.text
        host.click(view._previews._picture)
        large = view._previews._large
        assert large.dialog.visible
        assert large.dialog.windowTitle == "smit, step 40"
        host.click(view.ui.runPreviewBack)
        assert large.dialog.windowTitle == "smit, step 20"
        assert large.dialog.findChild(host.python("qt").QLabel).pixmap.width() == 120
    view.show_run(None)
    assert large.dialog is None


def test_a_button_loads_the_step_that_is_shown_into_the_slices(
    view: Any, runs: Path, host: Any
) -> None:
    slicer = host.python("slicer")
    with going_on(runs / "smit") as run:
        draw(run, 20)
        draw(run, 40)
        view.show_run(runs / "smit")
        host.settle()
        host.click(view.ui.runPreviewOpen)
        host.click(view.ui.runPreviewBack)
        host.click(view.ui.runPreviewOpen)
    volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    assert sorted(node.GetName() for node in volumes) == [
        "smit step 20 input",
        "smit step 20 masked",
        "smit step 20 reconstruction",
    ]
    assert not any(node.GetSaveWithScene() for node in volumes)
    logic = slicer.app.layoutManager().sliceWidget("Red").sliceLogic()
    shown = logic.GetSliceCompositeNode()
    names = {node.GetID(): node.GetName() for node in volumes}
    assert names[shown.GetBackgroundVolumeID()] == "smit step 20 input"
    assert names[shown.GetForegroundVolumeID()] == "smit step 20 reconstruction"
    assert "the input lies behind the reconstruction" in view.message.text


def test_volumes_that_cannot_be_read_are_a_sentence(view: Any, runs: Path, host: Any) -> None:
    with going_on(runs / "smit") as run:
        draw(run, 20)
        view.show_run(runs / "smit")
        (runs / "smit" / "previews" / "step_000020_reconstruction.nrrd").write_text("x", "utf-8")
        host.settle()
        host.click(view.ui.runPreviewOpen)
    assert "step_000020_reconstruction.nrrd: cannot be read." in view.message.text
    assert not host.python("slicer").util.getNodesByClass("vtkMRMLScalarVolumeNode")


# The chart in the layout


def test_the_full_plot_grows_with_the_run_and_leaves_the_layout_alone(
    view: Any, runs: Path, opened: Any, host: Any
) -> None:
    slicer = host.python("slicer")
    with going_on(runs / "smit") as run:
        view.show_run(runs / "smit")
        view.ui.runCurveChoice.currentIndex = 1
        host.settle()
        layout = slicer.app.layoutManager().plotWidget(0).mrmlPlotViewNode()
        host.click(view.ui.runFullPlotButton)
        chart = layout.GetPlotChartNode()
        assert chart.GetTitle() == "smit: Loss terms"
        assert chart.GetNumberOfPlotSeriesNodes() == 2
        table = chart.GetNthPlotSeriesNode(0).GetTableNode()
        assert table.GetNumberOfRows() == 40
        layout.SetPlotChartNodeID(None)
        append(run, range(41, 61))
        opened.monitor.tick()
        assert table.GetNumberOfRows() == 60
        assert layout.GetPlotChartNode() is None
        saved = [n for n in (chart, table, chart.GetNthPlotSeriesNode(0)) if n.GetSaveWithScene()]
        assert not saved
        slicer.mrmlScene.Clear(0)
        append(run, [61])
        opened.monitor.tick()
    view.show_run(None)
    assert not slicer.util.getNodesByClass("vtkMRMLPlotChartNode")


# Buttons


def test_report_and_folder_are_opened(
    view: Any, runs: Path, host: Any, opened_urls: list[str]
) -> None:
    run = ended(runs / "smit ö")
    (run / "report.html").write_text("x", "utf-8")
    view.show_run(run)
    host.settle()
    host.click(view.ui.runReportButton)
    host.click(view.ui.runFolderButton)
    assert opened_urls == [str(run / "report.html"), str(run)]


def test_views_stand_side_by_side_and_each_lets_go(make_view: Any, runs: Path, opened: Any) -> None:
    first, second = make_view(), make_view()
    first.show_run(ended(runs / "a"))
    second.show_run(ended(runs / "b", kind="finetune", state="failed", message="Failed"))
    assert first.ui.runStateLabel.text == "Pretrain: Done"
    assert second.ui.runStateLabel.text == "Fine-tune: Failed"
    second.cleanup()
    rewrite_status(runs / "b", state="done")
    opened.monitor.tick()
    assert second.run is None
    assert first.run == runs / "a"
