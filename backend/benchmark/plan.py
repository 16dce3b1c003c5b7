"""What a benchmark compares, as its plan file says it; everything wrong with it is refused here.

The docstring under a field is its help. Nothing here imports torch.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from backend.config import explained, merged, parsed_override, read_mapping
from backend.errors import UserError
from backend.settings.common import NUMBER, STRICT, Count, CountFromZero, Fraction

Settings = dict[str, Any]
"""Settings of a run over those of its preset, nested as in a preset's file."""


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        told = {"value": reprlib.repr(twice[0])}
        raise PydanticCustomError("twice", "{value} stands there twice", told)
    return values


_MOST_SCANS = 1_000_000


def _share_or_count(value: Any) -> Any:
    if isinstance(value, str):
        number = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?%", value)
        fits = number is not None and 0 < float(number[1]) <= 100
    else:
        whole = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
        fits = whole and 1 <= value <= _MOST_SCANS
    if not fits:
        raise PydanticCustomError(
            "labels",
            "Input should be a number of scans, 1 or more, or a share above 0% and up to 100%",
        )
    return value


Seed = Annotated[int, Field(ge=0, lt=2**31), NUMBER]
LabelCount = Annotated[int | str, BeforeValidator(_share_or_count)]
"""Labelled scans to learn from, or their share of all there are, such as "10%"."""
# Not with a sign in front, which a spreadsheet takes for a formula.
_Name = Annotated[str, Field(pattern=r"^\w([\w .+\-]{0,38}[\w.+\-])?$")]
_Title = Annotated[str, Field(pattern=r"^[^\s\p{C}][^\p{C}]*$")]
_Path = Annotated[str, Field(min_length=1)]
_Cases = Annotated[tuple[str, ...], AfterValidator(_unique)]
_Counts = Annotated[tuple[LabelCount, ...], AfterValidator(_unique)]
Metric = Literal["dice", "iou", "surface_dice"]

WORDS_FOR_START = ("pretrain", "random")
"""What an entry starts from if not from a path."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Share:
    """A part of the cases, drawn by a seed and their names."""

    share: Annotated[float, Field(gt=0, lt=1), NUMBER]
    """Of the cases that no other part names."""
    seed: Seed
    """Another seed draws others."""


def _kind_of_part(value: Any) -> str:
    return "[share]" if isinstance(value, dict | Share) else "[names]"


# A fault is told of what was meant; a place in brackets is not named to people.
Part = Annotated[
    Annotated[tuple[str, ...], Tag("[names]")] | Annotated[Share, Tag("[share]")],
    Discriminator(_kind_of_part),
]
"""Names of cases or patterns such as "spleen_1*", or a share of them."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PhantomPlan:
    """A cohort of phantoms, made where the benchmark runs."""

    seed: Seed
    """Which patients."""
    unlabelled: Count
    """Scans to pretrain on."""
    train: Count
    """Labelled scans to learn from."""
    validation: CountFromZero = 0
    """Labelled scans for the curves over the steps."""
    test: Count
    """Scans that judge at the end."""
    difficulty: Fraction = 0.0
    """0: as in the demo; 1: hardly any contrast, other shapes, smaller organs."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataPlan:
    """Labelled scans and how they are divided."""

    split_source: Annotated[str, Field(min_length=1)]
    """Who divided the cases: "ours", or where the published division stands."""
    labelled: _Path | None = None
    """A labelled set (see `backend finetune --data`); relative to the plan's folder."""
    cases: tuple[str, ...] = ()
    """Names or patterns of its cases that take part; left out: all."""
    phantoms: PhantomPlan | None = None
    """Phantoms instead of a labelled set; they are divided already."""
    get: str = ""
    """How to get the data."""
    test: Part = ()
    """Cases that judge at the end."""
    validation: Part = ()
    """Cases for the curves over the steps. Nothing is chosen by them."""
    train: Part = ()
    """Cases to learn from; left out: all others."""
    label_sets: dict[Seed, tuple[_Cases, ...]] = Field(default_factory=dict)
    """For each seed its sets of cases to learn from, each part of the next. Left out: drawn."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PretrainPlan:
    """What all pretrainings share."""

    steps: Count
    """Of each pretraining."""
    data: tuple[_Path, ...] = ()
    """Indices or folders of scans, relative to the plan's folder; phantoms bring their own."""
    settings: Settings = Field(default_factory=dict)
    """Over each preset."""
    seed: Seed = 0
    """Of each pretraining."""
    each_seed: bool = False
    """One pretraining for each seed of the plan, not one for all of them."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FinetunePlan:
    """What all fine-tunings share."""

    steps: Count
    """Of each fine-tuning; the last weights are judged."""
    settings: Settings = Field(default_factory=dict)
    """Over each preset."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Entry:
    """A network and where its encoder starts."""

    name: _Name
    """Stands in tables and charts."""
    method: str
    """Pretext method, or a network that is only trained from scratch."""
    preset: str
    """Of the method."""
    start: _Path = "pretrain"
    """pretrain: as the plan says; random: the control alone; else a run folder or weights file."""
    network: Settings = Field(default_factory=dict)
    """Settings of pretraining and fine-tuning alike, such as those of the encoder."""
    pretrain: Settings = Field(default_factory=dict)
    """Settings of its pretraining alone."""
    finetune: Settings = Field(default_factory=dict)
    """Settings of its fine-tunings alone; its learning rate, but never its budget."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Published:
    """A number from a paper, told beside ours and never tested against them."""

    source: str
    what: str
    value: Fraction


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Plan:
    """Everything a benchmark does.

    Each entry starts at its encoder; beside them runs, for each network, a control that starts at
    random weights.
    """

    name: _Title
    """Heads the report."""
    data: DataPlan
    finetune: FinetunePlan
    entries: Annotated[tuple[Entry, ...], Field(min_length=1)]
    labels: _Counts = ()
    """How many labelled scans are learnt from, end to end."""
    frozen_labels: _Counts = ()
    """The same with the encoder frozen."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_unique)]
    """Each draws label sets, crops and decoder weights."""
    text: str = ""
    """What the plan asks, in a sentence."""
    threads: Annotated[int, Field(ge=1, le=1024), NUMBER] | None = None
    """Of each process on a processor: with it as many processes share the work as cores allow, and
    the numbers are the same on any number of cores. Left out: one process takes all cores."""
    pretrain: PretrainPlan | None = None
    pretrain_on_test: bool = False
    """Leave the images of test cases in the pretraining data; the report says so."""
    metric: Metric = "dice"
    """What is tested; the tables hold all of `backend evaluate`."""
    published: tuple[Published, ...] = ()


