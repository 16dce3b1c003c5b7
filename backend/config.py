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
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from yaml.constructor import ConstructorError
from yaml.error import MarkedYAMLError

from backend.errors import UserError
from backend.settings.baselines import BaselineConfig, BaselineName
from backend.settings.common import (
    NUMBER,
    STRICT,
    CacheForm,
    Count,
    Edges,
    Fraction,
    Grid,
    HalfOpenFraction,
    NotNegative,
    OpenFraction,
    Positive,
    Spacing,
    Whole,
    triple,
)
from backend.settings.cpc3d import Cpc3dConfig
from backend.settings.encoders import EncoderConfig, Norm
from backend.settings.glmae import GlmaeConfig
from backend.settings.models_genesis import ModelsGenesisConfig
from backend.settings.pcrl import PcrlConfig
from backend.settings.pcrlv2 import Pcrlv2Config
from backend.settings.pgl import PglConfig
from backend.settings.probe import ProbeConfig
from backend.settings.rubik import RubikConfig
from backend.settings.rubik_pp import RubikPpConfig
from backend.settings.simclr import SimclrConfig
from backend.settings.smit import SmitConfig
from backend.settings.spark import SparkConfig
from backend.settings.trio import TrioConfig
from backend.settings.views import ViewsConfig

SCHEMA: Literal[1] = 1
"""Version of the configuration's layout, written into every run folder."""

# One letter for each of the three patient axes, in any order.
_ORIENTATION = "^([LR]([AP][IS]|[IS][AP])|[AP]([LR][IS]|[IS][LR])|[IS]([LR][AP]|[AP][LR]))$"


# No scanner tells more; a window beyond holds nothing.
_Hu = Annotated[float, Field(ge=-100_000, le=100_000), NUMBER]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PreprocessConfig:
    """How a scan becomes the volume that the network sees."""

    spacing_mm: tuple[Spacing, Spacing, Spacing] | None
    """Voxel size after resampling, (z, y, x); null leaves each scan's own (pretraining only)."""
    orientation: Annotated[str, Field(pattern=_ORIENTATION)] = "LPS"
    """Patient sides towards which x, y, z grow; the scan's own axes are kept, only ordered."""
    hu_window: tuple[_Hu, _Hu] = (-175.0, 250.0)
    """Hounsfield units that become 0 and 1; values beyond are clipped."""
    intensity: Literal["window", "zscore"] = "window"
    """window: 0 to 1 over hu_window. zscore: clipped to it, then mean 0, deviation 1 per scan."""
    body_margin_mm: NotNegative = 8.0
    """Air kept around the body when the volume is cropped to it."""
    body_threshold_hu: Whole = -350
    """The body is the largest connected part above this."""

    @model_validator(mode="after")
    def _check_window(self) -> PreprocessConfig:
        low, high = self.hu_window
        if low >= high:
            raise ValueError(f"hu_window must rise, not {list(self.hu_window)}")
        if high - low < 1 or low > 3000 or high <= -1000:
            raise ValueError(
                f"hu_window {list(self.hu_window)}: no tissue of a CT lies in it, or all in one "
                "value; soft tissue is in [-175, 250]"
            )
        return self


MethodConfig = (
    SmitConfig
    | GlmaeConfig
    | PglConfig
    | SimclrConfig
    | TrioConfig
    | ModelsGenesisConfig
    | PcrlConfig
    | Pcrlv2Config
    | RubikConfig
    | RubikPpConfig
    | Cpc3dConfig
    | SparkConfig
)
"""Settings of any pretext method; which one, its `name` tells."""

