"""In every preset the loss reaches what is said to learn, and never a teacher.

On torch's meta device: which gradients there are follows from the graph, not from numbers.
"""

from __future__ import annotations

import re

import pytest
import torch

from backend.config import PRESETS, PretrainConfig, load_config
from backend.cost import views_of_noise
from backend.methods import build_method

PAPERS = ("smit", "glmae", "pgl")
EVERY = [
    # The full sizes of the compared methods take a minute together.
    pytest.param(m, p, id=f"{m}-{p}", marks=() if m in PAPERS or p == "tiny" else pytest.mark.slow)
    for m, presets in PRESETS.items()
    for p in presets
]
READ_LATER = re.compile(r"\.(norms\.\d+\.(weight|bias)|mask_token)$")
"""What a Swin has for fine-tuning alone, or for methods that hide (docs/decisions.md)."""


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_gradients_reach_what_learns_and_no_teacher(name: str, preset: str) -> None:
    config = load_config(PretrainConfig, method=name, preset=preset)
    with torch.device("meta"):
        method = build_method(config.method, epochs=config.train.epochs).train()
        views = views_of_noise(config, samples=2, device=torch.device("meta"))
        method(views, 0.5).total.backward()
    learning = {n: p for n, p in method.named_parameters() if p.requires_grad}
    in_parts = {p for part in method.parts.values() for p in part.parameters()}
    assert set(learning.values()) <= in_parts
    left_out = [n for n, p in learning.items() if p.grad is None]
    assert [n for n in left_out if not READ_LATER.search(n)] == []
    assert not left_out or config.method.encoder.kind == "swin"
    if method.teacher is not None:
        assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
