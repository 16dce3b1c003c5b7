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
from backend.methods.pcrl import Pcrl
from backend.settings.encoders import UnetConfig
from backend.settings.pcrl import SMALLEST_EDGE, PcrlConfig
from backend.settings.views import ViewConfig, ViewsConfig
from backend.views import corruption
from backend.views.crops import View, ViewSet
from backend.views.turns import draw_turns

_SIZE = (16, 16, 16)


def _method(**changes: Any) -> Pcrl:
    torch.manual_seed(0)
    config = PcrlConfig(
        encoder=UnetConfig(widths=(4, 6, 8), norm=changes.pop("norm", "instance")),
        projection=5,
        condition=6,
        queue=7,
        shuffle_blocks=20,
        **changes,
    )
    method = build_method(config, epochs=10).train()
    assert isinstance(method, Pcrl)
    return method


def _apart(method: Pcrl) -> Pcrl:
    """Student and teacher differ, as they do after a step."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return method


def _views(samples: int = 3) -> ViewSet:
    return smooth_views(_SIZE, samples=samples, count=2)


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def _nce(query: Tensor, keys: Tensor, method: Pcrl) -> float:
    """InfoNCE of all samples, number by number."""
    tau, total = method.config.temperature, 0.0
    for q, k in zip(query.double(), keys.double(), strict=True):
        q, k = q / q.norm(), k / k.norm()
        own = math.exp(float(q @ k) / tau)
        rest = sum(math.exp(float(q @ o.double()) / tau) for o in method.queue.keys)
        total -= math.log(own / (own + rest)) / len(query)
    return total


def _pixels(method: Pcrl, levels: list[Tensor]) -> Tensor:
    return _sigmoid(method.pixel_head(method.student.encoder.decode(levels).decoded).double())


def _error(method: Pcrl, levels: list[Tensor], target: Tensor) -> float:
    return float((_pixels(method, levels) - target.double()).square().mean())


def _turned(image: Tensor, view: View) -> Tensor:
    """Each sample mirrored and turned by numpy."""
    turns, results = draw_turns(view.keys), []
    for number, sample in enumerate(image[:, 0].numpy()):
        axes = [axis for axis in range(3) if turns.flips[number, axis]]
        results.append(np.rot90(np.flip(sample, axes), int(turns.quarters[number]), (1, 2)).copy())
    return torch.from_numpy(np.stack(results)).unsqueeze(1)


def _weighted(method: Pcrl, levels: tuple[Tensor, ...], view: View) -> list[Tensor]:
    """The bottleneck's channels times what two layers make of the indicator."""
    first, second = method.condition[0], method.condition[2]
    hidden = (draw_turns(view.keys).indicator @ first.weight.T + first.bias).clamp(min=0)
    weights = _sigmoid(hidden @ second.weight.T + second.bias)
    return [*levels[:-1], levels[-1] * weights[:, :, None, None, None]]


def _mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    mixed = [s * x + (1 - s) * y for s, x, y in zip(share, a, b, strict=True)]
    return torch.stack(mixed)


@torch.no_grad()
def _terms_by_hand(method: Pcrl, views: ViewSet) -> dict[str, float]:
    first, second = views.main
    seen = [method._spoilt(view) for view in views.main]
    clean = seen if method.config.restore == "seen" else [view.image for view in views.main]
    share = method._shares(first.keys)
    partner = [len(first.keys) - 1, *range(len(first.keys) - 1)]
    own, other = method.student(seen[0]), method.teacher(seen[1])
    mixed_seen = [_mix(x, x[partner], share[0]) for x in seen]
    mixed_clean = [_mix(x, x[partner], share[0]) for x in clean]
    mixed_own, mixed_other = method.student(mixed_seen[0]), method.teacher(mixed_seen[1])
    contrast = (
        _nce(own.vector, other.vector, method)
        + _nce(mixed_own.vector, mixed_other.vector, method)
        + _nce(mixed_own.vector, _mix(other.vector, other.vector[partner], share[0]), method)
    ) / 3
    levels = [_weighted(method, own.levels, first), _weighted(method, other.levels, second)]
    targets = [_turned(clean[0], first), _turned(clean[1], second)]
    both = [_mix(a, b, share[1]) for a, b in zip(*levels, strict=True)]
    mixed_both = [
        _mix(a, b, share[2]) for a, b in zip(mixed_own.levels, mixed_other.levels, strict=True)
    ]
    return {
        "contrast": contrast,
        "own": _error(method, levels[0], targets[0]),
        "other": _error(method, levels[1], targets[1]),
        "mixup": _error(method, both, _mix(*targets, share[1])),
        "mixed": _error(method, list(mixed_own.levels), mixed_clean[0]) / 2
        + _error(method, mixed_both, _mix(*mixed_clean, share[2])) / 2,
    }


@pytest.mark.parametrize("restore", ["clean", "seen"])
def test_terms_and_total_equal_the_equations_worked_out_by_hand(restore: str) -> None:
    method, views = _apart(_method(restore=restore)), _views()
    wanted = _terms_by_hand(method, views)
    found = method(views, 0.0)
    assert set(found.terms) == set(wanted)
    for name, value in wanted.items():
        assert float(found.terms[name]) == pytest.approx(value, rel=1e-4), name
    weights = {"contrast": 1.0, "own": 0.2, "other": 0.2, "mixup": 0.2, "mixed": 0.4}
    total = sum(weights[name] * value for name, value in wanted.items())
    assert found.total.item() == pytest.approx(total, rel=1e-4)


