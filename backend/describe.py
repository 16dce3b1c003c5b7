"""`backend methods` and `backend describe`: what there is, what it costs, where it deviates."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from backend.config import PRESETS, PretrainConfig, SmitConfig, load_config, to_plain
from backend.provenance import citations

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class MethodCard:
    """What a method is, for those who choose one.

    Attributes:
        name: as given to --method.
        clinician: one sentence without jargon.
        engineer: one sentence with it.
        backbone: the network that is trained.
        kept: what goes on to fine-tuning.
        presets: the first is the default.
        citations: papers.
    """

    name: str
    clinician: str
    engineer: str
    backbone: str
    kept: str
    presets: tuple[str, ...]
    citations: tuple[str, ...]


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


METHODS: dict[str, MethodCard] = {
    "smit": MethodCard(
        name="smit",
        clinician="Hides parts of each scan and learns to fill them in, while a slowly following "
        "teacher keeps the description of the anatomy consistent.",
        engineer="Masked image prediction with one linear pixel layer, plus masked patch token and "
        "image token self-distillation against an EMA teacher.",
        backbone="3D Swin transformer",
        kept="student encoder",
        presets=PRESETS["smit"],
        citations=citations("smit"),
    ),
}


def show_methods(*, as_json: bool) -> None:
    """Print every method."""
    if as_json:
        _print(json.dumps([asdict(card) for card in METHODS.values()], indent=1))
        return
    for card in METHODS.values():
        _print(f"{card.name}  ({', '.join(card.presets)})")
        _print(f"  {card.clinician}\n  {card.engineer}")
        _print(f"  Trains: {card.backbone}. Keeps: {card.kept}.")
        _print("".join(f"  {text}\n" for text in card.citations))


def show_description(
    *, method: str, preset: str | None, overrides: Sequence[str], as_json: bool
) -> None:
    """Print what a method with its settings is and costs.

    Raises:
        UserError: as `load_config`.
    """
    config = load_config(PretrainConfig, method=method, preset=preset, overrides=overrides)
    facts = describe(config)
    if as_json:
        _print(json.dumps(facts, indent=1))
        return
    _print(summary(facts))


def summary(facts: Mapping[str, Any]) -> str:
    """What `describe` found, for people: sections of aligned lines, deviations numbered."""
    card = METHODS[facts["method"]]
    parts = [
        f"{facts['method']} {facts['preset']}\n"
        + _wrapped(f"{card.engineer} Trains: {card.backbone}. Keeps: {card.kept}."),
        _table("Parameters", {k: f"{v:>12,}" for k, v in facts["parameters"].items()}),
        f"Mask\n  {facts['mask']['text']}\n",
        _table("Cost of one step", _costs(facts["cost"])),
        *_settings(facts["config"]),
        _deviations(facts["deviations"]),
        "Cite\n" + "".join(_wrapped(text) for text in facts["citations"]),
    ]
    return "\n".join(parts).rstrip()


def _costs(cost: Mapping[str, Any]) -> dict[str, str]:
    return {
        "scans": f"{cost['scans_per_step']}",
        "arithmetic": f"{cost['gflop_per_step']:,} GFLOP",
        "memory, fp32": f"{cost['memory_mib_fp32_at_least']:,} MiB at least: "
        f"{cost['saved_activations_mib_fp32']:,} activations, "
        f"{cost['weights_and_optimizer_mib']:,} weights and optimizer",
        "time on this machine": f"{cost['seconds_per_step_here_at_least']:g} s at least",
    }


def _settings(config: Mapping[str, Any]) -> list[str]:
    """One table for each section of the settings, under the names that --set takes."""
    tables = []
    for section, values in config.items():
        if isinstance(values, Mapping):
            rows = {name: _plain(value) for name, value in _flat(values, f"{section}.")}
            tables.append(_table(f"Settings of {section}", rows, plain_names=True))
    return tables


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _plain(value: Any) -> str:
    """A value as --set takes it."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, list):
        return f"[{', '.join(_plain(v) for v in value)}]"
    return value if isinstance(value, str) else json.dumps(value)


