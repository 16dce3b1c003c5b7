"""What is said of each method names settings and presets that there are."""

from __future__ import annotations

import re
import string
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from backend.cards import Card, card, card_facts, deviations
from backend.config import BASELINES, PRESETS, FinetuneConfig, PretrainConfig, load_config
from backend.errors import UserError

KNOWN = PRESETS | BASELINES


def config_of(method: str, preset: str, *overrides: str) -> PretrainConfig | FinetuneConfig:
    kind = FinetuneConfig if method in BASELINES else PretrainConfig
    return load_config(kind, method=method, preset=preset, overrides=overrides)


def has(config: Any, path: str) -> bool:
    """Whether there is such a setting; what lies inside a part that is left out counts as there."""
    for part in path.split("."):
        if config is None:
            return True
        if not hasattr(config, part):
            return False
        config = getattr(config, part)
    return True


def paths_of(told: Card) -> list[str]:
    texts = [entry.here for entry in (*told.silent, *told.always)]
    named = [name for text in texts for _, name, _, _ in string.Formatter().parse(text) if name]
    return [*named, *(item.setting for item in told.stated)]


def test_there_is_a_card_of_everything_and_nothing_else() -> None:
    folder = Path(__file__).parents[2] / "backend" / "cards"
    assert {path.stem for path in folder.iterdir()} == KNOWN.keys()
    with pytest.raises(UserError, match=r"no method 'smot'.*Did you mean 'smit'"):
        card("smot")


@pytest.mark.parametrize("method", KNOWN)
def test_a_card_says_everything_and_names_what_there_is(method: str) -> None:
    told = card(method)
    facts = card_facts(method)
    assert facts["presets"] == list(KNOWN[method])
    for lengths in facts["lengths"].values():
        assert list(lengths) == facts["presets"]
        assert all(value >= 1 for length in lengths.values() for value in length.values())
    for name in ("clinician", "engineer", "paper", "backbone", "kept", "citations"):
        assert facts[name], name
    for name in ("clinician", "engineer"):
        assert facts[name].endswith("."), name
    for preset in KNOWN[method]:
        config = config_of(method, preset)
        assert [path for path in paths_of(told) if not has(config, path)] == []
    for item in told.stated:
        assert item.reasons.keys() <= {*KNOWN[method], ""}, item.what


@pytest.mark.parametrize("method", KNOWN)
def test_every_deviation_of_every_preset_is_told_with_its_reason(method: str) -> None:
    for preset in KNOWN[method]:
        found = deviations(config_of(method, preset))
        for item in found:
            assert all(asdict(item).values()), item
            assert item.reason != "Set by you.", f"{preset}: {item.what}"
            assert "None" not in item.here, item
            assert not re.search(r"(?<!\S)1 epochs", item.here), item


def test_a_setting_of_the_users_own_is_told_as_theirs() -> None:
    before = deviations(config_of("smit", "paper"))
    after = deviations(config_of("smit", "paper", "method.mask_ratio=0.5"))
    (new,) = [item for item in after if item not in before]
    assert (new.what, new.here, new.reason) == ("mask ratio", "0.5", "Set by you.")
    # Whole numbers and lists are equal however they are written.
    same = deviations(config_of("smit", "paper", "method.weight_mip=1", "train.seed=9"))
    assert same == before
