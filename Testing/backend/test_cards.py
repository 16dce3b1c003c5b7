"""README and docs say of the methods what the program says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from backend.cards import card
from backend.config import BASELINES, PRESETS, PretrainConfig, load_config
from backend.methods import build_method
from backend.models.segmentation import parameter_count

ROOT = Path(__file__).parents[2]


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


def block(path: str, name: str) -> tuple[str, str]:
    """The file, and what stands between its two marks."""
    text = (ROOT / path).read_text("utf-8")
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->", text, re.S)
    assert found is not None, f"{path} lacks the mark <!-- {name} -->"
    return text, found[1]


@pytest.mark.parametrize(
    ("path", "name", "rows"),
    [
        ("README.md", "methods", readme_rows),
        ("docs/methods.md", "methods", docs_rows),
        ("docs/methods.md", "baselines", baseline_rows),
    ],
)
def test_tables_say_what_the_cards_say(path: str, name: str, rows: object) -> None:
    assert callable(rows)
    wanted = "\n".join(rows()) + "\n"
    _, found = block(path, name)
    assert found == wanted, f"{path} between the marks of {name} should be:\n{wanted}"


@pytest.mark.parametrize("name", PRESETS)
def test_every_method_has_a_page_that_cites_its_papers(name: str) -> None:
    page = (ROOT / "docs" / f"{name}.md").read_text("utf-8")
    assert f"--method {name}" in page
    for text in card(name).citations:
        identifier = re.search(r"doi:\S+|arXiv:[\d.]+\d|\d{4}\.\d{4,5}", text)
        if identifier is not None:
            assert identifier[0].rstrip(".").removeprefix("arXiv:") in page, identifier[0]
