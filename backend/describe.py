"""`backend methods` and `backend describe`: what there is, what it costs, where it deviates."""

from __future__ import annotations

import json
import logging
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from backend.cards import card, card_facts, deviations
from backend.config import (
    BASELINES,
    PRESETS,
    FinetuneConfig,
    NetworkConfig,
    PretrainConfig,
    load_config,
    preset_names,
    to_plain,
)
from backend.engine.record import read_json
from backend.errors import UserError
from backend.progress import told_time
from backend.provenance import encoder_arguments, segmentation_architecture
from backend.settings.common import triple

log = logging.getLogger("backend")

_CLASSES = 14
"""Outputs of the segmentation networks that are counted: thirteen organs and background."""
_SAMPLES = 2
"""Scans that a step is counted with: some methods compare scans with each other."""
_STEPS = 3
"""Steps that are taken to measure them."""
_HUNDRED = 100
"""Scans that the length of a run is told for, where its settings count epochs."""


def show_methods(*, as_json: bool, baselines: bool = False, measure: bool = False) -> None:
    """Print every method, or the networks they are compared with.

    Args:
        as_json: for programs.
        baselines: the networks that are only trained from scratch instead.
        measure: take a few real steps of each method's smallest preset, for time and memory.

    Raises:
        UserError: to measure what is not pretrained.
    """
    _refuse_measuring(measure and baselines, "methods --baselines")
    facts = [card_facts(name) for name in (BASELINES if baselines else PRESETS)]
    if measure:
        for entry in facts:
            config = load_config(PretrainConfig, method=entry["name"], preset="tiny")
            entry["measured"] = measured(config)
    if as_json:
        _print(json.dumps(facts, indent=1))
        return
    for entry in facts:
        told = f"{entry['paper']}. Trains: {entry['backbone']}. Keeps: {entry['kept']}."
        lines = [entry["clinician"], entry["engineer"], told]
        if "measured" in entry:
            lines.append(f"On this machine, preset tiny: {entry['measured']['text']}.")
        _print(f"{entry['name']}  ({', '.join(entry['presets'])})")
        _print("".join(_wrapped(line) for line in lines))
    if not baselines:
        _print("Networks to compare with, trained from scratch: backend methods --baselines")


def show_description(
    *,
    method: str,
    preset: str | None,
    overrides: Sequence[str],
    as_json: bool,
    measure: bool = False,
) -> None:
    """Print what a method with its settings is and costs.

    Raises:
        UserError: as `load_config`, and to measure what is not pretrained.
    """
    preset_names(method)  # refuses what is neither pretrained nor a baseline
    load = partial(load_config, method=method, preset=preset, overrides=overrides)
    if method in BASELINES:
        _refuse_measuring(measure, method)
        facts = describe_network(load(FinetuneConfig))
    else:
        config = load(PretrainConfig)
        log.info("Counting what a step of %s %s costs", config.method.name, config.preset)
        facts = describe(config)
        if measure:
            log.info("Taking %d steps", _STEPS)
            facts["measured"] = measured(config)
    if as_json:
        _print(json.dumps(facts, indent=1))
        return
    _print(summary(facts))


def _refuse_measuring(measure: bool, what: str) -> None:
    if measure:
        raise UserError(
            f"{what}: only steps of pretraining are measured, and there are none.",
            "Leave out --measure.",
        )


def show_difference(first: str, second: str, *, as_json: bool) -> None:
    """Print the settings in which two recipes differ.

    Args:
        first: METHOD, METHOD/PRESET or a run folder.
        second: likewise.
        as_json: for programs.

    Raises:
        UserError: if there is no such method, preset or run.
    """
    recipes = [_recipe(name) for name in (first, second)]
    ours, theirs = (dict(_flat(recipe)) for recipe in recipes)
    rows = {
        key: tuple(_told(side[key]) if key in side else "-" for side in (ours, theirs))
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    }
    if as_json:
        _print(json.dumps({k: {first: a, second: b} for k, (a, b) in rows.items()}, indent=1))
        return
    if not rows:
        _print(f"{first} and {second} are the same.")
        return
    compared = " and ".join(f"{r['method']['name']} {r['preset']}" for r in recipes)
    _print(f"Settings in which {compared} differ\n")
    table = [("setting", first, second), *((key, a, b) for key, (a, b) in rows.items())]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        _print("  ".join(cells).rstrip())


