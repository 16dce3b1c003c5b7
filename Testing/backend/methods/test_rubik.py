from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from smooth_views import smooth_views
from torch import Tensor

from backend.methods import build_method
from backend.methods.rubik import Rubik, puzzle_losses
from backend.settings.encoders import UnetConfig
from backend.settings.rubik import RubikConfig
from backend.settings.views import ViewConfig, ViewsConfig
from backend.views.crops import ViewSet
from backend.views.rubik import Puzzle, make_puzzle

_SIZE = (20, 20, 20)


def _method(**changes: Any) -> Rubik:
    torch.manual_seed(0)
    encoder = UnetConfig(widths=(4, 8), norm="batch", decoder=False)
    config = RubikConfig(encoder=encoder, gap=2, permutations=6, features=5, **changes)
    method = build_method(config, epochs=10)
    assert isinstance(method, Rubik)
    return method


def _puzzle(method: Rubik, views: ViewSet) -> Puzzle:
    image = torch.cat([view.image for view in views.main])
    keys = torch.cat([view.keys for view in views.main])
    return make_puzzle(image, keys, gap=2, orders=method.orders, rotate=2 / 3, mask=0.5)


def _binary(logits: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy, one number after the other, in fp64."""
    entropies = [
        -math.log(1 / (1 + math.exp(-x))) if y else -math.log(1 - 1 / (1 + math.exp(-x)))
        for x, y in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True)
    ]
    return sum(entropies) / len(entropies)


def test_losses_equal_cross_entropies_written_out() -> None:
    generator = torch.Generator().manual_seed(3)
    puzzle = _puzzle(_method(), smooth_views(_SIZE, samples=4))
    logits = {
        name: 2 * torch.randn(4, size, generator=generator)
        for name, size in (("order", 6), ("turned_level", 8), ("turned_upright", 8), ("masked", 8))
    }
    found = puzzle_losses(logits, puzzle)
    order = 0.0
    for row, label in zip(logits["order"].tolist(), puzzle.order.tolist(), strict=True):
        order -= math.log(math.exp(row[label]) / sum(math.exp(x) for x in row)) / 4
    level = _binary(logits["turned_level"], puzzle.turned_level)
    upright = _binary(logits["turned_upright"], puzzle.turned_upright)
    assert float(found["order"]) == pytest.approx(order, rel=1e-5)
    assert float(found["rotation"]) == pytest.approx(level + upright, rel=1e-5)
    assert float(found["mask"]) == pytest.approx(_binary(logits["masked"], puzzle.masked), rel=1e-5)


def test_each_cube_goes_through_the_same_encoder_on_its_own() -> None:
    method, views = _method(weight_rotation=0.5, weight_mask=2.0), smooth_views(_SIZE, count=2)
    method.eval()  # batch norms would see other batches
    puzzle = _puzzle(method, views)
    features = torch.stack(
        [
            torch.cat([method.encoder(cube[None, None]).bottleneck.mean((2, 3, 4)) for cube in row])
            for row in puzzle.cubes
        ]
    )
    hidden = torch.relu(features @ method.head.cube.weight.T + method.head.cube.bias)
    together = torch.cat([hidden[:, i] for i in range(8)], dim=1)
    names = ("order", "turned_level", "turned_upright", "masked")
    terms = puzzle_losses({n: getattr(method.head, n)(together) for n in names}, puzzle)
    found = method(views, 0.0)
    for name, term in terms.items():
        assert float(found.terms[name]) == pytest.approx(term.item(), rel=1e-4), name
    total = terms["order"] + 0.5 * terms["rotation"] + 2.0 * terms["mask"]
    assert found.total.item() == pytest.approx(total.item(), rel=1e-4)


def test_every_part_learns_and_a_few_steps_solve_the_same_puzzles() -> None:
    method, views = _method(), smooth_views(_SIZE)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    seen = []
    for _ in range(8):
        losses = method(views, 0.0)
        optimizer.zero_grad()
        losses.total.backward()
        assert all(p.grad is not None for p in method.parameters())
        optimizer.step()
        seen.append(losses.total.item())
    assert seen[-1] < 0.7 * seen[0]
    assert float(losses.monitors["order_accuracy"]) == 1
    assert list(method.parts) == ["encoder", "head"]
    assert all(name.startswith("down.") for name in method.encoder.state_dict())
    assert method.reconstruct(views.main[0]) is None


def test_cubes_that_all_look_alike_show_in_the_monitor() -> None:
    method, views = _method(), smooth_views(_SIZE)
    low, high = method.healthy["feature_std"]
    assert low < float(method(views, 0.0).monitors["feature_std"]) < high
    with torch.no_grad():
        method.network.down[1][4].weight.zero_()
        method.network.down[1][4].bias.fill_(1.0)
    assert float(method(views, 0.0).monitors["feature_std"]) < low


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"encoder": UnetConfig()}, "encoder.decoder must be false"),
        ({"weight_order": 0, "weight_rotation": 0, "weight_mask": 0}, "nothing to learn"),
    ],
)
def test_settings_that_leave_nothing_to_learn_are_refused(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        RubikConfig(**changes)


def test_a_view_that_gives_no_cubes_for_the_encoder_is_refused_with_one_that_does() -> None:
    settings = RubikConfig(gap=8)
    settings.check_views(ViewsConfig(region=144, main=ViewConfig(size=144)))
    settings.check_views(ViewsConfig(region=144, main=ViewConfig(size=(48, 64, 80))))
    with pytest.raises(ValueError, match=r"cubes of 44, .* multiple of 8 .*: try 112"):
        settings.check_views(ViewsConfig(main=ViewConfig(size=104)))
    with pytest.raises(ValueError, match=r"cubes of 8, .* at least 16: try 48"):
        settings.check_views(ViewsConfig(main=ViewConfig(size=32)))
