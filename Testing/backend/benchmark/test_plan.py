"""What a plan may say, and what is refused before any time is spent."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from benchmark_plans import write_plan

from backend.benchmark.cases import Cases, copies_of, divided, label_set, scan_count
from backend.benchmark.grid import Arm, arms, starts
from backend.benchmark.material import divided_cases
from backend.benchmark.plan import Plan, read_plan
from backend.data.labelled import LabelledCase, load_labelled_set
from backend.errors import UserError

BYOL = {"name": "BYOL", "method": "byol", "preset": "tiny"}
PGL = {"name": "PGL", "method": "pgl", "preset": "tiny"}
CHANGES = ("rotate90", "scale", "shift", "flip", "noise", "blur", "brightness", "gamma")
ALIKE = {
    "augment": dict.fromkeys((f"{change}_probability" for change in CHANGES), 0.0),
    "foreground": 0.5,
}


def _plan(folder: Path, **changes: Any) -> Plan:
    return read_plan(write_plan(folder, changes))


def _cases(plan: Plan, labelled: Path) -> Cases:
    return divided(plan.data, load_labelled_set(labelled))


def _set(folder: Path, names: list[str], *, splits: dict[str, str] | None = None) -> Path:
    """A labelled set of which only the names matter; every image holds other bytes."""
    folder.mkdir()
    for name in names:
        (folder / f"{name}.nii").write_bytes(name.encode())
        (folder / f"{name}_label.nii").touch()
    lines = [f"{n},{n}.nii,{n}_label.nii,{(splits or {}).get(n, '')}" for n in names]
    (folder / "set.csv").write_text("\n".join(["case,image,label,split", *lines]))
    (folder / "labels.json").write_text(json.dumps({"labels": {"1": "liver"}}))
    return folder / "set.csv"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"finetune": {"stepz": 3}}, "'finetune.steps'"),
    "unknown key of an entry": ({"entries": [{**BYOL, "stat": "random"}]}, "'entries.0.start'"),
    "missing steps": ({"finetune": {"steps": None}}, "finetune.steps"),
    "no number of scans": ({"labels": ["a tenth"]}, "'a tenth'"),
    "share above all": ({"labels": ["120%"]}, "120%"),
    "seed twice": ({"seeds": [1, 1]}, "1 stands there twice"),
    "name twice": ({"entries": [BYOL, BYOL]}, "'BYOL'"),
    "name of a control": ({"entries": [{**BYOL, "name": "random swin"}]}, "random swin"),
    "both data and phantoms": (
        {"data": {"phantoms": {"seed": 0, "unlabelled": 1, "train": 1, "test": 1}}},
        "labelled or phantoms",
    ),
    "no test cases": ({"data": {"test": []}}, "data.test"),
    "no labels": ({"labels": []}, "frozen_labels"),
    "a pretraining without scans": ({"pretrain": {"data": []}}, "SMIT"),
    "a base that is no text": ({"base": 3}, "base = 3 names no file"),
    "a base that has a base": ({"base": "plan.yaml"}, "names a base itself"),
    "a split that is no text": ({"data": {"split": ""}}, "data.split = '' names no file"),
    "an empty path": ({"data": {"labelled": ""}}, "data.labelled = ''"),
    "an empty path to pretrain on": ({"pretrain": {"data": [""]}}, "pretrain.data.0 = ''"),
    "a share above all cases": (
        {"data": {"test": {"share": 1.5, "seed": 0}}},
        "data.test.share = 1.5: Input should be less than 1. Change it in the file",
    ),
    "a share without a seed": ({"data": {"test": {"share": 0.5}}}, "'data.test.seed' is missing"),
    "no share": ({"labels": ["0%"]}, "labels.0 = '0%': Input should be a number of scans"),
    "labels that are no number": ({"labels": [float("nan")]}, "labels.0 = 'NaN': Input should be"),
    "a case twice in a set": (
        {"data": {"label_sets": {"0": [["case_1", "case_1"]]}}},
        "'case_1' stands there twice",
    ),
    "a name that a spreadsheet would compute": ({"entries": [{**BYOL, "name": "-1+1"}]}, "'-1+1'"),
    "a name of blanks": ({"entries": [{**BYOL, "name": "  "}]}, "entries.0.name = '  '"),
    "a title over lines": ({"name": "one\ntwo"}, "name = 'one\\ntwo'"),
    "more threads than machines have": ({"threads": 10**6}, "threads = 1000000"),
    "a seed without its sets": ({"data": {"label_sets": {"5": [["case_1"]]}}}, "seed 0"),
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"pretrain": {"settings": {"probe": {"scans": 4}}}},
            "probe.scans: a benchmark asks no probes",
        ),
        ({"finetune": {"settings": {"train={max_steps: 9} #": 1}}}, "is no name of a setting"),
        ({"finetune": {"settings": {"crop": date(2020, 1, 1)}}}, "is neither number nor text"),
    ],
)
def test_settings_that_a_benchmark_cannot_take_are_refused_by_name(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    plan = _plan(tmp_path)
    for part, values in changes.items():
        plan = replace(plan, **{part: replace(getattr(plan, part), **values)})
    with pytest.raises(UserError, match=told):
        starts(plan)


@pytest.mark.parametrize("kind", WRONG)
def test_a_plan_that_contradicts_itself_is_refused_with_the_thing_named(
    kind: str, tmp_path: Path
) -> None:
    changes, told = WRONG[kind]
    with pytest.raises(UserError) as caught:
        read_plan(write_plan(tmp_path, changes))
    assert told in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(("key", "near"), [("trian", "train"), ("label_set", "label_sets")])
def test_a_key_of_a_split_file_that_is_nearly_one_we_know_is_refused(
    key: str, near: str, tmp_path: Path
) -> None:
    (tmp_path / "split.json").write_text(json.dumps({"seed": 0, key: []}))
    with pytest.raises(UserError, match=rf"split\.json: unknown key '{key}'\. .*'{near}'"):
        read_plan(write_plan(tmp_path, {"data": {"split": "split.json"}}))


def test_a_base_is_named_by_the_file_alone_and_a_home_that_is_not_there_is_a_folder(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match="a plan file alone names its base"):
        read_plan(write_plan(tmp_path), ("base=other.yaml",))
    plan = read_plan(write_plan(tmp_path), ("data.labelled=~nobody-here/x",))
    assert plan.data.labelled == str(tmp_path / "~nobody-here" / "x")


def test_paths_of_a_plan_begin_at_its_folder_and_overrides_lie_over_it(tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path), ("finetune.steps=7", "data.labelled=/scans"))
    assert plan.data.labelled == "/scans"
    assert plan.finetune.steps == 7
    assert plan.pretrain is not None
    assert plan.pretrain.data == (str(tmp_path / "unlabelled"),)


def test_a_split_file_divides_the_cases_that_take_part(tmp_path: Path) -> None:
    labelled = _set(tmp_path / "set", ["a_1", "a_2", "a_3", "b_1"])
    split = {"about": "ours", "split_source": "a paper", "test": ["a_3"], "train": ["a_1", "a_2"]}
    sets = {"label_sets": {"0": [["a_2"], ["a_1", "a_2"]]}}
    (tmp_path / "split.json").write_text(json.dumps({**split, **sets}))
    data = {"labelled": str(labelled), "cases": ["a_*"], "split": "split.json"}
    path = write_plan(tmp_path)
    values = {**json.loads(path.read_text()), "data": data}
    path.write_text(json.dumps(values))
    plan = read_plan(path)
    assert plan.data.split_source == "a paper"
    cases = divided_cases(plan.data)
    assert [[case.id for case in found] for found in cases.parts.values()] == [
        ["a_1", "a_2"],
        [],
        ["a_3"],
    ]
    assert label_set(plan, cases, seed=0, count=1) == ("a_2",)
    with pytest.raises(UserError, match=r"data\.test: stands in the plan and in .*split\.json"):
        read_plan(path, ('data.test=["a_1"]',))


def test_a_case_in_two_parts_is_refused_by_name(tmp_path: Path) -> None:
    labelled = _set(tmp_path / "set", ["a_1", "a_2", "b_1"])
    plan = _plan(tmp_path, data={"test": ["a_*"], "validation": [], "train": ["*_2", "b_1"]})
    with pytest.raises(UserError, match=r"Case a_2 is both in data\.train and data\.test"):
        _cases(plan, labelled)


def test_a_test_case_of_the_set_itself_is_never_learnt_from(tmp_path: Path) -> None:
    labelled = _set(tmp_path / "set", ["a", "b", "c"], splits={"c": "test"})
    plan = _plan(tmp_path, data={"test": ["a"], "validation": [], "train": ["b", "c"]})
    with pytest.raises(UserError, match="Case c is a test case of the set itself"):
        _cases(plan, labelled)
    assert [case.id for case in _cases(_plan(tmp_path, data={"test": ["a"], "validation": []}),
                                       labelled).train] == ["b"]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "/abs", ".hidden", "a.nii", "x" * 201, "a\u2028b"]
)
def test_a_case_that_no_file_can_be_named_after_is_refused(name: str, tmp_path: Path) -> None:
    _set(tmp_path / "set", ["a", "b"])
    table = tmp_path / "set" / "cases.csv"
    table.write_text(f'case,image,label\n"{name}",a.nii,a_label.nii\n', "utf-8")
    with pytest.raises(UserError, match="its name "):
        load_labelled_set(table)


def test_a_detached_image_is_known_by_its_voxels_and_not_by_its_header(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        image = SimpleITK.GetImageFromArray(np.full((4, 4, 4), number, np.int16))
        SimpleITK.WriteImage(image, tmp_path / f"{name}.mhd")
    header = (tmp_path / "a.mhd").read_text("utf-8").replace("a.raw", "c.raw")
    (tmp_path / "c.mhd").write_text(header, "utf-8")
    shutil.copy(tmp_path / "a.raw", tmp_path / "c.raw")
    case = LabelledCase(id="a", image=(tmp_path / "a.mhd",), label=tmp_path / "a.mhd")
    others = {
        "b": (tmp_path / "b.mhd",),
        "c": (tmp_path / "c.mhd",),
        "series": (tmp_path / "c.mhd", tmp_path / "c.raw"),
    }
    assert copies_of([case], others) == {"c": "a", "series": "a"}


def test_a_test_image_under_another_name_is_refused_with_both_names(tmp_path: Path) -> None:
    labelled = _set(tmp_path / "set", ["a", "b", "c"])
    shutil.copy(labelled.with_name("a.nii"), labelled.with_name("b.nii"))
    with pytest.raises(UserError, match="Case b has the same image as test case a"):
        _cases(_plan(tmp_path, data={"test": ["a"], "validation": []}), labelled)


def test_copies_are_found_by_content_whatever_their_file_names(tmp_path: Path) -> None:
    labelled = load_labelled_set(_set(tmp_path / "set", ["a", "b"]))
    shutil.copy(tmp_path / "set" / "b.nii", tmp_path / "scan.nii")
    (tmp_path / "same_size.nii").write_bytes(b"x")
    others = {"x": (tmp_path / "scan.nii",), "y": (tmp_path / "same_size.nii",)}
    assert copies_of(labelled.cases, others) == {"x": "b"}


def test_a_share_of_the_cases_is_drawn_by_its_seed_and_leaves_the_others(tmp_path: Path) -> None:
    labelled = _set(tmp_path / "set", [f"c{n:02}" for n in range(10)])
    drawn = []
    for seed in (0, 1):
        part = {"share": 0.3, "seed": seed}
        plan = _plan(tmp_path, data={"test": part, "validation": {"share": 0.5, "seed": 9}})
        cases = _cases(plan, labelled)
        assert [len(found) for found in cases.parts.values()] == [3, 4, 3]
        assert len({case.id for found in cases.parts.values() for case in found}) == 10
        drawn.append(cases.test)
    assert drawn[0] != drawn[1]


def test_drawn_label_sets_hold_the_smaller_ones_and_differ_between_seeds(tmp_path: Path) -> None:
    labelled = _set(tmp_path / "set", [f"c{n:02}" for n in range(12)])
    plan = _plan(tmp_path, data={"test": ["c00"], "validation": ["c01"]})
    cases = _cases(plan, labelled)
    by_seed = {
        seed: [set(label_set(plan, cases, seed=seed, count=n)) for n in (1, 4, 10)]
        for seed in (0, 1)
    }
    for one, four, ten in by_seed.values():
        assert one < four < ten
        assert not {"c00", "c01"} & ten
    assert by_seed[0][1] != by_seed[1][1]


SETS: dict[str, tuple[list[list[str]], str]] = {
    "test case": ([["c3"], ["c3", "c4"]], "c3 is a test case"),
    "validation case": ([["c2"]], "c2 is a validation case"),
    "stranger": ([["c9"]], "c9 is no case"),
    "not nested": ([["c4", "c5"], ["c0"]], "c0 is in the set of 1, but not in that of 2"),
    "missing size": ([["c4", "c5"]], "has no set of 1"),
}


@pytest.mark.parametrize("kind", SETS)
def test_label_sets_of_the_plan_are_refused_with_the_case_they_go_wrong_by(
    kind: str, tmp_path: Path
) -> None:
    sets, told = SETS[kind]
    labelled = _set(tmp_path / "set", [f"c{n}" for n in range(6)])
    plan = _plan(tmp_path, data={"test": ["c3"], "validation": ["c2"], "label_sets": {"0": sets}})
    with pytest.raises(UserError, match=told):
        label_set(plan, _cases(plan, labelled), seed=0, count=1)


def test_shares_count_scans_and_never_none() -> None:
    assert [scan_count(n, available=15) for n in (3, "10%", "1%", "100 %")] == [3, 2, 1, 15]
    with pytest.raises(UserError, match="16 scans are asked for, and there are 15"):
        scan_count(16, available=15)


UNEQUAL: dict[str, tuple[dict[str, Any], str]] = {
    "crops": ({"finetune": {"crops_per_scan": 2}}, "crops_per_scan=2, not 1"),
    "augmentation": ({"finetune": {"augment": {"flip_probability": 0.5}}}, "augment.flip_prob"),
    "grid": ({"finetune": {"preprocess": {"spacing_mm": [6, 6, 5]}}}, "spacing_mm=[6.0, 6.0, 5.0]"),
    "window": ({"finetune": {"preprocess": {"hu_window": [0, 100]}}}, "preprocess.hu_window"),
    "pretraining batch": ({"pretrain": {"train": {"batch_size": 4}}}, "train.batch_size=4"),
    "learning rate": ({"finetune": {"train": {"learning_rate": 0.5}}}, "learning_rate=0.5"),
}


@pytest.mark.parametrize("kind", UNEQUAL)
def test_an_entry_with_another_budget_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    changes, told = UNEQUAL[kind]
    plan = _plan(
        tmp_path,
        entries=[BYOL, {**PGL, **changes}],
        finetune={"settings": ALIKE},
    )
    with pytest.raises(UserError) as caught:
        starts(plan)
    assert told in caught.value.message
    assert "'PGL'" in caught.value.message
    assert "'BYOL'" in caught.value.message


@pytest.mark.parametrize(
    "common", [{"train.learning_rate": 0.5}, {"train": {"learning_rate": 0.5}}]
)
@pytest.mark.parametrize("own", [{"train.learning_rate": 0.25}, {"train": {"learning_rate": 0.25}}])
def test_what_an_entry_says_holds_over_the_plan_however_both_are_written(
    common: dict[str, Any], own: dict[str, Any], tmp_path: Path
) -> None:
    plan = _plan(tmp_path, entries=[{**BYOL, "finetune": own}], finetune={"settings": common})
    assert {start.finetune.train.learning_rate for start in starts(plan)} == {0.25}


FIXED = {
    "train.max_steps": (5, "Set finetune.steps"),
    "train.seed": (3, "Set seeds"),
    "train.preview_every_steps": (1, "Leave it out"),
    "validation_fraction": (0.5, "data.validation"),
    "validate_every_epochs": (1, "data.validation"),
    "freeze_encoder": (True, "frozen_labels"),
}


@pytest.mark.parametrize("layer", ["finetune.settings", "network", "finetune"])
@pytest.mark.parametrize("setting", FIXED)
def test_what_a_benchmark_fixes_is_no_setting_of_any_layer(
    setting: str, layer: str, tmp_path: Path
) -> None:
    value, cure = FIXED[setting]
    common = {"settings": {setting: value}} if layer == "finetune.settings" else {}
    own = {} if common else {layer: {setting: value}}
    entry = {**BYOL, "start": "random", **own}
    plan = _plan(tmp_path, entries=[entry], pretrain=None, finetune=common)
    told = re.escape(f"Entry 'BYOL': {layer}: {setting} = ")
    with pytest.raises(UserError, match=told) as caught:
        starts(plan)
    assert cure in caught.value.hint


@pytest.mark.parametrize("layer", ["pretrain.settings", "network", "pretrain"])
def test_the_length_of_one_pretraining_is_no_setting_of_any_layer(
    layer: str, tmp_path: Path
) -> None:
    own = {"train": {"max_steps": 9}}
    common = layer == "pretrain.settings"
    plan = _plan(
        tmp_path,
        entries=[{**BYOL, **({} if common else {layer: own})}],
        pretrain={"settings": own} if common else {},
    )
    with pytest.raises(
        UserError, match=rf"Entry 'BYOL': {layer}: train\.max_steps = '9'"
    ) as caught:
        starts(plan)
    assert "Set pretrain.steps" in caught.value.hint


def test_entries_that_differ_in_their_names_alone_are_refused_with_both(tmp_path: Path) -> None:
    plan = _plan(tmp_path, entries=[BYOL, {**BYOL, "name": "twin"}])
    with pytest.raises(UserError, match="Entries 'BYOL' and 'twin' are the same"):
        starts(plan)


def _grid(plan: Plan, labelled: Path) -> tuple[Arm, ...]:
    return arms(plan, starts(plan), _cases(plan, labelled))


def test_every_network_gets_one_control_and_every_start_every_count_and_seed(
    tmp_path: Path,
) -> None:
    labelled = _set(tmp_path / "set", [f"c{n}" for n in range(6)])
    smit = {"name": "SMIT", "method": "smit", "preset": "tiny"}
    plan = _plan(
        tmp_path,
        data={"test": ["c3"], "validation": []},
        entries=[BYOL, smit, PGL],
        finetune={"settings": ALIKE},
        labels=[1, "60%"],
        frozen_labels=[2],
        seeds=[0, 1],
    )
    grid = _grid(plan, labelled)
    names = list(dict.fromkeys(arm.start.entry.name for arm in grid))
    assert names == ["random resnet", "BYOL", "PGL", "random swin", "SMIT"]
    assert {(a.start.entry.name, a.start.network) for a in grid} >= {("PGL", "resnet")}
    assert {(len(a.cases), a.frozen) for a in grid} == {(1, False), (3, False), (2, True)}
    assert len(grid) == len({arm.key for arm in grid}) == len({a.folder for a in grid}) == 5 * 3 * 2
    # One pretraining for all seeds: it is the fine-tuning that is repeated.
    assert len({a.pretraining.key for a in grid if a.pretraining is not None}) == 3


def test_an_entry_at_random_weights_is_the_control_of_its_network_and_stands_once(
    tmp_path: Path,
) -> None:
    plan = _plan(tmp_path, entries=[{**BYOL, "start": "random"}], pretrain=None)
    assert [start.entry.name for start in starts(plan)] == ["random resnet"]
    both = _plan(tmp_path, entries=[{**PGL, "start": "random"}, {**BYOL}])
    assert [start.entry.name for start in starts(both)] == ["random resnet", "BYOL"]


def test_an_arm_keeps_its_key_when_the_grid_grows_and_loses_it_when_its_terms_change(
    tmp_path: Path,
) -> None:
    labelled = _set(tmp_path / "set", [f"c{n}" for n in range(6)])
    parts = {"test": ["c3"], "validation": []}
    small = {arm.key for arm in _grid(_plan(tmp_path, data=parts), labelled)}
    grown = _plan(tmp_path, data=parts, labels=[1, 2], seeds=[0, 1])
    assert small < {arm.key for arm in _grid(grown, labelled)}
    for changes in (
        {"finetune": {"steps": 4}},
        {"pretrain": {"steps": 4}},
        {"data": {**parts, "test": ["c4"]}},
    ):
        other = {arm.key for arm in _grid(_plan(tmp_path, **{"data": parts, **changes}), labelled)}
        # Another pretraining leaves the control what it was.
        assert len(small & other) == ("pretrain" in changes)


def test_a_share_and_a_number_that_mean_the_same_scans_are_refused(tmp_path: Path) -> None:
    labelled = _set(tmp_path / "set", [f"c{n}" for n in range(11)])
    plan = _plan(tmp_path, data={"test": ["c3"], "validation": []}, labels=[1, "10%"])
    with pytest.raises(UserError, match="two of them mean 1 labelled scan"):
        _grid(plan, labelled)
