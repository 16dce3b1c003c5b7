"""The panel Data: folders in, a scan, a table of what was found."""

from __future__ import annotations

import itertools
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backend.data.index import write_index
from backend.data.phantom import make_phantom
from backend.data.phantom.cohort import write_image
from backend.data.phantom.dicom import Series, write_series
from backend.data.series import SeriesRow

MODULE = Path(__file__).resolve().parents[2] / "SSLSegmentation" / "SSLSegmentation.py"
SIZE, SPACING_MM = (18, 20, 24), (12.0, 16.0, 15.0)


@pytest.fixture
def data(host: Any, window: Any, tmp_path: Path) -> Any:
    """The panel, unfolded, in a new project; the Python that runs these tests computes."""
    from SSLPretrainLogic import environments
    from SSLPretrainLogic.project import create_project

    window.session.use_project(create_project(tmp_path / "Projekt ä", name="Köpfe"))
    window.session.use_interpreter(environments.chosen_interpreter(Path(sys.executable)))
    window.ui.sectionData.collapsed = False
    host.settle()
    return window.panels["Data"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CT as DICOM, one as NIfTI, and a label map."""
    folder = tmp_path_factory.mktemp("archive")
    ct, label = make_phantom(1, size=SIZE, spacing_mm=SPACING_MM)
    other, _ = make_phantom(2, size=SIZE, spacing_mm=SPACING_MM)
    write_series(folder / "dicom", ct, Series(patient="PHANTOM_01"))
    write_image(folder / "ct 2.nii.gz", other)
    write_image(folder / "label.nii.gz", label)
    return folder


@pytest.fixture
def scans(archive: Path, tmp_path: Path) -> Path:
    """A copy of the archive."""
    return Path(shutil.copytree(archive, tmp_path / "Archiv ö"))


def drop(host: Any, data: Any, *paths: Path) -> bool:
    """Drop files onto the list with the mouse; answers whether they were taken."""
    from PySide6 import QtCore, QtGui

    mime = QtCore.QMimeData()
    mime.setUrls([QtCore.QUrl.fromLocalFile(str(path)) for path in paths])
    where, left = QtCore.QPoint(5, 5), QtCore.Qt.MouseButton.LeftButton
    plain, copy = QtCore.Qt.KeyboardModifier.NoModifier, QtCore.Qt.DropAction.CopyAction
    target = data.ui.dataSources.viewport()
    enter = QtGui.QDragEnterEvent(QtCore.QPointF(where), copy, mime, left, plain)
    QtCore.QCoreApplication.sendEvent(target, enter)
    event = QtGui.QDropEvent(QtCore.QPointF(where), copy, mime, left, plain)
    QtCore.QCoreApplication.sendEvent(target, event)
    host.settle()
    return enter.isAccepted() and event.isAccepted()


def scan(host: Any, data: Any) -> None:
    """Press Scan and wait for its end."""
    host.click(data.ui.dataScanButton)
    host.wait_until(lambda: not data.monitor.active(what="scan"), limit_s=60)
    host.wait_until(lambda: not data._reading.is_busy)


def lines(data: Any) -> list[tuple[str, str]]:
    """What the table shows: title and result."""
    tree = data.ui.dataTable
    items = [tree.topLevelItem(row) for row in range(tree.topLevelItemCount)]
    return [(item.text(0), item.text(1)) for item in items if not item.isHidden()]


def choose(data: Any, title: str) -> Any:
    """Select the line of a title."""
    from PySide6 import QtCore

    (item,) = data.ui.dataTable.findItems(title, QtCore.Qt.MatchFlag.MatchExactly, 0)
    data.ui.dataTable.setCurrentItem(item)
    return item


def double_click(data: Any, item: Any) -> None:
    """Double-click a line."""
    from PySide6 import QtCore, QtTest

    tree = data.ui.dataTable
    tree.scrollToItem(item)
    where = tree.visualItemRect(item).topLeft() + QtCore.QPoint(20, 5)
    left, plain = QtCore.Qt.MouseButton.LeftButton, QtCore.Qt.KeyboardModifier.NoModifier
    for press in (QtTest.QTest.mouseClick, QtTest.QTest.mouseDClick):
        press(tree.viewport(), left, plain, where)


def index_of(folder: Path, count: int) -> list[SeriesRow]:
    """Lines of an index, every other one refused."""
    return [
        SeriesRow(
            id=f"s{number}",
            path=folder / f"{number:04d}",
            files=(folder / f"{number:04d}" / "1.dcm",),
            patient=f"p{number}",
            modality="CT",
            format="DICOM",
            size=(100, 512, 512),
            spacing_mm=(2.0, 0.75, 0.75),
            orientation="LPS",
            hu_min=-1024,
            hu_max=3071,
            slices=100,
            verdict="refused" if number % 2 else "usable",
            reason="few slices: 3" if number % 2 else "",
        )
        for number in range(count)
    ]


def test_without_a_project_the_panel_says_what_to_do_first(window: Any, host: Any) -> None:
    ui = window.panels["Data"].ui
    window.ui.sectionData.collapsed = False
    host.settle()
    assert ui.dataEmpty.visible
    assert "make a project" in ui.dataEmpty.text
    for button in (ui.dataAddButton, ui.dataDicomButton, ui.dataSceneButton, ui.dataScanButton):
        assert not button.enabled
        assert "project" in button.toolTip


def test_dropped_folders_are_scanned_listed_and_opened_in_the_viewers(
    host: Any, data: Any, scans: Path
) -> None:
    ui, slicer = data.ui, host.python("slicer")
    assert not ui.dataScanButton.enabled
    assert ui.dataScanButton.toolTip == "Add a folder of scans first."
    assert drop(host, data, scans)
    assert data.session.project.sources == (str(scans),)
    assert ui.dataSources.item(0).text() == str(scans)
    host.click(ui.dataScanButton)
    assert ui.dataScanButton.text == "Cancel"
    assert ui.dataProgressText.text == "Looking for files…"
    host.wait_until(lambda: not data.monitor.active(what="scan"), limit_s=60)
    assert ui.dataScanButton.text == "Scan"
    assert not ui.dataProgress.visible
    assert ui.dataFound.text == (
        "3 series: 2 usable, 1 refused (label map: 1). Go on with 3. Pretrain."
    )
    assert ui.dataSpacing.text == "15 × 16 × 12 mm"
    assert ui.dataSize.text == "24 × 20 × 18 voxels"
    assert "2 patients" in ui.dataFound.toolTip
    assert not ui.dataStale.visible
    both = [("Archiv ö/ct 2.nii.gz", "usable"), ("Archiv ö/dicom", "usable")]
    assert lines(data) == [*both, ("Archiv ö/label.nii.gz", "label map")]
    ui.dataFilter.currentIndex = 1
    assert lines(data) == both
    ways = (lambda _: host.click(ui.dataOpenButton), lambda item: double_click(data, item))
    for (title, _), open_it in zip(both, ways, strict=True):
        open_it(choose(data, title))
        node = slicer.mrmlScene.GetFirstNodeByName(title.replace("/", " "))
        assert node.GetImageData().GetDimensions() == SIZE[::-1]
        shown = slicer.app.layoutManager().sliceWidget("Red").sliceLogic()
        assert shown.GetSliceCompositeNode().GetBackgroundVolumeID() == node.GetID()


def test_the_table_is_there_again_after_a_restart_and_tells_when_it_is_stale(
    host: Any, data: Any, scans: Path
) -> None:
    drop(host, data, scans)
    scan(host, data)
    slicer = host.python("slicer")
    host.unload(slicer.modules.sslsegmentation)
    module = host.load(MODULE)
    host.panel = host.show(module)
    window = module.widgetRepresentation().self().window
    again = window.panels["Data"]
    assert not window.ui.sectionData.collapsed
    assert again.ui.dataFound.text.startswith("3 series: 2 usable")
    assert again.ui.dataStale.isHidden()
    again.ui.dataSources.setCurrentRow(0)
    host.click(again.ui.dataRemoveButton)
    assert again.session.project.sources == ()
    assert again.ui.dataStale.visible
    assert again.ui.dataStaleText.text == "Changed since the scan: Archiv ö. Scan again."


def test_a_scan_is_cancelled_and_changes_nothing(host: Any, data: Any, scans: Path) -> None:
    # So many that it is still at it when the click has arrived.
    first = scans / "ct 2.nii.gz"
    for number in range(1500):
        (scans / f"{number}.nii.gz").hardlink_to(first)
    drop(host, data, scans)
    host.click(data.ui.dataScanButton)
    host.click(data.ui.dataScanButton)
    assert data.ui.dataProgressText.text == "Cancelling…"
    assert not data.ui.dataScanButton.enabled
    host.wait_until(lambda: data.message.text, limit_s=60)
    assert data.message.text == "Cancelled; nothing has changed."
    assert data.ui.dataScanButton.enabled
    assert data.ui.dataEmpty.visible
    assert not data.session.project.index.exists()


def test_where_nothing_is_usable_the_table_tells_why(host: Any, data: Any, scans: Path) -> None:
    drop(host, data, scans / "label.nii.gz")
    scan(host, data)
    assert "no usable CT series" in data.message.text
    assert data.ui.dataFound.text == "1 series: 0 usable, 1 refused (label map: 1)."
    choose(data, "Archiv ö/label.nii.gz")
    assert "label map: 8-bit" in data.ui.dataDetails.text


def test_folders_are_added_by_dialog_once_and_never_around_the_project(
    host: Any, data: Any, scans: Path, tmp_path: Path
) -> None:
    answers = (str(scans), str(scans / "dicom"), str(tmp_path), "")
    host.dialogs.answer("getExistingDirectory", *answers)
    told = []
    for _ in answers:
        host.click(data.ui.dataAddButton)
        told.append(data.message.text)
    assert told[0] == ""
    assert told[1] == "That is searched already."
    assert "holds the project itself" in told[2]
    assert data.session.project.sources == (str(scans),)


def test_a_folder_that_is_gone_is_told_and_no_scan_starts(
    host: Any, data: Any, scans: Path
) -> None:
    drop(host, data, scans)
    scans.rename(scans.with_name("elsewhere"))
    host.click(data.ui.dataScanButton)
    assert "is not there" in data.message.text
    assert data.monitor.jobs == ()


def test_a_closed_or_empty_dicom_database_is_told(host: Any, data: Any, tmp_path: Path) -> None:
    host.click(data.ui.dataDicomButton)
    assert "is not open" in data.message.text
    host.python("slicer").dicomDatabase._host_use(tmp_path / "nothing")
    host.click(data.ui.dataDicomButton)
    assert "is empty" in data.message.text


def test_ct_series_of_the_dicom_database_give_their_folders(
    host: Any, data: Any, tmp_path: Path
) -> None:
    ct, _ = make_phantom(3, size=(4, 8, 8), spacing_mm=(40.0, 40.0, 40.0))
    who = {"PatientName": "Doe^Jane", "StudyDate": "20240311"}
    for number, modality in ((1, "CT"), (2, "CT"), (3, "MR")):
        series = Series(
            patient="P", number=number, modality=modality, description=f"No {number}", extra=who
        )
        write_series(tmp_path / "database" / str(number), ct, series)
    host.python("slicer").dicomDatabase._host_use(tmp_path / "database")
    host.click(data.ui.dataDicomButton)
    dialog = data._dialog.ui
    heading = dialog.dataPickTree.topLevelItem(0)
    assert [heading.child(row).text(0) for row in range(heading.childCount())] == ["No 1", "No 2"]
    assert (heading.text(0), heading.child(0).text(1)) == ("Doe Jane", "2024-03-11")
    assert not dialog.dataPickOk.enabled
    host.click(dialog.dataPickAll)
    assert dialog.dataPickCount.text == "2 of 2 chosen"
    heading.child(0).setCheckState(0, host.python("qt").Qt.Unchecked)
    host.click(dialog.dataPickOk)
    host.wait_until(lambda: data.session.project.sources)
    assert data.session.project.sources == (str(tmp_path / "database" / "2"),)
    host.click(data.ui.dataDicomButton)
    host.click(data._dialog.ui.dataPickAll)
    host.click(data._dialog.ui.dataPickCancel)
    assert len(data.session.project.sources) == 1


def test_volumes_of_the_scene_are_copied_where_they_lie_and_without_their_names(
    host: Any, data: Any
) -> None:
    slicer = host.python("slicer")
    host.click(data.ui.dataSceneButton)
    assert "No volume is loaded" in data.message.text
    voxels = np.zeros((4, 5, 6), np.int16)
    for name in ("DOE^JANE", "other"):
        node = slicer.util.addVolumeFromArray(voxels, name=name)
    sheared = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = np.eye(4)
    matrix[0, 2] = 0.5
    sheared.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    node.SetAndObserveTransformNodeID(sheared.GetID())
    host.click(data.ui.dataSceneButton)
    host.click(data._dialog.ui.dataPickAll)
    host.click(data._dialog.ui.dataPickOk)
    host.wait_until(lambda: data.session.project.sources)
    assert data.session.project.sources == ("scans",)
    files = sorted((data.session.project.folder / "scans").iterdir())
    assert [file.name for file in files] == ["volume-001.nrrd", "volume-002.nrrd"]
    assert not any(b"DOE" in file.read_bytes() for file in files)
    assert "Interpolated while copying: other: its axes are" in data.message.text


def test_copying_volumes_can_be_cancelled_and_leaves_nothing(host: Any, data: Any) -> None:
    slicer = host.python("slicer")
    for number in range(40):
        slicer.util.addVolumeFromArray(np.zeros((4, 4, 4), np.int16), name=str(number))
    host.click(data.ui.dataSceneButton)
    host.click(data._dialog.ui.dataPickAll)
    data._dialog.ui.dataPickOk.click()
    assert data.ui.dataProgressText.text == "Copying volume 1 of 40…"
    data.ui.dataScanButton.click()
    host.settle()
    assert not data._copying.is_busy
    assert not data.ui.dataProgress.visible
    assert data.session.project.sources == ()
    assert not list((data.session.project.folder / "scans").glob("*.nrrd"))


def test_a_damaged_table_is_told_and_a_folder_that_moved_too(
    host: Any, data: Any, tmp_path: Path
) -> None:
    project = data.session.project
    write_index(project.index, index_of(tmp_path / "gone", 1))
    data.session.use_project(project)
    choose(data, "gone/0000")
    host.click(data.ui.dataOpenButton)
    assert "is not there any more" in data.message.text
    project.index.write_text("a,b\n1,2\n", "utf-8")
    data.session.use_project(project)
    assert "is no index" in data.message.text
    assert not data.ui.dataResult.visible


def test_series_of_one_name_tell_in_what_they_differ(host: Any, data: Any, tmp_path: Path) -> None:
    first, other, alone = index_of(tmp_path, 3)
    series = [first, replace(other, path=first.path, slices=58), alone]
    write_index(data.session.project.index, series)
    data.session.use_project(data.session.project)
    host.wait_until(lambda: not data._reading.is_busy)
    folder = tmp_path.name
    wanted = [f"{folder}/0000, 100 slices", f"{folder}/0000, 58 slices", f"{folder}/0002"]
    assert [title for title, _ in lines(data)] == wanted


def test_a_table_of_two_thousand_lines_comes_between_other_events(
    host: Any, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each look at the clock takes a millisecond, so that what a piece may do can be counted.
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 1000)
    monkeypatch.setattr("SSLSegmentationLib.stepwise.time", clock)
    project = data.session.project
    write_index(project.index, index_of(tmp_path, 2000))
    data.session.use_project(project)
    filled = [0, len(data._table.series)]
    while data._reading.is_busy:
        host.application.processEvents()
        filled.append(len(data._table.series))
    assert max(after - before for before, after in itertools.pairwise(filled)) <= 20
    data._table.show_only(1)
    assert len(lines(data)) == 1000
    assert data.ui.dataFound.text.startswith("2,000 series: 1,000 usable, 1,000 refused")
