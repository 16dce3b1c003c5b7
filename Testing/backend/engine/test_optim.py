from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from backend.config import HeadConfig, SmitConfig, SwinConfig
from backend.engine.optim import adamw, decays
from backend.methods.smit import Smit


def _smit() -> Smit:
    return Smit(
        SmitConfig(
            encoder=SwinConfig(embed_dim=4, depths=(1, 1), heads=(1, 1)),
            head=HeadConfig(hidden=8, bottleneck=6, prototypes=10),
            class_token="attention",
        ),
        epochs=1,
    )


def test_only_matrices_decay_and_not_norms_biases_tokens_and_tables() -> None:
    method = _smit()
    kept = {name for name, p in method.student.named_parameters() if not decays(name, p)}
    norms = {
        f"{path}.{name}"
        for path, module in method.student.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters()
    }
    biases = {n for n, _ in method.student.named_parameters() if n.endswith("bias")}
    rest = {n for n in kept if n.endswith(("token", "relative_bias", "prototype_length"))}
    assert kept == norms | biases | rest
    assert {"encoder.mask_token", "class_attention.token"} <= rest
    assert "patch_head.prototypes" not in kept
    assert "encoder.patch_embed.weight" not in kept


def test_optimizer_holds_all_that_learns_once_and_nothing_of_the_teacher() -> None:
    method = _smit()
    optimizer = adamw(
        method.named_parameters(), learning_rate=0.1, weight_decay=0.05, betas=(0.9, 0.99)
    )
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in method.parameters() if p.requires_grad}
    assert not {id(p) for p in method.teacher.parameters()} & set(held)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]


def test_steps_equal_those_of_the_published_algorithm() -> None:
    linear = nn.Linear(1, 1)
    with torch.no_grad():
        linear.weight.fill_(2.0)
        linear.bias.fill_(-1.0)
    optimizer = adamw(
        linear.named_parameters(), learning_rate=0.1, weight_decay=0.05, betas=(0.9, 0.99)
    )
    wanted = {"weight": 2.0, "bias": -1.0}
    moments = dict.fromkeys(wanted, (0.0, 0.0))
    for step, gradient in enumerate((0.5, -2.0, 3.0), start=1):
        for name, parameter in linear.named_parameters():
            parameter.grad = torch.full_like(parameter, gradient)
            first, second = moments[name]
            first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
            moments[name] = first, second
            wanted[name] *= 1 - 0.1 * (0.05 if name == "weight" else 0)
            scale = math.sqrt(second / (1 - 0.99**step)) + 1e-8
            wanted[name] -= 0.1 * first / (1 - 0.9**step) / scale
        optimizer.step()
        for name, parameter in linear.named_parameters():
            assert parameter.item() == pytest.approx(wanted[name], rel=1e-5)
