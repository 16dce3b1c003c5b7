from __future__ import annotations

from typing import Any

import pytest
import torch
from smooth_views import smooth_views

from backend.methods import build_method
from backend.methods.models_genesis import ModelsGenesis
from backend.settings.encoders import UnetConfig
from backend.settings.models_genesis import ModelsGenesisConfig
from backend.settings.views import ViewConfig, ViewsConfig
from backend.views.corruption import corrupt

_SIZE = (16, 24, 32)


def _method(norm: Any = "batch", **changes: Any) -> ModelsGenesis:
    torch.manual_seed(0)
    config = ModelsGenesisConfig(
        encoder=UnetConfig(widths=(4, 6, 8), norm=norm), blocks=50, **changes
    )
    method = build_method(config, epochs=10)
    assert isinstance(method, ModelsGenesis)
    return method


def test_loss_is_the_mean_squared_error_over_all_voxels_of_the_restored_view() -> None:
    method, views = _method("instance"), smooth_views(_SIZE, count=2)
    losses = method(views, 0.0)
    errors = []
    with torch.no_grad():
        for view in views.main:
            shown = corrupt(view.image, view.keys, blocks=50)
            logits = method.pixel_head(method.network(shown).decoded).double()
            errors.append((1 / (1 + torch.exp(-logits)) - view.image.double()).square())
    assert losses.total.item() == pytest.approx(float(torch.cat(errors).mean()), rel=1e-5)
    assert list(losses.terms) == ["restoration"]


def test_every_part_learns_and_a_few_steps_lower_the_loss() -> None:
    method, views = _method(), smooth_views(_SIZE)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    seen = []
    for _ in range(10):
        loss = method(views, 0.0).total
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in method.parameters())
        optimizer.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.8 * seen[0]
    parts = [p for part in method.parts.values() for p in part.parameters()]
    assert len(parts) == len(list(method.parameters()))


@torch.no_grad()
def test_pictures_show_a_view_of_which_a_part_is_always_painted() -> None:
    method, view = (
        _method(bend=0.0, shuffle=0.0, paint=0.1).eval(),
        smooth_views(_SIZE, samples=20).main[0],
    )
    seen = method.reconstruct(view)
    assert seen.shown is not None
    assert bool(seen.hidden.flatten(1).any(1).all())
    assert torch.equal(seen.hidden, (seen.shown != view.image)[:, 0])
    restored = torch.sigmoid(method.pixel_head(method.network(seen.shown).decoded))
    assert torch.allclose(seen.prediction, restored, atol=1e-6)
    # Bent voxels are spoilt as well, but not hidden: what is there can be made out.
    bent = _method(bend=1.0, shuffle=0.0, paint=0.1).eval().reconstruct(view)
    assert torch.equal(bent.hidden, seen.hidden)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"shuffle": 0.0, "bend": 0.0, "paint": 0.0}, "nothing to undo"),
        ({"encoder": UnetConfig(decoder=False)}, "encoder.decoder must be true"),
    ],
)
def test_settings_that_leave_nothing_to_learn_are_refused(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        ModelsGenesisConfig(**changes)


def test_a_view_without_room_for_painted_boxes_is_refused() -> None:
    settings = ModelsGenesisConfig()
    settings.check_views(ViewsConfig(main=ViewConfig(size=(16, 64, 64))))
    with pytest.raises(ValueError, match="an edge below 14"):
        settings.check_views(ViewsConfig(main=ViewConfig(size=(8, 64, 64))))


def test_under_autocast_the_loss_stays_full_precision_and_near() -> None:
    method, views = _method("instance"), smooth_views(_SIZE)
    wanted = method(views, 0.0).total.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method(views, 0.0).total
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted, rel=0.05)
