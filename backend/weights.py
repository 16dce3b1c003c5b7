"""Weights to share: safetensors with a JSON header that says what they are and how to use them.

Reading the header needs neither torch nor the tensors. Loading always reports what matched, and
fails below a stated share: a network is never called loaded while nothing was.
"""

from __future__ import annotations

import json
import math
import reprlib
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from backend.config import BASELINES, PRESETS, PreprocessConfig, first_fault
from backend.errors import UserError
from backend.files import written_whole
from backend.settings.baselines import BaselineNetworkConfig
from backend.settings.common import STRICT, Edge, Width
from backend.settings.encoders import EncoderConfig, SwinConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = 1
"""Version of the header; a file with a newer one is refused."""

Kind = Literal["encoder", "segmentation"]
_HEADER_KEY = "sslsegmentation"
_CHECKSUM = "crc32"
_PICKLE_ENDINGS = (".pt", ".pth", ".ckpt", ".pkl", ".bin")
# A zip archive (torch.save) and a bare pickle: neither is ever opened here.
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80")
# The format itself allows no longer header.
_LONGEST_HEADER = 100_000_000
_LISTED = 6


@dataclass(frozen=True, kw_only=True)
class WeightsHeader:
    """What a weights file says of itself, in plain JSON values.

    Attributes:
        kind: a pretrained "encoder" or a fine-tuned "segmentation" network.
        method: name of the method that made it.
        preset: name of the method's preset.
        preprocessing: spacing_mm (z, y, x), orientation, hu_window (low, high), body_margin_mm,
            body_threshold_hu and whatever else the recipe needs.
        architecture: arguments that build the network again.
        labels: one {value, name, color, terminology} per structure, in the order of the network's
            classes; class 0 is background and not listed.
        fingerprint: what the training data was, without names.
        versions: packages and their versions.
        citations: the papers to cite.
        schema: version of this header.
    """

    kind: Kind
    method: str
    preset: str
    preprocessing: dict[str, Any]
    architecture: dict[str, Any]
    labels: tuple[dict[str, Any], ...] = ()
    fingerprint: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    citations: tuple[str, ...] = ()
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What of a weights file found its place in a network.

    Attributes:
        matched: names copied, as the network calls them.
        missing: names of the network that the file lacks.
        unexpected: names of the file that the network lacks.
        mismatched: (name, shape in the network, shape in the file).
        share: matched parameter elements over all parameter elements of the network.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    share: float

    def text(self) -> str:
        """The report for people: one line per part, long lists cut."""
        shapes = [f"{name} (ours {ours}, file {theirs})" for name, ours, theirs in self.mismatched]
        lines = [f"{len(self.matched)} tensors matched, {self.share:.1%} of the parameters"]
        for what, names in (
            ("missing in the file", list(self.missing)),
            ("not in the network", list(self.unexpected)),
            ("of another shape", shapes),
        ):
            if names:
                lines.append(f"{len(names)} {what}: {_some(names)}")
        return "\n".join(lines)


