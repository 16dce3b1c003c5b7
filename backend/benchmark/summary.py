"""From the rows of a benchmark to its findings: means, paired differences, and words for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean

from backend.benchmark.grid import control_name
from backend.benchmark.plan import Metric
from backend.benchmark.statistics import (
    LEVEL,
    Difference,
    Estimate,
    Scores,
    cases_at_least,
    difference,
    estimate,
    holm,
    is_shown,
)
from backend.benchmark.tables import COUNTED, FROZEN, Row
from backend.report.words import plural

METRIC_NAMES: Mapping[Metric, str] = {
    "dice": "Dice",
    "iou": "IoU",
    "surface_dice": "surface Dice",
}

_LEARNT = 0.2
"""Mean of the measure below which a network has hardly learnt to find anything."""

COLUMNS = (
    *("mode", "labels", "network", "start", "mean", "low", "high", "cases", "seeds"),
    *("control", "difference", "difference_low", "difference_high"),
    *("p", "p_holm", "comparisons", "p_cases", "better", "shown"),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A start with one number of labelled scans in one mode.

    Attributes:
        mode: "end to end" or "frozen".
        labels: labelled scans.
        network: what it is compared within.
        start: its name.
        mean: over cases and seeds.
        against: its control minus nothing; None for a control, or while that is not finished.
        corrected: p after Holm's correction for all comparisons of this mode and number.
        comparisons: how many those are.
    """

    mode: str
    labels: int
    network: str
    start: str
    mean: Estimate
    against: Difference | None = None
    corrected: float | None = None
    comparisons: int = 0

    @property
    def shown(self) -> bool:
        """Whether it differs from its control beyond chance."""
        return self.against is not None and is_shown(self.against, self.corrected)


def scores_of(rows: Iterable[Row], metric: Metric) -> Scores:
    """Mean over the organs of each case, by case and seed.

    Organs that the reference of a case lacks do not count, whatever was found there.
    """
    found: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row["status"] in COUNTED and row["value"] != "0":
            found.setdefault((row["case"], int(row["seed"])), []).append(float(row[metric]))
    return {place: fmean(values) for place, values in found.items()}


def findings(rows: Iterable[Row], *, metric: Metric, order: Sequence[str]) -> list[Finding]:
    """What each start reached, and how it differs from the control of its network.

    Args:
        rows: of the results; those of unfinished seeds of a start leave that seed out of pairs.
        metric: the column to judge by.
        order: names of the starts, as they shall stand.
    """
    place = {name: number for number, name in enumerate(order)}

    def question(row: Row) -> tuple[str, int]:
        return row["mode"], int(row["labels"])

    result = []
    for (mode, labels), of_question in groupby(sorted(rows, key=question), key=question):
        by_start: dict[tuple[str, str], list[Row]] = {}
        for row in of_question:
            by_start.setdefault((row["network"], row["start"]), []).append(row)
        scores = {name: scores_of(found, metric) for name, found in by_start.items()}
        answers = [
            Finding(
                mode=mode,
                labels=labels,
                network=network,
                start=start,
                mean=estimate(of_start),
                against=_against_control(network, start, scores),
            )
            for (network, start), of_start in scores.items()
            if of_start
        ]
        result += sorted(_corrected(answers), key=lambda answer: place[answer.start])
    return result


def _against_control(
    network: str, start: str, scores: Mapping[tuple[str, str], Scores]
) -> Difference | None:
    control = scores.get((network, control_name(network)), {})
    own = scores[network, start]
    # Of a benchmark that goes on, what both have finished.
    places = own.keys() & control.keys()
    if start == control_name(network) or not places:
        return None
    kin = [of for (net, name), of in scores.items() if net == network and name != start]
    beside = [_at(of, places) for of in kin if of is not control and of.keys() >= places]
    return difference(_at(own, places), _at(control, places), beside)


def _at(scores: Scores, places: Iterable[tuple[str, int]]) -> Scores:
    return {place: scores[place] for place in places}


def _corrected(answers: Sequence[Finding]) -> list[Finding]:
    tested = [a.against.p for a in answers if a.against is not None and a.against.p is not None]
    corrected = iter(holm(tested))
    return [
        replace(a, corrected=next(corrected), comparisons=len(tested))
        if a.against is not None and a.against.p is not None
        else a
        for a in answers
    ]


