from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import assert_repeatable_and_near_in_half_precision
from smooth_views import smooth_views
from torch import Tensor
from torch.nn import functional

from backend.config import PretrainConfig, load_config
from backend.methods import build_method
from backend.methods.pcrlv2 import Pcrlv2, ScaleOutput
from backend.settings.encoders import UnetConfig
from backend.settings.pcrlv2 import Pcrlv2Config
from backend.settings.views import ViewConfig, ViewsConfig
from backend.views.crops import View, ViewSet

_SIZE = (16, 16, 16)


def _method(**changes: Any) -> Pcrlv2:
    torch.manual_seed(0)
    config = Pcrlv2Config(
        encoder=UnetConfig(widths=(4, 6, 8), norm="instance"), swaps=4, swap_cell=4, **changes
    )
    method = build_method(config, epochs=480).train()
    assert isinstance(method, Pcrlv2)
    return method


def _views(local: int = 2) -> ViewSet:
    main = smooth_views(_SIZE, samples=4, count=2).main
    small = smooth_views((8, 8, 8), samples=4, count=local).main if local else ()
    apart = tuple(View(v.image, v.affine, v.keys + 100) for v in small)
    return ViewSet(main, apart)


def _distance(predicted: Tensor, projected: Tensor) -> float:
    """One minus the cosine, mean over samples."""
    total = 0.0
    for p, z in zip(predicted.double(), projected.double(), strict=True):
        total += 1 - float(p @ z) / (float(p.norm()) * float(z.norm()))
    return total / len(predicted)


def _compared(a: ScaleOutput, b: ScaleOutput, rows: tuple[slice, slice]) -> float:
    first = _distance(a.predicted[rows[0]], b.projected[rows[1]])
    return (first + _distance(b.predicted[rows[1]], a.projected[rows[0]])) / 2


@torch.no_grad()
def _terms_by_hand(method: Pcrlv2, views: ViewSet) -> dict[str, float]:
    b = len(views.main[0].keys)
    main = method._decoded(torch.cat([method._spoilt(v, main=True) for v in views.main]))
    local = method._decoded(torch.cat([method._spoilt(v, main=False) for v in views.local]))
    target = torch.cat([v.image for v in views.main]).double()
    heads = [head(x, restore=True) for head, x in zip(method.scales, main.pyramid, strict=True)]
    small = [head(x, restore=True) for head, x in zip(method.scales, local.pyramid, strict=True)]
    drawn = method._drawn(views.main[0].keys, 1 + 2 * len(views.local)).argmax(1).tolist()
    rows = [slice(n * b, (n + 1) * b) for n in range(max(2, len(views.local)))]
    scale = drawn[0]
    enlarged = functional.interpolate(heads[scale].restored.double(), _SIZE, mode="trilinear")
    pixels = 1 / (1 + torch.exp(-method.pixel_head(main.decoded).double()))
    parts, number = 0.0, 0
    for part in range(len(views.local)):
        for whole in (0, 1):
            number += 1
            chosen = drawn[number]
            parts += _compared(heads[chosen], small[chosen], (rows[whole], rows[part]))
    return {
        "restore": float((pixels - target).square().mean()),
        "global": _compared(heads[scale], heads[scale], (rows[0], rows[1])),
        "intermediate": float((enlarged - target).square().mean()),
        "local": parts / number,
    }


@pytest.mark.parametrize(("skips", "progress"), [(False, 0.0), (True, 0.2), (False, 0.7)])
def test_terms_and_total_equal_the_equations_worked_out_by_hand(
    skips: bool, progress: float
) -> None:
    method, views = _method(skips=skips), _views()
    wanted = _terms_by_hand(method, views)
    found = method(views, progress)
    for name, value in wanted.items():
        assert float(found.terms[name]) == pytest.approx(value, rel=1e-4), name
    epoch = min(240.0, 480 * progress)
    beta = 0.5 * (1 + math.cos(math.pi * epoch / 240))
    assert method.settings(progress)["beta"] == pytest.approx(beta)
    total = wanted["restore"] + wanted["global"] + wanted["local"] + beta * wanted["intermediate"]
    assert found.total.item() == pytest.approx(total, rel=1e-4)


def test_without_local_views_their_term_is_left_out() -> None:
    assert set(_method()(_views(0), 0.0).terms) == {"restore", "global", "intermediate"}


