from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from checks import assert_repeatable_and_near_in_half_precision
from smooth_views import smooth_views
from torch import Tensor

from backend.config import PretrainConfig, load_config
from backend.methods import build_method
from backend.methods.cpc3d import Cpc3d, context_patches, cut_patches, other_columns
from backend.settings.cpc3d import Cpc3dConfig
from backend.settings.encoders import UnetConfig
from backend.settings.views import ViewConfig, ViewsConfig
from backend.views.crops import View

_PLAIN = {"flip_probability": 0.0, "patch_kept": 1.0}


def _config(**changes: Any) -> Cpc3dConfig:
    values: dict[str, Any] = {
        "encoder": UnetConfig(widths=(4, 6), norm="instance", decoder=False),
        "patch": 8,
        "step": 4,
        "code": 6,
        "context": 5,
        "negatives": 2,
    }
    return Cpc3dConfig(**(values | changes))


def _method(**changes: Any) -> Cpc3d:
    torch.manual_seed(0)
    method = build_method(_config(**changes), epochs=10).train()
    assert isinstance(method, Cpc3d)
    return method


def _view(edge: int = 24, *, samples: int = 2) -> View:
    return smooth_views((edge, edge, edge), samples=samples, grain=8).main[0]


def _mirror(index: int, side: int) -> int:
    index = abs(index)
    return index if index < side else 2 * (side - 1) - index


def _gru(cell: torch.nn.GRU, steps: list[Tensor]) -> Tensor:
    """The last state of a gated recurrent unit, gate by gate."""
    w, u = cell.weight_ih_l0.double(), cell.weight_hh_l0.double()
    b, c = cell.bias_ih_l0.double(), cell.bias_hh_l0.double()
    n = cell.hidden_size
    state = torch.zeros(n, dtype=torch.float64)
    for x in steps:
        left, right = w @ x + b, u @ state + c
        reset = torch.sigmoid(left[:n] + right[:n])
        update = torch.sigmoid(left[n : 2 * n] + right[n : 2 * n])
        new = torch.tanh(left[2 * n :] + reset * right[2 * n :])
        state = (1 - update) * new + update * state
    return state


@torch.no_grad()
def _loss_by_hand(method: Cpc3d, view: View) -> float:
    """Patch by patch, column by column, in fp64."""
    c, n, samples = method.config, method.config.patches_per_side, len(view.keys)
    codes = {}
    for b in range(samples):
        for z, y, x in np.ndindex(n, n, n):
            box = tuple(slice(i * c.step, i * c.step + c.patch) for i in (z, y, x))
            cells = method.unet.encode(view.image[b, 0][box][None, None])[-1]
            codes[b, z, y, x] = (
                method.to_code.weight.double() @ cells.flatten().double()
                + method.to_code.bias.double()
            )
    wrong = other_columns(view.keys, n * n, c.negatives)
    total = 0.0
    for number, (b, y, x) in enumerate(np.ndindex(samples, n, n)):
        steps = []
        for row in range(c.context_rows):
            reach = c.context_rows - 1 - row
            steps += [
                codes[b, row, _mirror(y + dy, n), _mirror(x + dx, n)]
                for dy in range(-reach, reach + 1)
                for dx in range(-reach, reach + 1)
            ]
        context = _gru(method.recurrent, steps)
        wanted = [p.weight.double() @ context + p.bias.double() for p in method.predictors]
        scores = []
        for column in (number, *wrong[number].tolist()):
            there = np.unravel_index(column, (samples, n, n))
            later = [
                codes[there[0], n - c.predicted_rows + r, there[1], there[2]]
                for r in range(c.predicted_rows)
            ]
            dots = [float(p @ code) for p, code in zip(wanted, later, strict=True)]
            scores.append(sum(dots) / len(dots) / (c.dot_divisor or c.code))
        total -= math.log(1 / (1 + math.exp(-scores[0]))) / 2
        for score in scores[1:]:
            total -= math.log(1 - 1 / (1 + math.exp(-score))) / 2 / c.negatives
    return total / (samples * n * n)


@pytest.mark.parametrize("divisor", [None, 0.5])
def test_loss_equals_the_one_worked_out_patch_by_patch(divisor: float | None) -> None:
    method, view = _method(dot_divisor=divisor, **_PLAIN), _view()
    found = method(_set(view), 0.0)
    assert found.total.item() == pytest.approx(_loss_by_hand(method, view), rel=1e-5)
    assert list(found.terms) == ["cpc"]


def _set(view: View) -> Any:
    return smooth_views((8, 8, 8))._replace(main=(view,))


