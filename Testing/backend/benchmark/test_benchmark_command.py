"""The command from a plan to tables and report: continued, shared, and the same every time."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import published_results
import pytest
import SimpleITK
import torch
from benchmark_plans import write_plan
from cli_runner import (
    LIMIT_S,
    Ended,
    Material,
    backend,
    backend_here,
    ended,
    started,
    status,
    wait_until,
)

from backend.provenance import processor_name, source_commit


def _plan(folder: Path, material: Material, **changes: Any) -> Path:
    data = {"labelled": str(material.labelled), **changes.pop("data", {})}
    pretrain = {"data": json.loads(_scans(material))}
    folder.mkdir(exist_ok=True)
    return write_plan(folder, {"data": data, "pretrain": pretrain, **changes})


def _scans(material: Material) -> str:
    """The labelled images are among those to pretrain on; the test case has to be left out."""
    return json.dumps([str(material.unlabelled), str(material.labelled)])


def _words(plan: Path, output: Path, material: Material) -> tuple[object, ...]:
    options = ("--device", "cpu", "--cache", material.cache)
    return ("benchmark", plan, "--output", output, *options)


def _copied(output: Path, to: Path) -> Path:
    """The output of a benchmark elsewhere, without what it does not go on from."""
    return shutil.copytree(output, to, ignore=shutil.ignore_patterns("cache", "logs"))


def _require_same_tables(output: Path, whole: Path) -> None:
    for table in ("results.csv", "curves.csv", "summary.csv"):
        assert (output / table).read_bytes() == (whole / table).read_bytes()


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, material: Material
) -> tuple[Path, Path, Ended]:
    """A plan, the output of its benchmark, and what it said."""
    folder = tmp_path_factory.mktemp("benchmark")
    plan, output = _plan(folder, material), folder / "out"
    return plan, output, backend_here(*_words(plan, output, material))


def test_every_arm_has_a_row_for_every_case_and_organ(finished: tuple[Path, Path, Ended]) -> None:
    _, output, done = finished
    assert done.code == 0, done.err
    rows = _rows(output / "results.csv")
    assert {row["start"] for row in rows} == {"random swin", "SMIT"}
    assert {(row["case"], row["labels"], row["seed"], row["mode"]) for row in rows} == {
        ("case_3", "1", "0", "end to end")
    }
    organs = {row["organ"] for row in rows}
    assert {"liver", "background"} <= organs
    assert len(rows) == 2 * len(organs)
    # Two arms that share nothing but the network and its budget.
    steps = {run.name: status(run)["step"] for run in (output / "runs").iterdir()}
    assert len(steps) == 2
    assert set(steps.values()) == {3}
    curves = _rows(output / "curves.csv")
    assert {(row["start"], row["step"]) for row in curves} == {("random swin", "3"), ("SMIT", "3")}


def test_the_report_says_what_was_compared_on_what_and_no_more(
    finished: tuple[Path, Path, Ended],
) -> None:
    _, output, done = finished
    page = (output / "report.html").read_text("utf-8")
    assert "A single case or seed tells of no other, so nothing can be shown." in page
    assert "images of test cases left out: 1" in page
    assert "<script" not in page
    assert "Not finished" not in page
    assert "no difference shown for SMIT" in done.out
    summary = _rows(output / "summary.csv")
    assert [row["start"] for row in summary] == ["random swin", "SMIT"]
    assert [row["shown"] for row in summary] == ["", "no"]


def test_a_pretraining_says_how_many_series_it_leaves_out_and_where_it_says_why(
    finished: tuple[Path, Path, Ended],
) -> None:
    _, output, _ = finished
    (run,) = (output / "pretrain").iterdir()
    told = r"INFO (\d+) of (\d+) series are left out; .*index.csv tells why of each. Refused: "
    found = re.search(told, (run / "log.txt").read_text())
    assert found is not None
    verdicts = [row["verdict"] for row in _rows(run / "index.csv")]
    assert [int(n) for n in found.groups()] == [verdicts.count("refused"), len(verdicts)]


def test_every_run_tells_what_it_was_made_on(finished: tuple[Path, Path, Ended]) -> None:
    _, output, _ = finished
    runs = _rows(output / "runs.csv")
    assert sorted(run["kind"] for run in runs) == ["arm", "arm", "pretraining"]
    circumstances = {(run["processor"], run["threads"], run["commit"]) for run in runs}
    assert circumstances == {
        (processor_name(), str(torch.get_num_threads()), source_commit() or "")
    }
    assert processor_name() in (output / "report.html").read_text("utf-8")


def test_it_goes_on_from_the_table_alone(
    finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    plan, output, _ = finished
    copy = tmp_path / "out"
    copy.mkdir()
    shutil.copy(output / "results.csv", copy / "results.csv")
    again = backend_here(*_words(plan, copy, material))
    assert again.code == 0, again.err
    # There is no run folder, and none was needed.
    assert not (copy / "runs").exists()
    assert not (copy / "pretrain").exists()
    for table in ("results.csv", "summary.csv"):
        assert (copy / table).read_bytes() == (output / table).read_bytes()


@pytest.mark.parametrize("what", ["image", "labels"])
def test_scans_that_changed_under_their_names_are_refused_by_case(
    what: str, finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    plan, output, _ = finished
    copy = _copied(output, tmp_path / "out")
    labelled = tmp_path / "labelled"
    shutil.copytree(material.labelled, labelled)
    moved = ("--set", f"data.labelled={labelled}")
    assert backend_here(*_words(plan, copy, material), *moved).code == 0
    pattern = "ct*" if what == "image" else "label.*"
    first, second, *_ = sorted(labelled.glob(f"case_*/{pattern}"))
    swapped = first.read_bytes()
    shutil.copy(second, first)
    second.write_bytes(swapped)
    before = (copy / "results.csv").read_bytes()
    refused = backend_here(*_words(plan, copy, material), *moved)
    assert refused.code == 2, refused.err
    assert re.search(rf"Case case_\d: its {what} changed since .* was begun\.", refused.told)
    assert (copy / "results.csv").read_bytes() == before


@pytest.mark.parametrize("case", ["case_1", "case_2", "case_3"])
def test_labels_on_another_grid_are_refused_before_the_hours_whatever_the_case_is_for(
    case: str, material: Material, tmp_path: Path
) -> None:
    labelled = shutil.copytree(material.labelled, tmp_path / "labelled")
    (file,) = labelled.glob(f"{case}/label.*")
    label = SimpleITK.ReadImage(file)
    SimpleITK.WriteImage(label[:, :, 1:], file)
    plan = _plan(tmp_path / "plan", material, data={"labelled": str(labelled)})
    output = tmp_path / "out"
    refused = backend_here(*_words(plan, output, material))
    assert refused.code == 2, refused.err
    assert f"Case {case}: " in refused.told
    assert not [path.name for path in output.iterdir() if path.is_dir()]


def test_other_scans_to_pretrain_on_are_no_reason_to_take_what_was_pretrained(
    finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    plan, output, _ = finished
    copy = _copied(output, tmp_path / "out")
    # The same name of a folder, and of all that lies in it.
    other = tmp_path / material.unlabelled.name
    shutil.copytree(material.unlabelled, other)
    paths = json.dumps([str(other), str(material.labelled)])
    words = (*_words(plan, copy, material), "--set", f"pretrain.data={paths}")
    moved = backend_here(*words)
    assert moved.code == 0, moved.err
    shutil.rmtree(next(path for path in sorted(other.iterdir()) if path.is_dir()))
    for index in copy.glob("index_*"):
        shutil.rmtree(index)
    # Asking again does not wear it down.
    for _ in range(2):
        refused = backend_here(*words)
        assert refused.code == 2, refused.err
        assert "has pretrained on other scans than pretrain.data names now" in refused.told


def _published(
    finished: tuple[Path, Path, Ended], material: Material, folder: Path, *more: str
) -> Ended:
    """What publishing to `folder` / "published" says; goes on from the finished table."""
    plan, output, _ = finished
    copy = folder / "out"
    copy.mkdir()
    for table in ("results.csv", "curves.csv", "runs.csv"):
        shutil.copy(output / table, copy / table)
    words = _words(plan, copy, material)
    return backend_here(*words, "--publish", folder / "published", *more)


def test_what_is_published_is_whole_tells_no_path_and_can_be_run_again(
    finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    done = _published(finished, material, tmp_path)
    assert done.code == 0, done.err
    plan, output, _ = finished
    files = {path.name: path.read_text("utf-8") for path in (tmp_path / "published").iterdir()}
    pictures = {"efficiency_end-to-end.svg", "convergence_end-to-end.svg"}
    tables = {"results.csv", "summary.csv", "curves.csv", "runs.csv"}
    assert files.keys() == {"plan.yaml", *tables, *pictures}
    assert all(files[table] == (output / table).read_text("utf-8") for table in tables)
    for place in (str(material.labelled.parent), str(plan.parent), str(Path.home())):
        assert not [name for name, text in files.items() if place in text]
    # Programs that know nothing of a page's colours draw it all the same.
    assert all("var(" not in files[name] for name in pictures)
    assert all(ElementTree.fromstring(files[name]).tag.endswith("svg") for name in pictures)
    where = (
        "--set",
        f"data.labelled={material.labelled}",
        "--set",
        f"pretrain.data={_scans(material)}",
    )
    checked = [
        backend_here("benchmark", path, "--check", *where)
        for path in (plan, tmp_path / "published" / "plan.yaml")
    ]
    assert [check.code for check in checked] == [0, 0], checked[1].err
    assert checked[0].out.splitlines()[-1] == checked[1].out.splitlines()[-1]


def test_a_plan_that_tells_of_a_folder_here_is_not_published(
    finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    done = _published(finished, material, tmp_path, "--set", "text=Scans of /ward/7.")
    assert done.code == 2
    assert "'text: Scans of /ward/7.' tells of a folder of this machine" in done.told
    # Told before the work: not one table was written for it.
    assert not (tmp_path / "out" / "summary.csv").exists()
    assert done.told.startswith("plan.yaml, line ")
    assert not (tmp_path / "published").exists()


def test_a_section_of_the_readme_holds_the_numbers_of_the_published_tables(
    finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    assert published_results.readme_rows(tmp_path) == [published_results.NONE]
    assert _published(finished, material, tmp_path).code == 0
    told = "\n".join(published_results.readme_rows(tmp_path))
    control, smit = _rows(tmp_path / "published" / "summary.csv")
    means = " | ".join(f"{float(row['mean']):.3f}" for row in (control, smit))
    assert f"| swin | 1 | SMIT | {means} | " in told
    assert f"{float(smit['difference']):+.3f}".replace("-", "\N{MINUS SIGN}") in told
    assert "| no | 1, 1 |" in told
    assert "(Testing/benchmarks/results/published/summary.csv)" in told
    assert processor_name() in told


def test_a_table_of_something_else_is_refused(material: Material, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "results.csv").write_text("case,dice\na,0.5\n")
    done = backend_here(*_words(_plan(tmp_path, material), output, material))
    assert done.code == 2
    assert "results.csv, line 1: column 'start' is missing" in done.told


def _changed(
    finished: tuple[Path, Path, Ended], folder: Path, change: Callable[[list[str]], list[str]]
) -> tuple[Path, Path]:
    """The plan, and an output that holds the finished tables with other lines of results."""
    plan, output, _ = finished
    folder.mkdir(exist_ok=True)
    for table in ("results.csv", "curves.csv", "runs.csv"):
        shutil.copy(output / table, folder / table)
    lines = (folder / "results.csv").read_text("utf-8").splitlines(keepends=True)
    (folder / "results.csv").write_text("".join(change(lines)), encoding="utf-8")
    return plan, folder


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (",end to end,1,0,", ",end to end,2,0,", "labels = '2' does not belong to the key"),
        (",end to end,1,0,", ",frozen,1,0,", "mode = 'frozen' does not belong to the key"),
        (",case_3,", ",case_9,", "case = 'case_9' does not belong to the key"),
    ],
)
def test_a_row_that_its_key_contradicts_is_refused_with_its_line(
    old: str,
    new: str,
    told: str,
    finished: tuple[Path, Path, Ended],
    material: Material,
    tmp_path: Path,
) -> None:
    plan, output = _changed(
        finished, tmp_path, lambda lines: [*lines[:-1], lines[-1].replace(old, new)]
    )
    done = backend_here(*_words(plan, output, material))
    assert done.code == 2
    assert re.search(rf"results\.csv, line \d+: {told}", done.told)


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ({"value": "77"}, "value = '77' does not belong"),
        ({"organ": "liver"}, r"value = '\d+' does not belong"),
        ({"status": "absent", "volume_ref_ml": "9"}, "status = 'absent' does not belong"),
    ],
)
def test_a_row_that_cannot_be_is_refused_with_its_line(
    cells: dict[str, str],
    told: str,
    finished: tuple[Path, Path, Ended],
    material: Material,
    tmp_path: Path,
) -> None:
    def changed(lines: list[str]) -> list[str]:
        names = lines[0].strip().split(",")
        row = dict(zip(names, lines[-1].strip().split(","), strict=True)) | cells
        return [*lines[:-1], ",".join(row.values()) + "\n"]

    plan, output = _changed(finished, tmp_path, changed)
    done = backend_here(*_words(plan, output, material))
    assert done.code == 2
    assert re.search(rf"results\.csv, line \d+: {told}", done.told)


def test_an_arm_that_lacks_a_row_is_judged_again(
    finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    plan, output = _changed(finished, tmp_path / "out", lambda lines: lines[:-1])
    _, whole, _ = finished
    shutil.copytree(whole / "runs", output / "runs")
    done = backend_here(*_words(plan, output, material))
    assert done.code == 0, done.err
    assert (output / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_an_entry_goes_on_under_another_name(
    finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    plan, output = _changed(finished, tmp_path / "out", lambda lines: lines)
    values = json.loads(plan.read_text())
    values["entries"][0]["name"] = "Renamed"
    renamed = tmp_path / "plan.yaml"
    renamed.write_text(json.dumps(values))
    words = (*_words(renamed, output, material), "--publish", tmp_path / "shown")
    done = backend_here(*words)
    assert done.code == 0, done.err
    assert not (output / "runs").exists()
    for table in (output / "summary.csv", tmp_path / "shown" / "curves.csv"):
        assert {row["start"] for row in _rows(table)} == {"random swin", "Renamed"}


@pytest.mark.parametrize(
    "damaged",
    [
        "pretrain/*/status.json",
        pytest.param("index_*/left_out.json", marks=pytest.mark.slow),
        pytest.param("runs/*/status.json", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_file_of_a_benchmark_is_told_with_a_cure_that_works(
    damaged: str, finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    plan, whole, _ = finished
    output = _copied(whole, tmp_path / "out")
    if damaged.startswith("runs"):
        # Else nobody looks at a run any more.
        (output / "results.csv").unlink()
    path = sorted(output.glob(damaged))[0]
    path.write_bytes(b"")
    words = _words(plan, output, material)
    refused = backend_here(*words)
    assert refused.code == 2, refused.err
    assert f"{path}: is damaged. Delete {path.parent} and start the same" in refused.told
    shutil.rmtree(path.parent)
    done = backend_here(*words)
    assert done.code == 0, done.err
    for table in ("results.csv", "summary.csv"):
        assert (output / table).read_bytes() == (whole / table).read_bytes()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--processes", 0), "--processes 0: at least one is needed"),
        (("--processes", -1, "--check"), "--processes -1: at least one is needed"),
        (("--processes", 10**9), "--processes 1000000000: at most"),
        (("--publish", "out"), "is in the folder of --output"),
        (("--publish", "."), "its plan.yaml is the plan"),
        (("--publish", "out/runs"), "is in the folder of --output"),
        (("--publish", "file"), "file is no folder"),
        (("--cache", "file/below"), "file is no folder"),
        (("--output", "file"), "file is no folder"),
        (("--set", f"data.labelled={'x' * 5000}"), "...xxx"),
    ],
)
def test_what_could_not_end_well_is_refused_before_anything_is_written(
    options: tuple[object, ...],
    told: str,
    material: Material,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    plan = _plan(tmp_path, material)
    refused = backend_here("benchmark", plan, "--output", "out", *options)
    assert refused.code == 2, refused.err
    assert told in refused.told
    assert len(refused.told) < 1000
    assert {path.name for path in tmp_path.iterdir()} == {"plan.yaml", "file"}


@pytest.mark.parametrize("what", ["", "checkpoints", "checkpoints/encoder.safetensors"])
def test_weights_that_have_seen_a_test_case_are_refused_by_its_name(
    what: str, finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    _, output, _ = finished
    (run,) = (output / "pretrain").iterdir()
    plan = _plan(tmp_path, material, entries=[_start(run / what)], data={"test": ["case_1"]})
    done = backend_here("benchmark", plan, "--check")
    assert done.code == 2
    assert "Entry 'run'" in done.told
    assert "has pretrained on test case case_1" in done.told
    unseen = _plan(tmp_path, material, entries=[_start(run / what)])
    assert backend_here("benchmark", unseen, "--check").code == 0


def _start(weights: Path) -> dict[str, object]:
    return {
        **{"name": "run", "method": "smit", "preset": "tiny", "start": str(weights)},
        "network": {"method": {"encoder": {"embed_dim": 4, "heads": [1, 1, 2]}}},
    }


@pytest.mark.parametrize("images_allowed", [False, True])
@pytest.mark.parametrize("what", ["", "checkpoints/model.safetensors"])
def test_weights_that_know_the_labels_of_a_test_case_are_refused_whatever_is_allowed(
    what: str,
    images_allowed: bool,
    finished: tuple[Path, Path, Ended],
    material: Material,
    tmp_path: Path,
) -> None:
    _, output, _ = finished
    run = next((output / "runs").glob("random*"))
    learnt = json.loads((run / "split.json").read_text("utf-8"))["training"][0]
    plan = _plan(
        tmp_path,
        material,
        entries=[_start(run / what)],
        data={"test": [learnt]},
        pretrain_on_test=images_allowed,
    )
    done = backend_here("benchmark", plan, "--check")
    assert done.code == 2
    assert f"has learnt from the labels of test case {learnt}" in done.told


def test_weights_that_were_probed_by_a_test_case_are_refused(
    finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    _, output, _ = finished
    run = tmp_path / "probed"
    shutil.copytree(next((output / "pretrain").iterdir()), run)
    (run / "probe.json").write_text(json.dumps({"learn": ["other"], "judge": ["case_3"]}))
    plan = _plan(tmp_path, material, entries=[_start(run)])
    done = backend_here("benchmark", plan, "--check")
    assert done.code == 2
    assert "has learnt from the labels of test case case_3, or was chosen by them" in done.told


def test_a_check_tells_the_grid_and_what_is_missing_and_writes_nothing(
    material: Material, tmp_path: Path
) -> None:
    plan = _plan(tmp_path, material)
    checked = backend("benchmark", plan, "--check", cwd=tmp_path)
    assert checked.code == 0, checked.err
    weak = ("1 test case. With fewer than 6", "one seed tells nothing of others")
    grid = ("random swin", "from pretrain", "test case_3", "1 pretraining, 2 arms")
    for told in (*grid, "without 1 image of test cases (case_3)", *weak):
        assert told in checked.out
    assert re.search(r"Of \d series \d can be used\. Refused: \d label map\.", checked.out)
    where = ("--set", "data.labelled=nowhere", "--set", "data.get=Ask the ward.")
    absent = backend_here("benchmark", plan, "--check", *where)
    assert absent.code == 2
    assert "nowhere does not exist. Ask the ward." in absent.told
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


@pytest.mark.parametrize(
    ("seeds", "told"), [([0, 1, 2, 3, 4], ""), ([0, 1], "Note: "), ([3], "Warning: one seed")]
)
def test_a_check_counts_the_arms_that_phantoms_will_have_and_tells_of_few_seeds(
    seeds: list[int], told: str, material: Material, tmp_path: Path
) -> None:
    data = {"labelled": None, "test": [], "validation": []}
    data["phantoms"] = {"seed": 0, "unlabelled": 2, "train": 2, "test": 6}
    more = {"labels": [1, 2], "frozen_labels": [1], "seeds": seeds}
    checked = backend_here("benchmark", _plan(tmp_path, material, data=data, **more), "--check")
    assert checked.code == 0, checked.told
    assert f"1 pretraining, {2 * 3 * len(seeds)} arms" in checked.out
    assert told in checked.out
    assert ("Warning: " in checked.out, "Note: " in checked.out) == (
        told.startswith("Warning"),
        told.startswith("Note"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("at", ["pretrain", "runs"])
def test_whenever_it_is_ended_and_started_again_the_table_is_the_same(
    number: signal.Signals,
    at: str,
    finished: tuple[Path, Path, Ended],
    material: Material,
    tmp_path: Path,
) -> None:
    _, whole, _ = finished
    output = tmp_path / "out"
    words = _words(_plan(tmp_path, material), output, material)
    with started(*words) as process:
        wait_until(lambda: list(output.glob(f"{at}/*/metrics.jsonl")), process=process)
        process.send_signal(number)
        stopped = ended(process)
    assert stopped.code == (5 if number == signal.SIGTERM else -number)
    if number == signal.SIGTERM:
        assert "start the same command again to go on" in stopped.told
    assert backend_here(*words).code == 0
    _require_same_tables(output, whole)


@pytest.mark.slow
@pytest.mark.parametrize("learnt", [False, True], ids=["before a checkpoint", "with one"])
def test_a_fine_tuning_goes_on_when_its_folder_was_moved_meanwhile(
    learnt: bool, finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    plan, whole, _ = finished
    output = _copied(whole, tmp_path / "moved")
    (output / "results.csv").unlink()
    for run in (output / "runs").iterdir():
        status = json.loads((run / "status.json").read_text())
        (run / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
        if not learnt:
            shutil.rmtree(run / "checkpoints")
    done = backend_here(*_words(plan, output, material))
    assert done.code == 0, done.err
    _require_same_tables(output, whole)


@pytest.mark.slow
def test_two_processes_share_the_arms_and_fill_one_table(
    finished: tuple[Path, Path, Ended], material: Material, tmp_path: Path
) -> None:
    _, whole, _ = finished
    output = tmp_path / "out"
    words = _words(_plan(tmp_path, material), output, material)
    with started(*words) as first, started(*words) as second:
        results = [ended(first), ended(second)]
    assert [done.code for done in results] == [0, 0], [done.err for done in results]
    assert (output / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    # Each run was done by one of them.
    assert len(_rows(output / "runs.csv")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_processes_that_it_has_started_end_with_it_and_the_table_is_the_same(
    number: signal.Signals,
    finished: tuple[Path, Path, Ended],
    material: Material,
    tmp_path: Path,
) -> None:
    _, whole, _ = finished
    output = tmp_path / "out"
    words = (*_words(_plan(tmp_path, material), output, material), "--processes", 2)
    with started(*words) as process:
        wait_until(lambda: list(output.glob("*/*/metrics.jsonl")), process=process)
        members = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        stopped = ended(process)
        _, alive = psutil.wait_procs(members, timeout=LIMIT_S)
    assert not alive
    assert stopped.code == {"SIGINT": 3, "SIGTERM": 5, "SIGKILL": -9}[number.name], stopped.err
    done = backend(*words)
    assert done.code == 0, done.err
    assert "2 processes" in done.err
    _require_same_tables(output, whole)


@pytest.mark.slow
def test_a_frozen_encoder_is_compared_with_a_random_frozen_one(
    material: Material, tmp_path: Path
) -> None:
    plan = _plan(tmp_path, material, labels=[], frozen_labels=[1])
    done = backend_here(*_words(plan, tmp_path / "out", material))
    assert done.code == 0, done.err
    rows = _rows(tmp_path / "out" / "results.csv")
    assert {(row["start"], row["mode"]) for row in rows} == {
        ("random swin", "frozen"),
        ("SMIT", "frozen"),
    }
    configs = [run / "config.json" for run in (tmp_path / "out" / "runs").iterdir()]
    assert all('"freeze_encoder": true' in config.read_text() for config in configs)