def test_every_comparison_draws_one_scale_all_equally_often() -> None:
    method = _method()
    drawn = torch.stack([method._drawn(torch.tensor([key]), 13) for key in range(500)])
    assert torch.equal(drawn.sum(-1), torch.ones(500, 13))
    assert torch.allclose(drawn.mean((0, 1)), torch.full((2,), 0.5), atol=0.03)
    assert float(drawn[:, 0, 0].mean()) == pytest.approx(0.5, abs=0.06)


def test_without_skips_only_the_bottleneck_reaches_the_decoder() -> None:
    images = smooth_views(_SIZE, samples=2).main[0].image
    with torch.no_grad():
        for skips in (False, True):
            method = _method(skips=skips)
            found = method._decoded(images)
            assert len(found.skips) == 2
            assert all(bool(skip.any()) is skips for skip in found.skips)
            again = method.unet.decode([*found.skips, method.unet.encode(images)[-1]])
            assert torch.equal(again.decoded, found.decoded)


def test_gradient_reaches_every_part_and_targets_of_a_comparison_give_none() -> None:
    method = _method()
    views = _views()
    for step in range(4):
        keyed = [View(v.image, v.affine, v.keys + step) for v in views.main]
        method(ViewSet(tuple(keyed), views.local), 0.0).total.backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
    for part in method.parts.values():
        assert any(float(p.grad.abs().max()) > 0 for p in part.parameters())
    learned = sum(p.numel() for part in method.parts.values() for p in part.parameters())
    assert learned == sum(p.numel() for p in method.parameters())


def test_cells_change_places_in_main_views_alone() -> None:
    config = {"blur_probability": 0.0, "noise_probability": 0.0, "gamma_probability": 0.0}
    method, view = _method(**config), _views().main[0]
    assert torch.equal(method._spoilt(view, main=False), view.image)
    spoilt = method._spoilt(view, main=True)
    assert not torch.equal(spoilt, view.image)
    assert torch.equal(spoilt.flatten(1).sort().values, view.image.flatten(1).sort().values)


def test_a_few_steps_of_the_tiny_preset_lower_the_loss() -> None:
    config = load_config(
        PretrainConfig,
        method="pcrlv2",
        preset="tiny",
        overrides=["views.region=32", "views.main.size=16", "views.local.size=8"],
    )
    torch.manual_seed(0)
    method = build_method(config.method, epochs=100).train()
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    views, seen = _views(), []
    for step in range(15):
        losses = method(views, step / 100)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        seen.append(float(losses.total.detach()))
    assert seen[-1] < 0.8 * seen[0]
    assert method(views, 0.2).monitors["feature_std"] > 0.3


def test_pictures_show_what_was_spoilt_and_what_is_restored() -> None:
    method, view = _method().eval(), _views().main[0]
    seen = method.reconstruct(view)
    assert seen.shown is not None
    cells = seen.hidden.unfold(1, 4, 4).unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).any(-1)
    assert torch.equal(cells.sum((1, 2, 3)), torch.full((4,), 8))
    visible = ~seen.hidden.unsqueeze(1)
    assert torch.equal(seen.shown[visible], method._spoilt(view, main=False)[visible])
    assert seen.prediction.shape == view.image.shape
    assert not seen.prediction.requires_grad


def test_the_same_views_give_the_same_loss_and_half_precision_one_that_is_near() -> None:
    method, views = _method(), _views()
    assert_repeatable_and_near_in_half_precision(method, views, rel=0.1)


@pytest.mark.parametrize(
    ("views", "complaint"),
    [
        ({"main": ViewConfig(count=1, size=64)}, "two main views"),
        ({"main": ViewConfig(size=(32, 64, 60))}, "no multiple of method.swap_cell 8"),
        ({"main": ViewConfig(size=(16, 16, 16))}, "needs 200 cells, a view has 32"),
    ],
)
def test_views_that_it_cannot_learn_from_are_refused(views: Any, complaint: str) -> None:
    Pcrlv2Config().check_views(ViewsConfig(main=ViewConfig(size=(32, 64, 64))))
    with pytest.raises(ValueError, match=complaint):
        Pcrlv2Config().check_views(ViewsConfig(**views))


def test_a_network_without_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder\.decoder must be true"):
        Pcrlv2Config(encoder=UnetConfig(decoder=False))
