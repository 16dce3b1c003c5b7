"""What of a finished benchmark is shown to others: plan, tables and pictures, without any path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from backend.benchmark.pictures import convergence_pictures, efficiency_pictures
from backend.benchmark.plan import WORDS_FOR_START, Plan
from backend.benchmark.report import Findings, found_in, start_names
from backend.benchmark.summary import COLUMNS, summary_rows
from backend.benchmark.tables import CURVES, RESULTS, RUNS, csv_text
from backend.charts import svg_file
from backend.config import read_mapping
from backend.errors import UserError
from backend.files import require_file_place, write_text

PLAN_FILE = "plan.yaml"
"""Name of the plan among what is published."""

_PATH = re.compile(
    r"(?:^|[^\w/.])/[\w.-]+/"  # from the root on, but not within a/b/c
    r"|file:/|(?:^|[^:\w])//\w"  # but not https://
    r"|~[\w.-]*/|\.\./"
    r"|[A-Za-z]:[\\/](?!/)|\\\\"
)
"""The beginning of an absolute path, or of one from a home folder or the folder above."""


_TABLES = ("results.csv", "summary.csv", "curves.csv", "runs.csv")
_ELSEWHERE = "Choose another folder, or remove what is there."


def publish(folder: Path, given: Findings) -> None:
    """Write the plan as it was run, its tables and its pictures.

    Raises:
        UserError: naming file and line, before anything is written, if one tells of a folder of
            this machine.
    """
    metric, order = given.plan.metric, start_names(given)
    found = found_in(given)
    pictures = efficiency_pictures(found, metric=metric, order=order)
    pictures |= convergence_pictures(given.curves, order=order)
    files = {
        PLAN_FILE: _plan_text(given.plan),
        "results.csv": csv_text(RESULTS.columns, given.results),
        "summary.csv": csv_text(COLUMNS, summary_rows(found)),
        "curves.csv": csv_text(CURVES.columns, given.curves),
        "runs.csv": csv_text(RUNS.columns, given.runs),
        **{name: svg_file(picture) for name, picture in pictures.items()},
    }
    require_no_paths(files)
    for name, text in files.items():
        write_text(folder / name, text)


def require_free(folder: Path, plan: Plan) -> None:
    """Refuse, before the work, what could not be published after it.

    That is a folder that holds something else than an earlier publication of the same plan, and a
    plan that tells of a folder of this machine.

    Raises:
        UserError: naming the file and line, or the folder.
    """
    require_no_paths({PLAN_FILE: _plan_text(plan)})
    for name in (PLAN_FILE, *_TABLES):
        require_file_place(folder / name)
    at = folder.resolve()
    for place in (at, *at.parents):
        if (place / "locks").is_dir() and (place / "results.csv").is_file():
            raise UserError(
                f"--publish {folder}: {place} is where a benchmark works, whose tables go on from "
                "more than is published.",
                "Choose another folder.",
            )
    earlier = folder / PLAN_FILE
    if not earlier.exists():
        tables = [name for name in _TABLES if (folder / name).exists()]
        if not tables:
            return
        raise UserError(f"--publish {folder}: {tables[0]} there is of no plan.", _ELSEWHERE)
    if lacking := [name for name in _TABLES if not (folder / name).exists()]:
        raise UserError(
            f"--publish {folder}: {PLAN_FILE} is there without {lacking[0]}, so it is a plan of "
            "yours and no earlier publication.",
            _ELSEWHERE,
        )
    told = read_mapping(earlier)
    if told.get("name") != plan.name:
        raise UserError(
            f"--publish {folder}: {PLAN_FILE} there is {str(told.get('name'))[:60]!r}, not "
            f"{plan.name!r}.",
            _ELSEWHERE,
        )


def _plan_text(plan: Plan) -> str:
    return yaml.safe_dump(
        portable(plan), sort_keys=False, allow_unicode=True, default_flow_style=None
    )


def portable(plan: Plan) -> dict[str, Any]:
    """A plan as plain values, its paths without the folders around them."""

    def name(path: str) -> str:
        return Path(path).name

    plain: dict[str, Any] = TypeAdapter(Plan).dump_python(plan, mode="json", exclude_defaults=True)
    if "labelled" in plain["data"]:
        plain["data"]["labelled"] = name(plain["data"]["labelled"])
    if "data" in plain.get("pretrain", {}):
        plain["pretrain"]["data"] = [name(path) for path in plain["pretrain"]["data"]]
    for entry in plain["entries"]:
        if entry.get("start", WORDS_FOR_START[0]) not in WORDS_FOR_START:
            entry["start"] = name(entry["start"])
    return plain


def require_no_paths(files: Mapping[str, str]) -> None:
    """Refuse texts that tell of a folder of this machine.

    Raises:
        UserError: naming file and line.
    """
    for name, text in files.items():
        for number, line in enumerate(text.splitlines(), start=1):
            if _PATH.search(line):
                raise UserError(
                    f"{name}, line {number}: {line.strip()[:80]!r} tells of a folder of this "
                    "machine.",
                    "Take it out of the plan, and publish again.",
                )
