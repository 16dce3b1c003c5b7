"""What verdicts say of fine-tunings that nothing but chance tells apart, and of a planted gain.

The fine-tunings are those of `Testing/benchmarks/calibration.yaml`: one network from random
weights, the same scans, other seeds. They are drawn as starts of small benchmarks and go through
the code that gives verdicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from published_results import RESULTS, Row, read_rows

from backend.benchmark.grid import control_name
from backend.benchmark.statistics import Difference
from backend.benchmark.summary import findings

TABLE = RESULTS / "calibration" / "results.csv"
COMPARISONS = 20
GAINS = (0.0, 0.03, 0.05)
"""Dice planted in every structure of one side; 0: nothing is."""
SEEDS = (3, 5, 8)
"""Of each start; 3 is what the plans that ship have."""
STARTS = (2, 3)
"""Of the network, its control among them: a third one tells more of how much seeds differ."""

_AGAIN, _BESIDE = "the same again", "the same beside"


def flagged(rows: Sequence[Row], *, seeds: int, starts: int = 2, gain: float) -> list[Difference]:
    """Those of twenty comparisons in which a difference is shown, upwards if a gain is planted."""
    made = compared(rows, seeds=seeds, starts=starts, gain=gain)
    return [found for found, is_shown in made if is_shown and found.mean * gain >= 0]


def compared(
    rows: Sequence[Row], *, seeds: int, starts: int = 2, gain: float
) -> Iterator[tuple[Difference, bool]]:
    """Twenty comparisons of so many fine-tunings with as many others, one side with a gain.

    A third start is compared as well, without any gain, so that Holm's correction is for two.
    """
    by_seed: dict[str, list[Row]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append(row)
    control = control_name(rows[0]["network"])
    names = (control, _AGAIN, _BESIDE)[:starts]
    for group in islice(_groups(sorted(by_seed, key=int), starts * seeds), COMPARISONS):
        given = [
            row
            for place, name in enumerate(names)
            for row in _as_start(
                name,
                [by_seed[seed] for seed in group[place * seeds : (place + 1) * seeds]],
                gain=gain if name == _AGAIN else 0.0,
            )
        ]
        found = next(f for f in findings(given, metric="dice", order=names) if f.start == _AGAIN)
        assert found.against is not None
        yield found.against, found.shown


def _groups(seeds: Sequence[str], size: int) -> Iterator[list[str]]:
    """So many seeds at a time; once all were had, they are drawn anew in another order."""
    if len(seeds) < size:
        raise ValueError(f"{size} fine-tunings make a comparison, and there are {len(seeds)}")
    rng = np.random.default_rng(0)
    order = list(seeds)
    while True:
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]
        order = [str(seed) for seed in rng.permutation(list(seeds))]


def _as_start(name: str, runs: Sequence[Sequence[Row]], *, gain: float) -> Iterator[Row]:
    """Fine-tunings as those of a start, one for each seed, all structures better by a gain."""
    for seed, rows in enumerate(runs):
        for row in rows:
            if row["dice"]:
                dice = min(1.0, max(0.0, float(row["dice"]) + gain))
                yield {**row, "start": name, "seed": str(seed), "dice": str(dice)}


def docs_rows(table: Path = TABLE) -> list[str]:
    """How often what is found, by the number of seeds and of starts beside."""
    if not table.exists():
        return ["It has not been run yet."]
    rows = read_rows(table)
    count, cases = len({row["seed"] for row in rows}), len({row["case"] for row in rows})
    heads = (
        f"found, {gain:+.2f} planted" if gain else "flagged, nothing planted" for gain in GAINS
    )
    return [
        f"From {count} fine-tunings and {cases} cases, {COMPARISONS} comparisons for each cell; "
        "where those need more fine-tunings than there are, some serve in several:",
        "",
        f"| seeds of each start | starts of the network | {' | '.join(heads)} |",
        f"|---|---|{'---|' * len(GAINS)}",
        *(
            f"| {seeds} | {starts} | "
            + " | ".join(
                str(len(flagged(rows, seeds=seeds, starts=starts, gain=gain))) for gain in GAINS
            )
            + " |"
            for seeds in SEEDS
            for starts in STARTS
            if starts * seeds <= count
        ),
    ]
