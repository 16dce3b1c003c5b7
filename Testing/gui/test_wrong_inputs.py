"""What people do wrong, or what happens to their disk: a sentence with the cure, and no more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recorded_runs import ended, going_on, rewrite_status

TOO_LONG = "/" + "x" * 300
BELOW_A_FILE = str(Path(__file__) / "x")
HOME_OF_NOBODY = "~nobody at all/scans"
LIMIT_S = 240.0
HEAD = "id,path,files,patient,modality,format,size,spacing_mm,slices,verdict,reason\n"

MODULE = Path(__file__).resolve().parents[2] / "SSLSegmentation" / "SSLSegmentation.py"


@pytest.fixture
def opened(host: Any, window: Any, tmp_path: Path) -> Any:
    """The module with a project, this Python, and all panels unfolded."""
    from SSLPretrainLogic import environments
    from SSLPretrainLogic.project import create_project

    window.session.use_project(create_project(tmp_path / "Projekt ä"))
    window.session.use_interpreter(environments.chosen_interpreter(Path(sys.executable)))
    return unfolded(host, window)


def unfolded(host: Any, window: Any) -> Any:
    for name in window.panels:
        getattr(window.ui, f"section{name}").collapsed = False
    host.settle()
    return window


def started_with(host: Any, **settings: str) -> Any:
    """The module in a Slicer whose settings were like this."""
    host.unload(host.python("slicer").modules.sslsegmentation)
    for name, value in settings.items():
        host.application.userSettings().setValue(f"SSLSegmentation/{name}", value)
    module = host.load(MODULE)
    host.panel = host.show(module)
    return unfolded(host, module.widgetRepresentation().self().window)


def reopen(window: Any) -> None:
    """Open the project once more, as it lies on the disk now."""
    from SSLPretrainLogic.project import open_project

    window.session.use_project(open_project(window.session.project.folder))
    for _ in range(8):
        window.monitor.tick()


# Paths


@pytest.mark.parametrize("path", [TOO_LONG, HOME_OF_NOBODY, BELOW_A_FILE])
def test_a_path_that_can_be_none_is_told_where_it_is_typed(
    host: Any, opened: Any, path: str
) -> None:
    finetune, segment = opened.panels["Finetune"].ui, opened.panels["Segment"]
    finetune.finetuneFromScene.checked = False
    finetune.finetuneFromFolder.checked = True
    finetune.finetuneFolder.currentPath = path
    assert finetune.finetuneReason.text == f"{path}: does not exist."
    finetune.finetuneFolder.currentPath = str(opened.session.project.folder)
    finetune.finetuneStart.currentIndex = 0
    finetune.finetuneWeights.currentPath = path
    assert "there is no such file. Choose the weights" in finetune.finetuneReason.text
    host.click(segment.ui.segmentBatchSection)
    host.click(segment.ui.segmentBatchFolderRadio)
    segment.ui.segmentBatchInputEdit.currentPath = path
    assert "is no folder." in segment._batch.missing()


def test_a_run_gets_a_name_that_every_disk_takes(opened: Any) -> None:
    from SSLPretrainLogic.project import new_run_folder

    for name in ("ü" * 300, "a/b\\c: *?\"<>|'", "..", "CON", " " * 9):
        run = new_run_folder(opened.session.project, name)
        assert run.parent == opened.session.project.runs
        assert len(run.name.encode()) <= 110
        (run / ("f" * 100)).mkdir(parents=True)


# Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("interpreter", "/etc/hostname"),
        ("interpreter", TOO_LONG),
        ("device", "cuda:9"),
        ("segmentModelFile", TOO_LONG),
        ("labelledFolder", TOO_LONG),
        ("recentProjects", TOO_LONG),
        ("interpreters", TOO_LONG),
        ("segmentBatchInput", HOME_OF_NOBODY),
    ],
)
def test_settings_that_make_no_sense_hinder_nothing(
    host: Any, window: Any, tmp_path: Path, name: str, value: str
) -> None:
    from SSLPretrainLogic.project import create_project

    del window
    project = create_project(tmp_path / "p")
    again = started_with(host, **{"project": str(project.folder), name: value})
    again._list_recent()
    assert again.session.project == project
    assert again.session.device == "auto"
    assert again.message.text == ""
    assert all(panel.message.text == "" for panel in again.panels.values())


def test_a_project_that_is_a_file_is_told_at_the_start(
    host: Any, window: Any, tmp_path: Path
) -> None:
    del window
    file = tmp_path / "file"
    file.write_text("x", "utf-8")
    again = started_with(host, project=str(file))
    assert again.message.text.startswith(f"{file}: is no project")
    assert again.session.project is None


# What was deleted


def test_a_project_that_is_deleted_is_told_and_never_made_again_in_part(
    host: Any, opened: Any, tmp_path: Path
) -> None:
    project, scans = opened.session.project, tmp_path / "ct"
    scans.mkdir()
    kept = tmp_path / "kept"
    shutil.copytree(project.folder, kept)
    shutil.rmtree(project.folder)
    for _ in range(8):
        opened.monitor.tick()
    told = f"{project.folder}: the project is not there any more. Put it back"
    assert opened.message.text.startswith(told)
    host.dialogs.answer("getExistingDirectory", str(scans))
    host.click(opened.panels["Data"].ui.dataAddButton)
    assert opened.panels["Data"].message.text.startswith(told)
    host.click(opened.panels["Setup"].ui.setupTestButton)
    assert opened.panels["Setup"].message.text.startswith(told)
    assert not project.folder.exists()
    kept.rename(project.folder)
    for _ in range(8):
        opened.monitor.tick()
    assert opened.message.text == ""


def test_a_run_folder_that_is_deleted_while_watched_is_told_in_each_panel(
    host: Any, opened: Any
) -> None:
    runs = opened.session.project.runs
    views = {
        "pretrain": (opened.panels["Jobs"]._view, opened.panels["Pretrain"].view),
        "finetune": (opened.panels["Jobs"]._view, opened.panels["Finetune"].run_view),
    }
    for kind, both in views.items():
        with going_on(runs / kind, kind=kind) as run:
            reopen(opened)
            assert all(view.run == runs / kind for view in both)
            shutil.rmtree(runs / kind)
            for view in both:
                view._following.receiver(view._following.follower.look())
                assert "was deleted or moved" in view._notice.text
                assert not view.ui.runStopButton.enabled
            (runs / kind).mkdir()
            run.update(state="done")
        shutil.rmtree(runs / kind)
    assert host.faults() == []


def test_an_interpreter_that_is_deleted_is_told_at_the_start(
    host: Any, opened: Any, tmp_path: Path
) -> None:
    from SSLPretrainLogic.environments import chosen_interpreter

    python = tmp_path / "python 'ü\""
    python.write_text("#!/bin/sh\n", "utf-8")
    python.chmod(0o755)
    opened.session.use_interpreter(chosen_interpreter(python))
    python.unlink()
    (tmp_path / "ct").mkdir()
    data = opened.panels["Data"]
    host.dialogs.answer("getExistingDirectory", str(tmp_path / "ct"))
    host.click(data.ui.dataAddButton)
    host.click(data.ui.dataScanButton)
    assert data.message.text == (
        f"{python}: cannot be started (No such file or directory). Choose another Python."
    )
    assert data.ui.dataScanButton.text == "Scan"
    assert not opened.session.project.index.exists()


# What is damaged


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff\xfe\x00\x01", "is no index"),
        (b"", "is no index"),
        (b'path\n"' + b"x" * 200_000, "is no index"),
        ((HEAD + "1,2\n").encode(), "line 2: verdict is ''"),
        ((HEAD + "a,b,1,,,,1x2x3,1e300x1x1,3,usable,\n").encode(), "spacing_mm is '1e300x1x1'"),
        ((HEAD + f"a,b,1,,,,1x2x3,1x1x1,{10**20},usable,\n").encode(), "line 2: slices is"),
        ((HEAD + 'a,b,1,,,,,,,usable,"' + "x" * 200_000).encode(), "larger than field limit"),
    ],
)
def test_an_index_that_is_damaged_is_told_with_its_line(
    host: Any, opened: Any, content: bytes, told: str
) -> None:
    project, data = opened.session.project, opened.panels["Data"]
    project.index.write_bytes(content)
    ended(project.runs / "old")
    opened.session.project_changed.emit()
    host.wait_until(lambda: not data._reading.is_busy)
    assert told in data.message.text
    assert data.message.text.endswith("Scan the folders again.")
    opened.panels["Jobs"].on_copy_posix()


def test_files_of_jobs_tasks_and_runs_that_make_no_sense_are_passed_over(opened: Any) -> None:
    project = opened.session.project
    job = {"schema": 1, "argv": ["a"], "what": "scan", "title": "t", "run": None, "host": "h"}
    task = {"schema": 1, "model": "m", "output": "x", "job": "j", "cases": []}
    for number, moment in enumerate(("nonsense", "2020-01-01", "")):
        for part, name, told in (("jobs", "job", job), ("segmenting", "task", task)):
            folder = project.folder / part / str(number)
            folder.mkdir(parents=True)
            text = json.dumps({**told, "started": moment})
            (folder / f"{name}.json").write_text(text, "utf-8")
    for number, values in enumerate(({"step": 10**20}, {"total_steps": -1}, {"updated": "x"})):
        rewrite_status(ended(project.runs / f"run {number}", kind="finetune"), **values)
        (project.runs / f"run {number}" / "config.json").write_text('{"request": 3}', "utf-8")
    reopen(opened)
    table = opened.panels["Jobs"].ui.jobsTable
    assert [table.item(row, 2).text() for row in range(table.rowCount)] == ["Damaged"] * 3
    assert opened.panels["Segment"].segmenter.waiting == ()


@pytest.mark.parametrize(
    ("voxels", "told"),
    [
        (np.full((4, 4, 4), np.nan), "no Hounsfield units. Choose a CT"),
        (np.full((4, 4, 4), 1e6), "no Hounsfield units. Choose a CT"),
    ],
)
def test_a_volume_that_is_no_ct_is_not_copied_into_the_project(
    host: Any, opened: Any, voxels: Any, told: str
) -> None:
    slicer, data = host.python("slicer"), opened.panels["Data"]
    data._copy(
        [
            slicer.util.addVolumeFromArray(np.zeros((4, 4, 4), np.int16), name="good"),
            slicer.util.addVolumeFromArray(voxels, name="a/b 'ü\""),
        ]
    )
    host.wait_until(lambda: not data._copying.is_busy)
    assert told in data.message.text
    assert list((opened.session.project.folder / "scans").iterdir()) == []


def test_a_volume_without_extent_is_doubted(host: Any, opened: Any) -> None:
    from SSLPretrainLogic.models import Model
    from SSLSegmentationLib.segment_panel import _concerns

    slicer = host.python("slicer")
    volume = slicer.util.addVolumeFromArray(np.full((4, 4, 4), -999, np.int16), name="flat")
    volume.SetIJKToRASMatrix(zero_matrix())
    model = Model(
        path=opened.session.project.folder,
        name="m",
        structures=(),
        spacing_mm=(1.0, 1.0, 1.0),
        hu_window=(0.0, 1.0),
        method="smit",
        training=None,
        validation=None,
    )
    assert _concerns(volume, model) == "Its axes do not span space: load the series again."


def zero_matrix() -> Any:
    import vtk

    matrix = vtk.vtkMatrix4x4()
    matrix.Zero()
    return matrix


# What is clicked, closed or deleted while something goes on


@pytest.fixture
def segment(host: Any, opened: Any, tmp_path: Path) -> Any:
    """The panel Segment with a model of which there is only a header, and a volume."""
    return ready_to_segment(host, opened, tmp_path / "model.safetensors")


def ready_to_segment(host: Any, window: Any, file: Path) -> Any:
    header = {
        "schema": 1,
        "kind": "segmentation",
        "method": "smit",
        "preprocessing": {"spacing_mm": [5, 2, 1.5], "hu_window": [-175, 250]},
        "labels": [{"value": 1, "name": "liver", "color": [221, 130, 101], "terminology": ""}],
        "fingerprint": {"training": 8, "validation": 2},
    }
    table = json.dumps({"__metadata__": {"sslsegmentation": json.dumps(header)}}).encode()
    file.write_bytes(len(table).to_bytes(8, "little") + table)
    panel = window.panels["Segment"]
    host.dialogs.answer("getOpenFileName", str(file))
    host.click(panel.ui.segmentModelButton)
    noise = np.random.default_rng(1).integers(-1000, 1000, (60, 60, 60)).astype(np.int16)
    volume = host.python("slicer").util.addVolumeFromArray(noise, name="CT/ä")
    panel.ui.segmentVolumeSelector.setCurrentNode(volume)
    return panel


def at_rest(host: Any, window: Any) -> None:
    """Nothing that was clicked goes on, and the next click is heard."""
    segmenter, session = window.panels["Segment"].segmenter, window.session
    host.wait_until(lambda: not (segmenter.is_busy or window.monitor.active()), limit_s=LIMIT_S)
    host.wait_until(lambda: not session.is_settling)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_second_click_by_habit_neither_cancels_nor_starts_anything(
    host: Any, opened: Any, segment: Any
) -> None:
    apply = segment.ui.segmentApplyButton
    host.click(apply)
    host.click(apply, by_habit=True)
    assert (apply.text, segment.segmenter.stopping) == ("Cancel", False)
    at_rest(host, opened)
    assert segment.message.text != ""
    assert "Cancelled" not in segment.message.text
    setup = opened.panels["Setup"]
    host.click(setup.ui.setupTestButton)
    host.click(setup.ui.setupCancelButton, by_habit=True)
    watched = opened.monitor.active(what="doctor")
    assert not opened.monitor.is_stopping(watched.job.folder)
    at_rest(host, opened)
    assert opened.session.report is not None


def test_what_is_gone_when_its_turn_comes_is_told(host: Any, opened: Any, segment: Any) -> None:
    slicer, project = host.python("slicer"), opened.session.project
    segment.on_apply()
    slicer.mrmlScene.Clear(0)
    at_rest(host, opened)
    assert segment.message.text == "A volume is not in the scene any more."
    model = segment.model.path
    segment = ready_to_segment(host, opened, model)
    model.unlink()
    host.click(segment.ui.segmentApplyButton)
    at_rest(host, opened)
    assert str(model) in segment.message.text
    assert list((project.folder / "segmenting").iterdir()) == []
    segment = ready_to_segment(host, opened, model)
    host.click(segment.ui.segmentApplyButton)
    host.wait_until(lambda: segment.segmenter._job is not None)
    slicer.mrmlScene.Clear(0)
    # All at once: what the job still writes must not get between.
    project.folder.rename(project.folder.with_name("elsewhere"))
    at_rest(host, opened)
    assert "is not there any more" in segment.message.text
    assert not project.folder.exists()


# The disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for very little."""
    folder = tmp_path / "Platte ü"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def on_disk(host: Any, opened: Any, disk: Path, tmp_path: Path) -> Any:
    """The module with a project on that disk, a folder to scan, and a volume to segment."""
    from SSLPretrainLogic.project import create_project

    opened.session.use_project(create_project(disk / "p"))
    (tmp_path / "ct").mkdir()
    host.dialogs.answer("getExistingDirectory", str(tmp_path / "ct"))
    host.click(opened.panels["Data"].ui.dataAddButton)
    ready_to_segment(host, opened, tmp_path / "model.safetensors")
    return opened


