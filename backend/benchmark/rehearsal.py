"""`backend benchmark --rehearse`: every start once with a few steps, and what all would take.

It is the benchmark itself, on a plan cut short: what would fail after hours fails here.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from backend.benchmark import runner
from backend.benchmark.grid import Arm, arms, starts
from backend.benchmark.overview import weakness
from backend.benchmark.plan import Plan, read_plan
from backend.engine.record import read_metrics
from backend.errors import UserError
from backend.progress import told_time
from backend.report.words import plural

_STEPS = 10
"""Of each run. Validation comes every other step, so that both kinds of step are seen."""
_VALIDATION = "val/dice_mean"
_CURVE_POINTS = 5
"""At how many steps a fine-tuning draws its curve."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast a run went.

    Attributes:
        step_s: of a step that only learns.
        validation_s: what a point of the curve takes beside it; 0 where nothing is validated.
        rest_s: of everything before, after and between: start, preparation, test.
    """

    step_s: float
    validation_s: float
    rest_s: float

    def seconds(self, steps: int) -> float:
        """What a run of so many steps takes."""
        return self.rest_s + steps * self.step_s + _CURVE_POINTS * self.validation_s


def pace_of(metrics: Sequence[Mapping[str, Any]], *, seconds: float) -> Pace:
    """The pace of a run.

    Args:
        metrics: its records, one for each step.
        seconds: all that it took.
    """
    times = [(after["time_s"] - before["time_s"], _VALIDATION in after)
             for before, after in pairwise(metrics)]  # fmt: skip
    # The first step warms up, and the last one draws and saves as well.
    between = times[:-1]
    step = statistics.median([s for s, validated in between if not validated])
    more = [max(0.0, s - step) for s, validated in between if validated]
    validation = statistics.median(more) if more else 0.0
    points = sum(_VALIDATION in record for record in metrics)
    rest = max(0.0, seconds - len(metrics) * step - points * validation)
    return Pace(step_s=step, validation_s=validation, rest_s=rest)


def run(request: runner.Request) -> None:
    """Rehearse a plan in a folder of its own inside the output, and print what all would take.

    Preprocessed scans are kept where the benchmark looks for them.

    Raises:
        UserError, Cancelled, Interrupted: as the benchmark itself.
    """
    if request.publish is not None:
        raise UserError("--publish: a rehearsal has nothing to show.", "Leave it out.")
    plan = read_plan(request.plan, request.overrides)
    with runner.at_work(
        replace(
            request,
            output=request.output / "rehearsal",
            overrides=(*request.overrides, *_cut_short(plan)),
            cache=request.cache or request.output / "cache",
        ),
        rehearsal=True,
    ) as bench:
        runner.work_off_everywhere(bench)
        processes = len(runner.devices_of(bench))
    seconds = {row["key"]: float(row["seconds"]) for row in bench.runs.rows()}

    def pace(folder: Path, key: str) -> Pace:
        metrics = read_metrics(folder)
        # Whoever was killed between the end of a pretraining and its row has noted nothing.
        return pace_of(metrics, seconds=seconds.get(key, metrics[-1]["time_s"]))

    of_arms = {_which(arm): pace(bench.run_folder(arm), arm.key) for arm in bench.grid}
    of_pretrainings = {
        arm.start.entry.name: pace(bench.pretrain_folder(p), p.key)
        for arm in bench.grid
        if (p := arm.pretraining) is not None
    }
    grid = arms(plan, starts(plan), bench.cases)
    for line in _told(plan, grid, of_arms, of_pretrainings, processes=processes):
        sys.stdout.write(f"{line}\n")
    for line in weakness(plan, tests=len(bench.cases.test)):
        sys.stdout.write(f"{line}\n")


def _cut_short(plan: Plan) -> list[str]:
    """What lies over a plan so that each start is met once in each mode."""
    first = {"labels": plan.labels[:1], "frozen_labels": plan.frozen_labels[:1]}
    return [
        f"finetune.steps={_STEPS}",
        *([] if plan.pretrain is None else [f"pretrain.steps={_STEPS}"]),
        *(f"{key}=[{', '.join(map(str, counts))}]" for key, counts in first.items()),
        f"seeds=[{plan.seeds[0]}]",
    ]


def _which(arm: Arm) -> tuple[str, bool]:
    return arm.start.entry.name, arm.frozen


def _told(
    plan: Plan,
    grid: Sequence[Arm],
    of_arms: Mapping[tuple[str, bool], Pace],
    of_pretrainings: Mapping[str, Pace],
    *,
    processes: int,
) -> list[str]:
    """A line for each start, and what all of them take together."""
    fine_s = [of_arms[_which(arm)].seconds(plan.finetune.steps) for arm in grid]
    pretrainings = {arm.pretraining.key: arm.pretraining for arm in grid if arm.pretraining}
    steps = 0 if plan.pretrain is None else plan.pretrain.steps
    before_s = [of_pretrainings[p.start.entry.name].seconds(steps) for p in pretrainings.values()]
    width = max(len(name) for name, _ in of_arms)
    lines = [f"Every start of {plan.name} did {_STEPS} steps and was judged. All steps would take:"]
    for (name, frozen), pace in of_arms.items():
        told = f"  {name:<{width}}  a fine-tuning{' (frozen)' * frozen} "
        told += told_time(pace.seconds(plan.finetune.steps))
        if name in of_pretrainings and not frozen:
            told += f", its pretraining {told_time(of_pretrainings[name].seconds(steps))}"
        lines.append(told)
    parts = [f"{plural(len(fine_s), 'fine-tuning')} {told_time(sum(fine_s))}"]
    if before_s:
        parts.insert(0, f"{plural(len(before_s), 'pretraining')} {told_time(sum(before_s))}")
    total = sum(fine_s) + sum(before_s)
    lines.append(f"Together: {', '.join(parts)}.")
    who = "one process" if processes == 1 else f"{processes} processes"
    lines.append(f"About {told_time(total / processes)} for {who} on this machine.")
    return lines