def summary(facts: Mapping[str, Any]) -> str:
    """What `describe` found, for people: sections of aligned lines, deviations numbered."""
    told = card(facts["method"])
    masks = facts.get("mask", {}).get("views", {})
    parts = [
        f"{facts['method']} {facts['preset']}\n"
        + _wrapped(f"{told.engineer} Trains: {told.backbone}. Keeps: {told.kept}."),
        *([_table("In short", _short(facts))] if "cost" in facts else []),
        *([f"Measured\n{_wrapped(facts['measured']['text'])}"] if "measured" in facts else []),
        _table("Parameters", {k: f"{v:>12,}" for k, v in facts["parameters"].items()}),
        *([_table("Mask", {k: v["text"] for k, v in masks.items()})] if masks else []),
        *([_table("Cost of one step", _costs(facts["cost"]))] if "cost" in facts else []),
        *_settings(facts["config"]),
        _deviations(facts["deviations"]),
        "Cite\n" + "".join(_wrapped(text) for text in facts["citations"]),
    ]
    return "\n".join(parts).rstrip()


def _short(facts: Mapping[str, Any]) -> dict[str, str]:
    """What one asks first: how large, how much memory, how long."""
    cost, run = facts["cost"], facts["cost"]["run"]
    scans = (
        "" if run["scans"] is None else f" ({run['epochs']:,} epochs, with {run['scans']} scans)"
    )
    return {
        "network": f"{facts['parameters']['learned']:,} parameters that learn",
        "memory": f"about {cost['memory_mib_fp32']:,} MB",
        "step": f"about {cost['seconds_per_step_here']:g} s on {cost['device']} "
        f"for {cost['scans_per_step']} scans",
        "whole run": f"about {told_time(run['seconds'])} for {run['steps']:,} steps{scans}",
    }


