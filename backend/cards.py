"""What is said of each method: sentences, papers, and where it leaves them. Read from `cards/`."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict

from backend.config import (
    BASELINES,
    PRESETS,
    ConfigT,
    FinetuneConfig,
    PretrainConfig,
    load_config,
    plain_yaml,
    preset_line,
    preset_names,
)


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """Something done otherwise than the paper says, or where the paper says nothing.

    Attributes:
        what: the setting or part.
        paper: what the paper says, with its section, or "not stated".
        here: what is done.
        reason: why.
    """

    what: str
    paper: str
    here: str
    reason: str


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Stated(_Checked):
    """A setting that the paper states; `reasons` by preset, "" for any."""

    what: str
    setting: str
    value: Any
    paper: str
    reasons: Mapping[str, str] = {}


class _Silent(_Checked):
    """What the paper leaves open; `{a.b}` in `here` stands for a setting."""

    what: str
    paper: str = "not stated"
    here: str
    reason: str


class Card(_Checked):
    """What a method is, for those who choose one.

    Attributes:
        clinician: one sentence without jargon.
        engineer: one sentence with it.
        paper: short name, venue and year.
        backbone: the network that is trained.
        kept: what goes on to fine-tuning.
        citations: papers to cite, and where the facts are from.
        stated: settings that the paper states.
        silent: what it leaves open, and what is done.
        always: where the method leaves the paper whatever the settings.
    """

    clinician: str
    engineer: str
    paper: str
    backbone: str
    kept: str
    citations: tuple[str, ...]
    stated: tuple[_Stated, ...] = ()
    silent: tuple[_Silent, ...] = ()
    always: tuple[_Silent, ...] = ()


@cache
def card(method: str) -> Card:
    """The card of a method or of a network that is only trained from scratch.

    Raises:
        UserError: if there is no such method.
    """
    preset_names(method)
    text = files("backend").joinpath("cards", f"{method}.yaml").read_text("utf-8")
    return Card.model_validate(plain_yaml(text))


def card_facts(method: str) -> dict[str, Any]:
    """Name, sentences, presets with their lengths, and papers of a method, ready for JSON."""
    told = card(method)
    lengths = {"finetune": _lengths(FinetuneConfig, method)}
    if method in PRESETS:
        lengths["pretrain"] = _lengths(PretrainConfig, method)
    return {
        "name": method,
        "clinician": told.clinician,
        "engineer": told.engineer,
        "paper": told.paper,
        "backbone": told.backbone,
        "kept": told.kept,
        "presets": list((PRESETS | BASELINES)[method]),
        "lengths": lengths,
        "citations": list(told.citations),
    }


def _lengths(kind: type[ConfigT], method: str) -> dict[str, dict[str, int]]:
    """How long each preset trains: in steps where it states them, else in epochs."""
    found = {}
    for preset in (PRESETS | BASELINES)[method]:
        train = load_config(kind, method=method, preset=preset).train
        steps = train.max_steps
        found[preset] = {"epochs": train.epochs} if steps is None else {"steps": steps}
    return found


def deviations(config: PretrainConfig | FinetuneConfig) -> list[Deviation]:
    """Where settings leave the method's paper, and what was decided where it is silent."""
    told = card(config.method.name)
    # A preset that says nothing of a setting has it, and the reason for it, from its base.
    known = (*preset_line(config.method.name, config.preset), "")
    found = []
    for item in told.stated:
        here = _setting(config, item.setting)
        if _plain(here) != _plain(item.value):
            reason = next((item.reasons[p] for p in known if p in item.reasons), "Set by you.")
            found.append(
                Deviation(what=item.what, paper=item.paper, here=_text(here), reason=reason)
            )
    for entry in (*told.silent, *told.always):
        here = _FORMATTER.format(entry.here, config)
        found.append(Deviation(what=entry.what, paper=entry.paper, here=here, reason=entry.reason))
    return found


def _setting(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = getattr(config, part, None)
    return config


def _plain(value: Any) -> Any:
    """Equal for equal settings, however a file writes them: lists, whole numbers."""
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


class _Formatter(string.Formatter):
    """Fills `{a.b}` with the setting of that path."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        """The setting and its path."""
        del kwargs
        return _setting(args[0], field_name), field_name

    def format_field(self, value: Any, format_spec: str) -> Any:
        """As it reads best, where the text does not say how."""
        return format(value, format_spec) if format_spec else _text(value)


_FORMATTER = _Formatter()