NetworkConfig = MethodConfig | BaselineConfig
"""What can be fine-tuned: a pretext method's network, or one that is only trained from scratch."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """How crops are read from the cache."""

    workers: Annotated[int, Field(ge=0, le=256), NUMBER] = 2
    """Threads that read ahead; 0 reads in the training loop itself."""
    patience_s: Positive = 300.0
    """Seconds without a batch after which the scans that are being read are named; after twelve
    times as many the run is saved and ends. Not with workers=0."""
    held_out: Annotated[float, Field(ge=0, le=0.5), NUMBER] = 0.05
    """Share of scans (at most 8, none of fewer than 10) that pretraining is only judged by."""
    cache_form: CacheForm = "compressed"
    """plain: crops are read in a fraction of the time, for about twice the disk. The voxels are
    the same."""


# Beyond, a sign or a power of ten went wrong.
_UpTo100 = Annotated[float, Field(ge=0, le=100), NUMBER]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """The optimisation, the same for pretraining and fine-tuning."""

    seed: Annotated[int, Field(ge=0, lt=2**31), NUMBER] = 0
    """All that is random follows from it."""
    batch_size: Annotated[int, Field(ge=1, le=65536), NUMBER] = 8
    """Scans per optimizer step, over all devices together."""
    accumulate: Count = 1
    """Parts a batch is cut into, to save memory: batch_size is what one step sees in all."""
    epochs: Count = 400
    """Passes over the data. --max-steps takes precedence."""
    max_steps: Count | None = None
    """Optimizer steps in all; all schedules end there."""
    warmup_epochs: NotNegative = 30
    """Epochs over which the learning rate rises; as a share of `epochs` if max_steps is given."""
    optimizer: Literal["adamw", "adam", "sgd", "lars"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0, le=100), NUMBER] = 2e-4
    """The highest of the run."""
    learning_rate_end: _UpTo100 = 0.0
    """The learning rate of the last step (schedule cosine)."""
    schedule: Literal["cosine", "poly", "step", "constant"] = "cosine"
    """How the learning rate falls after the warm-up; poly: (1 - progress)^0.9."""
    step_epochs: Count = 40
    """Epochs after which the learning rate is halved, again and again (schedule step)."""
    weight_decay: _UpTo100 = 0.05
    """Not applied to norms, biases, tokens and position tables."""
    weight_decay_end: _UpTo100 | None = None
    """Weight decay at the end of the run, reached along a cosine; null: it stays."""
    betas: tuple[OpenFraction, OpenFraction] = (0.9, 0.999)
    """Of AdamW and Adam."""
    momentum: HalfOpenFraction = 0.9
    """Of SGD and LARS."""
    clip_norm: Positive | None = 3.0
    """Largest norm of the gradient; null leaves it as it is."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where a GPU has it, fp32 elsewhere. Softmax and losses are always fp32."""
    checkpoint_every_steps: Count | None = None
    checkpoint_every_minutes: Positive = 10.0
    """A checkpoint is written when either is due, and at the end."""
    on_out_of_memory: Literal["fail", "shrink"] = "fail"
    """shrink: cut the batch into more and more parts until a step fits, and say so."""
    preview_every_steps: Count | None = None
    """Pictures of what the run does; left out: ten over the run."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be cut into "
                f"accumulate={self.accumulate} equal parts"
            )
        if self.learning_rate_end > self.learning_rate:
            raise ValueError(
                f"learning_rate_end {self.learning_rate_end:g} is more than "
                f"learning_rate {self.learning_rate:g}, the highest of the run"
            )
        if self.schedule == "step" and self.step_epochs > self.epochs:
            raise ValueError(
                f"step_epochs {self.step_epochs} is more than epochs {self.epochs}, so "
                "schedule=step would never halve the learning rate"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PretrainConfig:
    """Everything a pretraining run does."""

    schema_version: Literal[1] = SCHEMA
    preset: str = ""
    method: Annotated[MethodConfig, Field(discriminator="name")]
    preprocess: PreprocessConfig
    views: ViewsConfig = ViewsConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    probe: ProbeConfig = ProbeConfig()

    @model_validator(mode="after")
    def _check(self) -> PretrainConfig:
        for name in ("main", "local"):
            view = getattr(self.views, name)
            if view is not None:
                alone = self.method.encoder.kind in _ALONE_PRETRAINED
                _check_crop(view.size, self.method, name=f"views.{name}.size", alone=alone)
        if self.views.isotropic_first and self.preprocess.spacing_mm is None:
            raise ValueError("views.isotropic_first needs a spacing: set preprocess.spacing_mm")
        self.method.check_views(self.views)
        self._check_batch()
        return self

    def _check_batch(self) -> None:
        part, least = self.train.batch_size // self.train.accumulate, self.method.least_batch
        if part < least:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} in {self.train.accumulate} parts: "
                f"{self.method.name} tells scans from each other and needs {least} in each"
            )
        if self.method.needs_window and self.preprocess.intensity != "window":
            raise ValueError(
                f"preprocess.intensity={self.preprocess.intensity}: {self.method.name} needs "
                "values from 0 to 1, so window"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DecoderConfig:
    """The decoder of the segmentation network.

    Which one follows from the encoder: UNETR-like on Swin (SMIT's fine-tuning) and ViT (GL-MAE),
    ASPP with three steps up on ResNet (PGL). A U-Net brings its own.
    """

    kind: Literal["default", "unet"] = "default"
    """unet: a plain U-Net decoder on a ResNet in place of ASPP."""
    width: Count | None = None
    """Channels at full resolution; left out: the encoder's first width."""
    norm: Norm = "instance"
    """Normalisation; SMIT's released code used batch, we instance (batches hold one scan)."""


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
    noise_probability: Fraction = 0.0
    """Chance of Gaussian noise, variance up to 0.1 (this and the next three: PGL, sec. 3.2)."""
    blur_probability: Fraction = 0.0
    """Chance of a Gaussian blur of 0.5 to 1 voxel."""
    brightness_probability: Fraction = 0.0
    """Chance of a factor of 0.75 to 1.25 within the range of values."""
    gamma_probability: Fraction = 0.0
    """Chance of an exponent of 0.7 to 1.5."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FinetuneConfig:
    """Everything a fine-tuning run does."""

    schema_version: Literal[1] = SCHEMA
    preset: str = ""
    method: Annotated[NetworkConfig, Field(discriminator="name")]
    preprocess: PreprocessConfig
    decoder: DecoderConfig = DecoderConfig()
    augment: AugmentConfig = AugmentConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    loss: Literal["dice_ce", "dice_bce"] = "dice_ce"
    """Dice with cross-entropy over all classes, or with binary cross-entropy per structure."""
    crop: Edges = 96
    """Edges of a training crop and of the sliding window."""
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
        if self.preprocess.spacing_mm is None:
            raise ValueError("preprocess.spacing_mm must be given: a model labels one spacing")
        alone = self.method.encoder.kind in _ALONE_FINETUNED
        _check_crop(self.crop, self.method, name="crop", alone=alone)
        if isinstance(self.method, BaselineConfig):
            self.method.encoder.check_crop(self.crop_size)
        if self.augment.rotate90_probability and self.crop_size[1] != self.crop_size[2]:
            raise ValueError(
                f"crop {list(self.crop_size)} is not square in the axial plane, so it cannot be "
                "turned: set augment.rotate90_probability=0"
            )
        if self.decoder.kind == "unet" and self.method.encoder.kind != "resnet":
            raise ValueError("decoder.kind=unet is for a ResNet; other encoders have their own")
        return self

    @property
    def crop_size(self) -> Grid:
        """Edges of a crop (z, y, x)."""
        return triple(self.crop)


_ALONE_PRETRAINED = {"swin", "vit"}
"""Encoders that normalise channels, and so take a view of which one cell remains."""
_ALONE_FINETUNED = {"vit", *get_args(BaselineName)}
"""The same of whole networks; baselines have a check of their own."""


def _check_crop(crop: Edges, method: NetworkConfig, *, name: str, alone: bool) -> None:
    """Refuse edges that are no multiple of the stride, or that leave a single cell.

    Args:
        crop: edges of what the network sees, in voxels.
        method: knows the encoder.
        name: of the setting.
        alone: whether the network can learn from a single cell at its coarsest level; a norm over
            it would leave nothing.
    """
    stride = method.encoder.stride
    if any(n % s for n, s in zip(triple(crop), stride, strict=True)):
        told = stride[0] if len(set(stride)) == 1 else list(stride)
        raise ValueError(f"{name} {crop} is no multiple of the encoder's stride {told}")
    if triple(crop) == stride and not alone:
        doubled = [2 * s for s in stride]
        raise ValueError(
            f"{name} {crop} leaves a single cell at the encoder's coarsest level, too little to "
            f"normalise: the next possible is {doubled[0] if len(set(doubled)) == 1 else doubled}"
        )


ConfigT = TypeVar("ConfigT", PretrainConfig, FinetuneConfig)

_COMPARED = (
    *("mip", "simmim", "fullrec", "ml_mip", "ibot", "dino", "mae3d"),
    *("byol", "simsiam", "mocov3", "pgl_no_flip", "pgl_no_csalign", "pgl_no_align"),
    *("simclr", "swinunetr_trio", "models_genesis", "pcrl", "pcrlv2"),
    *("rubik", "rubik_pp", "cpc3d", "pgl_mip", "spark"),
)

PRESETS: dict[str, tuple[str, ...]] = {
    "smit": ("released", "paper", "tiny", "hn_small"),
    "glmae": ("vit_t", "vit_b", "tiny", "hn_small"),
    "pgl": ("paper", "iso", "tiny", "hn_small"),
    **dict.fromkeys(_COMPARED, ("paper", "tiny")),
    **dict.fromkeys(("mae3d", "byol", "ibot"), ("paper", "tiny", "hn_small")),
}
"""Presets of each method; the first is taken where none is named."""

BASELINES: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("segresnet", "unetr", "swinunetr", "dynunet"), ("paper", "tiny")
)
"""Presets of the networks that are only trained from scratch."""

_ENCODER_KINDS = {kind.kind for kind in get_args(EncoderConfig)} | BASELINES.keys()


def load_config(
    kind: type[ConfigT],
    *,
    method: str,
    preset: str | None = None,
    below: Sequence[str] = (),
    file: Path | None = None,
    overrides: Sequence[str] = (),
) -> ConfigT:
    """Resolve a preset, then a YAML or JSON file, then `key=value` texts, into one configuration.

    `below` holds `key=value` texts that lie over the preset and below the file.

    Raises:
        UserError: for an unknown method, preset or key (with the nearest known name) and for a
            value that is out of range (with its path).
    """
    chosen = preset or preset_names(method, kind=kind)[0]
    values = {**_preset_values(kind, method=method, preset=chosen), "preset": chosen}
    inherited = _over(values, file=None, overrides=below)
    return build_config(kind, _over(inherited, file=file, overrides=overrides))


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
    layers += [(f"--set {text}", parsed_override(text)) for text in overrides]
    for source, layer in layers:
        _refuse_options(layer, values, source=source)
        values = merged(values, layer)
    return values


_OPTIONS = {
    **{name: f"--{name}" for name in ("method", "preset", "data", "output", "init", "device")},
    **{name: f"--{name}" for name in ("cases", "fraction", "folds", "resume", "cache", "config")},
    "probe_data": "--probe-data",
    "method.name": "--method",
    "max_steps": "--max-steps N, or set train.max_steps",
    "epochs": "--epochs N, or set train.epochs",
}
"""Names that look like settings, and the options of the command line that they are."""

_LENGTHS = {"train.max_steps": "--max-steps", "train.epochs": "--epochs"}
"""Settings that are options as well."""


def _refuse_options(layer: Mapping[str, Any], below: Mapping[str, Any], *, source: str) -> None:
    """Refuse an option among the settings; what only says what is chosen already does no harm."""
    chosen = layer.get("method")
    if isinstance(chosen, Mapping) and "name" in chosen:
        layer = {**layer, "method.name": chosen["name"]}
        below = {**below, "method.name": below.get("method", {}).get("name")}
    for name, value in layer.items():
        section = isinstance(value, Mapping)
        if name in _OPTIONS and not section and (name not in below or below[name] != value):
            raise UserError(f"{source}: {name} is no setting.", f"Use the option {_OPTIONS[name]}.")


def preset_names(method: str, *, kind: type = FinetuneConfig) -> tuple[str, ...]:
    """Presets of a method, the default first.

    Args:
        method: its name.
        kind: the configuration it is for; those that it has no use for are not proposed.

    Raises:
        UserError: if there is no such method.
    """
    known = PRESETS | BASELINES
    if method not in known:
        proposed = PRESETS if kind is PretrainConfig else known
        raise UserError(f"There is no method {method!r}.", _did_you_mean(method, proposed))
    return known[method]


def _preset_values(kind: type, *, method: str, preset: str) -> dict[str, Any]:
    known = preset_names(method, kind=kind)
    if preset not in known:
        raise UserError(f"Method {method} has no preset {preset!r}.", _did_you_mean(preset, known))
    values = read_preset(method, preset)
    sections = {
        PretrainConfig: values.pop("pretrain", None),
        FinetuneConfig: values.pop("finetune"),
    }
    section = sections[kind]
    if section is None:
        raise UserError(
            f"{method} is only trained on labels.", f"Use it so: backend finetune --method {method}"
        )
    return merged(values, section)


def read_preset(method: str, preset: str) -> dict[str, Any]:
    """A preset as it stands in its file, over the one that it names as its `base`."""
    values = _preset_file(method, preset)
    base = values.pop("base", None)
    return values if base is None else merged(read_preset(*base.split("/")), values)


def preset_line(method: str, preset: str) -> tuple[str, ...]:
    """The name of a preset and of those it is built on, the nearest first."""
    if preset not in preset_names(method):
        return (preset,)
    base = _preset_file(method, preset).get("base")
    return (preset, *(() if base is None else preset_line(*base.split("/"))))


def _preset_file(method: str, preset: str) -> dict[str, Any]:
    text = files("backend").joinpath("presets", method, f"{preset}.yaml").read_text("utf-8")
    values: dict[str, Any] = plain_yaml(text)
    return values


def build_config(kind: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """The checked configuration of plain values.

    Raises:
        UserError: as `load_config`.
    """
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise UserError(*explained(kind, error)) from None


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
        values = plain_yaml(path.read_text("utf-8"))
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


_MOST_VALUES = 1_000_000
"""More than any index of scans in a plan."""


class _RepeatedKeyError(ConstructorError):
    """A mapping has a key twice."""


# The loader in C where there is one: the cards of all methods are read in a tenth of the time.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain values alone, and each key once: of two values one would be dropped in silence."""

    def get_single_data(self) -> Any:
        """The values of a text; not those of an alias of aliases, which fills any memory."""
        node = self.get_single_node()
        if node is None:
            return None
        if _values_below(node, {}) > _MOST_VALUES:
            problem = f"stands for more than {_MOST_VALUES:,} values"
            raise ConstructorError(None, None, problem, node.start_mark)
        return self.construct_document(node)


def _values_below(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Of a node with all that its aliases stand for, each looked at once."""
    if node not in known:
        # What holds itself is counted once as well.
        known[node] = 1
        if isinstance(node, yaml.CollectionNode):
            pairs = isinstance(node, yaml.MappingNode)
            below = [n for pair in node.value for n in pair] if pairs else node.value
            known[node] += sum(_values_below(n, known) for n in below)
    return known[node]


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConstructorError(None, None, "a list or mapping is no key", key.start_mark)
        if key.value in seen:
            raise _RepeatedKeyError(None, None, f"{key.value!r} stands twice", key.start_mark)
        seen.add(key.value)
    loader.flatten_mapping(node)
    mapping: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return mapping


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
# Of YAML 1.1's whole numbers those that people mean: 010 is not 8, and 1:30 is not 90.
_INT = "tag:yaml.org,2002:int"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != _INT]
    for first, known in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))


def plain_yaml(text: str) -> Any:
    """Plain values of a YAML text.

    Raises:
        yaml.YAMLError: if it is none, or has a key twice.
    """
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


def parsed_override(text: str) -> dict[str, Any]:
    """The nested mapping that a `key=value` text stands for.

    Raises:
        UserError: if it is none.
    """
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(
            f"--set {text!r} is not understood.", "Write it like --set train.batch_size=4."
        )
    try:
        parsed: Any = plain_yaml(value)
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


def explained(kind: type, error: ValidationError) -> tuple[str, str]:
    """The first fault of values for a dataclass: its message and the cure."""
    first = error.errors()[0]
    # Pydantic names, in brackets, which kind of number or list it tried.
    parts = [str(part) for part in first["loc"] if "[" not in str(part)]
    # Where settings differ by method, the error names the method behind "method".
    location = [p for i, p in enumerate(parts) if not (i == 1 and parts[0] == "method")]
    path = ".".join(location)
    if first["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        # A number is a place in a list, whose entries are all of one kind.
        known = _keys_at(kind, [part for part in parts[:-1] if not part.isdecimal()])
        return f"Unknown setting {path!r}.", _did_you_mean(
            location[-1], known, within=path.removesuffix(location[-1])
        )
    if first["type"] == "missing":
        return f"Setting {path!r} is missing.", "Give it in the file or with --set."
    # Shortened: an input may be huge, or hold itself.
    value = reprlib.repr(first["input"])
    text = _message(first)
    if not path or is_dataclass(first["input"]) or first["type"] == "value_error":
        return f"{path + ': ' if path else ''}{text}.", "Change one of the two."
    option = f"{_LENGTHS[path]}, " if path in _LENGTHS else ""
    return f"Setting {path} = {value}: {text}.", f"Change it in the file or with {option}--set."


def _message(fault: Mapping[str, Any]) -> str:
    """What is wrong, without what only a programmer knows."""
    text = fault["msg"].removeprefix("Value error, ")
    text = text.replace("a valid tuple", "a list, such as [1, 2]")
    return re.sub(r" or (?:an )?instance of \w+", "", text)


def first_fault(error: ValidationError, *, tagged: bool = False) -> str:
    """The first fault: where it is, the value and what is wrong with it, on one line.

    Args:
        error: of pydantic.
        tagged: whether places name which kind of header was chosen, and of encoder within it.
    """
    fault = error.errors(include_url=False)[0]
    location = [str(part) for part in fault["loc"]]
    if tagged:
        pairs = pairwise(location)
        location = [p for above, p in pairs if above != "encoder" or p not in _ENCODER_KINDS]
    place = ".".join(location)
    message = _message(fault)
    if fault["type"] == "value_error":
        return f"{place}: {message}" if place else message
    if fault["type"] == "missing":
        return f"{place} is missing"
    return f"{place or 'it'} = {reprlib.repr(fault['input'])}: {message}"


def _keys_at(kind: Any, location: Sequence[str]) -> list[str]:
    for place, part in enumerate(location):
        if place == 1 and location[0] == "method":
            continue  # names which of the union it is
        classes = [t for t in _members(get_type_hints(kind).get(part)) if is_dataclass(t)]
        if len(classes) > 1:
            classes = [t for t in classes if location[place + 1] in _names_of(t)]
        if not classes:
            return []
        kind = classes[0]
    return [field.name for field in fields(kind)]


def _members(hint: Any) -> list[Any]:
    """The types that a hint allows, unions within unions taken apart."""
    return [hint] if not get_args(hint) else [t for arg in get_args(hint) for t in _members(arg)]


def _names_of(kind: Any) -> list[str]:
    return list(_members(get_type_hints(kind)["name"]))


def _did_you_mean(name: str, known: Sequence[str] | Mapping[str, Any], *, within: str = "") -> str:
    """The nearest known name, with what must be written before it, and all of them."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    listing = f"Known: {', '.join(known)}."
    return f"Did you mean {within + near[0]!r}? {listing}" if near else listing
