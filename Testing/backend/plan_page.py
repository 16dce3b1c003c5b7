"""The fields of a benchmark's plan for docs/benchmark.md, from the words beside them in plan.py."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "backend" / "benchmark" / "plan.py"
SECTIONS = {
    "Plan": "",
    "DataPlan": "data.",
    "PhantomPlan": "data.phantoms.",
    "PretrainPlan": "pretrain.",
    "FinetunePlan": "finetune.",
    "Entry": "entries[].",
}


def docs_rows() -> list[str]:
    classes = {
        node.name: node
        for node in ast.parse(SOURCE.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    rows = ["| field | what |", "|---|---|"]
    for name, prefix in SECTIONS.items():
        for field, needed, words in _fields(classes[name]):
            mark = " (needed)" if needed else ""
            rows.append(f"| `{prefix}{field}`{mark} | {' '.join(words.split())} |")
    return rows


def _fields(node: ast.ClassDef) -> list[tuple[str, bool, str]]:
    found = []
    for field, words in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            told = words.value if isinstance(words, ast.Expr) else None
            if isinstance(told, ast.Constant):
                found.append((field.target.id, field.value is None, str(told.value)))
    return found
