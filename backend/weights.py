"""Weights to share: safetensors with a JSON header that says what they are and how to use them.

Reading the header needs neither torch nor the tensors. Loading always reports what matched, and
fails below a stated share: a network is never called loaded while nothing was.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from backend.errors import UserError
from backend.files import written_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = 1
"""Version of the header; a file with a newer one is refused."""

Kind = Literal["encoder", "segmentation"]
_HEADER_KEY = "sslsegmentation"
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

    plain = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    metadata = {_HEADER_KEY: json.dumps(asdict(header), ensure_ascii=False)}
    with written_whole(path, failures=(SafetensorError,)) as part:
        save_file(plain, part, metadata=metadata)


def read_header(path: Path) -> WeightsHeader:
    """The header alone; needs no torch and reads no tensor.

    Raises:
        UserError: if `path` is no weights file of ours: missing, a pickle, cut off, foreign, or
            written by a newer version.
    """
    metadata = _checked_table(path).get("__metadata__")
    text = metadata.get(_HEADER_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise UserError(
            f"{path}: a safetensors file without our header, so its network is unknown.",
            f"Convert it first: backend convert {path.name} --from smit|monai",
        )
    return _parse_header(path, text)


def load_weights(path: Path) -> tuple[dict[str, Tensor], WeightsHeader]:
    """All tensors (on the CPU) by name, and the header.

    Raises:
        UserError: as `read_header`.
    """
    header = read_header(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path), header
    except SafetensorError as error:
        raise UserError(
            f"{path}: damaged weights ({error}).", "Copy the file again from where it came."
        ) from error


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
        raise UserError(
            f"{path}: a pickled checkpoint can run code when it is opened, so it was not read.",
            f"Convert it first: backend convert {path.name} --from smit|monai "
            "--output model.safetensors",
        )


def _checked_table(path: Path) -> dict[str, Any]:
    """The safetensors table of contents of a file that is whole."""
    if not path.is_file():
        raise UserError(f"{path}: no such weights file.", "Give a .safetensors file.")
    try:
        _refuse_pickle(path)
        with path.open("rb") as file:
            # First eight bytes: length of the JSON table that follows, little-endian.
            length = struct.unpack("<Q", file.read(8))[0]
            table = json.loads(file.read(length)) if length <= _LONGEST_HEADER else None
        total = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except (struct.error, ValueError):
        table = None
    if not isinstance(table, dict):
        raise UserError(
            f"{path}: not a safetensors file, or cut off while it was copied.",
            "Give a .safetensors file written by this program, or copy it again.",
        )
    ends = [entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if total != expected:
        raise UserError(
            f"{path}: {total} bytes where its header needs {expected}: cut off or damaged.",
            "Copy the file again from where it came.",
        )
    return table


def _parse_header(path: Path, text: str) -> WeightsHeader:
    try:
        values = json.loads(text)
        schema = int(values["schema"])
        if schema > SCHEMA:
            raise UserError(
                f"{path}: written by a newer version (header {schema}, this one reads {SCHEMA}).",
                "Update SSLSegmentation.",
            )
        known = {f.name for f in fields(WeightsHeader)}
        kept = {name: value for name, value in values.items() if name in known}
        header = WeightsHeader(
            **kept | {k: tuple(kept.get(k, ())) for k in ("labels", "citations")}
        )
        if header.kind not in get_args(Kind):
            raise ValueError(f"kind is {header.kind!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: its header is damaged ({error}).", "Copy the file again from where it came."
        ) from error
    return header


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
