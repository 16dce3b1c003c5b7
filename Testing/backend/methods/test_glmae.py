from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import assert_half_precision_is_near, assert_parts_learn_as_the_whole

from backend.config import PRESETS, PretrainConfig, load_config
from backend.errors import UserError
from backend.methods import build_method
from backend.methods.glmae import Glmae
from backend.settings.common import triple
from backend.settings.encoders import VitConfig
from backend.settings.glmae import GlmaeConfig, MaeDecoderConfig, ProjectorConfig
from backend.views.crops import Cut, Regions, View, ViewSet, cut_views
from backend.views.masking import random_cells

_EPOCHS = 40.0
_GLOBAL, _LOCAL, _PATCH = 12, 8, 4
"""Edges of the views: 27 patches, of which 6 stay visible, and 8, of which 2 do."""


def _config(**changes: Any) -> GlmaeConfig:
    return GlmaeConfig(
        encoder=VitConfig(width=12, depth=2, heads=2, patch=_PATCH),
        decoder=MaeDecoderConfig(width=16, depth=1, heads=2),
        projector=ProjectorConfig(hidden=8, output=10),
        **changes,
    )


def _method(*, apart: bool = True, **changes: Any) -> Glmae:
    """A method in training mode whose teacher and centre differ from their first values."""
    torch.manual_seed(0)
    method = build_method(_config(**changes), epochs=_EPOCHS).train()
    assert isinstance(method, Glmae)
    if apart:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            method.centre.value.normal_(0, 0.02, generator=generator)
    return method


def _regions(samples: int, edge: int) -> Regions:
    """Volumes of few, smooth shapes."""
    steps = torch.linspace(-1, 1, edge)
    z, y, x = torch.meshgrid(steps, steps, steps, indexing="ij")
    number = torch.arange(samples).view(-1, 1, 1, 1)
    body = (y**2 + (x * (1 + 0.2 * number)) ** 2 < 0.6).float() * 1040 - 1000
    hu = body + 700 * (((y - 0.4) ** 2 + x**2 + (z * number) ** 2) < 0.05) * (body > 0)
    sizes = torch.full((samples, 3), edge)
    return Regions(
        hu.unsqueeze(1).to(torch.int16), sizes, torch.arange(10, 10 + samples), torch.zeros(2, 2)
    )


def _views(
    samples: int = 2,
    *,
    main: tuple[int, int] = (2, _GLOBAL),
    local: tuple[int, int] | None = (3, _LOCAL),
) -> ViewSet:
    """Views of each sample; `main` and `local` tell how many, and their edge."""

    def cut(kind: tuple[int, int], scale: tuple[float, float]) -> tuple[View, ...]:
        how = Cut(count=kind[0], size=(kind[1],) * 3, scale=scale, relative=True)
        regions = _regions(samples, 24)
        return cut_views(regions, how, hu_window=(-1000.0, 1000.0), local=scale[0] < 0.5)

    return ViewSet(cut(main, (0.5, 1.0)), () if local is None else cut(local, (0.25, 0.5)))


