"""Outside weights made into an encoder file of ours: the recipe behind `backend convert`.

Both sources keep their arrays (x, y, z) as MONAI loads them, ours are (z, y, x). So kernels,
position tables and the eight neighbours of a merge are turned around, and the converted encoder
sees in a transposed volume what the original saw in the volume itself. Names and orders are those
of SMIT's released code (models/Trans.py) and of MONAI's SwinTransformer.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import ValidationError

from backend.cards import card
from backend.config import PretrainConfig, load_config
from backend.errors import UserError, told_plainly
from backend.provenance import encoder_arguments, preprocessing, software_versions
from backend.settings.encoders import SwinConfig
from backend.settings.smit import SmitConfig
from backend.weights import LoadReport, WeightsHeader, load_into, save_weights

if TYPE_CHECKING:
    from torch import Tensor

    from backend.models.swin import SwinEncoder

Source = Literal["smit", "monai"]
Merging = Literal["merging", "mergingv2", "merging_before_1_5"]

MINIMUM_SHARE = 0.9
"""Least share of the encoder's parameters that the outside file must hold."""

_Offset = tuple[int, int, int]
# Offsets (x, y, z) of the neighbours in the order in which each source concatenates them.
_RELEASED: tuple[_Offset, ...] = (
    *((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)),
    *((1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1)),
)
_MONAI: dict[Merging, tuple[_Offset, ...]] = {
    "merging": (*_RELEASED[:4], (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    "mergingv2": tuple((x, y, z) for x, y, z in product((0, 1), repeat=3)),
    # Two neighbours stand there twice and two are absent (MONAI pull request 8285).
    "merging_before_1_5": (*_RELEASED[:4], (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
}
# (0, 0, 0), (0, 0, 1) ...: ours are ordered by (z, y, x).
_OURS: tuple[_Offset, ...] = tuple((x, y, z) for z, y, x in product((0, 1), repeat=3))

_TITLES = {"smit": "SMIT's released encoder", "monai": "MONAI's SwinTransformer"}
_ANCHOR = "patch_embed.proj.weight"
_FOREIGN_STAGE = {"smit": re.compile(r"layers\d\.0\."), "monai": re.compile(r"layers\.\d+\.")}
_STAGE = {"smit": re.compile(r"layers\.(\d+)\."), "monai": re.compile(r"layers(\d+)\.0\.")}
_STAGE_PARTS = (
    (re.compile(r"blocks\.(\d+)\.(norm[12])\.(weight|bias)"), r"stages.{s}.\1.\2.\3"),
    (re.compile(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)"), r"stages.{s}.\1.attention.qkv.\2"),
    (re.compile(r"blocks\.(\d+)\.attn\.proj\.(.+)"), r"stages.{s}.\1.attention.project.\2"),
    (
        re.compile(r"blocks\.(\d+)\.attn\.relative_position_bias_table"),
        r"stages.{s}.\1.attention.relative_bias",
    ),
    (re.compile(r"blocks\.(\d+)\.mlp\.(?:fc|linear)([12])\.(.+)"), r"stages.{s}.\1.linear\2.\3"),
    (re.compile(r"downsample\.(norm|reduction)\.(.+)"), r"merges.{s}.\1.\2"),
)
_OUTER_PARTS = (
    (re.compile(r"mask_token"), "mask_token"),
    (re.compile(r"patch_embed\.proj\.(weight|bias)"), r"patch_embed.\1"),
    (re.compile(r"patch_embed\.norm\.(weight|bias)"), r"patch_norm.\1"),
    (re.compile(r"norm(\d+)\.(weight|bias)"), r"norms.\1.\2"),
)
_INDEX_BUFFER = "attn.relative_position_index"
_SWIN_UNETR = (
    "Tang Y, Yang D, Li W, et al. Self-supervised pre-training of Swin transformers for 3D medical "
    "image analysis. CVPR 2022, 20730-20740. doi:10.1109/CVPR52688.2022.02007",
    "Hatamizadeh A, Nath V, Tang Y, et al. Swin UNETR: Swin transformers for semantic segmentation "
    "of brain tumors in MRI images. BrainLes 2021, LNCS 12962, 272-284. "
    "doi:10.1007/978-3-031-08999-2_22",
)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The encoder's tensors inside an outside file.

    Attributes:
        tensors: by the source's names, without their common prefix.
        place: where they lie, for people.
        others: how many tensors of the file belong to no encoder (heads, decoder, teacher).
    """

    tensors: dict[str, Tensor]
    place: str
    others: int


def run(
    file: Path,
    *,
    source: Source,
    output: Path,
    overwrite: bool = False,
    merging: Merging = "merging",
    approximate: bool = False,
) -> None:
    """Convert a checkpoint to an encoder file and write what matched to standard output.

    Args:
        file: a `.pt`/`.pth` of plain tensors, or safetensors, bare or wrapped in a training state.
        source: whose names and axis order it has.
        output: the safetensors file to write.
        overwrite: replace an output that exists.
        merging: for "monai", the `downsample` it was trained with, which the file does not tell;
            "merging_before_1_5" is "merging" of MONAI before 1.5, where two neighbours stand twice.
        approximate: write an encoder whose features are not quite the original's, where ours
            cannot be the same network; without it such a file is refused.

    Raises:
        UserError: if the output exists or is no .safetensors, the file is missing, damaged, more
            than plain tensors or of another network, less than 90 % of the encoder is in it, or
            our encoder cannot be exactly this one.
        ResourceError: if the output cannot be written.
    """
    _check_output(file, output, overwrite=overwrite)
    _check_input(file)
    # Not above: what is refused until here needs no torch.
    from backend.models.encoder import build_encoder
    from backend.models.segmentation import parameter_count

    found = find_encoder(read_tensors(file), file=file)
    _check_source(found.tensors, source=source, file=file)
    arguments = infer_architecture(found.tensors, source=source, file=file)
    order = _RELEASED if source == "smit" else _MONAI[merging]
    encoder = cast("SwinEncoder", build_encoder(arguments))
    sizes = {name: tensor.numel() for name, tensor in encoder.state_dict().items()}
    _check_tensors(found.tensors, sizes, source=source, file=file)
    converted = converted_tensors(found.tensors, source=source, order=order, file=file)
    report = load_into(encoder, converted, minimum_share=MINIMUM_SHARE, what=str(file))
    inexact = _inexact(merging if source == "monai" else None)
    if inexact and not approximate:
        raise UserError(
            f"{file}: {inexact[0]}",
            "As a start for training that may do: then give --approximate.",
        )
    notes = [
        *(f"NOT EXACT: {reason}" for reason in inexact),
        *_fill_neutral(encoder, report),
        *_notes(source, merging, report, arguments),
    ]
    header = _header(file, source=source, arguments=arguments, notes=notes)
    # What is neither in the file nor neutral stays out, so that loading reports it as missing.
    neutral = [name for name in report.missing if _neutral_value(name) is not None]
    state = encoder.state_dict()
    save_weights(output, {n: state[n] for n in (*report.matched, *neutral)}, header)
    count = parameter_count(encoder)
    sys.stdout.write(_told(found, report, header, notes=notes, parameters=count))
    sys.stdout.write(f"Wrote {output}\nNext: {_next_command(output, header)}\n")


def read_tensors(file: Path) -> Mapping[str, Any]:
    """All that a checkpoint holds, read without running any code of it.

    Raises:
        UserError: if it is missing, damaged, or holds more than plain tensors and containers.
    """
    _check_input(file)
    import torch

    try:
        if file.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(*_told_pickle(file, str(error))) from None
    except OSError as error:
        raise told_plainly(error, file) from error
    except MemoryError:
        raise
    except Exception as error:  # A damaged archive makes the readers raise almost anything.
        first = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise UserError(
            f"{file}: cannot be read as weights ({first}).",
            "Copy it again from where it came; a TorchScript archive must first be saved as a "
            "state_dict.",
        ) from None
    if not isinstance(content, Mapping):
        raise UserError(
            f"{file}: holds a {type(content).__name__}, not tensors by name.",
            "Save the network's state_dict and convert that.",
        )
    return content


def _check_input(file: Path) -> None:
    if not file.is_file():
        raise UserError(f"{file}: no such weights file.", "Give a .pt, .pth or .safetensors file.")


def _told_pickle(file: Path, message: str) -> tuple[str, str]:
    blocked = re.search(r"GLOBAL (\S+)", message)
    what = f"an object of {blocked.group(1)}" if blocked else "more than tensors, or it is damaged"
    return (
        f"{file}: holds {what}; such a file can run code when it is opened, so it was not read.",
        "Ask its source for plain tensors; if you trust it, load it where it came from and save "
        "only its state_dict: torch.save(checkpoint['state_dict'], 'plain.pt').",
    )


def find_encoder(content: Mapping[str, Any], *, file: Path) -> _Found:
    """The one Swin encoder in a checkpoint, whatever it is wrapped in.

    Wrappers are nested mappings (`state_dict`, `student`, `model` ...) and prefixes of the names
    (`module.`, `backbone.`, `transformer.`, `swinViT.` ...). Of a student and its teacher the
    student is taken, the part that SMIT keeps.

    Raises:
        UserError: if there is none, or more than one that could be meant.
    """
    places = list(_places(content))
    candidates = [
        (place, name.removesuffix(_ANCHOR), tensors)
        for place, tensors in places
        for name in tensors
        if name == _ANCHOR or name.endswith(f".{_ANCHOR}")
    ]
    students = [c for c in candidates if not re.search("teacher|momentum|ema", c[0] + c[1], re.I)]
    chosen = students or candidates
    if not chosen:
        known = [name for _, tensors in places for name in tensors][:4]
        raise UserError(
            f"{file}: no Swin encoder in it: no name ends in {_ANCHOR} "
            f"(it holds {', '.join(known) or 'no tensors'} ...).",
            "Give the weights of SMIT or of MONAI's SwinUNETR.",
        )
    if len(chosen) > 1:
        names = ", ".join(f"{place}{prefix}" or "top level" for place, prefix, _ in chosen)
        raise UserError(
            f"{file}: holds several encoders ({names}).", "Save the one you mean by itself."
        )
    place, prefix, tensors = chosen[0]
    inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    told = " ".join(part for part in (place.rstrip("."), prefix and f"{prefix}*") if part)
    # An optimizer's moments are no part of a network.
    total = sum(len(held) for path, held in places if "optim" not in path)
    return _Found(tensors=inside, place=told or "the top level", others=total - len(inside))


def _places(content: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each mapping of the checkpoint that holds tensors, with its path; the outer one first."""
    from torch import Tensor

    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if tensors:
        yield path, tensors
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _places(value, f"{path}{key}.")


def _check_output(file: Path, output: Path, *, overwrite: bool) -> None:
    if output.suffix.lower() != ".safetensors":
        raise UserError(f"{output}: weights are written as safetensors.", "End it .safetensors.")
    if output.exists() and file.exists() and output.samefile(file):
        raise UserError(f"{output}: is the input itself.", "Choose another --output.")
    if output.exists() and not overwrite:
        raise UserError(f"{output}: exists already.", "Choose another name or give --overwrite.")


def _check_source(tensors: Mapping[str, Tensor], *, source: Source, file: Path) -> None:
    other = "monai" if source == "smit" else "smit"
    own = any(_STAGE[source].match(name) for name in tensors)
    if not own and any(_FOREIGN_STAGE[source].match(name) for name in tensors):
        raise UserError(
            f"{file}: its names are those of {_TITLES[other]}, not of {_TITLES[source]}.",
            f"Convert it with --from {other}.",
        )
    for name in tensors:
        if re.match(r"layers\d+c\.", name):
            raise UserError(
                f"{file}: a SwinUNETR with use_v2, whose convolutions between the stages ({name}) "
                "our encoder does not have.",
                "Convert weights of a SwinUNETR with use_v2=False.",
            )
        if "absolute_pos_embed" in name:
            raise UserError(
                f"{file}: has absolute positions ({name}), which our encoder does not have.",
                "Convert weights that were trained with ape=False.",
            )


def _check_tensors(
    tensors: Mapping[str, Tensor], sizes: Mapping[str, int], *, source: Source, file: Path
) -> None:
    """Refuse tensors that cannot be turned: of another size than the network's, or no floats.

    Their shapes are told by loading; the sizes are what turning relies on.
    """
    import torch

    for name, tensor in tensors.items():
        size = sizes.get(our_name(name, source))
        if size is None:
            continue
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            raise UserError(
                f"{file}: {name} is of {tensor.dtype} ({tensor.layout}), not of plain floats.",
                "Save the network's state_dict in float32 or float16.",
            )
        if tensor.numel() != size:
            raise UserError(
                f"{file}: {name} is {tuple(tensor.shape)}, {tensor.numel()} numbers where the rest "
                f"of the network asks for {size}.",
                "Take a checkpoint of one network.",
            )


def infer_architecture(
    tensors: Mapping[str, Tensor], *, source: Source, file: Path
) -> dict[str, Any]:
    """The arguments that build our encoder, told by names and shapes of the source's tensors.

    Raises:
        UserError: if they are of no network that our encoder can be.
    """
    kernel = tensors[_ANCHOR].shape
    if len(kernel) != 5 or kernel[1] != 1 or len(set(kernel[2:])) != 1:
        raise UserError(
            f"{file}: its patch embedding is {tuple(kernel)}; an encoder for CT has "
            "(width, 1, p, p, p): three dimensions, one channel, cubic patches.",
            "Convert weights that were trained on 3D images of one channel.",
        )
    renamed = {our_name(name, source): tuple(t.shape) for name, t in tensors.items()}
    stages = [_stage_facts(renamed, s, file=file) for s in range(_count(renamed, "stages."))]
    merges = _count(renamed, "merges.")
    if not stages or merges not in (len(stages), len(stages) - 1):
        raise UserError(
            f"{file}: {len(stages)} stages and {merges} merges are no Swin encoder.",
            f"Check that these are weights of {_TITLES[source]}.",
        )
    if len({(s.window, s.mlp_ratio) for s in stages}) != 1:
        raise UserError(
            f"{file}: window or MLP ratio differ between its stages, ours has one of each.",
            "Convert weights of a network with the same window in all stages.",
        )
    try:
        config = SwinConfig(
            embed_dim=kernel[0],
            depths=tuple(s.depth for s in stages),
            heads=tuple(s.heads for s in stages),
            window=stages[0].window,
            patch=kernel[2],
            mlp_ratio=stages[0].mlp_ratio,
            qkv_bias="stages.0.0.attention.qkv.bias" in renamed,
            final_merge=merges == len(stages),
            patch_norm="patch_norm.weight" in renamed,
        )
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{file}: is no Swin encoder of ours: {reason}.") from None
    return encoder_arguments(SmitConfig(encoder=config))


@dataclass(frozen=True, kw_only=True)
class _Stage:
    depth: int
    heads: int
    window: int
    mlp_ratio: float


def _stage_facts(shapes: Mapping[str, tuple[int, ...]], stage: int, *, file: Path) -> _Stage:
    first = f"stages.{stage}.0"
    table, hidden = (
        shapes.get(f"{first}.attention.relative_bias"),
        shapes.get(f"{first}.linear1.weight"),
    )
    if table is None or hidden is None or len(table) != 2 or len(hidden) != 2 or 0 in hidden:
        raise UserError(
            f"{file}: stage {stage} lacks its attention or MLP, so it is no Swin stage.",
            "Convert weights of a Swin transformer.",
        )
    edge = round(table[0] ** (1 / 3))
    if edge**3 != table[0] or edge % 2 == 0:
        raise UserError(
            f"{file}: the position table of stage {stage} has {table[0]} rows, which no cubic "
            "window gives.",
            "Our encoder attends in cubes; convert weights with a cubic window.",
        )
    return _Stage(
        depth=_count(shapes, f"stages.{stage}."),
        heads=table[1],
        window=(edge + 1) // 2,
        mlp_ratio=hidden[0] / hidden[1],
    )


def _count(names: Mapping[str, Any], prefix: str) -> int:
    """How many numbers stand right behind the prefix."""
    behind = (name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix))
    return len({number for number in behind if number.isdigit()})


def our_name(name: str, source: Source) -> str:
    """What our encoder calls a tensor of the source; an unknown name stays as it is."""
    stage = _STAGE[source].match(name)
    if stage is None:
        return _renamed(name, _OUTER_PARTS) or name
    # MONAI counts its stages from 1.
    number = int(stage.group(1)) - (1 if source == "monai" else 0)
    inner = _renamed(name[stage.end() :], _STAGE_PARTS)
    return inner.format(s=number) if inner else name


def _renamed(name: str, table: Sequence[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in table:
        match = pattern.fullmatch(name)
        if match:
            return match.expand(replacement)
    return ""


def converted_tensors(
    tensors: Mapping[str, Tensor], *, source: Source, order: Sequence[_Offset], file: Path
) -> dict[str, Tensor]:
    """The tensors under our names and in our axis order, as float32.

    Args:
        tensors: of the source, under its names.
        source: whose names they are.
        order: offsets (x, y, z) of the eight neighbours as the source concatenates them.
        file: names the file in errors.

    Raises:
        UserError: if values are not finite, or a position index is not in row order.
    """
    import torch

    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(_INDEX_BUFFER):
            _check_index(name, tensor, file=file)
            continue
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{file}: {name} holds values that are not finite.", "Take an earlier checkpoint."
            )
        result[our_name(name, source)] = _turned(our_name(name, source), tensor.float())
    _reorder_merges(result, order)
    return result


def _check_index(name: str, index: Tensor, *, file: Path) -> None:
    """The tables can only be turned if their rows stand as both sources write them."""
    import torch

    from backend.models.swin import relative_index

    window = round(index.shape[0] ** (1 / 3))
    expected = relative_index((window, window, window), window)
    if index.shape != expected.shape or not torch.equal(index.to(expected), expected):
        raise UserError(
            f"{file}: {name} numbers the rows of its position table in an order unknown here.",
            "Convert weights of the source's own code.",
        )


def _turned(name: str, tensor: Tensor) -> Tensor:
    """One tensor with its spatial axes reversed, from (x, y, z) to (z, y, x)."""
    if name == "mask_token":
        return tensor.flatten()
    if name == "patch_embed.weight":
        return tensor.permute(0, 1, 4, 3, 2)
    if name.endswith(".relative_bias"):
        edge = round(tensor.shape[0] ** (1 / 3))
        cube = tensor.reshape(edge, edge, edge, -1)
        return cube.permute(2, 1, 0, 3).flatten(0, 2)
    return tensor


def _reorder_merges(tensors: dict[str, Tensor], order: Sequence[_Offset]) -> None:
    """Bring the eight blocks of each merge's norm and linear from the source's order to ours."""
    for stage in range(_count(tensors, "merges.")):
        names = [f"merges.{stage}.{n}" for n in ("norm.weight", "norm.bias", "reduction.weight")]
        if not all(name in tensors for name in names):
            continue
        parts = [_blocks(tensors[name]) for name in names]
        if len(set(order)) == len(order):
            index = [order.index(offset) for offset in _OURS]
            parts = [part[..., index, :] for part in parts]
        else:
            parts = _folded(*parts, order=order)
        tensors.update((n, part.flatten(-2)) for n, part in zip(names, parts, strict=True))


def _blocks(tensor: Tensor) -> Tensor:
    return tensor.view(*tensor.shape[:-1], 8, -1)


def _folded(
    scale: Tensor, shift: Tensor, linear: Tensor, *, order: Sequence[_Offset]
) -> list[Tensor]:
    """A merge in which neighbours stand twice, as one in which each stands once.

    The linear's blocks of one neighbour are added, each times its scale. What the shifts add to
    the output is a constant, which a new shift gives as well. Exact where mean and variance of the
    eight neighbours are those of the doubled ones.

    Args:
        scale: of the norm, (8, c).
        shift: of the norm, (8, c).
        linear: (2c, 8, c).
        order: the neighbours of the eight blocks.
    """
    import torch

    scaled = linear * scale
    folded = torch.zeros_like(linear)
    for block, offset in enumerate(order):
        folded[:, _OURS.index(offset)] += scaled[:, block]
    constant = (linear * shift).sum((1, 2))
    # By singular values: the default driver begins with pivots that nobody has set.
    solution = torch.linalg.lstsq(
        folded.flatten(1).double(), constant.double()[:, None], driver="gelsd"
    )
    return [torch.ones_like(scale), solution.solution.float().view_as(shift), folded]


def _neutral_value(name: str) -> float | None:
    """What a tensor that a source does not have is set to, None where nothing is neutral."""
    if name == "mask_token":
        return 0.0
    if name.startswith("norms."):
        return 1.0 if name.endswith("weight") else 0.0
    return None


def _fill_neutral(encoder: SwinEncoder, report: LoadReport) -> list[str]:
    state = encoder.state_dict()
    for name in report.missing:
        value = _neutral_value(name)
        if value is not None:
            state[name].fill_(value)
    notes = []
    if "mask_token" in report.missing:
        notes.append("No mask token in the file: set to zero; pretraining goes on from there.")
    if "norms.0.weight" in report.missing:
        notes.append("Its skips are normalised without scale and shift: ours are set to 1 and 0.")
    return notes


def _inexact(merging: Merging | None) -> list[str]:
    """Why the converted encoder is not quite the original; empty if it is the same network."""
    reasons = []
    if merging == "merging_before_1_5":
        reasons.append(
            "merges with two neighbours twice (merging_before_1_5); folded into one each they give "
            "close, not equal features."
        )
    return reasons


def _notes(
    source: Source, merging: Merging, report: LoadReport, arguments: Mapping[str, Any]
) -> list[str]:
    unknown = [name for name in report.missing if _neutral_value(name) is None]
    notes = [f"Not in the file and left out: {', '.join(unknown)}."] if unknown else []
    stride = arguments["patch"] * 2 ** (len(arguments["depths"]) - 1)
    edge = arguments["window"] * stride
    if source == "smit":
        return [
            *notes,
            f"Crops of more than {edge} voxels an edge give the original's features; in smaller "
            "ones its windows reached into padding, ours shrink.",
            "The released pretraining kept each scan's own axes, its fine-tuning took RAS: the "
            "header says RAS.",
        ]
    return [
        *notes,
        f"The file does not tell how it merges: taken as downsample={merging!r}."
        + _MERGING_NOTES[merging],
        f"In crops of less than {edge} voxels an edge MONAI takes other rows of its last position "
        "tables than the distances ask for; ours takes those of the distances.",
        "The file does not tell how its scans were prepared: the header says 2 x 1.5 x 1.5 mm "
        "(z, y, x), RAS, HU -175 to 250, as MONAI's BTCV example.",
    ]


_MERGING_NOTES: dict[Merging, str] = {
    "merging": " MONAI before 1.5 merged otherwise: features of such weights would be others.",
    "mergingv2": "",
    "merging_before_1_5": "",
}


def _header(
    file: Path, *, source: Source, arguments: dict[str, Any], notes: Sequence[str]
) -> WeightsHeader:
    released = load_config(PretrainConfig, method="smit", preset="released")
    prepared = replace(released.preprocess, orientation="RAS")
    if source == "monai":
        prepared = replace(prepared, spacing_mm=(2.0, 1.5, 1.5))
    same = source == "smit" and arguments == encoder_arguments(released.method)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return WeightsHeader(
        kind="encoder",
        # The method whose network this is: pretraining and fine-tuning build it by this name.
        method="smit",
        preset="released" if same else "",
        preprocessing=preprocessing(prepared),
        architecture={"encoder": arguments},
        fingerprint={
            "source": source,
            "file": file.name,
            "bytes": file.stat().st_size,
            "sha256": digest,
            "notes": list(notes),
        },
        versions=software_versions(),
        citations=card("smit").citations if source == "smit" else _SWIN_UNETR,
    )


def _told(
    found: _Found,
    report: LoadReport,
    header: WeightsHeader,
    *,
    notes: Sequence[str],
    parameters: int,
) -> str:
    arguments = header.architecture["encoder"]
    network = ", ".join(f"{k} {_plain(v)}" for k, v in arguments.items())
    source: Source = header.fingerprint["source"]
    lines = [
        f"{header.fingerprint['file']}: {_TITLES[source]}, {len(found.tensors)} tensors in "
        f"{found.place}",
        f"  encoder: {network}: {parameters:,} parameters",
        *(f"  {line}" for line in report.text().splitlines()),
        "  turned from (x, y, z) to (z, y, x): patch kernel, position tables, merges",
    ]
    if found.others:
        lines.append(f"  {found.others} tensors of other parts (heads, decoder) not taken")
    lines += [f"  note: {note}" for note in notes]
    return "".join(f"{line}\n" for line in lines)


def _next_command(output: Path, header: WeightsHeader) -> str:
    """The fine-tuning that fits these weights; settings that no preset has are spelt out."""
    preset = load_config(PretrainConfig, method="smit", preset="released")
    theirs: dict[str, Any] = header.architecture["encoder"]
    ours = encoder_arguments(preset.method)
    changed = [f"--set 'method.encoder.{k}={_plain(v)}'" for k, v in theirs.items() if v != ours[k]]
    orientation = header.preprocessing["orientation"]
    changed.append(f"--set preprocess.orientation={orientation}")
    return " ".join(["backend finetune --data SET --output RUN --init", str(output), *changed])


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_plain(v) for v in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
