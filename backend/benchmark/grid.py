"""The arms of a benchmark: every start with every number of labels and seed, on equal terms."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from backend.benchmark.cases import Cases, label_set, scan_count
from backend.benchmark.plan import Entry, Plan, Settings
from backend.benchmark.tables import END_TO_END, FROZEN
from backend.config import (
    FinetuneConfig,
    PretrainConfig,
    first_difference,
    load_config,
    to_plain,
)
from backend.errors import UserError
from backend.preparation import INIT_FILES, encoder_header, require_same_encoder
from backend.provenance import encoder_arguments
from backend.weights import resolve_weights

RANDOM = "random"

_BUDGET = ("augment", "loss", "crop", "crops_per_scan", "foreground")
_GRID = ("spacing_mm", "orientation", "body_margin_mm", "body_threshold_hu")
"""Of the preprocessing; the grey values that a network is shown belong to its own recipe."""

_TRAINED = ("max_steps", "batch_size", "precision")
_KEY_LETTERS = 12
_SELDOM = 1_000_000
"""Epochs between validations that never come up: then each run is judged five times, evenly."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A network and where its encoder starts.

    Attributes:
        entry: of the plan; that of a control has random weights.
        network: name of the network; starts with the same one are compared with its control.
        finetune: resolved, the same in all arms of this start but for seed and freezing.
        pretrain: resolved, or None where nothing is pretrained.
        weights: a run folder or weights file that is given.
    """

    entry: Entry
    network: str
    finetune: FinetuneConfig
    pretrain: PretrainConfig | None = None
    weights: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """One pretraining, whose encoder several arms start from."""

    start: Start
    seed: int
    key: str

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{_slug(self.start.entry.name)}_seed{self.seed}_{self.key[:6]}"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One fine-tuning and its judgement.

    Attributes:
        start: network and weights.
        cases: names of those it learns from.
        seed: of label set, crops and decoder.
        frozen: whether the encoder stays as it is.
        key: hash of all in the plan that decides its numbers.
        pretraining: what comes before it, if anything.
    """

    start: Start
    cases: tuple[str, ...]
    seed: int
    frozen: bool
    key: str
    pretraining: Pretraining | None

    @property
    def mode(self) -> str:
        """As it stands in tables."""
        return FROZEN if self.frozen else END_TO_END

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        kind = "_frozen" * self.frozen
        name = _slug(self.start.entry.name)
        return f"{name}_{len(self.cases)}_seed{self.seed}{kind}_{self.key[:6]}"

    def __str__(self) -> str:
        """As it is told while it runs."""
        return f"{self.start.entry.name}, {_scans(len(self.cases))}, seed {self.seed}, {self.mode}"


def control_name(network: str) -> str:
    """Name of the start at random weights of a network."""
    return f"{RANDOM} {network}"


def _scans(count: int) -> str:
    return f"{count} labelled scan{'s' * (count != 1)}"


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-").lower()


_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def settings_texts(settings: Mapping[str, Any], *, prefix: str = "") -> Iterator[str]:
    """Nested settings as `key=value` texts."""
    for key, value in settings.items():
        if not _NAME.fullmatch(str(key)):
            raise UserError(
                f"{prefix}{reprlib.repr(key)} is no name of a setting.",
                "`backend describe` prints the names.",
            )
        if isinstance(value, Mapping):
            yield from settings_texts(value, prefix=f"{prefix}{key}.")
        else:
            try:
                yield f"{prefix}{key}={json.dumps(value)}"
            except TypeError:
                raise UserError(
                    f"{prefix}{key}: {reprlib.repr(value)} is neither number nor text.",
                    "Write a text in quotes.",
                ) from None


_FIXED_PRETRAINING = {
    "train.max_steps": "Set pretrain.steps, the same for all.",
    "train.seed": "Set pretrain.seed, or pretrain.each_seed: true.",
}
_FIXED_FINETUNING = {
    "train.max_steps": "Set finetune.steps, the same for all.",
    "train.seed": "Set seeds.",
    "train.preview_every_steps": "Leave it out: pictures are made once, at the end.",
    "validation_fraction": "Name the scans under data.validation.",
    "validate_every_epochs": "Leave it out: curves are drawn by data.validation, at five points.",
    "freeze_encoder": "Set frozen_labels.",
}
"""Settings that a benchmark fixes itself, and what to set in their place."""


def pretrain_texts(plan: Plan, entry: Entry) -> tuple[str, ...]:
    """Settings of a pretraining over its preset, but for the seed.

    Raises:
        UserError: naming setting and value, if one is what a benchmark fixes itself.
    """
    assert plan.pretrain is not None, "the plan is checked"
    layers = {
        "pretrain.settings": plan.pretrain.settings,
        "network": entry.network,
        "pretrain": entry.pretrain,
    }
    _refuse_fixed(layers, _FIXED_PRETRAINING)
    return _texts({"train": {"max_steps": plan.pretrain.steps}}, *layers.values())