def save_weights(path: Path, tensors: Mapping[str, Tensor], header: WeightsHeader) -> None:
    """Write `tensors` and `header` as one safetensors file, whole or not at all.

    Raises:
        ResourceError: if the folder cannot be written or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # Only what shares its memory is copied: all of a large encoder once more would be the most
    # memory that a run needs.
    uses = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    plain = {
        name: tensor.detach()
        .to("cpu", copy=uses[tensor.untyped_storage().data_ptr()] > 1)
        .contiguous()
        for name, tensor in tensors.items()
    }
    told = json.loads(json.dumps(asdict(header)))
    told[_CHECKSUM] = _checksum(told, plain)
    metadata = {_HEADER_KEY: json.dumps(told, ensure_ascii=False)}
    with written_whole(path, failures=(SafetensorError,)) as part:
        save_file(plain, part, metadata=metadata)


def read_header(path: Path) -> WeightsHeader:
    """The header alone, checked in every field; needs no torch and reads no tensor.

    Raises:
        UserError: if `path` is no weights file of ours: missing, a pickle, cut off, foreign,
            written by a newer version, or saying of itself what cannot be.
    """
    table, metadata = _checked_table(path)
    text = metadata.get(_HEADER_KEY)
    if text is None:
        raise UserError(
            f"{path}: a safetensors file without our header, so its network is unknown.",
            f"Convert it first: backend convert {path.name} --from smit|monai",
        )
    header = _parse_header(path, text)
    _refuse_other_network(path, header, table)
    return header


def load_weights(path: Path) -> tuple[dict[str, Tensor], WeightsHeader]:
    """All tensors (on the CPU) by name, and the header.

    Raises:
        UserError: as `read_header`; if a tensor holds what is no finite number.
    """
    header = read_header(path)
    metadata = _checked_table(path)[1]
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"{path}: damaged weights ({error}).", "Copy the file again from where it came."
        ) from error
    told = json.loads(metadata[_HEADER_KEY])
    # Files that were written before there was one have no checksum.
    if told.pop(_CHECKSUM, None) not in (None, _checksum(told, tensors)):
        raise UserError(f"{path}: damaged weights (their checksum is another).", _COPY)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{path}: damaged weights ({name} holds values that are not finite).",
                "Copy the file again from where it came, or take another checkpoint.",
            )
    return tensors, header


def load_into(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    prefix: str = "",
    minimum_share: float = 0.9,
    what: str,
) -> LoadReport:
    """Copy into `module` every tensor that matches in name and shape.

    Args:
        module: the network; untouched if the share is too low.
        tensors: by name, as `load_weights` gives them.
        prefix: what stands in the file before the module's own names, e.g. "encoder."; other names
            of the file are then no concern.
        minimum_share: the least share of the module's parameter elements that must match.
        what: names the weights in the error, e.g. the file and the part.

    Raises:
        UserError: below `minimum_share`, naming some of the keys.
    """
    import torch

    own = module.state_dict()
    theirs = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    matched = [name for name in own if name in theirs and own[name].shape == theirs[name].shape]
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    report = LoadReport(
        matched=tuple(matched),
        missing=tuple(name for name in own if name not in theirs),
        unexpected=tuple(name for name in theirs if name not in own),
        mismatched=tuple(
            (name, tuple(own[name].shape), tuple(theirs[name].shape))
            for name in own
            if name in theirs and own[name].shape != theirs[name].shape
        ),
        share=sum(sizes.get(name, 0) for name in matched) / max(sum(sizes.values()), 1),
    )
    if not matched or report.share < minimum_share:
        raise UserError(
            f"{what}: only {report.share:.1%} of the network's parameters are in these weights, "
            f"{minimum_share:.0%} are needed; nothing was loaded. {_differences(report)}",
            "Choose weights of the same architecture, or build the network that they belong to.",
        )
    with torch.no_grad():
        for name in matched:
            own[name].copy_(theirs[name])
    return report


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """Of what a header tells and the numbers of all tensors, in the order of their names."""
    import torch

    total = zlib.crc32(json.dumps(header).encode())
    for name in sorted(tensors):
        # Any type of number as bytes; a tensor without numbers has none.
        numbers = tensors[name].contiguous().reshape(-1)
        if numbers.numel():
            total = zlib.crc32(numbers.view(torch.uint8).numpy().data, total)
    return total


MODEL_FILES = ("best.safetensors", "model.safetensors")
"""What a fine-tuning run is searched for: what validation chose, else the last weights."""


def resolve_weights(
    path: Path,
    *,
    prefer: tuple[str, ...] = (*MODEL_FILES, "encoder.safetensors"),
) -> Path:
    """The weights file meant by `path`: the file itself, or the first of `prefer` in a run folder.

    Raises:
        UserError: if there is none, or `path` is a pickle.
    """
    if path.is_file():
        _refuse_pickle(path)
        return path
    if not path.exists():
        raise UserError(
            f"{path}: no such file or run folder.", "Give a .safetensors file or a run folder."
        )
    for folder in (path / "checkpoints", path):
        for name in prefer:
            if (folder / name).is_file():
                return folder / name
    raise UserError(
        f"{path}: no weights in it (looked for {', '.join(prefer)} in it and in checkpoints/).",
        "Give a run that has finished, or a .safetensors file.",
    )


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(9)
    # safetensors begins with the length of its table, any eight bytes, and then the table's brace.
    pickled = start.startswith(_PICKLE_MAGIC) and start[8:9] != b"{"
    if path.suffix.lower() in _PICKLE_ENDINGS or pickled:
        cure = (
            f"Convert it first: backend convert {path.name} --from smit|monai "
            "--output model.safetensors"
        )
        if path.name == "last.pt" and (path.parent.parent / "status.json").exists():
            cure = f"It is there to resume a run; give the run itself: {path.parent.parent}"
        raise UserError(
            f"{path}: a pickled checkpoint can run code when it is opened, so it was not read.",
            cure,
        )


_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes of one number of each type that safetensors names."""

