"""The panel Jobs: all that was started in a project, also by a Slicer that is gone."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from real_runs import marked, tiny, write_scans

from recorded_runs import ended, going_on, rewrite_status

MODULE = Path(__file__).resolve().parents[2] / "SSLSegmentation" / "SSLSegmentation.py"
LIMIT_S = 300.0


@pytest.fixture
def opened(host: Any, window: Any, tmp_path: Path) -> Any:
    """The module with a new project open and Jobs unfolded."""
    from SSLPretrainLogic import environments
    from SSLPretrainLogic.project import create_project

    window.session.use_project(create_project(tmp_path / "Projekt ä", name="Köpfe"))
    window.session.use_interpreter(environments.chosen_interpreter(Path(sys.executable)))
    unfold(host, window)
    return window


@pytest.fixture
def jobs(opened: Any) -> Any:
    return opened.panels["Jobs"]


@pytest.fixture
def runs(opened: Any) -> Path:
    folder: Path = opened.session.project.runs
    return folder


def unfold(host: Any, window: Any) -> None:
    window.ui.sectionSetup.collapsed = True
    window.ui.sectionData.collapsed = True
    window.ui.sectionJobs.collapsed = False
    host.settle()


def table_of(jobs: Any) -> list[tuple[str, ...]]:
    """The texts of the first three columns."""
    table = jobs.ui.jobsTable
    return [tuple(table.item(r, c).text() for c in range(3)) for r in range(table.rowCount)]


def click_row(host: Any, jobs: Any, row: int) -> None:
    from PySide6 import QtCore, QtTest

    table = jobs.ui.jobsTable
    where = table.visualItemRect(table.item(row, 0)).center()
    button, keys = QtCore.Qt.MouseButton.LeftButton, QtCore.Qt.KeyboardModifier.NoModifier
    QtTest.QTest.mouseClick(table.viewport(), button, keys, where)
    host.settle()


def started(folder: Path, moment: str, **values: Any) -> Path:
    """A run that ended, and when it was started."""
    rewrite_status(ended(folder, **values), started=moment)
    return folder


# The table


def test_without_a_project_a_sentence_says_what_to_do(host: Any, window: Any) -> None:
    unfold(host, window)
    ui = window.panels["Jobs"].ui
    assert ui.jobsEmptyLabel.text == "No project is open. Open or make one at the top."
    assert not ui.jobsTable.visible
    assert not ui.jobsDetails.visible


def test_an_empty_project_says_where_to_begin(jobs: Any) -> None:
    assert "Begin with Data and Pretrain" in jobs.ui.jobsEmptyLabel.text


def test_runs_without_a_job_are_listed_newest_first_and_the_newest_is_shown(
    jobs: Any, runs: Path, host: Any
) -> None:
    started(runs / "old", "2025-01-01T00:00:00+00:00")
    failed = {"state": "failed", "message": "Failed"}
    started(runs / "new", "2025-01-02T00:00:00+00:00", kind="finetune", **failed)
    jobs.refresh()
    assert table_of(jobs) == [("new", "Fine-tune", "Failed"), ("old", "Pretrain", "Done")]
    assert jobs._view.run == runs / "new"
    click_row(host, jobs, 1)
    assert jobs._view.run == runs / "old"
    jobs.refresh()
    assert jobs.selected.title == "old"


def test_the_table_follows_a_run_that_goes_on(jobs: Any, runs: Path, opened: Any) -> None:
    with going_on(runs / "smit") as run:
        jobs.refresh()
        assert table_of(jobs) == [("smit", "Pretrain", "Running 20 %")]
        run.update(step=100)
        for _ in range(4):
            opened.monitor.tick()
        assert table_of(jobs) == [("smit", "Pretrain", "Running 50 %")]


def test_a_run_that_is_deleted_leaves_the_table(jobs: Any, runs: Path, opened: Any) -> None:
    ended(runs / "smit")
    jobs.refresh()
    shutil.rmtree(runs / "smit")
    opened.monitor.tick()
    jobs.refresh()
    assert table_of(jobs) == []
    assert jobs._view.run is None


def test_the_panel_fits_into_slicers_column(jobs: Any, runs: Path, host: Any) -> None:
    ended(runs / "a name that is much longer than the column of the table can ever be")
    jobs.refresh()
    host.settle()
    assert jobs.widget.minimumSizeHint().width() <= 376


def test_the_log_is_shown_on_a_click_and_follows(
    jobs: Any, runs: Path, opened: Any, host: Any
) -> None:
    run = ended(runs / "smit")
    (run / "log.txt").write_text("one\n", "utf-8")
    jobs.refresh()
    host.settle()
    assert not jobs.ui.jobsLog.visible
    host.click(jobs.ui.jobsLogButton)
    assert jobs.ui.jobsLog.plainText == "one"
    with (run / "log.txt").open("a", encoding="utf-8") as log:
        log.write("two\nthr")
    opened.monitor.tick()
    assert jobs.ui.jobsLog.plainText == "one\ntwo"


@pytest.mark.usefixtures("window")
def test_bars_in_a_log_tell_progress(tmp_path: Path) -> None:
    from SSLSegmentationLib.log_view import last_words, percent_told, without_bar

    log = tmp_path / "log.txt"
    log.write_text("begun\n\rScan:   0%|   | 0/9 \rScan:  44%|██  | 4/9 [00:02<00:03]", "utf-8")
    assert percent_told(last_words(log)) == 44
    assert without_bar(last_words(log)) == "Scan:  44 %, 4/9 [00:02<00:03]"
    assert percent_told("backend: nothing is 44% done") is None
    assert last_words(tmp_path / "none") == ""


# Command lines


def test_command_lines_are_copied_for_here_and_for_a_server(
    jobs: Any, runs: Path, host: Any, opened: Any
) -> None:
    words = ["pretrain", "--data", "/data/my ct", "--output", str(runs / "smit")]
    rewrite_status(ended(runs / "smit"), argv=["/x/backend/__main__.py", *words])
    jobs.refresh()
    actions = {action.text: action for action in jobs.ui.jobsCopyButton.menu().actions()}
    clipboard = host.python("qt").QApplication.clipboard()
    here, posix, windows = actions.values()
    here.trigger()
    assert clipboard.text().endswith(f"--data '/data/my ct' --output '{runs / 'smit'}'")
    posix.trigger()
    assert clipboard.text() == "backend pretrain --data '/data/my ct' --output runs/smit"
    assert jobs.message.text.endswith("needed there at the same place: /data/my ct.")
    windows.trigger()
    assert clipboard.text() == 'backend pretrain --data "/data/my ct" --output runs/smit'
    rewrite_status(runs / "smit", argv=[])
    opened.monitor.tick()
    here.trigger()
    assert "does not tell how it was started" in jobs.message.text


# Jobs


def test_a_job_that_fails_shows_error_and_log_and_is_forgotten_after_a_question(
    jobs: Any, runs: Path, opened: Any, host: Any, tmp_path: Path
) -> None:
    from SSLPretrainLogic.commands import ScanRequest

    ended(runs / "smit")
    missing = tmp_path / "no such ä"
    request = ScanRequest(paths=(missing,), output=opened.session.project.index)
    job = opened.session.start(request, title="Scan my CT")
    host.settle()
    assert jobs.ui.jobsStateLabel.text in ("Scan my CT: Starting", "Scan my CT: Running")
    assert jobs.ui.jobsStopButton.enabled
    assert not jobs.ui.jobsForgetButton.enabled
    host.wait_until(lambda: not opened.monitor.jobs[0].status.is_active, limit_s=LIMIT_S)
    host.settle()
    assert table_of(jobs)[0] == ("Scan my CT", "Scan", "Failed")
    assert jobs.ui.jobsErrorLabel.text.startswith(f"{missing} does not exist.")
    assert f"backend: {missing} does not exist." in jobs.ui.jobsLog.plainText
    assert not jobs.ui.jobsStopButton.enabled

    host.dialogs.answer("confirmOkCancelDisplay", False, True)
    host.click(jobs.ui.jobsForgetButton)
    assert job.folder.is_dir()
    host.click(jobs.ui.jobsForgetButton)
    assert "runs and results stay" in host.dialogs.texts("confirmOkCancelDisplay")[0]
    assert not job.folder.exists()
    assert table_of(jobs) == [("smit", "Pretrain", "Done")]


@pytest.mark.parametrize("ticks", [0, 1])
def test_a_job_whose_project_vanishes_is_told_as_ended_at_whichever_tick(
    ticks: int, opened: Any, tmp_path: Path
) -> None:
    from SSLPretrainLogic.commands import ScanRequest

    told: list[Any] = []
    opened.monitor.ended.connect(told.append)
    for _ in range(ticks):
        opened.monitor.tick()
    project = opened.session.project
    request = ScanRequest(paths=(tmp_path,), output=project.index)
    job = opened.session.start(request, title="Scan my CT")
    project.folder.rename(tmp_path / "elsewhere")
    for _ in range(7):
        opened.monitor.tick()
    assert [(watched.job.folder, watched.status.state) for watched in told] == [
        (job.folder, "interrupted")
    ]
    assert "is not there any more" in told[0].status.message
    assert opened.monitor.jobs == ()


def test_a_run_goes_on_without_slicer_is_found_again_stopped_and_resumed(
    jobs: Any, runs: Path, opened: Any, host: Any, tmp_path: Path
) -> None:
    write_scans(tmp_path / "ct ö")
    run = runs / "smit tiny"
    job = opened.session.start(tiny(tmp_path / "ct ö", run), title="Pretrain smit")
    assert table_of(jobs) == [("smit tiny", "Pretrain", "Starting")]
    host.wait_until(lambda: jobs._view.ui.runPreviewBox.visible, limit_s=LIMIT_S)

    host.unload(host.python("slicer").modules.sslsegmentation)
    assert len(marked(job)) >= 2
    module = host.load(MODULE)
    host.panel = host.show(module)
    again = module.widgetRepresentation().self().window
    unfold(host, again)
    jobs = again.panels["Jobs"]
    view = jobs._view
    assert view.run == run
    assert table_of(jobs)[0][2].startswith("Running")
    assert view.ui.runStateLabel.text == "Pretrain: Running"
    assert [group.key for group in view._groups][:2] == ["loss/total", "loss"]
    with Image.open(view._previews.current.picture) as picture:
        assert picture.width > 100

    host.click(view.ui.runStopButton)
    assert not view.ui.runStopButton.enabled
    assert view.ui.runMessageLabel.text.startswith("Saving and stopping")
    host.wait_until(lambda: view.ui.runStateLabel.text == "Pretrain: Stopped", limit_s=LIMIT_S)
    host.wait_until(lambda: not again.monitor.is_stopping(job.folder), limit_s=LIMIT_S)
    assert marked(job) == []

    host.click(view.ui.runResumeButton)
    assert view.ui.runStateLabel.text == "Pretrain: Starting"
    resumed = again.monitor.jobs[0].job
    assert resumed.title == "Resume smit tiny"
    assert resumed.argv[-5:-3] == ("--output", str(run))
    assert "--resume" in resumed.argv
    assert [row.key for row in jobs._rows] == [run]
    host.click(view.ui.runStopButton)
    host.wait_until(lambda: not again.monitor.is_stopping(resumed.folder), limit_s=LIMIT_S)
    assert marked(resumed) == []