def _softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def _error_by_hand(method: Glmae, view: View, sample: int) -> float:
    """Eq. 2 for one masked view of one sample, voxel by voxel."""
    image = view.image[sample : sample + 1]
    edge = image.shape[-1] // _PATCH
    keys = view.keys[sample : sample + 1]
    mask = random_cells(keys, (edge,) * 3, method.config.mask_ratio)
    out = method.student.encoder(image, mask.visible)
    predicted = method.decoder(out.cls, out.tokens, mask.visible, out.grid)[0].tolist()
    total, count = 0.0, 0
    for patch in range(edge**3):
        if method.config.reconstruct == "hidden" and patch in mask.visible[0].tolist():
            continue
        z, y, x = (_PATCH * i for i in (patch // edge**2, patch // edge % edge, patch % edge))
        cube = image[0, 0, z : z + _PATCH, y : y + _PATCH, x : x + _PATCH].flatten().tolist()
        total += sum((a - b) ** 2 for a, b in zip(predicted[patch], cube, strict=True))
        count += _PATCH**3
    return total / count


def _student_by_hand(method: Glmae, view: View, sample: int) -> list[float]:
    edge = view.image.shape[-1] // _PATCH
    mask = random_cells(view.keys[[sample]], (edge,) * 3, method.config.mask_ratio)
    token = method.student.encoder(view.image[[sample]], mask.visible).cls
    return _softmax((method.student.project(token)[0].double() / 0.1).tolist())


def _teacher_by_hand(method: Glmae, view: View, sample: int, temperature: float) -> list[float]:
    assert method.teacher is not None
    logits = method.teacher.project(method.teacher.encoder(view.image[[sample]]).cls)[0].double()
    return _softmax(((logits - method.centre.value.double()) / temperature).tolist())


@torch.no_grad()
def _terms_by_hand(method: Glmae, views: ViewSet, progress: float) -> dict[str, float]:
    """Equations 2 and 5 to 8, view by view and sample by sample."""
    samples = len(views.main[0].image)
    temperature = 0.04 + 0.03 * min(1.0, progress * _EPOCHS / 30)
    terms = {"consistency": 0.0}
    for name, group in (("main", views.main), ("local", views.local)):
        errors = [_error_by_hand(method, v, b) for v in group for b in range(samples)]
        terms[f"reconstruction_{name}"] = sum(errors) / len(errors)
    everything = (*views.main, *views.local)
    for b in range(samples):
        for whole in views.main:
            p = _teacher_by_hand(method, whole, b, temperature)
            # The masked version of the same view is among them.
            for masked in everything:
                q = _student_by_hand(method, masked, b)
                entropy = -sum(x * math.log(y) for x, y in zip(p, q, strict=True))
                terms["consistency"] += entropy / (len(views.main) * len(everything) * samples)
    return terms


@pytest.mark.parametrize("reconstruct", ["hidden", "all"])
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.9])
def test_terms_and_total_equal_the_equations_of_the_paper(
    progress: float, reconstruct: str
) -> None:
    method, views = _method(reconstruct=reconstruct, weight_consistency=0.5), _views()
    wanted = _terms_by_hand(method, views, progress)
    found = method(views, progress)
    assert set(found.terms) == set(wanted)
    for name, value in wanted.items():
        assert float(found.terms[name]) == pytest.approx(value, rel=1e-4), name
    total = wanted["reconstruction_main"] + wanted["reconstruction_local"]
    assert found.total.item() == pytest.approx(total + 0.5 * wanted["consistency"], rel=1e-4)


def test_mae3d_has_neither_teacher_nor_projector_and_learns_by_reconstruction_alone() -> None:
    method, views = _method(name="mae3d", weight_consistency=0.0), _views(local=None)
    found = method(views, 0.5)
    assert set(found.terms) == {"reconstruction_main"}
    assert found.total.item() == float(found.terms["reconstruction_main"])
    assert set(method.parts) == {"encoder", "decoder"}
    assert method.teacher is None
    assert method.settings(0.5) == method.after_step(0.5) == {}
    errors = [_error_by_hand(method, v, b) for v in views.main for b in range(2)]
    assert found.total.item() == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_student_sees_250_of_1000_patches_of_global_and_54_of_216_of_local_views() -> None:
    config = load_config(PretrainConfig, method="glmae", preset="vit_t")
    with torch.device("meta"):
        method = build_method(config.method, epochs=400)
        assert isinstance(method, Glmae)
        assert config.views.local is not None
        for kind, visible in ((config.views.main, 250), (config.views.local, 54)):
            image = torch.zeros(2, 1, *triple(kind.size))
            view = View(image, torch.zeros(2, 4, 4), torch.zeros(2, dtype=torch.int64))
            seen = method._see([view] * kind.count)
            assert seen.features.tokens.shape == (2 * kind.count, visible, 192)
            assert seen.mask.hidden.shape == (2 * kind.count, 3 * visible)


def test_each_view_hides_patches_of_its_own() -> None:
    method, views = _method(), _views()
    seen = method._see(views.main)
    drawn = {tuple(row) for row in seen.mask.hidden.tolist()}
    assert len(drawn) == 4