def test_patches_are_those_of_an_overlapping_grid_at_a_place_within_the_view() -> None:
    config, view = _config(**_PLAIN), _view(30, samples=20)
    patches = cut_patches(view, config).view(20, 5, 5, 5, 8, 8, 8)
    starts = set()
    for b in range(20):
        image = view.image[b, 0]
        windows = image.unfold(0, 8, 1).unfold(1, 8, 1).unfold(2, 8, 1)
        same = (windows == patches[b, 0, 0, 0]).all(-1).all(-1).all(-1).nonzero()
        z, y, x = same[0].tolist()
        starts.add((z, y, x))
        for i, j, k in np.ndindex(5, 5, 5):
            box = (slice(z + 4 * i, z + 4 * i + 8), slice(y + 4 * j, y + 4 * j + 8))
            wanted = image[(*box, slice(x + 4 * k, x + 4 * k + 8))]
            assert torch.equal(patches[b, i, j, k], wanted)
    assert len(starts) > 10
    assert max(max(s) for s in starts) == 6


def test_patches_are_mirrored_along_z_half_the_time_and_lose_a_drawn_border() -> None:
    view = _view(samples=8)
    plain = cut_patches(view, _config(**_PLAIN))
    mirrored = cut_patches(view, _config(patch_kept=1.0))
    turned = torch.tensor([torch.equal(a, b.flip(1)) for a, b in zip(mirrored, plain, strict=True)])
    still = torch.tensor([torch.equal(a, b) for a, b in zip(mirrored, plain, strict=True)])
    assert bool((turned | still).all())
    assert 0.4 < float(turned.float().mean()) < 0.6
    kept = cut_patches(View(torch.ones_like(view.image), *view[1:]), _config(flip_probability=0.0))
    assert torch.equal(kept.unique(), torch.tensor([0.0, 1.0]))
    assert torch.equal(kept.sum((1, 2, 3, 4)), torch.full((len(kept),), 7.0**3))
    corners = kept[:, 0, 0, 0, 0].mean()
    assert 0.05 < float(corners) < 0.25


def test_context_widens_upwards_and_is_mirrored_at_the_border() -> None:
    found = context_patches(3, rows=2)
    assert found.shape == (9, 10)
    # The middle column sees the whole first row, then its own patch of the second.
    assert found[4].tolist() == [*range(9), 13]
    # Left of the corner's column, y = -1 and x = -1 stand for 1.
    assert found[0].tolist() == [4, 3, 4, 1, 0, 1, 4, 3, 4, 9]


def test_wrong_columns_are_others_and_all_of_them_equally_often() -> None:
    keys = torch.arange(3)
    found = other_columns(keys, 4, 5000)
    assert found.shape == (12, 5000)
    for own, others in enumerate(found):
        counts = others.bincount(minlength=12) / 5000
        assert float(counts[own]) == 0
        counts[own] = 1 / 11
        assert torch.allclose(counts, torch.full((12,), 1 / 11), atol=0.02)


def test_gradient_reaches_every_part_and_some_steps_of_the_tiny_preset_lower_the_loss() -> None:
    config = load_config(
        PretrainConfig,
        method="cpc3d",
        preset="tiny",
        overrides=[
            *("method.patch=8", "method.step=4", "method.patches_per_side=4"),
            *("views.region=20", "views.main.size=20", "method.encoder.widths=[8,16]"),
        ],
    )
    torch.manual_seed(0)
    method = build_method(config.method, epochs=10).train()
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    views, seen = _set(_view(20, samples=4)), []
    for _ in range(15):
        losses = method(views, 0.0)
        optimizer.zero_grad()
        losses.total.backward()
        for name, parameter in method.named_parameters():
            assert parameter.grad is not None, name
        optimizer.step()
        seen.append(float(losses.total.detach()))
    assert seen[0] == pytest.approx(math.log(2), abs=0.05)
    assert seen[-1] < 0.8 * seen[0]
    assert float(losses.monitors["accuracy"]) > 0.7
    learned = sum(p.numel() for part in method.parts.values() for p in part.parameters())
    assert learned == sum(p.numel() for p in method.parameters())


def test_the_same_view_gives_the_same_loss_and_half_precision_one_that_is_near() -> None:
    method, views = _method(), _set(_view())
    assert_repeatable_and_near_in_half_precision(method, views, rel=0.05)


@pytest.mark.parametrize(
    ("views", "complaint"),
    [
        ({"main": ViewConfig(count=2)}, "one view"),
        ({"main": ViewConfig(count=1), "local": ViewConfig(size=32)}, "one view"),
        ({"main": ViewConfig(count=1, size=(96, 80, 96))}, "take 96 or more"),
    ],
)
def test_views_that_it_cannot_learn_from_are_refused(views: Any, complaint: str) -> None:
    Cpc3dConfig().check_views(ViewsConfig(main=ViewConfig(count=1, size=96)))
    with pytest.raises(ValueError, match=complaint):
        Cpc3dConfig().check_views(ViewsConfig(**views))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"patch": 24}, "no multiple of the encoder's stride 16"),
        ({"encoder": UnetConfig()}, "trains no decoder"),
        ({"patches_per_side": 4, "skipped_rows": 2}, "no row to predict"),
    ],
)
def test_settings_that_leave_nothing_to_learn_are_refused(changes: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Cpc3dConfig(**changes)
