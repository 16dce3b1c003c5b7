"""What a benchmark came to here, beside its committed tables.

`python Testing/backend/beside_published.py OUTPUT NAME` compares a folder of `backend benchmark`
with Testing/benchmarks/results/NAME. On the same processor with the same versions every number has
to be the same; elsewhere sums are rounded in another order, and the same has to be shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from published_results import RESULTS, Row, read_rows

_QUESTION = ("mode", "labels", "network", "start")
_TERMS = ("processor", "threads", "torch", "backend")

Answers = dict[tuple[str, ...], Row]


def beside(here: Path, committed: Path) -> tuple[list[str], bool]:
    """What is told of two folders of tables, and whether they may differ as they do."""
    answers, known = _answers(here), _answers(committed)
    if answers.keys() != known.keys():
        return ["They do not answer the same questions."], False
    lines = list(_lines(answers, known))
    if (here / "results.csv").read_bytes() == (committed / "results.csv").read_bytes():
        return [*lines, "Every number is the committed one."], True
    if _terms(here) == _terms(committed):
        return [*lines, "Other numbers on the same processor with the same versions."], False
    alike = all(row["shown"] == known[key]["shown"] for key, row in answers.items())
    shown = "the same is shown" if alike else "other differences are shown"
    return [*lines, f"Other numbers, on another processor or with other versions; {shown}."], alike


def _answers(folder: Path) -> Answers:
    rows = read_rows(folder / "summary.csv")
    return {tuple(row[name] for name in _QUESTION): row for row in rows}


def _lines(here: Answers, there: Answers) -> Iterator[str]:
    for key, row in here.items():
        means = f"{float(row['mean']):.4f}, committed {float(there[key]['mean']):.4f}"
        shown = ", ".join(of["shown"] for of in (row, there[key]) if of["shown"])
        yield f"{', '.join(key)}: {means}" + (f"; difference shown: {shown}" if shown else "")


def _terms(folder: Path) -> set[tuple[str, ...]]:
    return {tuple(row[name] for name in _TERMS) for row in read_rows(folder / "runs.csv")}


if __name__ == "__main__":
    told, fits = beside(Path(sys.argv[1]), RESULTS / sys.argv[2])
    sys.stdout.write("".join(f"{line}\n" for line in told))
    sys.exit(not fits)
