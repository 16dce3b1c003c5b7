from __future__ import annotations

from typing import Any

import pytest
import torch
from smooth_views import smooth_views
from torch import Tensor, nn

from backend.methods import build_method
from backend.methods.rubik_pp import Discriminator, RubikPp, adversarial_losses
from backend.settings.encoders import UnetConfig
from backend.settings.rubik_pp import RubikPpConfig
from backend.settings.views import ViewConfig, ViewsConfig
from backend.views.rubik import draw_turns, turn_layers

_SIZE = (16, 16, 16)


def _method(**changes: Any) -> RubikPp:
    torch.manual_seed(0)
    encoder = UnetConfig(widths=(4, 6, 8), norm="instance")
    config = RubikPpConfig(encoder=encoder, discriminator_width=4, **changes)
    method = build_method(config, epochs=10)
    assert isinstance(method, RubikPp)
    return method


def test_restoration_is_the_mean_squared_error_over_all_voxels() -> None:
    method, views = _method(), smooth_views(_SIZE, count=2)
    losses = method(views, 0.0)
    errors = []
    for view in views.main:
        shown = turn_layers(view.image, draw_turns(view.keys, layers=4, probability=0.5))
        assert not torch.equal(shown, view.image)
        restored = method.pixel_head(method.network(shown).decoded)
        errors.append((restored.double() - view.image.double()).square())
    wanted = torch.cat(errors).mean().item()
    assert float(losses.terms["restoration"]) == pytest.approx(wanted, rel=1e-5)
    total = wanted + 0.1 * float(losses.terms["adversarial"])
    total += float(losses.terms["discriminator"])
    assert losses.total.item() == pytest.approx(total, rel=1e-5)


def _game() -> tuple[Discriminator, Tensor, Tensor]:
    torch.manual_seed(1)
    return Discriminator(width=4), torch.rand(2, 1, 16, 16, 16), torch.rand(2, 1, 16, 16, 16)


def test_adversarial_losses_are_binary_cross_entropies() -> None:
    discriminator, restored, original = _game()
    losses = adversarial_losses(discriminator, restored, original)
    on_restored = torch.sigmoid(discriminator(restored).double())
    on_original = torch.sigmoid(discriminator(original).double())
    told = -(1 - on_restored).log().mean() - on_original.log().mean()
    assert losses["adversarial"].item() == pytest.approx(-on_restored.log().mean().item(), rel=1e-5)
    assert losses["discriminator"].item() == pytest.approx(told.item() / 2, rel=1e-5)


def test_one_backward_gives_each_side_the_gradient_of_its_own_loss_alone() -> None:
    discriminator, restored, original = _game()
    parameters = list(discriminator.parameters())
    restored.requires_grad_()
    losses = adversarial_losses(discriminator, restored, original)
    (losses["adversarial"] + losses["discriminator"]).backward()
    with_criterion = nn.functional.binary_cross_entropy_with_logits

    def against(logits: Tensor, label: float) -> Tensor:
        return with_criterion(logits, torch.full_like(logits, label))

    (wanted,) = torch.autograd.grad(against(discriminator(restored), 1.0), restored)
    assert torch.allclose(restored.grad, wanted, atol=1e-8)
    told = against(discriminator(restored.detach()), 0.0) + against(discriminator(original), 1.0)
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(told / 2, parameters), strict=True
    ):
        assert torch.allclose(parameter.grad, gradient, atol=1e-7)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_every_part_learns_and_a_few_steps_lower_the_restoration_error(weight: float) -> None:
    method, views = _method(weight_adversarial=weight), smooth_views(_SIZE)
    assert ("discriminator" in method.parts) == (weight > 0)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    seen = []
    for _ in range(8):
        losses = method(views, 0.0)
        optimizer.zero_grad()
        losses.total.backward()
        assert all(p.grad is not None for p in method.parameters())
        optimizer.step()
        seen.append(float(losses.terms["restoration"]))
    assert set(losses.terms) == (
        {"restoration", "adversarial", "discriminator"} if weight else {"restoration"}
    )
    assert seen[-1] < 0.5 * seen[0]


@torch.no_grad()
def test_pictures_show_the_turned_view_and_what_is_restored() -> None:
    method, view = _method().eval(), smooth_views(_SIZE).main[0]
    seen = method.reconstruct(view)
    assert seen.shown is not None
    turns = draw_turns(view.keys, layers=4, probability=0.5)
    assert torch.equal(turn_layers(seen.shown, turns, back=True), view.image)
    assert torch.equal(seen.hidden, (seen.shown != view.image)[:, 0])
    restored = method.pixel_head(method.network(seen.shown).decoded)
    assert torch.allclose(seen.prediction, restored, atol=1e-6)


def test_settings_and_views_that_cannot_turn_or_restore_are_refused() -> None:
    with pytest.raises(ValueError, match="decoder must be true"):
        RubikPpConfig(encoder=UnetConfig(decoder=False))
    settings = RubikPpConfig()
    settings.check_views(ViewsConfig(main=ViewConfig(size=64)))
    for size in (66, (64, 64, 32)):
        with pytest.raises(ValueError, match="must be a cube whose edge is a multiple"):
            settings.check_views(ViewsConfig(main=ViewConfig(size=size)))