def finetune_texts(plan: Plan, entry: Entry) -> tuple[str, ...]:
    """Settings of a fine-tuning over its preset, but for seed and freezing.

    Raises:
        UserError: naming setting and value, if one is what a benchmark fixes itself.
    """
    steps = plan.finetune.steps
    fixed = {
        "train": {"max_steps": steps, "preview_every_steps": steps},
        # The plan divides the cases, and the last weights are judged: nothing is chosen.
        "validation_fraction": 0,
        "validate_every_epochs": _SELDOM,
    }
    layers = {
        "finetune.settings": plan.finetune.settings,
        "network": entry.network,
        "finetune": entry.finetune,
    }
    _refuse_fixed(layers, _FIXED_FINETUNING)
    return _texts(fixed, *layers.values())


def _refuse_fixed(layers: Mapping[str, Settings], fixed: Mapping[str, str]) -> None:
    """Refuse what would be overruled in silence, or give one entry more than another."""
    for layer, settings in layers.items():
        # As texts, in which a name with dots in it is what it means.
        for text in settings_texts(settings):
            name, _, value = text.partition("=")
            if name.startswith("probe."):
                raise UserError(f"{layer}: {name}: a benchmark asks no probes.", "Leave it out.")
            if cure := fixed.get(name):
                raise UserError(
                    f"{layer}: {name} = {reprlib.repr(value)} is what the benchmark fixes.",
                    cure,
                )


def _texts(*layers: Settings) -> tuple[str, ...]:
    """What later layers say stands last, and so holds, written with dots or nested."""
    return tuple(text for layer in layers for text in settings_texts(layer))


def starts(plan: Plan) -> tuple[Start, ...]:
    """The entries of a plan, resolved, network by network; the control of each comes first.

    An entry at random weights is that control, and no start beside it.

    Raises:
        UserError: naming entry and setting, if two entries would not meet on equal terms; naming
            both, if they are one under two names.
    """
    resolved = [_resolved(plan, entry) for entry in plan.entries]
    _require_equal(
        resolved,
        "finetune",
        _budget,
        "all entries have the same budget, crops, grid and augmentation",
    )
    pretrained = [start for start in resolved if start.pretrain is not None]
    _require_equal(
        pretrained, "pretrain", _pretraining_budget, "all pretrainings have the same budget"
    )
    found: list[Start] = []
    for name, members in _networks(resolved).items():
        _require_equal(
            members, "finetune", _recipe, "entries with the same network are fine-tuned alike"
        )
        first = members[0]
        entry = replace(first.entry, name=control_name(name), start=RANDOM)
        found.append(Start(entry=entry, network=name, finetune=first.finetune))
        found += [replace(m, network=name) for m in members if m.entry.start != RANDOM]
    _require_different(found)
    return tuple(found)


def _require_different(found: Sequence[Start]) -> None:
    """Refuse two starts that would have the same keys, so that one would pass for the other."""
    first: dict[str, str] = {}
    for start in found:
        pretrain = None if start.pretrain is None else to_plain(start.pretrain)
        decides = {
            "pretrain": pretrain,
            "finetune": to_plain(start.finetune),
            "encoder": _origin(start, None),
        }
        other = first.setdefault(digest(decides), start.entry.name)
        if other != start.entry.name:
            raise UserError(
                f"Entries {other!r} and {start.entry.name!r} are the same in all but their name.",
                "Leave one of them out, or change what shall tell them apart.",
            )


def _resolved(plan: Plan, entry: Entry) -> Start:
    pretrain = weights = None
    below: tuple[str, ...] = ()
    try:
        if entry.start == "pretrain":
            pretrain = load_config(
                PretrainConfig,
                method=entry.method,
                preset=entry.preset,
                overrides=pretrain_texts(plan, entry),
            )
            below = (f"preprocess.orientation={pretrain.preprocess.orientation}",)
        elif entry.start != RANDOM:
            weights = Path(entry.start)
            header = encoder_header(weights)
            below = (f"preprocess.orientation={header.preprocessing['orientation']}",)
        finetune = load_config(
            FinetuneConfig,
            method=entry.method,
            preset=entry.preset,
            below=below,
            overrides=finetune_texts(plan, entry),
        )
        if weights is not None:
            require_same_encoder(weights, header, finetune.method)
        if pretrain is not None:
            _require_one_encoder(pretrain, finetune)
    except UserError as error:
        raise UserError(f"Entry {entry.name!r}: {error.message}", error.hint) from None
    return Start(entry=entry, network="", finetune=finetune, pretrain=pretrain, weights=weights)


def _require_one_encoder(pretrain: PretrainConfig, finetune: FinetuneConfig) -> None:
    different = first_difference(
        encoder_arguments(pretrain.method), encoder_arguments(finetune.method)
    )
    if different:
        raise UserError(
            f"its pretraining has an encoder with {different} in fine-tuning.",
            "Set what both share under network.",
        )


def _require_equal(found: Sequence[Start], part: str, terms: Any, rule: str) -> None:
    """Refuse the first start whose terms of a part of the plan differ from those of the first."""
    for start in found[1:]:
        own, first = terms(start), terms(found[0])
        different = first_difference(own, first)
        if different:
            raise UserError(
                f"Entry {start.entry.name!r} has {different} as {found[0].entry.name!r}: {rule}.",
                f"Set it for all: in the plan under {part}, settings: "
                f"{json.dumps(_others(own, first))}.",
            )