_Size = Annotated[int, Field(ge=0)]
_Channel = Annotated[int, Field(ge=0, le=255)]


class _Entry(BaseModel):
    """One tensor in the table; its numbers lie at `data_offsets` behind the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    shape: tuple[_Size, ...]
    data_offsets: tuple[_Size, _Size]

    @model_validator(mode="after")
    def _fits(self) -> _Entry:
        if self.dtype not in _ITEM_BYTES:
            raise ValueError(f"dtype {self.dtype!r} is none of {', '.join(_ITEM_BYTES)}")
        begin, end = self.data_offsets
        needed = math.prod(self.shape) * _ITEM_BYTES[self.dtype]
        if end - begin != needed:
            raise ValueError(
                f"data_offsets {[begin, end]} span {end - begin} bytes, shape and dtype {needed}"
            )
        return self


_TABLE = TypeAdapter(dict[str, _Entry])
_METADATA = TypeAdapter(dict[str, str])


class _Structure(BaseModel):
    """One entry of `labels`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Annotated[int, Field(ge=1, le=32767)]
    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
    color: tuple[_Channel, _Channel, _Channel]
    terminology: str = ""


@checked_dataclass(frozen=True, kw_only=True, config=STRICT)
class _Preprocessing(PreprocessConfig):
    """The settings, and the version of the code that carries them out."""

    version: int = 1


class _Encoder(BaseModel):
    """What builds an encoder again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: Annotated[EncoderConfig, Field(discriminator="kind")]


class _Segmentation(BaseModel):
    """What builds a segmentation network again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: Annotated[EncoderConfig | BaselineNetworkConfig, Field(discriminator="kind")]
    decoder: Literal["default", "unet"]
    classes: Annotated[int, Field(ge=2, le=256)]
    width: Width
    norm: Literal["instance", "batch"]
    window: tuple[Edge, Edge, Edge]

    @model_validator(mode="after")
    def _divided(self) -> _Segmentation:
        stride = self.encoder.stride
        if any(n % s for n, s in zip(self.window, stride, strict=True)):
            raise ValueError(
                f"window {list(self.window)} is no multiple of the stride {list(stride)}"
            )
        return self


