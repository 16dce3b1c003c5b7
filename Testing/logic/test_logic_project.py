"""The project folder, and command lines for copies of it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from backend.data.index import write_index
from backend.data.scan import scan
from SSLPretrainLogic.command_lines import for_server, quoted
from SSLPretrainLogic.commands import PretrainRequest, ScanRequest, words
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.project import (
    create_project,
    find_runs,
    free_name,
    from_text,
    is_outside,
    labelled_sets,
    new_run_folder,
    open_project,
    outside,
    probe_data_path,
    source_paths,
    to_text,
    with_probe_data,
    with_sources,
)

ODD_WORDS = ["a b", "it's", "$HOME", "100%", "ü", 'say "x"', "a&b|c", "(1)", "!", "\\", "", "*"]


def test_a_project_is_made_opened_and_copied_elsewhere(tmp_path: Path) -> None:
    made = create_project(tmp_path / "a", name=" Thorax study ")
    made = with_sources(made, (made.folder / "scans", tmp_path / "archive", made.folder / "scans"))
    assert made.name == "Thorax study"
    assert made.sources == ("scans", str(tmp_path / "archive"))
    assert outside(made) == (str(tmp_path / "archive"),)
    assert open_project(made.folder) == made
    assert open_project(made.folder / "project.json") == made
    shutil.copytree(made.folder, tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "jobs")
    there = open_project(tmp_path / "b")
    assert source_paths(there) == (tmp_path / "b" / "scans", tmp_path / "archive")
    assert there.jobs.is_dir()
    assert f"{made.folder}/" not in (tmp_path / "b" / "project.json").read_text("utf-8")


def test_the_set_to_probe_with_goes_with_the_project_and_stays_when_folders_change(
    tmp_path: Path,
) -> None:
    made = create_project(tmp_path / "a")
    assert probe_data_path(made) is None
    made = with_sources(with_probe_data(made, made.labels / "organs"), (made.folder / "scans",))
    assert made.probe_data == "labels/organs"
    assert outside(made) == ()
    shutil.copytree(made.folder, tmp_path / "b")
    assert probe_data_path(open_project(tmp_path / "b")) == tmp_path / "b" / "labels" / "organs"
    elsewhere = with_probe_data(made, tmp_path / "set.csv")
    assert outside(elsewhere) == (str(tmp_path / "set.csv"),)
    assert probe_data_path(with_probe_data(elsewhere, None)) is None


def test_a_project_of_before_is_probed_with_nothing(tmp_path: Path) -> None:
    made = create_project(tmp_path / "a")
    file = made.folder / "project.json"
    told = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({k: v for k, v in told.items() if k != "probe_data"}), "utf-8")
    assert open_project(made.folder) == made


def test_sets_of_two_scans_or_more_can_be_probed(tmp_path: Path) -> None:
    made = create_project(tmp_path / "a")
    for name, scans in (("two", 2), ("one", 1), ("more", 3)):
        images = made.labels / name / "images"
        images.mkdir(parents=True)
        for number in range(scans):
            (images / f"case_{number}.nii.gz").touch()
        (made.labels / name / "labels.json").touch()
    (made.labels / "two" / "images" / ".part").touch()
    (made.labels / "more" / "labels.json").unlink()
    (made.labels / "one" / "images" / ".hidden").touch()
    assert labelled_sets(made) == (made.labels / "two",)
    shutil.rmtree(made.labels)
    assert labelled_sets(made) == ()


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    create_project(tmp_path / "a")
    with pytest.raises(LogicError, match="is a project already"):
        create_project(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").touch()
    with pytest.raises(LogicError, match="is not empty"):
        create_project(tmp_path / "b")
    with pytest.raises(LogicError, match="a file stands where a folder should be"):
        create_project(tmp_path / "b" / "thesis.txt")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 2}, "version 2, this program knows 1"),
        ({"name": None}, "name is None"),
        ({"sources": [1]}, r"sources is \[1\]"),
        ({"sources": "x"}, "sources is 'x'"),
        ({"probe_data": 1}, "probe_data is 1"),
    ],
)
def test_a_project_of_another_form_is_refused(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    path = create_project(tmp_path / "a").folder / "project.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")
    with pytest.raises(LogicError, match=told):
        open_project(tmp_path / "a")


def test_what_is_no_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogicError, match=r"project\.json is missing"):
        open_project(tmp_path)
    (tmp_path / "project.json").write_text("{")
    with pytest.raises(LogicError, match="is damaged"):
        open_project(tmp_path)


def test_paths_inside_are_relative_and_come_back(tmp_path: Path) -> None:
    project = create_project(tmp_path / "a")
    for path in (project.runs / "x y", project.folder, tmp_path / "elsewhere"):
        assert from_text(project, to_text(project, path)) == path
    assert to_text(project, project.runs / "x") == "runs/x"
    # A folder whose name begins alike is another one.
    assert to_text(project, tmp_path / "ab") == str(tmp_path / "ab")


@pytest.mark.parametrize(
    ("text", "leads_out"),
    [
        ("scans/a.nii", False),
        ("a..b/c", False),
        ("/data/a", True),
        ("C:\\data", True),
        ("\\\\server\\share", True),
        ("scans/../../a", True),
    ],
)
def test_paths_that_lead_out_are_known_on_every_system(text: str, leads_out: bool) -> None:
    assert is_outside(text) == leads_out


def test_the_index_tells_what_lies_outside(tmp_path: Path) -> None:
    project = create_project(tmp_path / "a")
    for folder in (project.folder / "scans", tmp_path / "archive"):
        folder.mkdir()
        (folder / "x.nii").write_bytes(b"rubbish")
    write_index(project.index, scan([project.folder / "scans", tmp_path / "archive"]).rows)
    assert outside(project) == (str(tmp_path / "archive" / "x.nii"),)
    text = project.index.read_text("utf-8")
    project.index.write_text("\ufeff" + text.replace(",", ";"), "utf-8")
    assert outside(project) == (str(tmp_path / "archive" / "x.nii"),)
    project.index.write_text("rubbish\n", "utf-8")
    with pytest.raises(LogicError, match="is no index"):
        outside(project)


def test_names_of_runs_are_free_and_fit_for_every_file_system(tmp_path: Path) -> None:
    project = create_project(tmp_path / "a")
    first = new_run_folder(project, "smit tiny: 5 %")
    assert first == project.runs / "smit-tiny-5"
    first.mkdir()
    assert new_run_folder(project, "smit tiny: 5 %") == project.runs / "smit-tiny-5-2"
    for name, made in (("../..", "run"), ("CON", "run-CON"), ("aux.x", "run-aux.x"), ("ü", "ü")):
        assert free_name(tmp_path, name) == tmp_path / made
    assert find_runs(project) == ()


def test_posix_shells_give_back_the_words() -> None:
    line = quoted(["printf", "%s\\n", *ODD_WORDS], system="posix")
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == ODD_WORDS
    assert shlex.split(line)[2:] == ODD_WORDS


@pytest.mark.parametrize(
    ("words_", "line"),
    [
        (["backend", "scan", "D:\\CT"], "backend scan D:\\CT"),
        (["C:\\Program Files\\python.exe", "-m"], '"C:\\Program Files\\python.exe" -m'),
        (["x", "a b&c"], 'x ^"a b^&c^"'),
        (["x", "100%PATH%"], "x 100^%PATH^%"),
        (["x", 'say "x"'], 'x "say \\"x\\""'),
        (["x", "two words\\"], 'x "two words\\\\"'),
    ],
)
def test_the_command_prompt_gets_its_own_quotes(words_: list[str], line: str) -> None:
    assert quoted(words_, system="windows") == line


def test_a_line_break_cannot_be_quoted() -> None:
    with pytest.raises(LogicError, match="line break"):
        quoted(["a\nb"], system="posix")


def test_a_server_runs_the_same_command_in_its_copy(tmp_path: Path) -> None:
    project = create_project(tmp_path / "a")
    request = PretrainRequest(
        method="smit",
        data=(project.index,),
        output=project.runs / "my run",
        init=tmp_path / "w.safetensors",
        overrides=("train.batch_size=4",),
    )
    command = for_server(words(request), project=project, system="posix")
    assert command.text == (
        "backend pretrain --output 'runs/my run' --method smit --set train.batch_size=4 "
        f"--data index.csv --init {tmp_path / 'w.safetensors'}"
    )
    assert command.outside == (str(tmp_path / "w.safetensors"),)


@pytest.mark.parametrize("paths", [(), ("",)])
def test_a_command_without_what_it_needs_is_refused(paths: tuple[Any, ...]) -> None:
    with pytest.raises(LogicError, match="paths: "):
        words(ScanRequest(paths=paths, output=Path("index.csv")))


def test_a_value_that_looks_like_an_option_is_refused() -> None:
    with pytest.raises(LogicError, match="'--resume' cannot be a value"):
        words(PretrainRequest(method="--resume", output=Path("run")))