def _others(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """All that differs, nested as in a plan, with the values of the second."""
    found: dict[str, Any] = {}
    for key, value in ours.items():
        other = theirs.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            found |= {key: inner} if (inner := _others(value, other)) else {}
        elif value != other:
            found[key] = other
    return found


def _budget(start: Start) -> dict[str, Any]:
    preprocess = to_plain(start.finetune)["preprocess"]
    return _terms(start.finetune, _BUDGET) | {"preprocess": {k: preprocess[k] for k in _GRID}}


def _pretraining_budget(start: Start) -> dict[str, Any]:
    assert start.pretrain is not None, "only those are compared"
    return _terms(start.pretrain, ())


def _terms(config: PretrainConfig | FinetuneConfig, keys: Sequence[str]) -> dict[str, Any]:
    plain = to_plain(config)
    return {k: plain[k] for k in keys} | {"train": {k: plain["train"][k] for k in _TRAINED}}


def _recipe(start: Start) -> dict[str, Any]:
    """All of a fine-tuning but which method it is named after."""
    plain = to_plain(start.finetune)
    return {k: v for k, v in plain.items() if k not in ("method", "preset")}


def _networks(found: Sequence[Start]) -> dict[str, list[Start]]:
    """Starts by their network, each named after its kind of encoder."""
    same: dict[str, list[Start]] = {}
    for start in found:
        decoder = to_plain(start.finetune)["decoder"]
        network = json.dumps([encoder_arguments(start.finetune.method), decoder], sort_keys=True)
        same.setdefault(network, []).append(start)
    kinds = [members[0].finetune.method.encoder.kind for members in same.values()]
    named = {}
    for number, members in enumerate(same.values()):
        kind = kinds[number]
        before = kinds[:number].count(kind)
        named[f"{kind} {before + 1}" if kinds.count(kind) > 1 else kind] = members
    return named


def arms(plan: Plan, found: Sequence[Start], cases: Cases) -> tuple[Arm, ...]:
    """The grid, in the order in which it is worked off: seed by seed, few labels first.

    Raises:
        UserError: if label sets or numbers of labels do not fit the cases.
    """
    modes = ((False, plan.labels), (True, plan.frozen_labels))
    sizes = [
        (frozen, scan_count(labels, available=len(cases.train)))
        for frozen, counts in modes
        for labels in counts
    ]
    if twice := next((size for size in sizes if sizes.count(size) > 1), None):
        raise UserError(
            f"labels: two of them mean {_scans(twice[1])}.", "Leave one of the two out."
        )
    return tuple(
        _arm(plan, start, cases, count=count, seed=seed, frozen=frozen)
        for seed in plan.seeds
        for frozen, count in sizes
        for start in found
    )


def _arm(plan: Plan, start: Start, cases: Cases, *, count: int, seed: int, frozen: bool) -> Arm:
    names = label_set(plan, cases, seed=seed, count=count)
    pretraining = None if start.pretrain is None else _pretraining(plan, start, cases, seed=seed)
    decides = {
        "finetune": to_plain(start.finetune),
        "encoder": _origin(start, pretraining),
        "seed": seed,
        "frozen": frozen,
        "train": names,
        "validation": [case.id for case in cases.validation],
        "test": [case.id for case in cases.test],
        "labels": [[label.value, label.name] for label in cases.labels],
        "phantoms": plain_phantoms(plan),
        "threads": plan.threads,
    }
    return Arm(
        start=start,
        cases=names,
        seed=seed,
        frozen=frozen,
        key=digest(decides),
        pretraining=pretraining,
    )


def _pretraining(plan: Plan, start: Start, cases: Cases, *, seed: int) -> Pretraining:
    assert plan.pretrain is not None, "the plan is checked"
    assert start.pretrain is not None, "asked for those alone"
    own = seed if plan.pretrain.each_seed else plan.pretrain.seed
    decides = {
        "pretrain": to_plain(start.pretrain),
        "seed": own,
        # The folders around them may be others on another machine.
        "data": [Path(path).name for path in plan.pretrain.data],
        "phantoms": plain_phantoms(plan),
        "without": [] if plan.pretrain_on_test else [case.id for case in cases.test],
        "threads": plan.threads,
    }
    return Pretraining(start=start, seed=own, key=digest(decides))


def plain_phantoms(plan: Plan) -> dict[str, Any] | None:
    """The phantoms of a plan as plain values; another count of any part makes other patients."""
    return None if plan.data.phantoms is None else asdict(plan.data.phantoms)


def _origin(start: Start, pretraining: Pretraining | None) -> str:
    if pretraining is not None:
        return pretraining.key
    if start.weights is None:
        return RANDOM
    with resolve_weights(start.weights, prefer=INIT_FILES).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value: Mapping[str, Any]) -> str:
    """A short name for plain values, the same for the same ones."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LETTERS]


def plan_key(grid: Sequence[Arm]) -> str:
    """Hash of all that decides any number of a benchmark."""
    return digest({"arms": [arm.key for arm in grid]})
