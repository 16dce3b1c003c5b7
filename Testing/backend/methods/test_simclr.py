from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from backend.config import PRESETS, FinetuneConfig, PretrainConfig, load_config
from backend.methods import build_method
from backend.methods.simclr import Simclr
from backend.settings.encoders import ResnetConfig
from backend.settings.pgl import ProjectorConfig
from backend.settings.simclr import SimclrConfig
from backend.settings.views import ViewConfig, ViewsConfig
from backend.views.crops import Cut, Regions, ViewSet, cut_views


def _method(**changes: Any) -> Simclr:
    values: dict[str, Any] = {
        "encoder": ResnetConfig(depths=(1, 1, 1, 1), width=2, stem_stride=(1, 1, 1)),
        "projector": ProjectorConfig(hidden=8, output=6, last_norm=True),
        "temperature": 0.3,
    }
    torch.manual_seed(0)
    return Simclr(SimclrConfig(**values | changes), epochs=10).train()


def _views(samples: int = 3) -> ViewSet:
    generator = torch.Generator().manual_seed(2)
    coarse = torch.randn(samples, 1, 5, 6, 6, generator=generator) * 300
    hu = functional.interpolate(coarse, size=(24, 45, 45), mode="trilinear").to(torch.int16)
    regions = Regions(
        hu,
        torch.tensor((24, 45, 45)).expand(samples, 3),
        torch.arange(20, 20 + samples),
        torch.tensor([[0.0, 200.0]]).expand(samples, 2),
    )
    cut = Cut(count=2, size=(16, 32, 32), scale=(1.1, 1.4), minimum_overlap=0.1)
    return ViewSet(cut_views(regions, cut, hu_window=(-1024.0, 325.0), zscore=True))


def _vectors(method: Simclr, views: ViewSet) -> Tensor:
    """Projected vectors of all views in fp64, from the coarsest maps on, by hand."""
    with torch.no_grad():
        image = torch.cat([view.image for view in views.main])
        maps = copy.deepcopy(method.encoder)(image).bottleneck.double()
        x = maps.mean((2, 3, 4))
        first, norm, _, last, last_norm = method.projector
        x = x @ first.weight.double()[..., 0, 0, 0].T
        x = (x - x.mean(0)) / torch.sqrt(x.var(0, correction=0) + norm.eps)
        x = x * norm.weight.double() + norm.bias.double()
        x = x.clamp(min=0) @ last.weight.double()[..., 0, 0, 0].T
        return (x - x.mean(0)) / torch.sqrt(x.var(0, correction=0) + last_norm.eps)


def test_the_loss_is_that_of_the_paper_over_all_views_of_the_batch() -> None:
    method, views = _method(), _views()
    vectors = [v / v.norm() for v in _vectors(method, views)]
    wanted = 0.0
    for i in range(6):
        scores = {j: float(vectors[i] @ vectors[j]) / 0.3 for j in range(6) if j != i}
        partner = (i + 3) % 6
        wanted += math.log(sum(math.exp(s - scores[partner]) for s in scores.values())) / 6
    found = method(views, 0.5)
    assert found.total.item() == pytest.approx(wanted, rel=1e-4)
    assert list(found.terms) == ["contrast"]
    assert float(found.terms["contrast"]) == pytest.approx(wanted, rel=1e-4)


def test_every_weight_of_encoder_and_projector_learns_in_the_tiny_preset() -> None:
    config = load_config(PretrainConfig, method="simclr", preset="tiny").method
    torch.manual_seed(0)
    method = build_method(config, epochs=10).train()
    method(_views(), 0.5).total.backward()
    learning = {id(p) for part in method.parts.values() for p in part.parameters()}
    assert learning == {id(p) for p in method.parameters()}
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.ndim == 1 or float(parameter.grad.abs().max()) > 0, name
    assert method.parts["encoder"] is method.encoder
    assert method.teacher is None


def test_a_few_steps_lower_the_loss_without_a_collapse() -> None:
    method, views = _method(), _views(4)
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        found = method(views, 0.5)
        found.total.backward()
        optimizer.step()
        losses.append(found.total.item())
    assert losses[-1] < 0.7 * losses[0], losses
    assert float(found.monitors["feature_std"]) > method.healthy["feature_std"][0]


def test_the_monitor_tells_a_collapse() -> None:
    method = _method(projector=ProjectorConfig(hidden=8, output=6))
    with torch.no_grad():
        last = method.projector[-1]
        last.weight.zero_()
        last.bias.fill_(1.0)
    low, _ = method.healthy["feature_std"]
    assert float(method(_views(), 0.5).monitors["feature_std"]) < 0.1 * low


def test_the_presets_are_those_of_the_paper_on_the_views_of_pgl() -> None:
    paper = load_config(PretrainConfig, method="simclr", preset="paper")
    assert paper.method == SimclrConfig()
    assert paper.views == load_config(PretrainConfig, method="pgl", preset="paper").views
    assert (paper.train.optimizer, paper.train.learning_rate) == ("lars", 0.3 * 128 / 256)
    for preset in PRESETS["simclr"]:
        tuned = load_config(FinetuneConfig, method="simclr", preset=preset)
        learnt = load_config(PretrainConfig, method="simclr", preset=preset)
        assert tuned.method.encoder == learnt.method.encoder


def test_other_views_than_two_are_refused() -> None:
    with pytest.raises(ValueError, match=r"views\.main\.count 4: simclr compares 2 views"):
        SimclrConfig().check_views(ViewsConfig(main=ViewConfig(count=4)))
