from __future__ import annotations

from torch import nn

from backend.engine.optim import decay_groups, decays
from backend.methods.smit import Smit
from backend.settings.encoders import SwinConfig
from backend.settings.smit import HeadConfig, SmitConfig


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


def test_groups_hold_all_that_learns_once_and_nothing_of_the_teacher() -> None:
    method = _smit()
    groups = decay_groups(method.named_parameters(), weight_decay=0.05)
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in method.parameters() if p.requires_grad}
    assert not {id(p) for p in method.teacher.parameters()} & set(held)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
