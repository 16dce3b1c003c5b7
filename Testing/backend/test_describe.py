"""What `backend describe` tells people is what it tells programs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import REPOSITORY, backend_here, environment

from backend.cards import card
from backend.config import (
    BASELINES,
    PRESETS,
    FinetuneConfig,
    PretrainConfig,
    load_config,
    to_plain,
)
from backend.cost import step_cost
from backend.describe import describe, measured, show_description, summary
from backend.methods import build_method
from backend.models.segmentation import build_segmentation, encoder_of, parameter_count
from backend.provenance import segmentation_architecture

QUICK = ("smit", "glmae", "pgl", "mae3d")
"""Methods that are looked at each time; others are slow."""


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
    assert names == ["method", "preprocess", "views", "data", "train", "probe"]
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


def test_what_one_asks_first_stands_first(text: str, facts: dict[str, Any]) -> None:
    told, cost, run = section(text, "In short"), facts["cost"], facts["cost"]["run"]
    assert told["network"] == f"{facts['parameters']['learned']:,} parameters that learn"
    assert told["memory"] == f"about {cost['memory_mib_fp32']:,} MB"
    assert (
        f" for {run['steps']:,} steps ({run['epochs']:,} epochs, with 100 scans)"
        in (told["whole run"])
    )
    assert run["steps"] == 100 * run["epochs"]
    assert run["seconds"] == pytest.approx(run["steps"] * cost["seconds_per_step_here"], rel=0.01)
    assert text.index("\nIn short\n") < text.index("\nParameters\n")


def test_memory_is_arithmetic_but_for_what_is_told_beside(
    config: PretrainConfig, facts: dict[str, Any]
) -> None:
    cost = facts["cost"]
    assert cost["tensors_mib_fp32"] == round(step_cost(config).peak_bytes / 2**20)
    parts = cost["tensors_mib_fp32"] + cost["gaps_mib"] + cost["program_mib"]
    assert cost["memory_mib_fp32"] == pytest.approx(parts, abs=1)


def test_measuring_takes_real_steps_and_warns_of_nothing(config: PretrainConfig) -> None:
    found = measured(config, steps=1)
    assert found["seconds_per_step"] > 0
    assert f"{found['memory_mb']} MB for a step" in found["text"]


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


METHODS = (
    *("smit", "glmae", "pgl", "mip", "simmim", "fullrec", "ml_mip", "ibot", "dino", "mae3d"),
    *("byol", "simsiam", "mocov3", "pgl_no_flip", "pgl_no_csalign", "pgl_no_align", "simclr"),
    *("swinunetr_trio", "models_genesis", "pcrl", "pcrlv2", "rubik", "rubik_pp", "cpc3d"),
    *("pgl_mip", "spark"),
)
"""The methods that are promised, in their order."""


def test_the_methods_that_are_promised_are_listed_for_programs_and_people() -> None:
    listed = json.loads(backend_here("methods", "--json").out)
    assert [entry["name"] for entry in listed] == list(METHODS)
    for entry in listed:
        assert (*entry["presets"],) == PRESETS[entry["name"]]
        assert entry["citations"] == list(card(entry["name"]).citations)
    text = backend_here("methods").out
    assert re.findall(r"^(\w+)  \(", text, re.M) == [*PRESETS]
    networks = json.loads(backend_here("methods", "--json", "--baselines").out)
    assert [entry["name"] for entry in networks] == [*BASELINES]


@pytest.mark.parametrize(
    "method",
    # To count what a step costs takes seconds each.
    [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in PRESETS],
)
def test_parameters_are_those_of_the_networks_that_are_built(method: str) -> None:
    facts = json.loads(
        backend_here("describe", "--method", method, "--preset", "tiny", "--json").out
    )
    config = load_config(PretrainConfig, method=method, preset="tiny")
    built = build_method(config.method, epochs=1)
    learned = sum(p.numel() for p in built.parameters() if p.requires_grad)
    counts = facts["parameters"]
    assert counts["encoder"] == parameter_count(built.encoder)
    assert counts["learned"] == learned
    tuned = load_config(FinetuneConfig, method=method, preset="tiny")
    network = build_segmentation(segmentation_architecture(tuned, classes=14))
    assert counts["segmentation_network"] == parameter_count(network)
    assert facts["cost"]["gflop_per_step"] > 0
    assert facts["cost"]["memory_mib_fp32"] > 0


def test_every_number_follows_from_the_settings_that_are_asked_for() -> None:
    narrow = ("--set", "method.encoder.embed_dim=8", "--set", "method.encoder.heads=[1, 2, 2]")
    words = ("describe", "--method", "smit", "--preset", "tiny", "--json")
    done = backend_here(*words, *narrow)
    assert "Counting what a step of smit tiny costs" in done.err
    facts = json.loads(done.out)
    overrides = narrow[1::2]
    tuned = load_config(FinetuneConfig, method="smit", preset="tiny", overrides=overrides)
    with torch.device("meta"):
        network = build_segmentation(segmentation_architecture(tuned, classes=14))
    counts = facts["parameters"]
    assert counts["encoder"] == parameter_count(encoder_of(network))
    assert counts["segmentation_network"] == parameter_count(network)
    assert counts["segmentation_decoder"] == parameter_count(network) - counts["encoder"]


def test_a_network_without_pretraining_is_described_with_its_settings() -> None:
    words = ("describe", "--method", "segresnet", "--preset", "tiny")
    sizes = []
    for width in (8, 16):
        done = backend_here(*words, "--json", "--set", f"method.encoder.width={width}")
        facts = json.loads(done.out)
        assert facts["config"]["method"]["encoder"]["width"] == width
        sizes.append(facts["parameters"]["segmentation_network"])
    assert sizes[1] > 3 * sizes[0]
    text = backend_here(*words).out
    assert text.startswith("segresnet tiny\n")
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("describe", "--method", "unetr", "--measure"), "--measure"),
        (("methods", "--baselines", "--measure"), "--measure"),
        (("describe", "--diff", "smit", "mip", "--set", "train.seed=1"), "--diff"),
        (("describe", "--diff", "smit", "mip", "--measure"), "--diff"),
        (("describe",), "--method"),
    ],
)
def test_what_would_be_left_out_in_silence_is_refused(words: tuple[str, ...], told: str) -> None:
    done = backend_here(*words)
    assert done.code == 2
    assert told in done.err


def test_pretraining_what_is_only_trained_on_labels_is_refused_with_the_cure(
    tmp_path: Path,
) -> None:
    for name in BASELINES:
        words = ("--method", name, "--data", tmp_path, "--output", tmp_path / "run")
        done = backend_here("pretrain", *words)
        assert done.code == 2
        assert f"{name} is only trained on labels" in done.err
        assert f"backend finetune --method {name}" in done.err
    assert list(tmp_path.iterdir()) == []


def test_the_difference_of_two_recipes_is_told_setting_by_setting(tmp_path: Path) -> None:
    names = ("pgl/tiny", "byol/tiny")
    told = json.loads(backend_here("describe", "--diff", *names, "--json").out)
    assert told == {
        "method.name": dict(zip(names, ("pgl", "byol"), strict=True)),
        "method.features": dict(zip(names, ("map", "pooled"), strict=True)),
    }
    headline, empty, *table = backend_here("describe", "--diff", *names).out.splitlines()
    assert (headline, empty) == ("Settings in which pgl tiny and byol tiny differ", "")
    assert [line.split() for line in table] == [
        ["setting", *names],
        ["method.features", "map", "pooled"],
        ["method.name", "pgl", "byol"],
    ]
    # A run is compared like a preset; no preset means the first.
    config = load_config(PretrainConfig, method="pgl", overrides=["train.seed=7"])
    (tmp_path / "config.json").write_text(json.dumps({"config": to_plain(config)}))
    with_run = json.loads(backend_here("describe", "--diff", tmp_path, "pgl", "--json").out)
    assert with_run == {"train.seed": {str(tmp_path): "7", "pgl": "0"}}
    assert backend_here("describe", "--diff", "pgl", "pgl/paper").out == (
        "pgl and pgl/paper are the same.\n"
    )
    first = backend_here("describe", "--diff", "smit", "mip").out.splitlines()[0]
    assert first == "Settings in which smit released and mip paper differ"
    unknown = backend_here("describe", "--diff", "pgl", "nothing")
    assert unknown.code == 2
    assert "'nothing' is neither a method nor a run folder" in unknown.err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "backend", "methods"],
        stdout=writing,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        env=environment(PYTHONPATH=str(REPOSITORY)),
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