def test_shares_favour_the_own_image_and_are_spread_evenly() -> None:
    shares = _method()._shares(torch.arange(4000))
    assert shares.shape == (3, 4000)
    assert float(shares.min()) >= 0.5
    counts = torch.histc(shares, bins=5, min=0.5, max=1.0) / shares.numel()
    assert torch.allclose(counts, torch.tensor(0.2), atol=0.02)


def test_gradient_reaches_every_part_and_not_the_teacher() -> None:
    method = _apart(_method())
    method(_views(), 0.0).total.backward()
    for name, part in method.parts.items():
        for parameter in part.parameters():
            assert parameter.grad is not None, name
        assert any(float(p.grad.abs().max()) > 0 for p in part.parameters()), name
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    learned = sum(p.numel() for part in method.parts.values() for p in part.parameters())
    assert learned == sum(p.numel() for p in method.parameters() if p.requires_grad)


def test_teacher_and_queue_move_on_after_a_step_alone() -> None:
    method, views = _apart(_method()), _views()
    keys = method.queue.keys.clone()
    wanted = torch.nn.functional.normalize(method.teacher(method._spoilt(views.main[1])).vector)
    method(views, 0.0)
    assert torch.equal(method.queue.keys, keys)
    old = method.teacher.projector[0].weight.clone()
    assert method.after_step(0.1) == {"ema_momentum": 0.999}
    assert torch.allclose(method.queue.keys[:3], wanted, atol=1e-6)
    assert torch.equal(method.queue.keys[3:], keys[3:])
    new = 0.999 * old + 0.001 * method.student.projector[0].weight
    assert torch.allclose(method.teacher.projector[0].weight, new, atol=1e-6)
    method.eval()
    method(views, 0.0)
    method.after_step(0.2)
    assert int(method.queue.position) == 3


def test_what_is_stored_goes_on_as_if_nothing_had_happened() -> None:
    method, other, views = _apart(_method(norm="batch")), _method(norm="batch"), _views()
    method(views, 0.0)
    method.after_step(0.1)
    other.load_state_dict(method.state_dict())
    assert torch.equal(method(views, 0.2).total, other(views, 0.2).total)


def test_a_few_steps_of_the_tiny_preset_lower_the_reconstruction_error() -> None:
    config = load_config(
        PretrainConfig,
        method="pcrl",
        preset="tiny",
        overrides=["views.region=32", "views.main.size=16", "method.shuffle_blocks=20"],
    )
    torch.manual_seed(0)
    method = build_method(config.method, epochs=10).train()
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    views, seen = smooth_views(_SIZE, samples=4, count=2), []
    for step in range(15):
        losses = method(views, step / 15)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        method.after_step(step / 15)
        seen.append(sum(float(losses.terms[n]) for n in ("own", "other", "mixup", "mixed")))
    assert seen[-1] < 0.8 * seen[0]


def test_the_own_key_is_found_among_others_after_some_steps() -> None:
    method = _method(norm="batch", shuffle_probability=0.0, paint_probability=0.0)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    views, seen = _views(), []
    for _ in range(10):
        losses = method(views, 0.0)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        seen.append(float(losses.terms["contrast"]))
    assert seen[-1] < 0.8 * seen[0]


def test_pictures_show_what_was_spoilt_and_what_the_decoder_makes_of_it() -> None:
    method, view = _method().eval(), _views().main[0]
    seen = method.reconstruct(view)
    assert seen.shown is not None
    # Blurred voxels are spoilt as well, but not hidden: what is there can be made out.
    visible = ~seen.hidden.unsqueeze(1)
    assert torch.equal(seen.shown[visible], method._coarsened(view)[visible])
    assert bool(seen.hidden.flatten(1).any(1).all())
    assert not bool(seen.hidden.flatten(1).all(1).any())
    unpainted = _method(paint_probability=0.0).eval().reconstruct(view)
    assert unpainted.shown is not None
    assert torch.equal(unpainted.hidden, (unpainted.shown != view.image)[:, 0])
    assert seen.prediction.shape == view.image.shape
    indicator = torch.tensor([[0.0, 0, 0, 1, 0, 0, 0]] * 3)
    with torch.no_grad():
        levels = list(method.student(seen.shown).levels)
        levels[-1] = levels[-1] * method.condition(indicator)[:, :, None, None, None]
        assert torch.allclose(seen.prediction.double(), _pixels(method, levels), atol=1e-6)


def test_the_same_views_give_the_same_loss_and_half_precision_one_that_is_near() -> None:
    method, views = _method(), _views()
    assert_repeatable_and_near_in_half_precision(method, views, rel=0.05)


@pytest.mark.parametrize(
    ("views", "complaint"),
    [
        ({"main": ViewConfig(count=3)}, "two views"),
        ({"local": ViewConfig(size=32)}, "two views"),
        ({"main": ViewConfig(size=(32, 64, 32))}, "quarter turns need y = x"),
        ({"main": ViewConfig(size=8)}, "no room"),
    ],
)
def test_views_that_it_cannot_learn_from_are_refused(views: Any, complaint: str) -> None:
    PcrlConfig().check_views(ViewsConfig())
    with pytest.raises(ValueError, match=complaint):
        PcrlConfig().check_views(ViewsConfig(**views))


def test_a_network_without_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder\.decoder must be true"):
        PcrlConfig(encoder=UnetConfig(decoder=False))
    assert SMALLEST_EDGE == corruption.SMALLEST_EDGE
