"""The labelled scans that features are asked of while an encoder is pretrained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from backend.data.cache import Cache, CachedVolume
from backend.data.labelled import (
    LabelledCase,
    LabelledSet,
    check_set,
    load_labelled_set,
    shuffled,
    split_cases,
)
from backend.data.labels import Label
from backend.engine.record import RunFolder, read_json
from backend.errors import UserError
from backend.files import write_json
from backend.preparation import cached_pairs
from backend.settings.probe import ProbeConfig

_PROBE = "probe.json"
"""The cases of a probe, in the run folder."""


class Probed(NamedTuple):
    """Labelled scans of a probe: structures, those it is solved on and those it is judged by."""

    labels: tuple[Label, ...]
    learn: tuple[LabelledCase, ...]
    judge: tuple[LabelledCase, ...]


def probed_cases(data: Path | None, settings: ProbeConfig) -> Probed | None:
    """The labelled scans that features are asked of: the same for every run on the same set.

    As in fine-tuning, cases that the set marks "test" are left out.

    Raises:
        UserError: if the set is not understood, too small, or a probe is set up without one.
    """
    if data is None:
        if settings != ProbeConfig():
            raise UserError(
                "A probe is set up, but there is nothing to ask it of.",
                "Add --probe-data with a labelled set, or leave out the settings probe.*.",
            )
        return None
    labelled = load_labelled_set(data)
    cases = [case for case in labelled.cases if case.split != "test"]
    learn, judge = split_cases(cases, validation_fraction=0.5, seed=0)
    if not judge:
        raise UserError(
            f"{data}: a probe is solved on one labelled scan and judged by another, "
            f"and there {'is one' if len(learn) == 1 else 'is none marked for validation'}.",
            "Add a labelled scan, or leave out --probe-data.",
        )
    parts = (shuffled(p, seed=0)[: settings.scans // 2] for p in (learn, judge))
    return Probed(labelled.labels, *(tuple(part) for part in parts))


def cached_probe(
    probed: Probed, cache: Cache, *, folder: RunFolder, between: Callable[[], None]
) -> dict[str, CachedVolume]:
    """The labelled scans by case, checked and preprocessed.

    Their names are kept in the run folder: a run asks the same ones from its beginning to its end.

    Args:
        probed: what to ask.
        cache: of the run.
        folder: the run.
        between: called between scans; may raise to end.

    Raises:
        UserError: if a case cannot be used, or a resumed run had others.
    """
    path = folder.path / _PROBE
    names = {part: [c.id for c in getattr(probed, part)] for part in ("learn", "judge")}
    if path.exists() and read_json(path) != names:
        raise UserError(
            f"{path}: names other cases than --probe-data has now.",
            "Put back what was there, or start a new run.",
        )
    write_json(path, names)
    cases = [*probed.learn, *probed.judge]
    check_set(LabelledSet(cases=tuple(cases), labels=probed.labels, layout=""), between=between)
    # Its own list of names: a case may be called as a series is.
    beside = Cache(cache.root, cache.recipe, cache.form)
    cure = "Mend it, or leave it out of --probe-data."
    return cached_pairs(beside, cases, folder=folder, between=between, cure=cure)