def test_teacher_equals_the_student_at_the_first_step() -> None:
    method = _method(apart=False)
    assert method.teacher is not None
    student, teacher = method.student.state_dict(), method.teacher.state_dict()
    assert list(student) == list(teacher)
    assert all(torch.equal(student[name], teacher[name]) for name in student)
    assert student["encoder.cls_token"].data_ptr() != teacher["encoder.cls_token"].data_ptr()


def test_no_gradient_reaches_the_teacher() -> None:
    method = _method()
    assert method.teacher is not None
    assert not method.teacher.training
    method(_views(), 0.5).total.backward()
    assert all(not p.requires_grad and p.grad is None for p in method.teacher.parameters())


def _shrunk(method: str, preset: str) -> PretrainConfig:
    """A preset with few channels and small views; tiny as it is."""
    small = [
        "method.encoder.width=12",
        "method.encoder.heads=2",
        "method.decoder={width: 8, depth: 2, heads: 2}",
        "method.projector.hidden=8",
        "views.main.size=32",
    ]
    overrides = [] if preset == "tiny" else small
    if preset.startswith("vit"):
        overrides = [*overrides, "views.local.size=32"]
    return load_config(PretrainConfig, method=method, preset=preset, overrides=overrides)


@pytest.mark.parametrize(
    ("name", "preset"), [(name, p) for name in ("glmae", "mae3d") for p in PRESETS[name]]
)
def test_every_part_learns_in_every_preset(name: str, preset: str) -> None:
    config = _shrunk(name, preset)
    torch.manual_seed(0)
    method = build_method(config.method, epochs=config.train.epochs).train()
    main, local = config.views.main, config.views.local
    views = _views(
        1,
        main=(main.count, triple(main.size)[0]),
        local=None if local is None else (local.count, triple(local.size)[0]),
    )
    method(views, 0.5).total.backward()
    for part in method.parts.values():
        for parameter_name, parameter in part.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert float(parameter.grad.abs().max()) > 0, parameter_name


def test_steps_of_tiny_lower_the_error() -> None:
    small = ["views.main.size=32", "views.local.size=16", "views.local.count=2"]
    config = load_config(PretrainConfig, method="glmae", preset="tiny", overrides=small)
    torch.manual_seed(0)
    method = build_method(config.method, epochs=20).train()
    views = _views(2, main=(2, 32), local=(2, 16))
    learning = [p for part in method.parts.values() for p in part.parameters()]
    optimiser = torch.optim.AdamW(learning, lr=config.train.learning_rate)
    errors = []
    for step in range(12):
        losses = method(views, step / 12)
        errors.append(float(losses.terms["reconstruction_main"]))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        method.after_step((step + 1) / 12)
    assert errors[-1] < 0.5 * errors[0]


def test_teacher_follows_with_a_momentum_that_depends_on_the_step_of_the_whole_run() -> None:
    method, total = _method(apart=False), 12
    assert method.teacher is not None
    name = "encoder.blocks.1.linear2.weight"
    student, teacher = method.student.get_parameter(name), method.teacher.get_parameter(name)
    wanted = teacher.double()
    for step in range(1, total + 1):
        with torch.no_grad():
            student.add_(step)
        used = method.after_step(step / total)["ema_momentum"]
        momentum = 1 - (1 - 0.996) * (math.cos(math.pi * step / total) + 1) / 2
        assert used == pytest.approx(momentum)
        wanted = momentum * wanted + (1 - momentum) * student.detach().double()
        assert torch.allclose(teacher.double(), wanted, atol=1e-4, rtol=1e-6), step
    assert method.after_step(0.0)["ema_momentum"] == pytest.approx(0.996)
    before = teacher.clone()
    assert method.after_step(1.0)["ema_momentum"] == 1
    assert torch.equal(teacher, before)


def test_centre_follows_the_teacher_on_whole_global_views_once_a_step() -> None:
    method, views = _method(), _views()
    assert method.teacher is not None
    before = method.centre.value.clone()
    with torch.no_grad():
        tokens = torch.cat([method.teacher.encoder(v.image).cls for v in views.main])
        mean = method.teacher.project(tokens).mean(0)
    method(views, 0.5)
    assert torch.equal(method.centre.value, before)
    method.after_step(0.5)
    assert torch.allclose(method.centre.value, 0.9 * before + 0.1 * mean, atol=1e-6)


