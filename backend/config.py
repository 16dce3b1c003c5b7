"""Every setting there is, typed and frozen, and how preset, file and `--set` become one of them.

The docstring under a field is its help. Nothing here imports torch. Lengths are voxels unless the
name carries a unit; triples are (z, y, x).
"""

from __future__ import annotations

import difflib
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError
from yaml.constructor import ConstructorError
from yaml.error import MarkedYAMLError

from backend.errors import UserError

SCHEMA: Literal[1] = 1
"""Version of the configuration's layout, written into every run folder."""

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def _no_switch(value: Any) -> Any:
    """Python counts `true` as 1; nobody who writes it means a number."""
    if isinstance(value, bool):
        raise PydanticCustomError("no_number", "Input should be a number")
    return value


_NUMBER = BeforeValidator(_no_switch)
Real = Annotated[float, _NUMBER]
Whole = Annotated[int, _NUMBER]
Fraction = Annotated[float, Field(ge=0, le=1), _NUMBER]
HalfOpenFraction = Annotated[float, Field(ge=0, lt=1), _NUMBER]
OpenFraction = Annotated[float, Field(gt=0, lt=1), _NUMBER]
Positive = Annotated[float, Field(gt=0), _NUMBER]
NotNegative = Annotated[float, Field(ge=0), _NUMBER]
Count = Annotated[int, Field(ge=1), _NUMBER]
# Finer than any CT and coarser than any: beyond is a wrong unit.
Spacing = Annotated[float, Field(ge=0.05, le=100), _NUMBER]