def read_plan(file: Path, overrides: Sequence[str] = ()) -> Plan:
    """The plan in a YAML or JSON file, over the one that it may name as its `base`.

    Args:
        file: the plan; paths become absolute, from its folder on.
        overrides: `key=value` texts over it, such as `data.labelled=/scans/spleen`.

    Raises:
        UserError: naming key and value, if something in it is missing, unknown or contradictory.
    """
    values = _over_base(file)
    for text in overrides:
        values = merged(values, parsed_override(text))
    if "base" in values:
        raise UserError("--set base: a plan file alone names its base.", "Write it into the file.")
    try:
        plan = TypeAdapter(Plan).validate_python(_whole(values, file=file))
    except ValidationError as error:
        message, hint = explained(Plan, error)
        raise UserError(f"{file}: {message}", hint) from None
    for problem, cure in _contradictions(plan):
        raise UserError(f"{file}: {problem}.", cure)
    return plan


def _over_base(file: Path) -> dict[str, Any]:
    """What a plan file says over the file that it may name as its `base`."""
    values = read_mapping(file)
    if "base" not in values:
        return values
    base = _named_file(file, "base", values.pop("base"))
    below = read_mapping(base)
    if "base" in below:
        raise UserError(
            f"{base}: is the base of {file}, and names a base itself.",
            "Put into one base all that plans share.",
        )
    return merged(below, values)


def _named_file(plan: Path, key: str, name: Any) -> Path:
    """The file that a key of a plan names, from the plan's folder on."""
    if not isinstance(name, str) or not name:
        raise UserError(
            f"{plan}: {key} = {reprlib.repr(name)} names no file.",
            "Write the name of a YAML or JSON file, or leave it out.",
        )
    return Path(_absolute(name, root=plan.parent))


def _absolute(path: str, *, root: Path) -> str:
    """A path from a folder on; nothing at all stays nothing."""
    try:
        whole = root / Path(path).expanduser()
    except RuntimeError:
        # `~name` of a user that this machine does not have: so it may be the name of a folder.
        whole = root / path
    return str(whole.absolute()) if path else path