def fill(disk: Path) -> Path:
    file = disk / "full"
    with pytest.raises(OSError, match="No space left"):
        file.write_bytes(bytes(10**6))
    return file


def test_a_disk_that_gets_full_is_told_and_nothing_is_left_half_written(
    host: Any, on_disk: Any, disk: Path
) -> None:
    data, segment = on_disk.panels["Data"], on_disk.panels["Segment"]
    before = files(disk)
    for is_full in (False, True):
        if is_full:
            before = sorted([*before, fill(disk)])
        host.click(segment.ui.segmentApplyButton)
        at_rest(host, on_disk)
        assert "the disk is full. Free some space" in segment.message.text
        data._copy([segment.ui.segmentVolumeSelector.currentNode()])
        host.wait_until(lambda: not data._copying.is_busy)
        assert "the disk is full. Free some space" in data.message.text
        assert files(disk) == before
    for panel, button in (("Data", "dataScanButton"), ("Setup", "setupTestButton")):
        host.click(getattr(on_disk.panels[panel].ui, button))
        at_rest(host, on_disk)
        assert "the disk is full. Free some space" in on_disk.panels[panel].message.text
    assert files(disk) == before


def test_a_disk_that_gets_full_while_a_job_runs_is_told(
    host: Any, on_disk: Any, disk: Path
) -> None:
    data = on_disk.panels["Data"]
    host.click(data.ui.dataScanButton)
    fill(disk)
    at_rest(host, on_disk)
    assert "the disk is full. Free some space" in data.message.text
    assert not on_disk.session.project.index.exists()


def test_a_project_that_can_only_be_read_is_told(host: Any, on_disk: Any, disk: Path) -> None:
    before = files(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for panel, button in (
        ("Segment", "segmentApplyButton"),
        ("Data", "dataScanButton"),
        ("Setup", "setupTestButton"),
    ):
        host.click(getattr(on_disk.panels[panel].ui, button))
        at_rest(host, on_disk)
        assert "(Read-only file system). Check its rights" in on_disk.panels[panel].message.text
    assert files(disk) == before
