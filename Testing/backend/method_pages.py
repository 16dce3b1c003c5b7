"""What README and docs say of methods and benchmarks, from `backend describe` and their tables.

`python Testing/backend/method_pages.py` writes it anew; test_cards.py holds the files to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import calibration
import plan_page
import published_results
import torch

from backend.cards import card, deviations
from backend.config import BASELINES, PRESETS, PretrainConfig, load_config
from backend.describe import masking, parameters
from backend.methods import build_method
from backend.models.segmentation import parameter_count

ROOT = Path(__file__).parents[2]
PROBE = json.loads((ROOT / "Testing" / "benchmarks" / "probe.json").read_text("utf-8"))
"""What test_learned_something.py has measured."""


def encoder_size(method: str) -> int:
    config = load_config(PretrainConfig, method=method)
    with torch.device("meta"):
        return parameter_count(build_method(config.method, epochs=1).encoder)


def readme_rows() -> list[str]:
    rows = ["| method | in one sentence | network |", "|---|---|---|"]
    for name in PRESETS:
        told = card(name)
        rows.append(f"| [`{name}`](docs/{name}.md) | {told.clinician} | {told.backbone} |")
    return rows


def docs_rows() -> list[str]:
    rows = [
        "| method | what it does | from | encoder parameters | kept | presets |",
        "|---|---|---|---|---|---|",
    ]
    for name, presets in PRESETS.items():
        told = card(name)
        rows.append(
            f"| [`{name}`]({name}.md) | {told.engineer} | {told.paper} | {encoder_size(name):,} "
            f"| {told.kept} | {', '.join(presets)} |"
        )
    return rows


def baseline_rows() -> list[str]:
    rows = ["| network | what it is | from | presets |", "|---|---|---|---|"]
    for name, presets in BASELINES.items():
        told = card(name)
        rows.append(f"| `{name}` | {told.engineer} | {told.paper} | {', '.join(presets)} |")
    return rows


def page_rows(name: str) -> list[str]:
    """The facts at the end of a method's page: sizes, masks, deviations, papers."""
    presets = PRESETS[name]
    configs = {p: load_config(PretrainConfig, method=name, preset=p) for p in presets}
    counts = {p: parameters(config) for p, config in configs.items()}
    first = configs[presets[0]]
    rows = [
        "## In numbers",
        "",
        f"`backend pretrain --method {name} --preset {presets[0]}`; `backend describe --method "
        f"{name}` prints this and all settings.",
        "",
        f"| parameters | {' | '.join(f'`{p}`' for p in presets)} |",
        f"|---|{'---|' * len(presets)}",
    ]
    for part in dict.fromkeys(part for table in counts.values() for part in table):
        cells = (f"{counts[p][part]:,}" if part in counts[p] else "-" for p in presets)
        rows.append(f"| {part.replace('_', ' ')} | {' | '.join(cells)} |")
    masks = {p: masking(config).get("views", {}) for p, config in configs.items()}
    for view in dict.fromkeys(view for table in masks.values() for view in table):
        cells = (masks[p][view]["text"] if view in masks[p] else "-" for p in presets)
        rows.append(f"| {view} views | {' | '.join(cells)} |")
    rows += ["", f"## Where `{presets[0]}` leaves the paper, or the paper is silent", ""]
    for item in deviations(first):
        rows.append(f"- **{item.what}**: {item.here} (paper: {item.paper}). {item.reason}")
    return [
        *rows,
        *measured_rows(name),
        "",
        "## Papers",
        "",
        *(f"- {text}" for text in card(name).citations),
    ]


def probed(runs: list[dict[str, Any]], weights: str, features: str) -> float:
    """Mean of the seeds."""
    return mean(run[weights][features] for run in runs)


def measured_rows(name: str) -> list[str]:
    """What the preset `tiny` learnt from phantoms, said of each method alike."""
    if name not in PROBE:
        return []
    runs = PROBE[name]
    random, learnt = (probed(runs, weights, "all_maps") for weights in ("random", "pretrained"))
    seeds = f"mean of {len(runs)} seeds" if len(runs) > 1 else "one seed"
    verdict = "" if learnt > random else " Here it did not learn more than random weights know."
    return [
        "",
        "## What was measured",
        "",
        f"A linear probe on frozen features, preset `tiny`, phantoms, {seeds}: balanced accuracy "
        f"{learnt:.3f} after {runs[0]['steps']:,} steps of pretraining, {random:.3f} with random "
        f"weights ([how](evidence.md#does-pretraining-make-features-know-more)).{verdict}",
    ]


def probe_rows() -> list[str]:
    rows = [
        "| method | seeds | steps | random weights | pretrained | deepest: random | pretrained |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in PRESETS:
        runs = PROBE.get(name)
        if runs is None:
            rows.append(f"| [`{name}`]({name}.md) | not probed | | | | | |")
            continue
        cells = (
            f"{probed(runs, weights, features):.3f}"
            for features in ("all_maps", "deepest_map")
            for weights in ("random", "pretrained")
        )
        rows.append(
            f"| [`{name}`]({name}.md) | {len(runs)} | {runs[0]['steps']:,} | {' | '.join(cells)} |"
        )
    return rows


Rows = Callable[[], list[str]]
BLOCKS: list[tuple[str, str, Rows]] = [
    ("README.md", "methods", readme_rows),
    ("README.md", "benchmarks", published_results.readme_rows),
    ("docs/methods.md", "methods", docs_rows),
    ("docs/methods.md", "baselines", baseline_rows),
    ("docs/evidence.md", "probe", probe_rows),
    ("docs/benchmark.md", "plan", plan_page.docs_rows),
    ("docs/benchmark.md", "calibration", calibration.docs_rows),
    *((f"docs/{name}.md", "facts", lambda name=name: page_rows(name)) for name in PRESETS),
]
"""File, name of the block's marks, and what stands between them."""


def between_marks(path: str, name: str) -> str:
    text = (ROOT / path).read_text("utf-8")
    found = re.search(_pattern(name), text, re.S)
    assert found is not None, f"{path} lacks the marks <!-- {name} --> and <!-- end of {name} -->"
    return found[1]


def _pattern(name: str) -> str:
    return rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->"


def write_all() -> None:
    for path, name, rows in BLOCKS:
        text = (ROOT / path).read_text("utf-8")
        block = f"<!-- {name} -->\n" + "\n".join(rows()) + f"\n<!-- end of {name} -->"
        new, count = re.subn(_pattern(name), lambda _, block=block: block, text, flags=re.S)
        (ROOT / path).write_text(new if count else f"{text.rstrip()}\n\n{block}\n", "utf-8")


if __name__ == "__main__":
    write_all()
