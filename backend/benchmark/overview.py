"""`backend benchmark --check`: what a plan would do, and what of its data is missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from backend.benchmark.cases import Cases, scan_count
from backend.benchmark.grid import Arm, Start, arms, plan_key, starts
from backend.benchmark.material import divided_cases, require_present, scans_to_pretrain
from backend.benchmark.plan import Plan, read_plan
from backend.benchmark.seen import require_unseen_by_weights
from backend.benchmark.statistics import SEEDS_TO_FIND, cases_at_least
from backend.data.index import refusals, usable
from backend.report.words import plural


def show(file: Path, overrides: Sequence[str] = ()) -> None:
    """Print what a plan would do; nothing is written.

    Raises:
        UserError: if it is refused, or some of its data is missing (after all else is told).
    """
    plan = read_plan(file, overrides)
    found = starts(plan)
    _say(plan.name, *([plan.text] if plan.text else []), *_start_lines(found), *_budget(plan))
    require_present(plan)
    if plan.data.phantoms is not None:
        _say("Phantoms are made when the benchmark runs.", *_phantom_lines(plan, found))
        _say(*weakness(plan, tests=plan.data.phantoms.test))
        return
    cases = divided_cases(plan.data)
    require_unseen_by_weights(found, cases.test, images_allowed=plan.pretrain_on_test)
    if any(start.pretrain is not None for start in found):
        _say(*_pretraining_lines(plan, cases))
    _say(*_grid_lines(cases, arms(plan, found, cases)), *weakness(plan, tests=len(cases.test)))


def weakness(plan: Plan, *, tests: int) -> list[str]:
    """Why the verdict of a plan could show no difference, however large; a line for each reason."""
    least = cases_at_least()
    lines = []
    if tests < least:
        lines.append(
            f"Warning: {plural(tests, 'test case')}. With fewer than {least} no difference can be "
            "shown, however large: name more under data.test."
        )
    if len(plan.seeds) < 2:
        lines.append(
            "Warning: one seed tells nothing of others, so no difference can be shown: give seeds "
            "two or more."
        )
    elif len(plan.seeds) < SEEDS_TO_FIND:
        lines.append(
            f"Note: with {len(plan.seeds)} seeds a gain of 0.05 Dice is often missed; "
            f"{SEEDS_TO_FIND} were enough on phantoms (docs/benchmark.md)."
        )
    return lines


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _start_lines(found: Sequence[Start]) -> list[str]:
    width = max(len(start.entry.name) for start in found)
    return [
        f"  {start.entry.name:<{width}}  {start.entry.method}/{start.entry.preset}, "
        f"from {start.entry.start}, network {start.network}"
        for start in found
    ]


def _budget(plan: Plan) -> list[str]:
    steps = plan.finetune.steps
    pretrain = "" if plan.pretrain is None else f"pretraining {plural(plan.pretrain.steps, 'step')}"
    parts = [part for part in (pretrain, f"fine-tuning {plural(steps, 'step')}") if part]
    counts = [
        f"{what} {', '.join(map(str, numbers))}"
        for what, numbers in (
            ("labelled scans", plan.labels),
            ("frozen with", plan.frozen_labels),
            ("seeds", plan.seeds),
        )
        if numbers
    ]
    return [f"Budget: {', '.join(parts)}", f"Grid: {'; '.join(counts)}"]


def _pretraining_lines(plan: Plan, cases: Cases) -> list[str]:
    rows, left_out = scans_to_pretrain(plan, cases.test)
    kept = len(usable(rows))
    lines = [f"Pretraining on {plural(kept, 'scan')}"]
    if left_out:
        images = plural(len(left_out), "image")
        lines[0] += f", without {images} of test cases ({', '.join(sorted(left_out.values()))})"
    if kept < len(rows):
        lines.append(f"Of {len(rows):,} series {kept:,} can be used. {refusals(rows)}")
    return lines


def _phantom_lines(plan: Plan, found: Sequence[Start]) -> list[str]:
    """As `_grid_lines`, before there is any case."""
    assert plan.data.phantoms is not None, "asked for those alone"
    for labels in (*plan.labels, *plan.frozen_labels):
        scan_count(labels, available=plan.data.phantoms.train)
    pretrained = sum(start.pretrain is not None for start in found)
    each = len(plan.seeds) if plan.pretrain is not None and plan.pretrain.each_seed else 1
    sizes = len(plan.labels) + len(plan.frozen_labels)
    return [_total(pretrained * each, len(found) * sizes * len(plan.seeds))]


def _grid_lines(cases: Cases, grid: Sequence[Arm]) -> list[str]:
    parts = [f"{name} {', '.join(c.id for c in found) or 'none'}"
             for name, found in cases.parts.items()]  # fmt: skip
    pretrainings = {arm.pretraining.key for arm in grid if arm.pretraining is not None}
    total = f"{_total(len(pretrainings), len(grid))}; key {plan_key(grid)}"
    return [*(f"Cases: {part}" for part in parts), total]


def _total(pretrainings: int, arms: int) -> str:
    return f"{plural(pretrainings, 'pretraining')}, {plural(arms, 'arm')}"
