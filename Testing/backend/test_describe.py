"""What `backend describe` tells people is what it tells programs."""

from __future__ import annotations

import re
from typing import Any

import pytest

from backend.config import PretrainConfig, load_config
from backend.describe import describe, show_description, summary


@pytest.fixture(scope="module")
def config() -> PretrainConfig:
    return load_config(
        PretrainConfig,
        method="smit",
        preset="tiny",
        # Ones and zeros, which Python takes for true and false; numbers that rounding would change.
        overrides=[
            *("train.seed=1", "train.batch_size=1", "train.clip_norm=null", "data.workers=0"),
            *("train.learning_rate=1.23456789e-5", "method.head.hidden=8"),
        ],
    )


@pytest.fixture(scope="module")
def facts(config: PretrainConfig) -> dict[str, Any]:
    return describe(config)


@pytest.fixture(scope="module")
def text(facts: dict[str, Any]) -> str:
    return summary(facts)


def section(text: str, title: str) -> dict[str, str]:
    """The lines below a title: what stands left and right of two or more spaces."""
    block = text.partition(f"\n{title}\n")[2].partition("\n\n")[0]
    pairs = (re.split(r"  +", line.strip(), maxsplit=1) for line in block.splitlines())
    return dict(pairs)


def test_settings_told_to_people_build_the_same_configuration(
    text: str, config: PretrainConfig
) -> None:
    names = re.findall(r"^Settings of (\w+)$", text, re.M)
    assert names == ["method", "preprocess", "views", "data", "train"]
    told = {k: v for name in names for k, v in section(text, f"Settings of {name}").items()}
    overrides = [f"{name}={value}" for name, value in told.items()]
    assert load_config(PretrainConfig, method="smit", preset="tiny", overrides=overrides) == config


def test_parameters_and_mask_are_the_numbers_given_to_programs(
    text: str, facts: dict[str, Any]
) -> None:
    told = section(text, "Parameters")
    assert {k.replace(" ", "_"): int(v.replace(",", "")) for k, v in told.items()} == (
        facts["parameters"]
    )
    assert facts["mask"]["text"] in text
    lines = text.partition("\nParameters\n")[2].partition("\n\n")[0].splitlines()
    assert len({len(line) for line in lines}) == 1


def test_deviations_are_numbered_and_whole(text: str, facts: dict[str, Any]) -> None:
    block = text.partition("\nDeviations from the paper\n")[2].partition("\n\n")[0]
    numbers = [int(n) for n in re.findall(r"^ *(\d+)\. ", block, re.M)]
    assert numbers == list(range(1, len(facts["deviations"]) + 1))
    flat = " ".join(block.split())
    for item in facts["deviations"]:
        assert f"paper: {item['paper']} here: {item['here']} reason: {item['reason']}" in flat


def test_no_line_is_wider_than_a_screen(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert max(map(len, text.splitlines())) <= 100
    show_description(method="smit", preset="tiny", overrides=[], as_json=False)
    assert capsys.readouterr().out.startswith("smit tiny\n")