def _deviations(deviations: Sequence[Mapping[str, str]]) -> str:
    lines = ["Deviations from the paper\n"]
    for number, item in enumerate(deviations, start=1):
        lines.append(f"{number:>3}. {item['what']}\n")
        lines += [
            _wrapped(item[name], first=f"     {name + ':':<8}", rest=" " * 13)
            for name in ("paper", "here", "reason")
        ]
    return "".join(lines)


def _wrapped(text: str, *, first: str = "  ", rest: str = "  ") -> str:
    lines = textwrap.wrap(
        text, 100, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )
    return "".join(f"{line}\n" for line in lines)


def _table(title: str, rows: Mapping[str, str], *, plain_names: bool = False) -> str:
    """Names to the left, values below each other to their right."""
    named = {k if plain_names else k.replace("_", " "): value for k, value in rows.items()}
    width = max(map(len, named), default=0)
    return f"{title}\n" + "".join(f"  {k:<{width}}  {value}\n" for k, value in named.items())


def describe(config: PretrainConfig) -> dict[str, Any]:
    """Parameter counts, mask, cost, deviations and settings, ready for JSON."""
    from backend.views.masking import hidden_count

    cells = (config.views.crop // config.method.mask_cell) ** 3
    hidden = hidden_count(cells, config.method.mask_ratio)
    parameters, cost = _count(config)
    return {
        "method": config.method.name,
        "preset": config.preset,
        "parameters": parameters,
        "mask": {
            "hidden_cells": hidden,
            "cells": cells,
            "text": f"{hidden} of {cells} cells of {config.method.mask_cell}³ voxels",
        },
        "cost": cost,
        "deviations": [asdict(d) for d in smit_deviations(config)],
        "citations": list(citations(config.method.name)),
        "config": to_plain(config),
    }


def _count(config: PretrainConfig) -> tuple[dict[str, int], dict[str, Any]]:
    """Counted on torch's meta device: shapes only, nothing is computed or allocated."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from backend.methods import build_method
    from backend.models.segmentation import parameter_count
    from backend.views.crops import View

    with torch.device("meta"):
        method = build_method(config.method, epochs=config.train.epochs).train()
        edge = config.views.crop
        keys = torch.zeros(1, dtype=torch.int64)
        view = View(torch.zeros(1, 1, edge, edge, edge), torch.zeros(1, 4, 4), keys)
        saved = _SavedBytes()
        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor):
                losses = method([view, view], 0.0)
            losses.total.backward()
    student, teacher = method.student, method.teacher
    parameters = {
        "encoder": parameter_count(student.encoder),
        "patch_head": parameter_count(student.patch_head),
        "class_head": parameter_count(student.class_head),
        "pixel_head": parameter_count(method.pixel_head),
        "student_with_heads": parameter_count(student) + parameter_count(method.pixel_head),
        "teacher": parameter_count(teacher),
    }
    gflop = counter.get_total_flops() * config.train.batch_size / 1e9
    # Weights, gradients and two moments for what learns; weights alone for the teacher.
    state = 4 * (4 * parameters["student_with_heads"] + parameters["teacher"])
    part = config.train.batch_size // config.train.accumulate
    return parameters, {
        "gflop_per_step": round(gflop, 1),
        "scans_per_step": config.train.batch_size,
        "saved_activations_mib_fp32": round(saved.total * part / 2**20),
        "weights_and_optimizer_mib": round(state / 2**20),
        "memory_mib_fp32_at_least": round((saved.total * part + state) / 2**20),
        "seconds_per_step_here_at_least": round(gflop / _gflops_here(), 2),
    }


class _SavedBytes:
    """Sums what autograd keeps for the backward pass, each storage once."""

    def __init__(self) -> None:
        self.total = 0
        self._kept: dict[int, Any] = {}

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not tensor.is_leaf and storage._cdata not in self._kept:
            # Holding the storage keeps its number from being given to another one.
            self._kept[storage._cdata] = storage
            self.total += storage.nbytes()
        return tensor


def _gflops_here() -> float:
    """Rate of a matrix product on this machine's best device, measured in a moment."""
    import torch

    from backend.engine.device import resolve_device

    device = resolve_device("auto")
    edge = 8192 if device.type == "cuda" else 1024
    matrix = torch.rand(edge, edge, device=device)
    best = 0.0
    for _ in range(4):
        began = time.perf_counter()
        # Reading one number waits for the device.
        float((matrix @ matrix)[0, 0])
        best = max(best, 2 * edge**3 / (time.perf_counter() - began) / 1e9)
    return best


def smit_deviations(config: PretrainConfig) -> list[Deviation]:
    """Where the settings leave the SMIT paper, found by comparing them with what it states."""
    found = []
    for what, (paper, stated, here) in _stated_by_paper(config).items():
        if stated != here:
            reason = _REASONS.get((config.preset, what), _REASONS.get(("", what), "Set by you."))
            found.append(Deviation(what=what, paper=paper, here=_text(here), reason=reason))
    return found + _silent(config)


def _stated_by_paper(config: PretrainConfig) -> dict[str, tuple[str, Any, Any]]:
    """What, (how the paper puts it, its value, our value)."""
    m, t, p, v = config.method, config.train, config.preprocess, config.views
    impl, data = "sec. 2, implementation details", "sec. 3, training dataset"
    width = m.encoder.embed_dim * 2**m.encoder.merges
    return {
        "spacing": (f"1.5×1.5×2 mm, {data}", (2.0, 1.5, 1.5), p.spacing_mm),
        "region": (f"128³, {data}", 128, v.region),
        "crop": (f"96³, {data}", 96, v.crop),
        "mask ratio": (f"0.7, {impl}", 0.7, m.mask_ratio),
        "bottleneck width": (f"768, {impl}", 768, width),
        "attention window": (f"4×4×4, {impl}", 4, m.encoder.window),
        "patch": (f"2, {impl}", 2, m.encoder.patch),
        "distilled tokens": (
            "6×6×6 of the encoder's output, sec. 2 and 3",
            "last_stage",
            m.tokens,
        ),
        "weights of the losses": (
            f"1, 0.1, 0.1, {impl}",
            (1.0, 0.1, 0.1),
            (m.weight_mip, m.weight_mpd, m.weight_itd),
        ),
        "student temperature": (f"0.1, {impl}", 0.1, m.student_temperature),
        "teacher temperature": (f"0.04 to 0.07, {impl}", (0.04, 0.07), m.teacher_temperature),
        "teacher temperature warm-up": (
            f"30 epochs, {impl}",
            30.0,
            m.teacher_temperature_warmup_epochs,
        ),
        "patch temperature delay": (f"none named, {impl}", 0.0, m.patch_temperature_delay_epochs),
        "teacher momentum": ("0.996 to 1, cosine, sec. 2", (0.996, 1.0), m.ema_momentum),
        "learning rate": (f"2e-4, {impl}", 2e-4, t.learning_rate),
        "warm-up": (f"30 epochs, {impl}", 30.0, t.warmup_epochs),
        "epochs": (f"400, {impl}", 400, t.epochs),
    }


_CODE = "As in the released code."
_SMALL = "Sized for two CPU cores."
_REASONS: dict[tuple[str, str], str] = {
    ("released", "spacing"): "The released data pipeline resamples to 2 mm.",
    ("released", "distilled tokens"): "The released code distils the input of the last stage; "
    "that stage learns from masked image prediction alone.",
    ("released", "patch temperature delay"): "The released code holds the patch temperature for "
    "30 epochs before it warms up.",
    ("released", "learning rate"): "The released script takes 1e-4 times its batch of 6.",
    ("released", "warm-up"): _CODE,
    ("released", "epochs"): _CODE,
    ("tiny", "distilled tokens"): "Architecture as in the released code, only narrower.",
    **{("tiny", what): _SMALL for what in ("spacing", "region", "crop", "bottleneck width")},
    **{("tiny", what): _SMALL for what in ("learning rate", "warm-up", "epochs")},
    ("tiny", "teacher temperature warm-up"): _SMALL,
}


def _silent(config: PretrainConfig) -> list[Deviation]:
    """What the paper leaves open or contradicts itself in, and what is done."""
    m, t, p = config.method, config.train, config.preprocess
    head: SmitConfig = m
    silent = "not stated"
    items = [
        (
            "size",
            "28.19 M parameters",
            _size_text(config),
            "No part of the released code and no "
            "reading of the text gives 28.19 M; it cannot be reproduced from public material.",
        ),
        (
            "image token loss",
            "eq. 4 sums over masked tokens",
            "no sum: one class token a view",
            "The sum has no meaning for a single token; the released code has none either.",
        ),
        (
            "class token",
            silent,
            "mean of the tokens" if m.class_token == "mean" else "two class-attention blocks",
            "Swin has no class token.",
        ),
        (
            "masked image loss",
            "a norm per token, eq. 1",
            "one quotient of sums over masked voxels of both views",
            _CODE,
        ),
        ("HU window", silent, f"{p.hu_window[0]:g} to {p.hu_window[1]:g}", _CODE),
        (
            "intensity augmentation and flips",
            silent,
            _augmentation_text(config),
            "The released code has none.",
        ),
        (
            "batch size",
            silent,
            str(t.batch_size),
            "Released code: 6 on one GPU; the paper's four GPUs with two scans each give 8.",
        ),
        (
            "weight decay",
            silent,
            f"{t.weight_decay:g}, not on norms, biases, tokens and position tables",
            "AdamW's default in the released code, 0.05 as in MAE and Swin elsewhere.",
        ),
        (
            "gradient clipping",
            silent,
            "none" if t.clip_norm is None else f"norm {t.clip_norm:g}",
            "Guards the distillation terms.",
        ),
        (
            "heads",
            silent,
            f"{head.head.hidden}-{head.head.hidden}-{head.head.bottleneck}, "
            f"{head.head.prototypes} prototypes, {'shared' if head.head.shared else 'not shared'}",
            _CODE,
        ),
        (
            "centre momentum",
            silent,
            f"{m.centre_momentum:g}, averaged over all processes",
            "Released code: 0.9; its averaging over processes was commented out.",
        ),
        (
            "first epochs",
            silent,
            f"prototypes frozen for {m.freeze_prototypes_epochs:g} epochs",
            _CODE,
        ),
        (
            "arithmetic",
            silent,
            "bf16 on a GPU that has it, but fp32 softmax and losses",
            "Half the memory; the released script computes in fp32.",
        ),
        ("orientation", silent, f"array axes towards {p.orientation}", "The house's convention."),
        ("corpus", "3,643 CT, partly private", "your scans", "Not rebuildable."),
    ]
    return [Deviation(what=w, paper=q, here=h, reason=r) for w, q, h, r in items] + _MENDED


_MENDED = [
    Deviation(what="released code's mistakes", paper="-", here=text, reason="Mended.")
    for text in (
        "the teacher starts as a copy of the student",
        "the teacher's momentum follows the step of the whole run and reaches 1",
        "the teacher stays in evaluation mode, without dropped branches",
        "scans are cached once per recipe",
        "weights report what matched and fail below a stated share",
    )
]


def _size_text(config: PretrainConfig) -> str:
    e = config.method.encoder
    return f"width {e.embed_dim}, depths {'-'.join(map(str, e.depths))}, {e.merges} merges"


def _augmentation_text(config: PretrainConfig) -> str:
    v = config.views
    return f"flips {v.flip_probability:g}, scale {v.intensity_scale:g}, shift {v.intensity_shift:g}"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{v:g}" for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
