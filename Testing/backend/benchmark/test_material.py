"""What judges is what the labelled scans hold now, whatever became of an earlier start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from benchmark_plans import write_plan
from filelock import FileLock
from numpy.typing import NDArray

from backend.benchmark import runner
from backend.benchmark.cases import Cases
from backend.benchmark.grid import arms
from backend.benchmark.material import prepared_cases, reference_file, require_same_cases
from backend.benchmark.plan import Plan, read_plan
from backend.benchmark.runner import Request, at_work
from backend.data.readers import read_label
from backend.errors import Cancelled, UserError

SIZE = (6, 8, 10)


def _labels(rows: int) -> NDArray[np.uint8]:
    voxels = np.zeros(SIZE, np.uint8)
    voxels[2, :rows, 1:9] = 1
    voxels[4, :rows, 1:9] = 2
    return voxels


def _write(path: Path, voxels: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing((0.1 + 0.2, 1.0 / 3.0, 2.5))
    SimpleITK.WriteImage(image, str(path))


def _plan(
    folder: Path, *, ending: str = ".nii.gz", names: tuple[str, ...] = ("a", "b", "c")
) -> Plan:
    """One case to learn from, one for the curves, one that judges."""
    for number, name in enumerate(names):
        scan = np.random.default_rng(number).normal(0, 300, SIZE).astype(np.int16)
        _write(folder / "labelled" / name / f"ct{ending}", scan)
        _write(folder / "labelled" / name / f"label{ending}", _labels(4))
    (folder / "labelled" / "labels.json").write_text(
        json.dumps({"labels": {"1": "liver", "2": "spleen"}})
    )
    data = {"test": [names[2]], "validation": [names[1]], "split_source": "ours"}
    return read_plan(write_plan(folder, {"data": data}))


def _nothing() -> None:
    """No request to stop."""


def _prepared(plan: Plan, output: Path) -> tuple[Cases, Path]:
    output.mkdir(exist_ok=True)
    return prepared_cases(plan, output, between=_nothing)


def _judging(plan: Plan, output: Path) -> NDArray[np.generic]:
    """The labels that judge the one test case."""
    cases, references = _prepared(plan, output)
    return read_label(reference_file(references, cases.test[0])).voxels


@pytest.mark.parametrize("ending", [".nii.gz", ".mhd", ".nhdr", ".mha", ".seg.nrrd"])
def test_labels_of_every_format_judge_as_they_are_in_the_set(ending: str, tmp_path: Path) -> None:
    plan = _plan(tmp_path, ending=ending if ending != ".seg.nrrd" else ".nrrd")
    if ending == ".seg.nrrd":
        for label in sorted((tmp_path / "labelled").glob("*/label.nrrd")):
            label.rename(label.with_name("label.seg.nrrd"))
    cases, references = _prepared(plan, tmp_path / "out")
    (case,) = cases.test
    judging, own = read_label(reference_file(references, case)), read_label(case.label)
    assert np.array_equal(judging.voxels, own.voxels)
    assert judging.geometry == own.geometry


@pytest.mark.parametrize("ending", [".nii.gz", ".mhd"])
def test_labels_corrected_after_an_early_end_judge_as_they_are_now(
    ending: str, tmp_path: Path
) -> None:
    plan, output = _plan(tmp_path, ending=ending), tmp_path / "out"
    assert np.array_equal(_judging(plan, output), _labels(4))
    label = tmp_path / "labelled" / "c" / f"label{ending}"

    def correct(rows: int) -> None:
        if ending == ".mhd":
            # The header stays as it was.
            label.with_suffix(".raw").write_bytes(_labels(rows).tobytes())
        else:
            _write(label, _labels(rows))

    correct(3)
    assert np.array_equal(_judging(plan, output), _labels(3))
    correct(4)
    assert np.array_equal(_judging(plan, output), _labels(4))


def test_a_case_that_was_damaged_after_an_early_end_is_refused_by_name(tmp_path: Path) -> None:
    plan, output = _plan(tmp_path), tmp_path / "out"
    _prepared(plan, output)
    _write(tmp_path / "labelled" / "a" / "label.nii.gz", _labels(4)[:, 1:])
    with pytest.raises(UserError, match="Case a: "):
        _prepared(plan, output)


def test_voxels_that_changed_beside_their_header_are_refused_by_case(tmp_path: Path) -> None:
    plan, output = _plan(tmp_path, ending=".mhd"), tmp_path / "out"
    cases, _ = _prepared(plan, output)
    require_same_cases(cases, output, between=_nothing)
    raw = next((tmp_path / "labelled" / "a").glob("ct.*raw"))
    raw.write_bytes(raw.read_bytes()[::-1])
    with pytest.raises(UserError, match="Case a: its image changed since"):
        require_same_cases(cases, output, between=_nothing)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 3}', '{"a": {"image": 3}}'])
def test_a_damaged_note_of_what_the_scans_held_is_told_with_a_cure_that_works(
    text: str, tmp_path: Path
) -> None:
    plan, output = _plan(tmp_path), tmp_path / "out"
    cases, _ = _prepared(plan, output)
    (output / "content.json").write_text(text)
    with pytest.raises(UserError, match=r"content\.json: is damaged.*delete it and start again"):
        require_same_cases(cases, output, between=_nothing)
    (output / "content.json").unlink()
    require_same_cases(cases, output, between=_nothing)


class _Stop:
    """A request to stop that comes after a number of questions."""

    def __init__(self, after: int) -> None:
        self._left = after

    def __call__(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Cancelled("Stopped on request.")


def test_a_request_to_stop_ends_the_check_and_nothing_half_made_is_taken(tmp_path: Path) -> None:
    plan, output = _plan(tmp_path), tmp_path / "out"
    output.mkdir()
    asked = 0
    while not list(output.glob(".part-reference_*")):
        with pytest.raises(Cancelled):
            prepared_cases(plan, output, between=_Stop(after=asked))
        assert not list(output.glob("reference_*"))
        asked += 1
    # Once before the work and once for every case, before the first reference is half there.
    assert asked == 5
    assert np.array_equal(_judging(plan, output), _labels(4))


def test_whoever_waits_for_another_process_can_be_stopped(tmp_path: Path) -> None:
    plan, output = _plan(tmp_path), tmp_path / "out"
    cases, references = _prepared(plan, output)
    shutil.rmtree(references)
    with FileLock(output / f".{references.name}.lock") as lock:
        with pytest.raises(Cancelled):
            prepared_cases(plan, output, between=_Stop(after=2))
        assert lock.is_locked
        assert not references.exists()
    assert _prepared(plan, output) == (cases, references)


def test_labels_may_be_corrected_between_rehearsals_but_not_under_a_benchmark(
    tmp_path: Path,
) -> None:
    _plan(tmp_path)
    (tmp_path / "unlabelled").mkdir()
    request = Request(plan=tmp_path / "plan.yaml", output=tmp_path / "out", device="cpu")
    label = tmp_path / "labelled" / "c" / "label.nii.gz"
    for rows in (3, 2):
        with at_work(request, rehearsal=True) as bench:
            file = reference_file(bench.references, bench.cases.test[0])
            assert not np.array_equal(read_label(file).voxels, _labels(rows))
        _write(label, _labels(rows))
    with at_work(request) as bench:
        file = reference_file(bench.references, bench.cases.test[0])
        assert np.array_equal(read_label(file).voxels, _labels(2))
    _write(label, _labels(4))
    with pytest.raises(UserError, match="Case c: its labels changed since"), at_work(request):
        pass


def test_a_label_that_is_written_while_all_are_read_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plan(tmp_path)
    (tmp_path / "unlabelled").mkdir()
    request = Request(plan=tmp_path / "plan.yaml", output=tmp_path / "out", device="cpu")

    def meanwhile(*args: Any) -> Any:
        _write(tmp_path / "labelled" / "c" / "label.nii.gz", _labels(2))
        return arms(*args)

    monkeypatch.setattr(runner, "arms", meanwhile)
    told = "a labelled scan was written anew while all were read"
    with pytest.raises(UserError, match=told), at_work(request):
        pass


def test_results_without_a_note_of_their_scans_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan, output = _plan(tmp_path), tmp_path / "out"
    cases, _ = _prepared(plan, output)
    (output / "results.csv").touch()
    for times in (1, 1):
        require_same_cases(cases, output, between=_nothing)
        assert caplog.text.count("has results and no content.json") == times