def _whole(values: dict[str, Any], *, file: Path) -> dict[str, Any]:
    """The values with absolute paths and, where `data.split` names a file, what that says.

    What is of the wrong kind is left as it is, for the check to refuse.
    """

    def absolute(path: Any) -> Any:
        return _absolute(path, root=file.parent) if isinstance(path, str) else path

    def changed(section: Any, key: str, change: Callable[[Any], Any]) -> Any:
        found = isinstance(section, dict) and key in section
        return {**section, key: change(section[key])} if found else section

    def each(paths: Any) -> Any:
        return [absolute(path) for path in paths] if isinstance(paths, list) else paths

    def start(text: Any) -> Any:
        return text if text in WORDS_FOR_START else absolute(text)

    def entries(found: Any) -> Any:
        return [changed(e, "start", start) for e in found] if isinstance(found, list) else found

    def data(section: Any) -> Any:
        section = changed(section, "labelled", absolute)
        divided = isinstance(section, dict) and "split" in section
        return _with_split(section, plan=file) if divided else section

    values = changed(values, "data", data)
    values = changed(values, "pretrain", lambda pretrain: changed(pretrain, "data", each))
    result: dict[str, Any] = changed(values, "entries", entries)
    return result


_SPLIT_KEYS = ("split_source", "train", "validation", "test", "label_sets")


_NEAR = 0.75
"""How alike a key of a split file is to one that is understood if it was meant for it."""


def _with_split(data: dict[str, Any], *, plan: Path) -> dict[str, Any]:
    """The data of a plan with the division of its split file; what else is in that is left out."""
    rest = {key: value for key, value in data.items() if key != "split"}
    split = _named_file(plan, "data.split", data["split"])
    told = read_mapping(split)
    division = {key: told[key] for key in _SPLIT_KEYS if key in told}
    for key in map(str, told.keys() - division.keys()):
        if near := get_close_matches(key.casefold(), _SPLIT_KEYS, n=1, cutoff=_NEAR):
            raise UserError(f"{split}: unknown key {key!r}.", f"Did you mean {near[0]!r}?")
    if twice := next((key for key in division if key in rest), ""):
        raise UserError(f"data.{twice}: stands in the plan and in {split}.", "Remove one.")
    return rest | division


def _contradictions(plan: Plan) -> list[tuple[str, str]]:
    """What single fields cannot show, each with its cure."""
    data, names = plan.data, [entry.name for entry in plan.entries]
    twice = next((name for name in names if names.count(name) > 1), "")
    pretrained = next((entry.name for entry in plan.entries if entry.start == "pretrain"), "")
    control = next((name for name in names if name.split(" ")[0] == "random"), "")
    unseeded = next((str(seed) for seed in plan.seeds if seed not in data.label_sets), "")
    scans = data.phantoms is not None or (plan.pretrain is not None and plan.pretrain.data)
    checks = (
        (
            (data.labelled is None) == (data.phantoms is None),
            "data: needs either labelled or phantoms",
            "Give one of the two.",
        ),
        (
            data.phantoms is not None
            and bool(data.test or data.validation or data.train or data.cases),
            "data: phantoms are chosen and divided already",
            "Leave out cases, test, validation and train.",
        ),
        (
            data.labelled is not None and not data.test,
            "data.test is missing, so nothing would judge",
            "Name the test cases, or draw a share: {share: 0.2, seed: 0}.",
        ),
        (bool(twice), f"entries: {twice!r} stands there twice", "Give each its own name."),
        (
            bool(control),
            f"entries: {control!r} is a name of the controls",
            "Controls run beside every network by themselves; choose another name.",
        ),
        (
            bool(pretrained) and not (plan.pretrain and scans),
            f"entries: {pretrained!r} starts from a pretraining, but the plan has none",
            "Add pretrain with steps and data, or name a run folder as start.",
        ),
        (
            not plan.labels and not plan.frozen_labels,
            "neither labels nor frozen_labels is given",
            "Say how many labelled scans are learnt from, such as labels: [1, 5, 15].",
        ),
        (
            bool(data.label_sets) and bool(unseeded),
            f"data.label_sets: has none for seed {unseeded}",
            "Give sets for every seed, or leave them out for all.",
        ),
    )
    return [(problem, cure) for wrong, problem, cure in checks if wrong]