def _costs(cost: Mapping[str, Any]) -> dict[str, str]:
    program = cost["program_mib"]
    beside = {
        "gaps between them": f"about {cost['gaps_mib']:,} MB more",
        "program": f"{program:,} MB more, measured here and now",
    }
    return {
        "scans": f"{cost['scans_per_step']}",
        "arithmetic": f"{cost['gflop_per_step']:,} GFLOP",
        "tensors, fp32": f"{cost['tensors_mib_fp32']:,} MB, of which weights and optimizer are "
        f"{cost['weights_and_optimizer_mib']:,}",
        **(beside if program else {}),
        f"time on {cost['device']}": f"about {cost['seconds_per_step_here']:g} s",
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
    counts = parameters(config)
    return {
        "method": config.method.name,
        "preset": config.preset,
        "parameters": counts,
        "mask": masking(config),
        "cost": _cost(config, counts),
        "deviations": [asdict(d) for d in deviations(config)],
        "citations": list(card(config.method.name).citations),
        "config": to_plain(config),
    }


def describe_network(config: FinetuneConfig) -> dict[str, Any]:
    """As `describe`, of a network that is only trained from scratch."""
    method = config.method.name
    return {
        "method": method,
        "preset": config.preset,
        "parameters": _segmentation_parameters(config.method, config.preset),
        "deviations": [asdict(d) for d in deviations(config)],
        "citations": list(card(method).citations),
        "config": to_plain(config),
    }


def measured(config: PretrainConfig, *, steps: int = _STEPS) -> dict[str, Any]:
    """Time and memory of a step on this machine's best device, on scans of noise."""
    import torch

    from backend.cost import views_of_noise
    from backend.engine.device import autocast, memory_mb, resolve_device, use_bf16
    from backend.methods import build_method
    from backend.training import optimizer_of

    device = resolve_device("auto")
    bf16 = use_bf16(config.train.precision, device)
    method = build_method(config.method, epochs=config.train.epochs).to(device).train()
    optimizer = optimizer_of(config.train, method.named_parameters())
    part = config.train.batch_size // config.train.accumulate
    views = views_of_noise(config, samples=max(part, _SAMPLES), device=device)
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        for _ in range(config.train.accumulate):
            with autocast(device, bf16=bf16):
                losses = method(views, 0.0)
            torch.autograd.backward(losses.total)
        optimizer.step()
        method.after_step(0.0)
        float(losses.total.detach())  # waits for the device
        times.append(time.perf_counter() - began)
    seconds, megabytes = sorted(times)[len(times) // 2], memory_mb(device)
    return {
        "device": str(device),
        "seconds_per_step": round(seconds, 3),
        "memory_mb": round(megabytes),
        "text": f"{seconds:.2f} s and {megabytes:.0f} MB for a step of {part} scans on {device}",
    }


def parameters(config: PretrainConfig) -> dict[str, int]:
    """Parameters of each part, of all that learns, of the teacher and of the network on labels."""
    import torch

    from backend.methods import build_method
    from backend.models.segmentation import parameter_count

    with torch.device("meta"):
        method = build_method(config.method, epochs=config.train.epochs)
    return {
        **{name: parameter_count(part) for name, part in method.parts.items()},
        "learned": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "teacher": 0 if method.teacher is None else parameter_count(method.teacher),
        **_segmentation_parameters(config.method, config.preset),
    }


def _cost(config: PretrainConfig, counts: Mapping[str, int]) -> dict[str, Any]:
    """Arithmetic, memory and time of a step, without taking one."""
    import psutil

    from backend.cost import GAPS, rates_of, step_cost
    from backend.engine.device import resolve_device
    from backend.training import plan_of

    device, train = resolve_device("auto"), config.train
    cost, rates = step_cost(config), rates_of(device)
    seconds, steps = cost.seconds(rates), plan_of(train, samples=_HUNDRED).total_steps
    # Besides its tensors a run on a processor holds Python and libraries that have begun to
    # compute, as we do here by now.
    gpu = device.type == "cuda"
    program = 0 if gpu else psutil.Process().memory_info().rss
    gaps = 0 if gpu else GAPS * cost.peak_bytes
    # Weights, gradients and the optimiser's moments for what learns; weights for the teacher.
    moments = 2 if train.optimizer in {"adamw", "adam"} else 1
    state = 4 * ((2 + moments) * counts["learned"] + counts["teacher"])
    return {
        "gflop_per_step": round((cost.product_flop + cost.convolution_flop) / 1e9, 1),
        "scans_per_step": train.batch_size,
        "memory_mib_fp32": round((program + cost.peak_bytes + gaps) / 2**20),
        "tensors_mib_fp32": round(cost.peak_bytes / 2**20),
        "gaps_mib": round(gaps / 2**20),
        "program_mib": round(program / 2**20),
        "weights_and_optimizer_mib": round(state / 2**20),
        "device": str(device),
        "seconds_per_step_here": float(f"{seconds:.3g}"),
        "run": {
            "steps": steps,
            "epochs": train.epochs,
            "scans": _HUNDRED if train.max_steps is None else None,
            "seconds": round(seconds * steps, 1),
        },
    }


def _segmentation_parameters(method: NetworkConfig, preset: str) -> dict[str, int]:
    """Sizes of the network that fine-tuning with a preset trains, for thirteen organs."""
    import torch

    from backend.models.segmentation import build_segmentation, encoder_of, parameter_count

    config = load_config(FinetuneConfig, method=method.name, preset=preset)
    architecture = segmentation_architecture(config, classes=_CLASSES) | {
        "encoder": encoder_arguments(method),
        "width": config.decoder.width or method.encoder.first_width,
    }
    with torch.device("meta"):
        network = build_segmentation(architecture)
    whole = parameter_count(network)
    if method.name in BASELINES:
        return {"segmentation_network": whole}
    encoder = parameter_count(encoder_of(network))
    return {"segmentation_network": whole, "segmentation_decoder": whole - encoder}


def masking(config: PretrainConfig) -> dict[str, Any]:
    """What is hidden of each kind of view, where the method hides a share of cells."""
    from backend.cells import hidden_count

    hiding = config.method.hiding
    if hiding is None:
        return {}
    low, high, cell = hiding
    views = {}
    for kind, view in (("main", config.views.main), ("local", config.views.local)):
        if view is None:
            continue
        cells = 1
        for n, edge in zip(triple(view.size), cell, strict=True):
            cells *= n // edge
        hidden = hidden_count(cells, high)
        span = f"{hidden_count(cells, low)} to {hidden}" if low < high else f"{hidden}"
        views[kind] = {
            "hidden_cells": hidden,
            "visible_cells": cells - hidden,
            "cells": cells,
            "text": f"{span} of {cells} cells of {_edges_text(cell)} voxels hidden, "
            f"{cells - hidden} visible",
        }
    return {**views["main"], "views": views}


def _edges_text(edges: Sequence[int]) -> str:
    return f"{edges[0]}³" if len(set(edges)) == 1 else "×".join(map(str, edges))


def _recipe(name: str) -> dict[str, Any]:
    """The settings of METHOD, METHOD/PRESET or of a run."""
    path = Path(name)
    if (path / "config.json").is_file():
        values: dict[str, Any] = read_json(path / "config.json", needs=("config",))["config"]
        return values
    method, _, preset = name.partition("/")
    if method not in PRESETS | BASELINES:
        raise UserError(f"{name!r} is neither a method nor a run folder.", "See `backend methods`.")
    chosen = preset or preset_names(method)[0]
    if method in BASELINES:
        return to_plain(load_config(FinetuneConfig, method=method, preset=chosen))
    return to_plain(load_config(PretrainConfig, method=method, preset=chosen))


def _told(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return ", ".join(_told(v) for v in value)
    return str(value)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