# One letter for each of the three patient axes, in any order.
_ORIENTATION = "^([LR]([AP][IS]|[IS][AP])|[AP]([LR][IS]|[IS][LR])|[IS]([LR][AP]|[AP][LR]))$"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PreprocessConfig:
    """How a scan becomes the volume that the network sees."""

    spacing_mm: tuple[Spacing, Spacing, Spacing]
    """Voxel size after resampling, (z, y, x)."""
    orientation: Annotated[str, Field(pattern=_ORIENTATION)] = "LPS"
    """Patient sides towards which x, y, z grow; the scan's own axes are kept, only ordered."""
    hu_window: tuple[Real, Real] = (-175.0, 250.0)
    """Hounsfield units that become 0 and 1; values beyond are clipped."""
    body_margin_mm: NotNegative = 8.0
    """Air kept around the body when the volume is cropped to it."""
    body_threshold_hu: Whole = -350
    """The body is the largest connected part above this."""

    @model_validator(mode="after")
    def _check_window(self) -> PreprocessConfig:
        if self.hu_window[0] >= self.hu_window[1]:
            raise ValueError(f"hu_window must rise, not {list(self.hu_window)}")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SwinConfig:
    """The Swin transformer encoder (SMIT, sec. 2; Liu et al. 2021)."""

    embed_dim: Count = 48
    """Channels of the first stage; doubled by each merge."""
    depths: tuple[Count, ...] = (2, 2, 4, 2)
    """Blocks per stage."""
    heads: tuple[Count, ...] = (4, 4, 4, 4)
    """Attention heads per stage."""
    window: Count = 4
    """Edge of an attention window in tokens."""
    patch: Count = 2
    """Edge of a token in voxels."""
    mlp_ratio: Annotated[float, Field(gt=0, le=64), _NUMBER] = 4.0
    """Hidden width of a block's MLP over its width."""
    qkv_bias: bool = False
    """Bias in the projection to queries, keys and values."""
    drop_path: HalfOpenFraction = 0.3
    """Stochastic depth of the last block; rises linearly from 0 at the first."""
    final_merge: bool = True
    """Whether the last stage is followed by a merge too (released code: yes)."""

    @model_validator(mode="after")
    def _check(self) -> SwinConfig:
        if len(self.depths) < 2:
            raise ValueError(f"depths {list(self.depths)} must name two stages or more")
        if len(self.depths) != len(self.heads):
            raise ValueError(
                f"depths {list(self.depths)} and heads {list(self.heads)} differ in length"
            )
        for stage, heads in enumerate(self.heads):
            if (self.embed_dim * 2**stage) % heads:
                raise ValueError(
                    f"stage {stage} has {self.embed_dim * 2**stage} channels, "
                    f"which {heads} heads do not divide"
                )
        return self

    @property
    def merges(self) -> int:
        """How often the grid is halved after the patch embedding."""
        return len(self.depths) - (0 if self.final_merge else 1)

    @property
    def token_stride(self) -> int:
        """Voxels per token of the last stage."""
        return int(self.patch * 2 ** (len(self.depths) - 1))

    @property
    def stride(self) -> int:
        """Voxels per cell of the bottleneck."""
        return int(self.patch * 2**self.merges)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HeadConfig:
    """The projection head of DINO that SMIT puts on patch and class tokens."""

    hidden: Count = 2048
    """Width of the two hidden layers."""
    bottleneck: Count = 256
    """Width that is normalised to length 1 before the prototypes."""
    prototypes: Count = 8192
    """Number of prototypes, the K of the softmax."""
    shared: bool = False
    """One head for patch and class tokens instead of two."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SmitConfig:
    """Self-distilled masked image transformer (SMIT, Jiang et al., MICCAI 2022)."""

    name: Literal["smit"] = "smit"
    encoder: SwinConfig = SwinConfig()
    head: HeadConfig = HeadConfig()
    tokens: Literal["before_last_stage", "last_stage"] = "before_last_stage"
    """Which tokens are distilled: the input of the last stage (released code) or its output."""
    class_token: Literal["mean", "attention"] = "mean"
    """Mean of the tokens, or two class-attention blocks (the authors' later choice)."""
    mask_ratio: OpenFraction = 0.7
    """Share of cells hidden from the student."""
    mask_cell: Count = 16
    """Edge of a masked cell in voxels."""
    weight_mip: NotNegative = 1.0
    """Weight of masked image prediction."""
    weight_mpd: NotNegative = 0.1
    """Weight of masked patch token distillation (lambda_MPD)."""
    weight_itd: NotNegative = 0.1
    """Weight of image token distillation (lambda_ITD)."""
    student_temperature: Positive = 0.1
    teacher_temperature: tuple[Positive, Positive] = (0.04, 0.07)
    """Teacher temperature at the start and after its warm-up."""
    teacher_temperature_warmup_epochs: NotNegative = 30
    """Epochs over which the teacher temperature rises linearly."""
    patch_temperature_delay_epochs: NotNegative = 0
    """Epochs by which the patch tokens' warm-up starts later (released code: 30)."""
    centre_momentum: HalfOpenFraction = 0.9
    """Share of the old centre kept at each step."""
    ema_momentum: tuple[Fraction, Fraction] = (0.996, 1.0)
    """Teacher momentum at the first and the last step; cosine between."""
    freeze_prototypes_epochs: NotNegative = 1
    """Epochs during which the prototypes do not learn."""

    @model_validator(mode="after")
    def _check(self) -> SmitConfig:
        if not (self.weight_mip or self.weight_mpd or self.weight_itd):
            raise ValueError("weight_mip, weight_mpd and weight_itd are all 0: nothing to learn")
        if not self.weight_mip and self.tokens == "before_last_stage":
            raise ValueError(
                "without masked image prediction (weight_mip=0) the last stage learns nothing; "
                "set tokens=last_stage as well"
            )
        return self


MethodConfig = SmitConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ViewsConfig:
    """The views of one scan that a pretext method compares."""

    region: Count = 128
    """Edge of the part of the scan that both views are cut from."""
    crop: Count = 96
    """Edge of a view."""
    flip_probability: Fraction = 0.0
    """Chance to mirror a view along each axis."""
    intensity_scale: HalfOpenFraction = 0.0
    """A view's values are multiplied by a factor in 1 +- this."""
    intensity_shift: HalfOpenFraction = 0.0
    """A number in +- this is added to a view's values (after windowing to 0..1)."""

    @model_validator(mode="after")
    def _check(self) -> ViewsConfig:
        if self.crop > self.region:
            raise ValueError(f"crop {self.crop} is larger than region {self.region}")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """How crops are read from the cache."""

    workers: Annotated[int, Field(ge=0, le=256), _NUMBER] = 2
    """Threads that read ahead; 0 reads in the training loop itself."""
    held_out: Annotated[float, Field(ge=0, le=0.5), _NUMBER] = 0.05
    """Share of scans (at most 8, none of fewer than 10) that pretraining is only judged by."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """The optimisation, the same for pretraining and fine-tuning."""

    seed: Annotated[int, Field(ge=0, lt=2**31), _NUMBER] = 0
    """All that is random follows from it."""
    batch_size: Count = 8
    """Scans per optimizer step, over all devices together."""
    accumulate: Count = 1
    """Parts a batch is cut into, to save memory: batch_size is what one step sees in all."""
    epochs: Count = 400
    """Passes over the data. --max-steps takes precedence."""
    max_steps: Count | None = None
    """Optimizer steps in all; all schedules end there."""
    warmup_epochs: NotNegative = 30
    """Epochs over which the learning rate rises; as a share of `epochs` if max_steps is given."""
    learning_rate: Positive = 2e-4
    weight_decay: NotNegative = 0.05
    """Not applied to norms, biases, tokens and position tables."""
    betas: tuple[OpenFraction, OpenFraction] = (0.9, 0.999)
    clip_norm: Positive | None = 3.0
    """Largest norm of the gradient; null leaves it as it is."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where a GPU has it, fp32 elsewhere. Softmax and losses are always fp32."""
    checkpoint_every_steps: Count | None = None
    checkpoint_every_minutes: Positive = 10.0
    """A checkpoint is written when either is due, and at the end."""
    preview_every_steps: Count | None = None
    """Pictures of what the run does; left out: ten over the run."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be cut into "
                f"accumulate={self.accumulate} equal parts"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PretrainConfig:
    """Everything a pretraining run does."""

    schema_version: Literal[1] = SCHEMA
    preset: str = ""
    method: MethodConfig = MethodConfig()
    preprocess: PreprocessConfig
    views: ViewsConfig = ViewsConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _check(self) -> PretrainConfig:
        _check_crop(self.views.crop, self.method, name="views.crop")
        if self.method.mask_cell != self.method.encoder.token_stride:
            raise ValueError(
                f"method.mask_cell {self.method.mask_cell} must be what a distilled token stands "
                f"for, {self.method.encoder.token_stride} voxels"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DecoderConfig:
    """The decoder of the segmentation network (UNETR-like, methods of SMIT's fine-tuning)."""

    width: Count | None = None
    """Channels at full resolution; left out: the encoder's embed_dim."""
    norm: Literal["instance", "batch"] = "instance"
    """Normalisation; the released code used batch, we instance (batches hold one scan)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AugmentConfig:
    """Augmentation while fine-tuning (SMIT's released fine-tuning script)."""

    rotate90_probability: Fraction = 0.2
    """Chance of a quarter, half or three-quarter turn in the axial plane."""
    scale_probability: Fraction = 0.1
    scale: HalfOpenFraction = 0.1
    """Values are multiplied by a factor in 1 +- this."""
    shift_probability: Fraction = 0.1
    shift: HalfOpenFraction = 0.1
    """A number in +- this is added to the values."""
    flip_probability: Fraction = 0.0
    """Chance to mirror along each axis. Off: left and right organs differ."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FinetuneConfig:
    """Everything a fine-tuning run does."""

    schema_version: Literal[1] = SCHEMA
    preset: str = ""
    method: MethodConfig = MethodConfig()
    preprocess: PreprocessConfig
    decoder: DecoderConfig = DecoderConfig()
    augment: AugmentConfig = AugmentConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    crop: Count = 96
    """Edge of a training crop and of the sliding window."""
    crops_per_scan: Count = 4
    """Crops taken from each scan of a batch."""
    foreground: Fraction = 0.5
    """Share of crops centred on a labelled structure, all structures equally often."""
    freeze_encoder: bool = False
    """Leave the encoder as it was pretrained and train the decoder alone."""
    validation_fraction: HalfOpenFraction = 0.2
    """Share of the labelled scans that judge the model and are never trained on."""
    validate_every_epochs: Count = 30

    @model_validator(mode="after")
    def _check(self) -> FinetuneConfig:
        _check_crop(self.crop, self.method, name="crop")
        return self


def _check_crop(crop: int, method: MethodConfig, *, name: str) -> None:
    encoder = method.encoder
    if crop % encoder.stride:
        raise ValueError(f"{name} {crop} is no multiple of the encoder's stride {encoder.stride}")


ConfigT = TypeVar("ConfigT", PretrainConfig, FinetuneConfig)

PRESETS: dict[str, tuple[str, ...]] = {"smit": ("released", "paper", "tiny")}
"""Presets of each method; the first is taken where none is named."""


def load_config(
    kind: type[ConfigT],
    *,
    method: str,
    preset: str | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
) -> ConfigT:
    """Resolve a preset, then a YAML or JSON file, then `key=value` texts, into one configuration.

    Raises:
        UserError: for an unknown method, preset or key (with the nearest known name) and for a
            value that is out of range (with its path).
    """
    chosen = preset or preset_names(method)[0]
    values = {**_preset_values(kind, method=method, preset=chosen), "preset": chosen}
    return build_config(kind, _over(values, file=file, overrides=overrides))


def with_settings(
    config: ConfigT, *, file: Path | None = None, overrides: Sequence[str] = ()
) -> ConfigT:
    """A configuration with a file and then `key=value` texts over it.

    Raises:
        UserError: as `load_config`.
    """
    return build_config(type(config), _over(to_plain(config), file=file, overrides=overrides))


def _over(
    values: Mapping[str, Any], *, file: Path | None, overrides: Sequence[str]
) -> Mapping[str, Any]:
    """A file and then `key=value` texts over values; none of them may set what is an option."""
    layers = [] if file is None else [(str(file), read_mapping(file))]
    layers += [(f"--set {text}", _parse_override(text)) for text in overrides]
    for source, layer in layers:
        _refuse_options(layer, values, source=source)
        values = merged(values, layer)
    return values


_OPTIONS = {
    **{name: f"--{name}" for name in ("method", "preset", "data", "output", "init", "device")},
    **{name: f"--{name}" for name in ("cases", "fraction", "folds", "resume", "cache", "config")},
    "max_steps": "--max-steps N, or set train.max_steps",
    "epochs": "--epochs N, or set train.epochs",
}
"""Names that look like settings, and the options of the command line that they are."""


def _refuse_options(layer: Mapping[str, Any], below: Mapping[str, Any], *, source: str) -> None:
    """Refuse an option among the settings; what only says what is chosen already does no harm."""
    for name, value in layer.items():
        section = isinstance(value, Mapping)
        if name in _OPTIONS and not section and (name not in below or below[name] != value):
            raise UserError(f"{source}: {name} is no setting.", f"Use the option {_OPTIONS[name]}.")


def preset_names(method: str) -> tuple[str, ...]:
    """Presets of a method, the default first.

    Raises:
        UserError: if there is no such method.
    """
    if method not in PRESETS:
        raise UserError(f"There is no method {method!r}.", _did_you_mean(method, PRESETS))
    return PRESETS[method]


def _preset_values(kind: type, *, method: str, preset: str) -> dict[str, Any]:
    known = preset_names(method)
    if preset not in known:
        raise UserError(f"Method {method} has no preset {preset!r}.", _did_you_mean(preset, known))
    text = files("backend").joinpath("presets", method, f"{preset}.yaml").read_text("utf-8")
    values = yaml.safe_load(text)
    sections = {PretrainConfig: values.pop("pretrain"), FinetuneConfig: values.pop("finetune")}
    return merged(values, sections[kind])


def build_config(kind: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """The checked configuration of plain values.

    Raises:
        UserError: as `load_config`.
    """
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise UserError(*_explain(kind, error)) from None


def to_plain(config: PretrainConfig | FinetuneConfig) -> dict[str, Any]:
    """The configuration as JSON-ready values, the inverse of `build_config`."""
    plain: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return plain


def first_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str = "") -> str:
    """The first setting that differs, as `path=value` of ours; empty if none does."""
    for key, value in ours.items():
        name = f"{path}.{key}" if path else key
        other = theirs.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            found = first_difference(value, other, name)
            if found:
                return found
        elif value != other:
            return f"{name}={json.dumps(value)}, not {json.dumps(other)}"
    return ""


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file that holds a mapping.

    Raises:
        UserError: if it is not there, not readable or holds something else.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no regular file.", "Give a YAML or JSON file.")
    try:
        values = _plain_yaml(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).", "Check the path.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: is no valid YAML or JSON ({_yaml_fault(error)}).", "Mend the file."
        ) from None
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: holds no settings.", "Write lines such as 'train: {batch_size: 4}'."
        )
    return values


class _RepeatedKeyError(ConstructorError):
    """A mapping has a key twice."""


class _Loader(yaml.SafeLoader):
    """Plain values alone, and each key once: of two values one would be dropped in silence."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if key.value in seen and isinstance(key, yaml.ScalarNode):
            raise _RepeatedKeyError(None, None, f"{key.value!r} stands twice", key.start_mark)
        seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _plain_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _yaml_fault(error: Exception) -> str:
    """What is wrong with a text, and on which line."""
    if not isinstance(error, MarkedYAMLError):
        return (str(error).splitlines() or [type(error).__name__])[0]
    told = error.problem or error.context or "not understood"
    return f"line {error.problem_mark.line + 1}: {told}" if error.problem_mark else told


def merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Values of `top` over those of `base`, mapping by mapping."""
    result = dict(base)
    for key, value in top.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(
            f"--set {text!r} is not understood.", "Write it like --set train.batch_size=4."
        )
    try:
        parsed: Any = _plain_yaml(value)
    except _RepeatedKeyError as error:
        raise UserError(
            f"--set {text!r} is not understood ({_yaml_fault(error)}).", "Write each key once."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        # What YAML stumbles over (2020-13-45, 0x_) is a text, and refused as one if need be.
        parsed = value
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    result: dict[str, Any] = parsed
    return result


def _explain(kind: type, error: ValidationError) -> tuple[str, str]:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    path = ".".join(location)
    if first["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        known = _keys_at(kind, location[:-1])
        return f"Unknown setting {path!r}.", _did_you_mean(location[-1], known)
    if first["type"] == "missing":
        return f"Setting {path!r} is missing.", "Give it in the file or with --set."
    # Shortened: an input may be huge, or hold itself.
    value = reprlib.repr(first["input"])
    text = _message(first)
    if not path or is_dataclass(first["input"]) or first["type"] == "value_error":
        return f"{path + ': ' if path else ''}{text}.", "Change one of the two."
    return f"Setting {path} = {value}: {text}.", "Change it in the file or with --set."


def _message(fault: Mapping[str, Any]) -> str:
    """What is wrong, without what only a programmer knows."""
    text = fault["msg"].removeprefix("Value error, ")
    return re.sub(r" or (?:an )?instance of \w+", "", text)


def first_fault(error: ValidationError, *, tagged: bool = False) -> str:
    """The first fault: where it is, the value and what is wrong with it, on one line.

    Args:
        error: of pydantic.
        tagged: whether places begin with the kind of header that was chosen.
    """
    fault = error.errors(include_url=False)[0]
    place = ".".join(map(str, fault["loc"][1:] if tagged else fault["loc"]))
    message = _message(fault)
    if fault["type"] == "value_error":
        return f"{place}: {message}" if place else message
    if fault["type"] == "missing":
        return f"{place} is missing"
    return f"{place or 'it'} = {reprlib.repr(fault['input'])}: {message}"


def _keys_at(kind: Any, location: Sequence[str]) -> list[str]:
    for part in location:
        hint = get_type_hints(kind).get(part)
        kind = next((t for t in (hint, *get_args(hint)) if is_dataclass(t)), None)
        if kind is None:
            return []
    return [field.name for field in fields(kind)]


def _did_you_mean(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    listing = f"Known: {', '.join(known)}."
    return f"Did you mean {near[0]!r}? {listing}" if near else listing