class _Header(BaseModel):
    """What stands in the header of any kind.

    A field that is unknown here is let be, but not inside preprocessing and architecture: weights
    would be used otherwise than they were trained.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    method: str
    preset: str
    preprocessing: _Preprocessing
    architecture: _Encoder | _Segmentation
    labels: tuple[_Structure, ...] = ()
    fingerprint: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    citations: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> _Header:
        known = PRESETS | BASELINES
        presets = known.get(self.method)
        if presets is None:
            raise ValueError(f"method {self.method!r} is none of {', '.join(known)}")
        # Converted weights and settings of a user's own have no preset.
        if self.preset not in ("", *presets):
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(presets)}")
        return self


class _EncoderHeader(_Header):
    kind: Literal["encoder"]
    architecture: _Encoder


class _SegmentationHeader(_Header):
    kind: Literal["segmentation"]
    architecture: _Segmentation

    @model_validator(mode="after")
    def _one_spacing(self) -> _SegmentationHeader:
        if self.preprocessing.spacing_mm is None:
            raise ValueError("preprocessing.spacing_mm is null: a model labels one spacing")
        return self

    @model_validator(mode="after")
    def _one_class_each(self) -> _SegmentationHeader:
        classes = self.architecture.classes
        if len(self.labels) != classes - 1:
            raise ValueError(
                f"labels name {len(self.labels)} structures, but classes is {classes} "
                "(structures and background)"
            )
        for what, kept in (
            ("value", [label.value for label in self.labels]),
            ("name", [label.name.casefold() for label in self.labels]),
        ):
            if len(set(kept)) != len(kept):
                raise ValueError(f"labels have the same {what} twice")
        return self


_AnyHeader = Annotated[_EncoderHeader | _SegmentationHeader, Field(discriminator="kind")]
_HEADER: TypeAdapter[_EncoderHeader | _SegmentationHeader] = TypeAdapter(_AnyHeader)
_COPY = "Copy the file again from where it came."


def _checked_table(path: Path) -> tuple[dict[str, _Entry], dict[str, str]]:
    """The table of contents of a file that is whole and in which everything has its place."""
    length, content = _raw_table(path)
    try:
        metadata = _METADATA.validate_python(content.pop("__metadata__", {}), strict=True)
        table = _TABLE.validate_python(content)
    except ValidationError as error:
        raise UserError(f"{path}: damaged table: {first_fault(error)}.", _COPY) from None
    place = 0
    for name, entry in sorted(table.items(), key=lambda item: item[1].data_offsets):
        if entry.data_offsets[0] != place:
            raise UserError(
                f"{path}: damaged table: {name} has data_offsets {list(entry.data_offsets)}, but "
                f"the tensor before it ends at {place}.",
                _COPY,
            )
        place = entry.data_offsets[1]
    total, expected = path.stat().st_size, 8 + length + place
    if total != expected:
        raise UserError(
            f"{path}: {total} bytes where its header needs {expected}: cut off or damaged.", _COPY
        )
    return table, metadata


def _raw_table(path: Path) -> tuple[int, dict[str, Any]]:
    """Length in bytes and content of the JSON that a safetensors file begins with."""
    if not path.is_file():
        raise UserError(f"{path}: no such weights file.", "Give a .safetensors file.")
    try:
        _refuse_pickle(path)
        with path.open("rb") as file:
            # First eight bytes: length of the JSON table that follows, little-endian.
            length = struct.unpack("<Q", file.read(8))[0]
            table = json.loads(file.read(length)) if length <= _LONGEST_HEADER else None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}).", "Check its rights."
        ) from error
    except (struct.error, ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise UserError(
            f"{path}: not a safetensors file, or cut off while it was copied.",
            "Give a .safetensors file written by this program, or copy it again.",
        )
    return length, table


def _parse_header(path: Path, text: str) -> WeightsHeader:
    """The header of which every field has been checked, once and here."""
    try:
        values = json.loads(text)
        schema = values["schema"] if isinstance(values, dict) else None
        if type(schema) is not int or schema < 1:
            raise ValueError(f"schema is {reprlib.repr(schema)}, not {SCHEMA}")
        if schema > SCHEMA:
            raise UserError(
                f"{path}: written by a newer version (header {schema}, this one reads {SCHEMA}).",
                "Update SSLSegmentation.",
            )
        _HEADER.validate_json(text, strict=True)
        _require_all(values)
    except ValidationError as error:
        raise UserError(
            f"{path}: damaged header: {first_fault(error, tagged=True)}.", _CURE
        ) from None
    except (KeyError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged header: {error}.", _CURE) from None
    known = {f.name for f in fields(WeightsHeader)}
    kept = {name: value for name, value in values.items() if name in known}
    return WeightsHeader(**kept | {k: tuple(kept.get(k, ())) for k in ("labels", "citations")})


_CURE = "Copy the file again, or write it again with `backend finetune`, `pretrain` or `convert`."


_ENCODERS: dict[str, type] = {
    **{kind.kind: kind for kind in get_args(EncoderConfig)},
    **dict.fromkeys(BASELINES, BaselineNetworkConfig),
}
"""Settings of each kind of encoder, and of the networks that have none of their own."""


def _require_all(values: Mapping[str, Any]) -> None:
    """Refuse what is left out: the defaults of settings are no answer to how weights were made."""
    encoder = values["architecture"]["encoder"]
    for path, given, kind in (
        ("preprocessing", values["preprocessing"], PreprocessConfig),
        ("architecture.encoder", encoder, _ENCODERS[encoder["kind"]]),
    ):
        # How an encoder was trained is no part of what it is.
        missing = {f.name for f in fields(kind)} - given.keys() - {"drop_path"}
        if missing:
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")


TOP_NAMES: dict[str, frozenset[str]] = {
    "swin": frozenset(("mask_token", "patch_embed", "patch_norm", "stages", "merges", "norms")),
    "vit": frozenset(("cls_token", "patch_embed", "blocks", "norm")),
    "resnet": frozenset(("stem", "stem_norm", "stages")),
    "unet": frozenset(("down", "decoder")),
    "resenc": frozenset(("stem", "down", "decoder")),
    **dict.fromkeys(BASELINES, frozenset(("network",))),
}
"""What the names of tensors begin with in each kind of encoder, and in whole baselines."""


def _refuse_other_family(path: Path, kind: str, inside: str, names: Iterable[str]) -> None:
    """Refuse tensors that are plainly of another kind of network than the header's."""
    found = {n.removeprefix(inside).split(".")[0] for n in names if n.startswith(inside)}
    strange = sorted(found - TOP_NAMES[kind])
    if strange or not found:
        told = f"tensors {_some(strange)}" if strange else f"no tensors {inside}*"
        raise UserError(
            f"{path}: damaged header: architecture.encoder.kind is {kind}, which has "
            f"{', '.join(sorted(TOP_NAMES[kind]))}; the file has {told}.",
            _CURE,
        )


