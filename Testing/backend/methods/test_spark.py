from __future__ import annotations

from typing import Any

import pytest
import torch
from smooth_views import smooth_views
from torch import Tensor

from backend.methods import build_method
from backend.methods.spark import Spark
from backend.settings.encoders import ResencConfig
from backend.settings.spark import SparkConfig
from backend.settings.views import ViewConfig, ViewsConfig
from backend.views.crops import ViewSet
from backend.views.masking import random_cells

_SIZE = (16, 16, 16)


def _method(**changes: Any) -> Spark:
    torch.manual_seed(0)
    encoder = ResencConfig(widths=(4, 6, 8), blocks=(1, 1, 1))
    method = build_method(SparkConfig(encoder=encoder, mask_cell=4, **changes), epochs=10)
    assert isinstance(method, Spark)
    return method


def _hidden(keys: Tensor) -> Tensor:
    hidden = random_cells(keys, (4, 4, 4), 0.75).grid
    for axis in (1, 2, 3):
        hidden = hidden.repeat_interleave(4, dim=axis)
    return hidden


@pytest.mark.parametrize("densify", ["convolution", "token"])
def test_loss_is_the_mean_squared_error_over_hidden_voxels_of_all_views(densify: Any) -> None:
    method, views = _method(densify=densify), smooth_views(_SIZE, count=2)
    losses = method(views, 0.0)
    errors = []
    with torch.no_grad():
        for view in views.main:
            hidden = _hidden(view.keys)
            features = method.network(
                torch.where(hidden.unsqueeze(1), 0.0, view.image),
                ~random_cells(view.keys, (4, 4, 4), 0.75).grid,
                method.densifier,
            )
            difference = method.pixel_head(features.decoded).double() - view.image.double()
            errors.append(difference[:, 0][hidden].square())
    assert int(hidden.sum()) == 2 * 48 * 4**3
    assert losses.total.item() == pytest.approx(float(torch.cat(errors).mean()), rel=1e-5)
    assert torch.equal(losses.terms["reconstruction"], losses.total.detach())


def test_every_part_learns_and_a_few_steps_lower_the_loss() -> None:
    method, views = _method(), smooth_views(_SIZE)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    seen = []
    for _ in range(8):
        loss = method(views, 0.0).total
        optimizer.zero_grad()
        loss.backward()
        if not seen:
            named = [(n, p) for part in method.parts.values() for n, p in part.named_parameters()]
            assert len(named) == len(list(method.parameters()))
            assert [n for n, p in named if p.grad is None] == []
            assert [n for n, p in named if p.ndim > 1 and not p.grad.any()] == []
        optimizer.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.7 * seen[0]


def test_pictures_show_the_view_its_hidden_voxels_and_the_prediction() -> None:
    method, view = _method().eval(), smooth_views(_SIZE).main[0]
    seen = method.reconstruct(view)
    assert torch.equal(seen.image, view.image)
    assert torch.equal(seen.hidden, _hidden(view.keys))
    error = (seen.prediction - seen.image)[:, 0][seen.hidden].square().mean()
    assert method(ViewSet((view,)), 0.0).total.item() == pytest.approx(float(error), rel=1e-5)


def test_features_that_are_all_alike_show_in_the_monitor() -> None:
    method, views = _method(), smooth_views(_SIZE)
    low, high = method.healthy["feature_std"]
    assert low < float(method(views, 0.0).monitors["feature_std"]) < high
    with torch.no_grad():
        norm = method.network.decoder.joins[-1][1]
        norm.weight.zero_()
        norm.bias.fill_(1.0)
    assert float(method(views, 0.0).monitors["feature_std"]) < 1e-3


def test_encoder_and_decoder_are_kept_and_the_rest_is_named() -> None:
    method = _method()
    assert list(method.parts) == ["encoder", "densifier", "pixel_head"]
    assert any(name.startswith("decoder.") for name in method.encoder.state_dict())
    assert not any("token" in name for name in method.encoder.state_dict())


@pytest.mark.parametrize(
    ("size", "changes", "complaint"),
    [
        (40, {}, "no multiple of method.mask_cell 16"),
        (96, {"mask_cell": 48}, "do not divide each other"),
        (32, {"mask_ratio": 0.9}, "hides all 8 cells"),
    ],
)
def test_views_that_masks_do_not_fit_are_refused(
    size: int, changes: dict[str, Any], complaint: str
) -> None:
    settings = SparkConfig(**changes)
    SparkConfig().check_views(ViewsConfig(region=160, main=ViewConfig(size=160)))
    with pytest.raises(ValueError, match=complaint):
        settings.check_views(ViewsConfig(main=ViewConfig(size=size)))


def test_a_step_is_counted_where_nothing_is_computed() -> None:
    with torch.device("meta"):
        method = _method()
        view = (
            smooth_views(_SIZE)
            .main[0]
            ._replace(image=torch.rand(2, 1, 16, 16, 16), keys=torch.arange(2))
        )
        method(ViewSet((view,)), 0.0).total.backward()
    assert all(p.grad is not None for p in method.parameters())
