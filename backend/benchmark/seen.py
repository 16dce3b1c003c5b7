"""Which scans weights from outside have learnt from, as far as the run folder beside them tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backend.benchmark.cases import copies_of
from backend.benchmark.grid import Start
from backend.data.index import read_index, usable
from backend.data.labelled import LabelledCase, load_labelled_set
from backend.data.series import SeriesRow
from backend.engine.record import read_json
from backend.errors import UserError


def require_unseen_by_weights(
    found: Sequence[Start], test: Sequence[LabelledCase], *, images_allowed: bool
) -> None:
    """Refuse weights of a run that has learnt from a test case, or was chosen by one.

    Args:
        found: the starts of a plan.
        test: the cases that judge.
        images_allowed: whether pretraining may have seen them; their labels no run may have seen.

    Raises:
        UserError: naming entry, weights and case.
    """
    pairs = [(start, run) for start in found for run in _runs_of(start.weights)]
    for start, run in pairs:
        told = f"Entry {start.entry.name!r}: {start.weights}"
        if case := _labels_seen(run, test):
            raise UserError(
                f"{told} has learnt from the labels of test case {case}, or was chosen by them.",
                "Take weights of another run.",
            )
        if not images_allowed and (case := _image_seen(run, test)):
            raise UserError(
                f"{told} has pretrained on test case {case}.",
                "Take another run, or say pretrain_on_test: true.",
            )


def present_files(rows: Sequence[SeriesRow]) -> dict[str, tuple[Path, ...]]:
    """Files by the id of each usable series that is on this disk."""
    return {r.id: r.files for r in usable(rows) if all(file.is_file() for file in r.files)}


def _runs_of(weights: Path | None) -> list[Path]:
    """The run folder that weights are or lie in, and those that it started from itself."""
    runs: list[Path] = []
    while weights is not None:
        places = (weights, *weights.resolve().parents[:2])
        run = next((place for place in places if (place / "config.json").is_file()), None)
        if run is None or run in runs:
            break
        runs.append(run)
        init = _request(run).get("init")
        weights = Path(init) if isinstance(init, str) else None
    return runs


def _request(run: Path) -> Mapping[str, Any]:
    """What its command line asked for."""
    request: Mapping[str, Any] = read_json(run / "config.json").get("request") or {}
    return request


def _image_seen(run: Path, test: Sequence[LabelledCase]) -> str | None:
    index = run / "index.csv"
    if not index.is_file():
        return None
    return next(iter(copies_of(test, present_files(read_index(index))).values()), None)


def _labels_seen(run: Path, test: Sequence[LabelledCase]) -> str | None:
    """A test case that a run was fine-tuned on, validated with or probed by."""
    for file, option in (("split.json", "data"), ("probe.json", "probe_data")):
        if not (run / file).is_file():
            continue
        names = {name for part in _parts(read_json(run / file)) for name in part}
        where = _request(run).get(option)
        images = _images(Path(where), names) if isinstance(where, str) else {}
        if seen := copies_of(test, images):
            return next(iter(seen.values()))
        # Where its scans are no longer there, a name has to do.
        if case := next((c.id for c in test if c.id in names - images.keys()), None):
            return case
    return None


def _parts(split: Any) -> list[list[str]]:
    return [part for part in split.values() if isinstance(part, list)]


def _images(data: Path, names: set[str]) -> dict[str, tuple[Path, ...]]:
    try:
        cases = load_labelled_set(data).cases
    except UserError:
        return {}
    return {case.id: case.image for case in cases if case.id in names}