def test_evaluation_leaves_the_centre_alone() -> None:
    method = _method()
    before = method.centre.value.clone()
    method.eval()
    with torch.no_grad():
        method(_views(), 0.5)
    method.after_step(1.0)
    assert torch.equal(method.centre.value, before)


def test_a_step_in_two_parts_gives_the_same_gradient_and_centre_as_in_one() -> None:
    views = _views(4)
    whole, parts = _method(), _method()
    assert_parts_learn_as_the_whole(whole, parts, views)
    assert torch.allclose(whole.centre.value, parts.centre.value, atol=1e-6)


def test_temperatures_are_those_of_the_specification() -> None:
    method = build_method(_config(), epochs=400)
    for epoch, teacher in [(0, 0.04), (15, 0.055), (30, 0.07), (400, 0.07)]:
        now = method.settings(epoch / 400)
        assert now["temperature/teacher"] == pytest.approx(teacher)
        assert now["temperature/student"] == 0.1


def test_the_same_views_give_the_same_losses_whatever_was_drawn_before() -> None:
    views, method = _views(), _method()
    first = method(views, 0.2)
    torch.rand(100)
    assert torch.equal(first.total, method(views, 0.2).total)


def test_monitors_tell_a_collapse_from_health() -> None:
    method, views = _method(), _views(4)
    monitors = method(views, 1.0).monitors
    assert set(method.healthy) <= set(monitors)
    for name, (low, high) in method.healthy.items():
        assert low < float(monitors[name]) < high, name
    with torch.no_grad():
        assert method.teacher is not None
        method.student.encoder.norm.weight.zero_()
        method.teacher.encoder.norm.weight.zero_()
        assert method.teacher.projector is not None
        last = method.teacher.projector[-1]
        last.weight.zero_()
        last.bias.zero_()
        last.bias[0] = 100
    collapsed = method(views, 1.0).monitors
    for name in ("feature_std", "marginal_entropy"):
        assert float(collapsed[name]) < method.healthy[name][0], name


def test_pictures_show_the_view_its_hidden_voxels_and_the_prediction_in_place() -> None:
    method, view = _method().eval(), _views().main[0]
    seen = method.reconstruct(view)
    mask = random_cells(view.keys, (3, 3, 3), 0.75)
    assert torch.equal(seen.image, view.image)
    assert torch.equal(seen.hidden[:, ::_PATCH, ::_PATCH, ::_PATCH], mask.grid)
    out = method.student.encoder(view.image, mask.visible)
    predicted = method.decoder(out.cls, out.tokens, mask.visible, out.grid)
    cube = seen.prediction[0, 0, 4:8, 0:4, 8:12]
    assert torch.allclose(cube, predicted[0, 9 + 2].view(4, 4, 4), atol=1e-6)
    assert not seen.prediction.requires_grad


def test_under_autocast_losses_stay_full_precision_and_near_those_without() -> None:
    method, views = _method(), _views(4)
    assert_half_precision_is_near(method, views, rel=0.05)


def _refused(*overrides: str) -> str:
    with pytest.raises(UserError) as refusal:
        load_config(PretrainConfig, method="glmae", preset="tiny", overrides=overrides)
    return str(refusal.value)


def test_settings_that_cannot_work_are_refused_with_their_value() -> None:
    assert "0.9 hides all 8 cells of views.local.size 16" in _refused(
        "method.mask_ratio=0.9", "views.local.size=16"
    )
    assert "width 100 is no multiple of 6" in _refused("method.encoder.width=100")
    assert "patch 12 must be a power of 2" in _refused("method.encoder.patch=12")
    assert "patch 32 must be a power of 2 from 2 to 16" in _refused("method.encoder.patch=32")
    assert "width 100 is not divided by 8 heads" in _refused(
        "method.decoder={width: 100, heads: 8}"
    )