def summary_rows(found: Iterable[Finding]) -> list[dict[str, str]]:
    """The findings as rows of `summary.csv`; a cell is empty where nothing is known."""
    rows = []
    for f in found:
        cells: dict[str, object] = {
            **{"mode": f.mode, "labels": f.labels, "network": f.network, "start": f.start},
            **{"mean": f.mean.mean, "low": f.mean.low, "high": f.mean.high},
            **{"cases": f.mean.cases, "seeds": f.mean.seeds},
        }
        if f.against is not None:
            d = f.against
            cells |= {"control": control_name(f.network), "difference": d.mean, "p": d.p}
            cells |= {"difference_low": d.low, "difference_high": d.high, "p_cases": d.p_cases}
            cells |= {"p_holm": f.corrected, "comparisons": f.comparisons, "better": d.better}
            cells |= {"cases": d.cases, "seeds": d.seeds, "shown": "yes" if f.shown else "no"}
        rows.append({column: _cell(cells.get(column)) for column in COLUMNS})
    return rows


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def verdict(found: Sequence[Finding], *, metric: Metric) -> list[str]:
    """The findings in words: in all, for each number of labelled scans and mode, and the basis."""
    compared = [f for f in found if f.against is not None]
    if not compared:
        return [
            "Nothing is compared: no start has finished beside its control yet, or none is asked."
        ]
    name = METRIC_NAMES[metric]
    sentences = []
    for (mode, labels), group in groupby(compared, key=lambda f: (f.mode, f.labels)):
        members = list(group)
        where = f"With {plural(labels, 'labelled scan')}" + (
            ", the encoder frozen" if mode == FROZEN else ""
        )
        shown = [_shown_words(f, name) for f in members if f.shown]
        rest = [_unshown_words(f) for f in members if not f.shown]
        told = list(shown)
        if rest:
            told.append(f"no difference shown for {_listed(rest)}")
        sentences.append(f"{where}: {'; '.join(told)}.")
    return [_in_all(compared), *unlearnt(found, name), *sentences, _basis(compared)]


def unlearnt(found: Sequence[Finding], name: str) -> list[str]:
    """Which networks have not learnt to segment, so that their differences say nothing."""
    best: dict[tuple[str, str], dict[int, float]] = {}
    for f in found:
        of_network = best.setdefault((f.mode, f.network), {})
        of_network[f.labels] = max(of_network.get(f.labels, 0.0), f.mean.mean)
    where, most = [], 0.0
    for (mode, network), means in best.items():
        if poor := {labels: mean for labels, mean in means.items() if mean < _LEARNT}:
            frozen = ", encoder frozen" if mode == FROZEN else ""
            where.append(f"{network} (with {_listed([f'{n:,}' for n in poor])}{frozen})")
            most = max(most, *poor.values())
    if not where:
        return []
    return [
        f"Hardly anything is learnt by {_listed(where)}: from whatever weights, no more than "
        f"{_level(most)} {name}, so that the differences there say nothing. More steps of "
        "fine-tuning are needed."
    ]


def _in_all(compared: Sequence[Finding]) -> str:
    shown = [f.against.mean for f in compared if f.against is not None and f.shown]
    gains = sum(mean > 0 for mean in shown)
    count = plural(len(compared), "comparison")
    if not shown:
        return f"No difference shown in {count} of pretrained with random weights."
    return (
        f"Of {count} of pretrained with random weights {gains} show a gain and "
        f"{len(shown) - gains} a loss; no difference is shown in {len(compared) - len(shown)}."
    )


def _shown_words(f: Finding, name: str) -> str:
    assert f.against is not None, "only those are told"
    word = "better" if f.against.mean > 0 else "worse"
    return (
        f"{f.start} is {word} than {control_name(f.network)} by {_level(abs(f.against.mean))} "
        f"{name} (95 % interval {_interval(f.against)})"
    )


def _unshown_words(f: Finding) -> str:
    assert f.against is not None, "only those are told"
    told = _change(f.against.mean)
    interval = f", {_interval(f.against)}" if f.against.low is not None else ""
    return f"{f.start} ({told}{interval})"


def _interval(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return "unknown"
    return f"{_change(found.low)} to {_change(found.high)}"


def _level(value: float) -> str:
    """Three digits of what `summary.csv` says, so that whoever rounds that finds the same."""
    return f"{float(_cell(value)):.3f}"


def _change(value: float) -> str:
    return f"{float(_cell(value)):+.3f}".replace("-", "\N{MINUS SIGN}")


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _basis(compared: Sequence[Finding]) -> str:
    """On how much the sentences before stand."""
    differences = [f.against for f in compared if f.against is not None]
    cases = min(d.cases for d in differences)
    seeds = min(d.seeds for d in differences)
    basis = f"Each comparison is paired over {plural(cases, 'case')} and {plural(seeds, 'seed')}."
    if cases < 2 or seeds < 2:
        return f"{basis} A single case or seed tells of no other, so nothing can be shown."
    if cases < cases_at_least():
        return (
            f"{basis} Fewer than {cases_at_least()} cases can show no difference, however large: "
            "name more under data.test."
        )
    most = max(f.comparisons for f in compared)
    return (
        f"{basis} Shown means that chance alone brings up as much in less than {LEVEL:.0%}, "
        f"after Holm's correction for the {plural(most, 'comparison')} with the same number of "
        "labelled scans; intervals are not corrected."
    )
