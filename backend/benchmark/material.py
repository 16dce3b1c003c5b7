"""Where the labelled scans of a plan come from, and what has to be there before its first arm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from backend.benchmark.cases import Cases, changed, content, copies_of, divided
from backend.benchmark.grid import digest, plain_phantoms
from backend.benchmark.plan import DataPlan, PhantomPlan, Plan
from backend.benchmark.seen import present_files
from backend.benchmark.sharing import made_once, waited_for
from backend.data.index import found_series
from backend.data.label_files import write_labels_file
from backend.data.labelled import LabelledCase, LabelledSet, check_set, load_labelled_set
from backend.data.preprocess import label_array
from backend.data.readers import read_label
from backend.data.series import SeriesRow
from backend.data.volume_file import with_detached
from backend.errors import UserError
from backend.files import write_json
from backend.geometry import Volume

_log = logging.getLogger(__name__)

_SAY_WHERE = (
    "Correct the path in the plan, or say --set data.labelled=DIR and --set 'pretrain.data=[DIR]'."
)

_CONTENT = "content.json"
"""Hashes of what each labelled scan held when a folder was begun."""


def scans_to_pretrain(
    plan: Plan, test: Sequence[LabelledCase], *, phantoms: Path | None = None
) -> tuple[list[SeriesRow], dict[str, str]]:
    """What a plan pretrains on, and which images were left out of it.

    Args:
        plan: with a pretraining.
        test: cases that judge; their images are left out unless the plan asks for them.
        phantoms: the folder of the plan's phantoms, if it has some.

    Returns:
        Rows of an index, usable or not, and by the id of what was left out the name of its case.

    Raises:
        UserError: see `found_series`.
    """
    assert plan.pretrain is not None, "the plan is checked"
    paths = [Path(path) for path in plan.pretrain.data]
    if phantoms is not None:
        paths.append(phantoms / "unlabelled")
    rows = found_series(paths)
    seen = {} if plan.pretrain_on_test else copies_of(test, present_files(rows))
    return [row for row in rows if row.id not in seen], seen


def phantom_folder(plan: Plan, output: Path) -> Path:
    """Where the phantoms of a plan lie; of another cohort they lie elsewhere."""
    return output / f"phantoms_{_short({'phantoms': plain_phantoms(plan)})}"


def reference_file(folder: Path, case: LabelledCase) -> Path:
    """Where the labels of a test case lie in a folder of references."""
    return folder / f"{case.id}.nrrd"


def reference_folder(cases: Cases, output: Path) -> Path:
    """Where the references lie: elsewhere for other cases or structures, or files written anew."""
    told = {
        "cases": {
            part: [
                [case.id, *map(changed, with_detached((*case.image, case.label)))] for case in found
            ]
            for part, found in cases.parts.items()
        },
        "labels": [[label.value, label.name] for label in cases.labels],
    }
    return output / f"reference_{_short(told)}"


def _short(value: Mapping[str, Any]) -> str:
    return digest(value)[:6]


def missing(plan: Plan) -> list[str]:
    """What of the data of a plan is not on this disk, one sentence for each."""
    scans = () if plan.pretrain is None else plan.pretrain.data
    named = [
        ("data.labelled", plan.data.labelled),
        *(("pretrain.data", path) for path in scans),
    ]
    return [f"{key}: {path} does not exist." for key, path in named
            if path is not None and not Path(path).exists()]  # fmt: skip


def require_present(plan: Plan) -> None:
    """Refuse a plan whose data is not there.

    Raises:
        UserError: naming every path, and how to get the data.
    """
    if absent := missing(plan):
        raise UserError(" ".join(absent), plan.data.get or _SAY_WHERE)


def prepared_cases(plan: Plan, output: Path, *, between: Callable[[], None]) -> tuple[Cases, Path]:
    """The labelled scans, each fit for its purpose, and the folder of what judges the test cases.

    Args:
        plan: what is asked.
        output: where phantoms and references are written to, if they are not there.
        between: called between cases and while another process is waited for; may raise to end.

    Raises:
        UserError: naming the case, if one cannot be read or its labels lie on another grid than
            its image; see `divided`.
    """
    if plan.data.phantoms is None:
        cases = divided_cases(plan.data)
    else:
        folder = phantom_folder(plan, output)
        made_once(folder, partial(_make_phantoms, plan.data.phantoms), between=between)
        cases = _phantom_cases(plan.data.phantoms, folder)
    references = reference_folder(cases, output)
    made_once(references, partial(_write_references, cases, between=between), between=between)
    return cases, references


def require_same_cases(cases: Cases, output: Path, *, between: Callable[[], None]) -> None:
    """Note what the labelled scans hold, or refuse others than those that a folder was begun with.

    Args:
        cases: the labelled scans.
        output: the folder.
        between: called while another process is waited for; may raise to end.

    Raises:
        UserError: naming the case.
    """
    found = {
        case.id: {
            "image": content(with_detached(case.image)),
            "labels": content(with_detached((case.label,))),
        }
        for part in cases.parts.values()
        for case in part
    }
    path = output / _CONTENT
    with waited_for(output / f".{_CONTENT}.lock", between):
        if (output / "results.csv").exists() and not path.exists():
            _log.warning(
                "%s has results and no %s: whether they are of these labelled scans is not known.",
                output,
                _CONTENT,
            )
        known = _noted(path) if path.exists() else {}
        for name, now in found.items():
            for what, digest_now in now.items():
                if known.get(name, now).get(what) != digest_now:
                    raise UserError(
                        f"Case {name}: its {what} changed since {output} was begun.",
                        "Put it back as it was, or take another --output.",
                    )
        write_json(path, {**known, **found})


def _noted(path: Path) -> dict[str, dict[str, str]]:
    try:
        return TypeAdapter(dict[str, dict[str, str]]).validate_json(path.read_bytes())
    except ValueError:
        raise UserError(
            f"{path}: is damaged; it holds what the labelled scans were.",
            "Put it back as it was; or, if no scan has changed since, delete it and start again.",
        ) from None


def divided_cases(data: DataPlan) -> Cases:
    """The cases of a labelled set by what they are for.

    Raises:
        UserError: see `divided`.
    """
    assert data.labelled is not None, "the plan is checked"
    return divided(data, load_labelled_set(Path(data.labelled), data.cases or None))


def _phantom_cases(plan: PhantomPlan, folder: Path) -> Cases:
    labelled, test = (
        load_labelled_set(folder / "labelled"),
        load_labelled_set(folder / "test").cases,
    )
    found = (len(labelled.cases), len(test))
    if found != (plan.train + plan.validation, plan.test):
        raise UserError(
            f"{folder}: {found[0]} phantoms to learn from and {found[1]} to judge are there, and "
            f"{plan.train + plan.validation} and {plan.test} were made.",
            "Delete the folder and start again: the same ones are made anew.",
        )
    return Cases(
        labels=labelled.labels,
        train=labelled.cases[: plan.train],
        validation=labelled.cases[plan.train :],
        test=test,
    )


def _make_phantoms(plan: PhantomPlan, folder: Path) -> None:
    from backend.data.phantom import make_cohort

    make_cohort(
        folder,
        seed=plan.seed,
        unlabelled=plan.unlabelled,
        labelled=plan.train + plan.validation,
        test=plan.test,
        broken=False,
        difficulty=plan.difficulty,
    )


def _write_references(cases: Cases, folder: Path, *, between: Callable[[], None]) -> None:
    """The labels of the test cases in one folder, under the names that the set has for them.

    Raises:
        UserError: naming the case, if nothing could learn from one or be judged by it: better now
            than after hours.
    """
    every = tuple(case for found in cases.parts.values() for case in found)
    check_set(LabelledSet(cases=every, labels=cases.labels, layout=""), between=between)
    folder.mkdir()
    for case in cases.test:
        between()
        read = read_label(case.label)
        labels = Volume(label_array(read.voxels), read.geometry)
        write_labels_file(reference_file(folder, case), labels, cases.labels)
