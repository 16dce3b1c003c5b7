"""Two models side by side, and what the numbers allow to be said about them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from markupsafe import Markup

from backend import charts
from backend.charts import Scores
from backend.errors import UserError
from backend.report.curves import Chart
from backend.report.words import plural

SMALL_DICE = 0.01
"""Differences of the mean Dice below this are called practically none: experts who draw the same
organ twice differ by more."""

FEWEST_CASES = 6
"""With fewer pairs not even a unanimous result is rarer by chance than 1 in 20 (sign test)."""


def read_evaluation(path: Path) -> dict[str, dict[str, float]]:
    """Dice by structure and case, of an evaluation.csv, its folder or the JSON beside it.

    Background and structures without a Dice (absent in both maps) are left out.

    Raises:
        UserError: if there is no such table or it lacks a column.
    """
    table = path / "evaluation.csv" if path.is_dir() else path.with_suffix(".csv")
    if not table.is_file():
        raise UserError(f"{table}: no such table.", "Run `backend evaluate --output` first.")
    scores: dict[str, dict[str, float]] = {}
    with table.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        missing = {"case", "organ", "dice"} - set(reader.fieldnames or ())
        if missing:
            raise UserError(
                f"{table}: column {sorted(missing)[0]} is missing.",
                "Give the evaluation.csv that `backend evaluate` wrote.",
            )
        for row in reader:
            dice = _dice(row["dice"], where=f"{table}, line {reader.line_num}")
            if dice is not None and row.get("value") != "0" and row["organ"] != "background":
                scores.setdefault(row["organ"], {})[row["case"]] = dice
    return scores


def _dice(text: str, *, where: str) -> float | None:
    if text.strip().lower() in ("", "n/a", "na", "nan", "none"):
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{where}: dice {text!r} is no number.", "Mend the table.") from None


@dataclass(frozen=True)
class OrganRow:
    """One structure: mean Dice and cases per arm, mean difference over the cases of both."""

    organ: str
    means: Sequence[float | None]
    counts: Sequence[int]
    difference: float | None
    pairs: int


@dataclass(frozen=True)
class CaseRow:
    """One case of one structure: Dice per arm."""

    case: str
    organ: str
    dice: Sequence[float | None]


@dataclass(frozen=True)
class Comparison:
    """Arms side by side; differences are the first arm minus the second."""

    arms: Sequence[str]
    organs: Sequence[OrganRow]
    cases: Sequence[CaseRow]
    case_means: Sequence[tuple[str, float, float]]
    means: tuple[float, float] | None
    sentences: Sequence[str]
    charts: Sequence[Chart]


def compare(arms: Mapping[str, Scores]) -> Comparison:
    """Put the scores of arms side by side and say in words what the numbers allow."""
    organs = list(dict.fromkeys(organ for scores in arms.values() for organ in scores))
    means = case_means(*list(arms.values())[:2]) if len(arms) > 1 else []
    chunks = [organs[k : k + charts.MAX_ORGANS] for k in range(0, len(organs), charts.MAX_ORGANS)]
    return Comparison(
        arms=list(arms),
        organs=[_organ_row(organ, list(arms.values())) for organ in organs],
        cases=list(_case_rows(organs, list(arms.values()))),
        case_means=means,
        means=(fmean(m[1] for m in means), fmean(m[2] for m in means)) if means else None,
        sentences=verdict(next(iter(arms)), list(arms)[1], means) if means else [],
        charts=[Chart(Markup(charts.comparison_chart(arms, part)), wide=True) for part in chunks],
    )


def _organ_row(organ: str, arms: Sequence[Scores]) -> OrganRow:
    values = [scores.get(organ, {}) for scores in arms]
    means = [fmean(v.values()) if v else None for v in values]
    pairs: list[str] = []
    difference = None
    if len(values) > 1:
        pairs = sorted(values[0].keys() & values[1].keys())
        if pairs:
            difference = fmean(values[0][case] - values[1][case] for case in pairs)
    return OrganRow(organ, means, [len(v) for v in values], difference, len(pairs))


def _case_rows(organs: Sequence[str], arms: Sequence[Scores]) -> Iterator[CaseRow]:
    cases = sorted({case for scores in arms for values in scores.values() for case in values})
    for case in cases:
        for organ in organs:
            dice = [scores.get(organ, {}).get(case) for scores in arms]
            if any(value is not None for value in dice):
                yield CaseRow(case, organ, dice)


def case_means(first: Scores, second: Scores) -> list[tuple[str, float, float]]:
    """Per case the mean Dice of both arms, over the structures that both have a Dice for."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for organ in first:
        for case, dice in first[organ].items():
            other = second.get(organ, {}).get(case)
            if other is not None:
                pairs.setdefault(case, []).append((dice, other))
    return [
        (case, fmean(a for a, _ in both), fmean(b for _, b in both))
        for case, both in sorted(pairs.items())
    ]


def verdict(first: str, second: str, means: Sequence[tuple[str, float, float]]) -> list[str]:
    """What the paired case means allow to be said, and no more.

    Args:
        first: name of an arm.
        second: name of the other.
        means: per case its name and the mean Dice of both arms.
    """
    count = len(means)
    a, b = fmean(m[1] for m in means), fmean(m[2] for m in means)
    difference = a - b
    wins = sum(m[1] > m[2] for m in means)
    losses = sum(m[1] < m[2] for m in means)
    # Unlike a hyphen, a minus sign is never parted from its number.
    signed = f"{difference:+.3f}".replace("-", "\N{MINUS SIGN}")
    sentences = [
        f"Mean Dice over {plural(count, 'case')}: {a:.3f} {first}, {b:.3f} {second} "
        f"(difference {signed})."
    ]
    if abs(difference) < SMALL_DICE:
        sentences.append(f"A difference below {SMALL_DICE} is practically none.")
    elif difference < 0:
        sentences.append(f"In this run the model {first} was the worse one.")
    sentences.append(f"The model {first} was better in {wins} and worse in {losses} of {count}.")
    sentences.append(_chance_sentence(wins, losses))
    sentences.append("Each model was trained once; another seed may turn out otherwise.")
    return sentences


def _chance_sentence(wins: int, losses: int) -> str:
    """How far chance alone would go, by the two-sided sign test."""
    count = wins + losses
    if count < 2:
        return "From this few cases nothing follows for other patients."
    if count < FEWEST_CASES:
        return (
            f"{count} cases are too few to tell an effect from chance: without any effect, all "
            f"{count} would still agree in 1 of {2 ** (count - 1)} such comparisons."
        )
    tail = sum(math.comb(count, k) for k in range(min(wins, losses) + 1)) / 2**count
    return (
        f"Without any effect, a split at least as uneven would still come up in "
        f"{min(1.0, 2 * tail):.1%} of such comparisons (sign test)."
    )