def _refuse_other_network(path: Path, header: WeightsHeader, table: Mapping[str, _Entry]) -> None:
    """Refuse a header that describes another network than the tensors are of.

    The family is compared for every kind, shapes for the Swin transformer. What is not in the file
    is no contradiction; loading tells it as missing.
    """
    described = _Segmentation if header.kind == "segmentation" else _Encoder
    architecture = described.model_validate(header.architecture)
    encoder = architecture.encoder
    whole = header.kind == "encoder" or encoder.kind in BASELINES
    inside = "" if whole else "encoder."
    _refuse_other_family(path, encoder.kind, inside, table)
    if not isinstance(encoder, SwinConfig):
        return
    expected = {inside + name: shape for name, shape in _swin_shapes(encoder).items()}
    if isinstance(architecture, _Segmentation):
        out = (architecture.classes, architecture.width, 1, 1, 1)
        expected["out.conv.conv.weight"] = out
    prefix = f"{inside}stages."
    blocks = {tuple(n.removeprefix(prefix).split(".")[:2]) for n in table if n.startswith(prefix)}
    depths = [sum(stage == str(i) for stage, _ in blocks) for i in range(_stages(blocks))]
    if depths != list(encoder.depths):
        raise UserError(
            f"{path}: damaged header: architecture.encoder.depths is "
            f"{reprlib.repr(list(encoder.depths))}, the tensors are of {depths}.",
            _CURE,
        )
    for name, shape in expected.items():
        entry = table.get(name)
        if entry is not None and entry.shape != shape:
            raise UserError(
                f"{path}: damaged header: its architecture makes {name} {list(shape)}, "
                f"in the file it is {list(entry.shape)}.",
                _CURE,
            )


def _swin_shapes(e: SwinConfig) -> dict[str, tuple[int, ...]]:
    """Shapes that follow from the arguments, of tensors that tell them apart."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.weight": (e.embed_dim, 1, e.patch, e.patch, e.patch)
    }
    for stage, heads in enumerate(e.heads):
        width = e.embed_dim * 2**stage
        block = f"stages.{stage}.0"
        shapes[f"norms.{stage}.weight"] = (width,)
        shapes[f"{block}.attention.relative_bias"] = ((2 * e.window - 1) ** 3, heads)
        shapes[f"{block}.linear1.weight"] = (int(width * e.mlp_ratio), width)
    return shapes


def _stages(blocks: set[tuple[str, ...]]) -> int:
    return len({stage for stage, *_ in blocks})


def _differences(report: LoadReport) -> str:
    shapes = [f"{name} {ours} here, {theirs} there" for name, ours, theirs in report.mismatched]
    parts = (
        ("Missing", list(report.missing)),
        ("Another shape", shapes),
        ("Unknown", list(report.unexpected)),
    )
    return " ".join(f"{what}: {_some(names)}." for what, names in parts if names)


def _some(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
