"""Which charts a run gets: one per recorded quantity, grouped by the prefix of its key."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from markupsafe import Markup

from backend import charts
from backend.charts import Curve, Floats

_HINTS = {
    "marginal_entropy": "How varied the teacher's answers to different things are. Healthy: stays "
    "clearly above 0, where everything gets the same answer (collapse).",
    "entropy": "How evenly the teacher spreads a single answer. Low: it is sure.",
    "feature_std": "How much the features of different crops differ. Healthy: stays clearly above "
    "0. A fall to 0 is a collapse: every crop looks the same to the network.",
    "centre_norm": "Size of the running mean that is taken off the teacher's answers. Healthy: "
    "changes early, then levels off. Growth without end means that one answer takes over.",
    "held_out_error": "Mean absolute error of hidden voxels in scans that are not trained on, "
    "grey values 0 to 1. Healthy: falls below what the mean of the visible voxels would give.",
    "linear": "How many voxels of labelled scans a linear map of the frozen features puts into the "
    "right structure; structures and background count alike, guessing gives 1 over their number. "
    "Step 0: the weights it began with. Healthy: rises above them. A fall that lasts: stop here, "
    "the best encoder is kept.",
    "feature_rank": "Over how many directions the encoder's coarsest features spread (RankMe). "
    "Healthy: stays far above 1, where everything looks the same to the network (collapse).",
    "gradient_norm": "Size of the gradient. Healthy: falls early, then stays within a band; "
    "lasting growth announces that the training diverges.",
}

_ENTROPY_BELOW = (
    "How evenly the teacher spreads a single answer. Healthy: below the ceiling, the logarithm of "
    "its {answers:,} possible answers, where it tells nothing apart. Low: it is sure."
)

_RIVALS = frozenset({"adversarial", "discriminator"})
"""Terms of two networks that work against each other: one rises where the other falls."""

_FALLS = "Healthy: a quick fall at first, then a slow one."
_RISES = (
    "Healthy: what is measured against the scans themselves falls, quickly at first, then slowly. "
    "What is measured against another network that changes as well may rise, and the total with it."
)

_HEALTH = "Does the network still tell things apart? A collapse often shows here before the loss."

_NAMES = {
    "held_out_error": "error on held-out scans",
    "of_mean": "with the mean instead",
    "linear": "linear probe, balanced accuracy",
    "feature_rank": "effective rank of the features",
    "lr": "learning rate",
    "ema_momentum": "teacher momentum (EMA)",
    "volumes_per_s": "volumes per second",
    "memory_mb": "memory, MB",
    # Unlike the Dice of a validation, it falls.
    "loss/dice": "Dice loss",
}

TERMS = {
    "dice": "1 minus the overlap with the labels",
    "ce": "cross-entropy: how surprising the label of a voxel is, on average",
    "bce": "binary cross-entropy: how surprising the label of a voxel is, on average",
    "mip": "masked image prediction: the grey values of hidden voxels",
    "mpd": "masked patch token distillation: the teacher's answer for each hidden cell",
    "itd": "image token distillation: the teacher's answer for the whole of another view",
    "koleo": "the scans of a batch are told apart",
    "consistency": "the same answer for a part as the teacher gives for the whole",
    "local": "features of small regions agree between views of a scan",
    "global": "features of whole views of a scan agree",
    "intermediate": "agreement and restoration at the coarser scales of the decoder",
    "contrast": "views of one scan are alike, those of different scans are not",
    "reconstruction": "the original grey values of what was hidden or replaced",
    "reconstruction_main": "grey values of hidden patches in the large views",
    "reconstruction_local": "grey values of hidden patches in the small views",
    "restoration": "the original grey values of an image that was distorted",
    "restore": "the original grey values of an image that was distorted",
    "own": "grey values from the network's own features, turned as it was told",
    "other": "grey values from the teacher's features of the other view, turned as it was told",
    "mixup": "a blend of two views, from a blend of their features",
    "mixed": "grey values of images that are blends of two scans",
    "adversarial": "restored images pass for originals",
    "discriminator": "a second network tells restored images from originals",
    "order": "in which order the shuffled cubes belong",
    "rotation": "how the image or its cubes were turned",
    "mask": "which cubes were masked",
    "cpc": "the true next patch is picked out from others, given those before it",
}
"""What each term of a loss asks for, by its name; methods share names that mean alike."""


@dataclass(frozen=True)
class Chart:
    """A chart with the sentence under it."""

    svg: Markup
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class ChartGroup:
    """Charts that belong together."""

    title: str
    text: str
    charts: Sequence[Chart]


@dataclass(frozen=True)
class _Hint:
    """The sentence on a healthy curve, and the highest value that is possible if it is known."""

    text: str
    ceiling: float | None = None


_NO_HINT = _Hint("")


def chart_groups(curves: Mapping[str, Curve], *, answers: int | None = None) -> list[ChartGroup]:
    """Charts of all recorded quantities, grouped by the prefix of their keys.

    Args:
        curves: by their keys.
        answers: among how many answers a teacher spreads its own, if that is known.
    """
    health = {key: c for key, c in curves.items() if _first(key) == "monitor" or "gradient" in key}
    rest = {k: c for k, c in curves.items() if _first(k) not in ("loss", "val") and k not in health}
    machine = {k: c for k, c in rest.items() if k.endswith("_per_s") or "memory" in k}
    schedules = {k: c for k, c in rest.items() if _is_schedule(k)}
    others = {k: c for k, c in rest.items() if k not in machine and k not in schedules}
    groups = [
        _loss_group(curves),
        _validation_group(curves),
        ChartGroup("Health", _HEALTH, _single_charts(health, answers)),
        *_groups_by_prefix(others),
        _joined_group("Schedules", "What was set for each step, as it was used.", schedules),
        _joined_group("Speed and memory", "", machine),
    ]
    return [group for group in groups if group.charts]


def _first(key: str) -> str:
    return key.partition("/")[0]


def _is_schedule(key: str) -> bool:
    return key == "lr" or any(w in key for w in ("temperature", "momentum", "weight_decay"))


def _groups_by_prefix(curves: Mapping[str, Curve]) -> list[ChartGroup]:
    """Whatever else was recorded, under its own prefix as the heading."""
    groups = []
    for prefix in dict.fromkeys(map(_first, curves)):
        members = {key: curve for key, curve in curves.items() if _first(key) == prefix}
        title = prefix.replace("_", " ").capitalize()
        groups.append(ChartGroup(title, "", _single_charts(members)))
    return groups


def _loss_group(curves: Mapping[str, Curve]) -> ChartGroup:
    terms = {k.removeprefix("loss/"): c for k, c in curves.items() if _first(k) == "loss"}
    moving = "ema_momentum" in curves or not _RIVALS.isdisjoint(terms)
    total = terms.pop("total", None)
    shown = []
    if total is not None and has_points(total):
        only = next(iter(terms)) if len(terms) == 1 else ""
        svg = charts.smoothed_chart(renamed(total, "total"), wide=True)
        shown.append(Chart(Markup(svg), _only_term(only) if only else "", wide=True))
        # A total of one term has the shape of that term.
        terms = {} if only else terms
    for k, (term, curve) in enumerate(terms.items(), start=1):
        if has_points(curve):
            svg = charts.smoothed_chart(renamed(curve, _term_name(term)), color=k)
            shown.append(Chart(Markup(svg), _sentence(TERMS.get(term, ""))))
    text = (
        "Faint: what was recorded, as a range where steps are many. Line: running median. "
        f"{_RISES if moving else _FALLS}"
    )
    return ChartGroup("Loss", text, shown)


def _only_term(term: str) -> str:
    meaning = f": {TERMS[term]}" if term in TERMS else ""
    return f"Its only term is {_term_name(term)}{meaning}."


def _term_name(term: str) -> str:
    return _NAMES.get(f"loss/{term}") or _readable(term)


def _sentence(phrase: str) -> str:
    return f"{phrase[:1].upper()}{phrase[1:]}." if phrase else ""


def _validation_group(curves: Mapping[str, Curve]) -> ChartGroup:
    mean = curves.get("val/dice_mean")
    organs = [
        renamed(curve, key.removeprefix("val/dice/"))
        for key, curve in curves.items()
        if key.startswith("val/dice/") and has_points(curve)
    ]
    shown = []
    if organs or mean is not None:
        shown.append(Chart(Markup(charts.dice_chart(organs, mean)), wide=True))
    others = {
        key: curve
        for key, curve in curves.items()
        if key.startswith("val/") and key != "val/dice_mean" and not key.startswith("val/dice/")
    }
    text = "Measured on scans that were not trained on. 1 is a perfect match, 0 no overlap."
    return ChartGroup("Validation", text, [*shown, *_single_charts(others)])


def _joined_chart(curves: Mapping[str, Curve], hint: _Hint = _NO_HINT) -> list[Chart]:
    """One chart of all curves, or none if nothing was recorded; titled by what the keys share."""
    members = {key: c for key, c in curves.items() if has_points(c)}
    if not members:
        return []
    tails = [key.rpartition("/")[2] for key in members]
    shared = _shared_words(tails)
    heads = {_first(key) for key in members}
    # monitor/entropy_cls and monitor/entropy_patch share "entropy", temperature/cls and
    # temperature/patch share what stands before the slash.
    title = shared or heads.pop()
    lines = [
        renamed(c, _readable(tail.removeprefix(shared).strip("_") or tail))
        for c, tail in zip(members.values(), tails, strict=True)
    ]
    svg = charts.lines_chart(lines, title=_readable(title), ceiling=hint.ceiling)
    return [Chart(Markup(svg), hint.text)]


def _shared_words(names: Sequence[str]) -> str:
    """The words that all names begin with: "entropy" of "entropy_cls" and "entropy_patch"."""
    columns = zip(*(name.split("_") for name in names), strict=False)
    alike = takewhile(lambda words: len(set(words)) == 1, columns)
    return "_".join(words[0] for words in alike)


def _joined_group(title: str, text: str, curves: Mapping[str, Curve]) -> ChartGroup:
    """One chart per prefix, with all its curves in it."""
    prefixes = dict.fromkeys(map(_first, curves))
    shown = [
        chart
        for prefix in prefixes
        for chart in _joined_chart({k: c for k, c in curves.items() if _first(k) == prefix})
    ]
    return ChartGroup(title, text, shown)


def _single_charts(curves: Mapping[str, Curve], answers: int | None = None) -> list[Chart]:
    """A chart each; those of one known kind share a chart and the sentence on a healthy one."""
    rest = dict(curves)
    shown = []
    hints = {word: _Hint(text) for word, text in _HINTS.items()}
    if answers is not None:
        hints["entropy"] = _Hint(_ENTROPY_BELOW.format(answers=answers), math.log(answers))
    for word, hint in hints.items():
        alike = {key: rest.pop(key) for key in list(rest) if word in key}
        shown += _joined_chart(alike, hint)
    return shown + [chart for key, curve in rest.items() for chart in _joined_chart({key: curve})]


def _readable(name: str) -> str:
    return _NAMES.get(name) or name.replace("_", " ")


def has_points(curve: Curve) -> bool:
    """Whether anything finite was recorded."""
    return bool(np.isfinite(curve.values).any())


def last_best(values: Floats) -> int:
    """Where the highest value stands: of equal ones the last, which is the one that is kept."""
    return len(values) - 1 - int(np.nanargmax(values[::-1]))


def renamed(curve: Curve, name: str) -> Curve:
    """The same curve under the name the reader shall see."""
    return Curve(name=name, steps=curve.steps, values=curve.values)


def final_dice(curves: Mapping[str, Curve]) -> list[tuple[str, float, float, int]]:
    """Per structure: last Dice, best Dice and the step of the best."""
    rows = []
    for key, curve in curves.items():
        if key.startswith("val/dice/") and has_points(curve):
            best = last_best(curve.values)
            last, top = float(curve.values[-1]), float(curve.values[best])
            rows.append((key.removeprefix("val/dice/"), last, top, int(curve.steps[best])))
    return rows
