"""Tasks are found again after a restart, and what the backend writes is read as it stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from SSLPretrainLogic import tasks
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.jobs import Job
from SSLPretrainLogic.project import Project, create_project
from SSLPretrainLogic.tasks import Bar, Case, Row


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return create_project(tmp_path / "Projekt ä")


def job(folder: Path, *, log: str = "", output: str = "") -> Job:
    folder.mkdir()
    made = Job(folder=folder, argv=("x",), what="segment", title="", run=None, started="", host="")
    made.log.write_text(log, "utf-8")
    made.output.write_text(output, "utf-8")
    return made


@pytest.mark.parametrize(
    ("log", "bar"),
    [
        ("", None),
        ("\rSegmenting: 0 window [00:00, ? window/s]", None),
        (
            "\rReading headers: 100%|██| 3/3 [00:00<00:00, 9 files/s]\n"
            "\rSegmenting:  25%|██▌  | 12/48 [00:30<01:30,  2.5s/ window]",
            Bar(what="Segmenting", done=12, total=48, left_s=90),
        ),
        (
            "Segmenting:   0%|    | 0/2 [00:00<?, ? scan/s]",
            Bar(what="Segmenting", done=0, total=2, left_s=None),
        ),
        (
            "Segmenting:  50%|█   | 1/2 [1:00:00<1:00:05, 1s/ scan]",
            Bar(what="Segmenting", done=1, total=2, left_s=3605),
        ),
    ],
)
def test_the_last_bar_of_a_log_tells_how_far_it_is(
    log: str, bar: Bar | None, tmp_path: Path
) -> None:
    assert tasks.read_bar(job(tmp_path / "job", log=log)) == bar


def test_what_was_left_out_is_told(tmp_path: Path) -> None:
    made = job(tmp_path / "job", output="Left out: a.nrrd: unreadable\nliver  1 ml\n")
    assert tasks.problems(made) == ("a.nrrd: unreadable",)


def test_a_task_is_found_again_until_it_is_discarded(project: Project) -> None:
    task = tasks.new_task(project, model="abdomen")
    whole = replace(task, job="1-segment", cases=(Case(name="volume_1", fingerprint="ab"),))
    tasks.keep(project, whole)
    assert tasks.find_tasks(project) == (whole,)
    assert not tasks.has_result(whole)
    whole.output.mkdir()
    whole.label_file(whole.cases[0]).touch()
    assert tasks.has_result(whole)
    tasks.discard(whole)
    tasks.discard(whole)
    assert tasks.find_tasks(project) == ()


def test_only_an_old_task_without_a_result_is_abandoned(project: Project) -> None:
    task = tasks.new_task(project, model="abdomen")
    assert not tasks.is_abandoned(task)
    assert tasks.is_abandoned(replace(task, started="2020-01-01T00:00:00+00:00"))


def test_the_table_of_a_folder_is_read_and_written(project: Project, tmp_path: Path) -> None:
    task = tasks.new_task(project, model="abdomen", output=tmp_path)
    assert not task.is_of_scene
    with pytest.raises(LogicError, match=r"volumes\.csv"):
        tasks.folder_rows(task)
    text = 'case,structure,value,voxels,ml\n"a,b",liver,1,7,0.5\n'
    (tmp_path / "volumes.csv").write_text(text, "utf-8")
    rows = tasks.folder_rows(task)
    assert rows == (Row(case="a,b", structure="liver", voxels=7, ml=0.5),)
    lines = tasks.as_text(rows, separator=",").splitlines()
    assert lines == ["case,structure,ml,voxels,mean_hu", '"a,b",liver,0.5000,7,']
    (tmp_path / "volumes.csv").write_text("case\nx\n", "utf-8")
    with pytest.raises(LogicError, match="damaged"):
        tasks.folder_rows(task)
