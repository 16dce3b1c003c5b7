from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import assert_half_precision_is_near, assert_parts_learn_as_the_whole
from torch import Tensor

from backend.config import PRESETS, PretrainConfig, load_config
from backend.methods import build_method
from backend.methods.smit import Smit
from backend.settings.encoders import SwinConfig
from backend.settings.smit import HeadConfig, SmitConfig
from backend.views.crops import Cut, Regions, View, ViewSet, cut_views
from backend.views.masking import random_cells

_EPOCHS = 40.0


def _config(*, drop_path: float = 0.0, **changes: Any) -> SmitConfig:
    return SmitConfig(
        encoder=SwinConfig(
            embed_dim=4, depths=(1, 1, 1, 2), heads=(1, 1, 2, 2), drop_path=drop_path
        ),
        head=HeadConfig(hidden=8, bottleneck=6, prototypes=10),
        **changes,
    )


def _method(config: SmitConfig | None = None, *, apart: bool = True) -> Smit:
    """A method in training mode whose teacher and centres differ from their first values."""
    torch.manual_seed(0)
    method = build_method(config or _config(), epochs=_EPOCHS).train()
    if apart:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in (*method.student.parameters(), *method.teacher.parameters()):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            method.patch_centre.value.normal_(0, 0.02, generator=generator)
            method.class_centre.value.normal_(0, 0.02, generator=generator)
    return method


def _views(samples: int = 2, *, edge: int = 32) -> ViewSet:
    generator = torch.Generator().manual_seed(2)
    shape = (samples, 1, edge + 8, edge + 8, edge + 8)
    hu = torch.randint(-300, 400, shape, generator=generator).to(torch.int16)
    keys = torch.arange(10, 10 + samples)
    sizes = torch.tensor(shape[2:]).expand(samples, 3)
    regions = Regions(hu, sizes, keys, torch.zeros(samples, 2))
    cut = Cut(count=2, size=(edge, edge, edge))
    return ViewSet(cut_views(regions, cut, hu_window=(-175.0, 250.0)))


def _encoded(method: Smit, view: View, *, masked: bool, teacher: bool) -> tuple[Tensor, Tensor]:
    """Distilled tokens (b, n, c), normalised by hand, and the bottleneck, of one view alone."""
    branch = method.teacher if teacher else method.student
    cells = random_cells(view.keys, (2, 2, 2), method.config.mask_ratio).grid if masked else None
    out = branch.encoder(view.image, cells)
    last = method.config.tokens == "last_stage"
    tokens = (out.pyramid[-1] if last else out.before_last_stage).double()
    tokens = tokens.flatten(2).transpose(1, 2)
    centred = tokens - tokens.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6), out.bottleneck


def _softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def _entropy_across(target: list[float], student: list[float]) -> float:
    return -sum(p * math.log(q) for p, q in zip(target, student, strict=True))


def _shifted(logits: Tensor, centre: Tensor, temperature: float) -> list[float]:
    return _softmax(((logits.double() - centre.double()) / temperature).tolist())


@torch.no_grad()
def _terms_by_hand(method: Smit, views: ViewSet, progress: float) -> dict[str, float]:
    """Equations 1, 2 and 4 of the paper, view by view and token by token, in fp64."""
    samples = len(views.main[0].image)
    temperature = 0.04 + 0.03 * min(1.0, progress * _EPOCHS / 30)
    above = below = patches = whole = 0.0
    students = [_encoded(method, view, masked=True, teacher=False) for view in views.main]
    teachers = [_encoded(method, view, masked=False, teacher=True) for view in views.main]
    for number, view in enumerate(views.main):
        hidden = random_cells(view.keys, (2, 2, 2), method.config.mask_ratio).grid
        voxels = hidden.double()
        for axis in (1, 2, 3):
            voxels = voxels.repeat_interleave(16, dim=axis)
        prediction = method.pixel_head(students[number][1]).double()
        error = (prediction - view.image.double()).abs()[:, 0]
        above += float((error * voxels).sum())
        below += float(voxels.sum())
        own, other = teachers[number][0].float(), teachers[1 - number][0].float()
        tokens = students[number][0].float()
        for b in range(samples):
            sums, count = 0.0, 0
            for i in hidden[b].flatten().nonzero()[:, 0].tolist():
                p = _shifted(
                    method.teacher.patch_head(own[b, i]), method.patch_centre.value, temperature
                )
                q = _softmax((method.student.patch_head(tokens[b, i]).double() / 0.1).tolist())
                sums, count = sums + _entropy_across(p, q), count + 1
            patches += sums / max(1, count) / samples / 2
            p = _shifted(
                method.teacher.class_head(other[b].mean(0)), method.class_centre.value, temperature
            )
            q = _softmax((method.student.class_head(tokens[b].mean(0)).double() / 0.1).tolist())
            whole += _entropy_across(p, q) / samples / 2
    return {"mip": above / (below + 1e-5), "mpd": patches, "itd": whole}


@pytest.mark.parametrize("tokens", ["before_last_stage", "last_stage"])
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.9])
def test_terms_and_total_equal_the_equations_of_the_paper(tokens: Any, progress: float) -> None:
    method, views = _method(_config(tokens=tokens)), _views(3)
    wanted = _terms_by_hand(method, views, progress)
    found = method(views, progress)
    for name, value in wanted.items():
        assert float(found.terms[name]) == pytest.approx(value, rel=2e-4), name
    total = wanted["mip"] + 0.1 * wanted["mpd"] + 0.1 * wanted["itd"]
    assert found.total.item() == pytest.approx(total, rel=2e-4)


@pytest.mark.parametrize("name", ["mip", "mpd", "itd"])
def test_a_term_of_weight_0_is_left_out_and_the_others_stay(name: str) -> None:
    views = _views()
    every = _method(_config(tokens="last_stage"))(views, 0.5)
    left_out = _method(_config(tokens="last_stage", **{f"weight_{name}": 0.0}), apart=False)
    # What is left out draws no first weights either: the others get those of the whole method.
    whole = _method(_config(tokens="last_stage")).state_dict()
    left_out.load_state_dict({key: whole[key] for key in left_out.state_dict()})
    without = left_out(views, 0.5)
    assert set(every.terms) - set(without.terms) == {name}
    weights = {"mip": 1.0, "mpd": 0.1, "itd": 0.1}
    left = sum(weights[n] * float(every.terms[n]) for n in without.terms)
    assert without.total.item() == pytest.approx(left, rel=1e-5)


def test_one_head_or_class_attention_may_stand_in_for_two_heads_and_the_mean() -> None:
    config = _config(class_token="attention")
    shared = SmitConfig(
        encoder=config.encoder,
        head=HeadConfig(hidden=8, bottleneck=6, prototypes=10, shared=True),
    )
    method = _method(shared)
    assert method.student.patch_head is method.student.class_head
    assert method.teacher.patch_head is method.teacher.class_head
    wanted = _terms_by_hand(method, _views(), 0.5)
    found = method(_views(), 0.5).terms
    assert float(found["itd"]) == pytest.approx(wanted["itd"], rel=2e-4)
    attending = _method(config)
    attending(_views(), 0.5).total.backward()
    assert attending.student.class_attention is not None
    assert attending.student.class_attention.token.grad is not None


def test_teacher_equals_the_student_at_the_first_step() -> None:
    method = _method(apart=False)
    student, teacher = method.student.state_dict(), method.teacher.state_dict()
    assert list(student) == list(teacher)
    assert all(torch.equal(student[name], teacher[name]) for name in student)
    assert student["encoder.mask_token"].data_ptr() != teacher["encoder.mask_token"].data_ptr()


def test_teacher_stays_in_evaluation_mode() -> None:
    method = _method()
    for _ in range(2):
        assert method.training
        assert method.student.training
        assert not any(module.training for module in method.teacher.modules())
        method.eval()
        assert not method.student.training
        assert method.train() is method


def test_teacher_gets_no_gradient_and_the_whole_student_does() -> None:
    method = _method()
    method(_views(), 0.5).total.backward()
    assert all(not p.requires_grad and p.grad is None for p in method.teacher.parameters())
    without = {n for n, p in method.named_parameters() if p.requires_grad and p.grad is None}
    # The skips' norms serve fine-tuning alone, as in the released code.
    assert without == {
        f"student.encoder.norms.{i}.{w}" for i in range(4) for w in ("weight", "bias")
    }


@pytest.mark.parametrize("preset", PRESETS["smit"])
def test_gradient_reaches_every_block_in_every_preset(preset: str) -> None:
    small = [
        "method.encoder.embed_dim=4",
        "method.encoder.drop_path=0",
        "method.head={hidden: 8, bottleneck: 4, prototypes: 8, shared: false}",
    ]
    config = load_config(PretrainConfig, method="smit", preset=preset, overrides=small)
    torch.manual_seed(0)
    method = build_method(config.method, epochs=config.train.epochs).train()
    method(_views(1, edge=2 * config.method.encoder.stride[0]), 0.5).total.backward()
    for name, parameter in method.student.encoder.stages.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_branches_are_dropped_in_the_student_alone() -> None:
    views = _views(4)
    steady, dropping = _method(), _method(_config(drop_path=0.8))
    found = [method(views, 0.5).terms for method in (steady, dropping)]
    assert float(found[0]["mip"]) != float(found[1]["mip"])
    for method in (steady, dropping):
        method.after_step(0.5)
    assert torch.equal(steady.patch_centre.value, dropping.patch_centre.value)
    assert torch.equal(steady.class_centre.value, dropping.class_centre.value)
    dropping.eval()
    assert float(dropping(views, 0.5).terms["mip"]) == pytest.approx(float(found[0]["mip"]))


def test_each_branch_of_each_sample_is_dropped_as_often_as_its_rate_says() -> None:
    method = _method(_config(drop_path=0.8))
    drawn = method._branch_scale(torch.arange(4000))
    assert drawn is not None
    rates = [0.8 * i / 4 for i in range(5) for _ in range(2)]
    assert drawn.shape == (10, 4000)
    for row, rate in zip(drawn.double(), rates, strict=True):
        # What is kept is scaled up, so that the mean stays.
        kept = row[row > 0]
        assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - rate)))
        assert abs(float((row == 0).double().mean()) - rate) < 0.04
    assert float(torch.corrcoef(drawn[2:].double()).fill_diagonal_(0).abs().max()) < 0.1


@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(40, 3), (49, 1), (7, 11), (400, 83)])
def test_prototypes_are_frozen_in_the_first_epoch_only(epochs: int, steps_per_epoch: int) -> None:
    method = build_method(_config(), epochs=epochs)
    total = epochs * steps_per_epoch
    heads = (method.student.patch_head, method.student.class_head)
    for step in range(min(total, 2 * steps_per_epoch + 1)):
        for head in heads:
            head.prototypes.grad = torch.ones_like(head.prototypes)
        method.after_backward(step / total)
        frozen = [head.prototypes.grad is None for head in heads]
        assert frozen == [step < steps_per_epoch] * 2, step


def test_teacher_follows_with_a_momentum_that_depends_on_the_step_of_the_whole_run() -> None:
    method, total = _method(apart=False), 12
    name = "encoder.stages.3.1.linear2.weight"
    student = method.student.get_parameter(name)
    wanted = method.teacher.get_parameter(name).double()
    for step in range(1, total + 1):
        with torch.no_grad():
            student.add_(step)
        method.after_step(step / total)
        momentum = 1 - (1 - 0.996) * (math.cos(math.pi * step / total) + 1) / 2
        wanted = momentum * wanted + (1 - momentum) * student.detach().double()
        found = method.teacher.get_parameter(name)
        assert torch.allclose(found.double(), wanted, atol=1e-4, rtol=1e-6), step
        if step == total - 1:
            before_last = found.clone()
    # The momentum is 1 at the end: the last step no longer moves the teacher.
    assert torch.equal(method.teacher.get_parameter(name), before_last)


def test_heads_and_token_of_the_teacher_follow_as_well() -> None:
    method = _method(apart=False)
    with torch.no_grad():
        for parameter in method.student.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    before = {n: p.clone() for n, p in method.teacher.named_parameters()}
    method.after_step(0.0)
    for name, parameter in method.teacher.named_parameters():
        moved = 0.0 if name.endswith("prototype_length") else 0.004
        assert torch.allclose(parameter - before[name], torch.tensor(moved), atol=1e-5), name


def test_settings_tell_the_schedules_of_the_paper_and_of_the_released_code() -> None:
    paper = build_method(_config(), epochs=400)
    released = build_method(_config(patch_temperature_delay_epochs=30), epochs=400)
    for epoch, whole, delayed in [
        (0, 0.04, 0.04),
        (15, 0.055, 0.04),
        (30, 0.07, 0.04),
        (45, 0.07, 0.055),
        (60, 0.07, 0.07),
        (400, 0.07, 0.07),
    ]:
        now, then = paper.settings(epoch / 400), released.settings(epoch / 400)
        assert now["temperature/teacher_cls"] == pytest.approx(whole)
        assert now["temperature/teacher_patch"] == pytest.approx(whole)
        assert then["temperature/teacher_cls"] == pytest.approx(whole)
        assert then["temperature/teacher_patch"] == pytest.approx(delayed)
        assert now["temperature/student"] == 0.1
    assert paper.after_step(0)["ema_momentum"] == pytest.approx(0.996)
    assert paper.after_step(0.5)["ema_momentum"] == pytest.approx(0.998)
    assert paper.after_step(1)["ema_momentum"] == 1


def test_centres_are_updated_once_a_step_from_the_teacher_on_unmasked_views() -> None:
    method, views = _method(), _views()
    patch, whole = method.patch_centre.value.clone(), method.class_centre.value.clone()
    with torch.no_grad():
        tokens = torch.cat(
            [_encoded(method, view, masked=False, teacher=True)[0].float() for view in views.main]
        )
        patch_mean = method.teacher.patch_head(tokens).mean((0, 1))
        whole_mean = method.teacher.class_head(tokens.mean(1)).mean(0)
    method(views, 0.5)
    assert torch.equal(method.patch_centre.value, patch)
    method.after_step(0.5)
    assert torch.allclose(method.patch_centre.value, 0.9 * patch + 0.1 * patch_mean, atol=1e-5)
    assert torch.allclose(method.class_centre.value, 0.9 * whole + 0.1 * whole_mean, atol=1e-5)


def test_evaluation_leaves_the_centres_alone() -> None:
    method = _method()
    before = method.patch_centre.value.clone()
    method.eval()
    with torch.no_grad():
        method(_views(), 0.5)
    method.after_step(1.0)
    assert torch.equal(method.patch_centre.value, before)


def test_a_step_in_two_parts_gives_the_same_gradient_and_centres_as_in_one() -> None:
    views = _views(4)
    whole, parts = _method(_config(drop_path=0.5)), _method(_config(drop_path=0.5))
    assert_parts_learn_as_the_whole(whole, parts, views)
    assert torch.allclose(whole.patch_centre.value, parts.patch_centre.value, atol=1e-6)
    assert torch.allclose(whole.class_centre.value, parts.class_centre.value, atol=1e-6)


def test_the_same_views_give_the_same_losses_whatever_was_drawn_before() -> None:
    views = _views()
    first = _method(_config(drop_path=0.5))(views, 0.2)
    method = _method(_config(drop_path=0.5))
    torch.rand(100)
    second = method(views, 0.2)
    assert torch.equal(first.total, second.total)


def test_monitors_tell_a_collapse_from_health() -> None:
    method, views = _method(), _views(4)
    healthy = method(views, 1.0).monitors
    assert 0 < float(healthy["teacher_entropy_patch"]) < math.log(10)
    assert float(healthy["feature_std"]) > 0.3
    with torch.no_grad():
        method.student.encoder.merges[2].reduction.weight.zero_()
        method.student.encoder.merges[2].reduction.weight[0] = 0
        method.teacher.patch_head.mlp[-1].weight.zero_()
    collapsed = method(views, 1.0).monitors
    assert float(collapsed["feature_std"]) < 1e-3


def test_pictures_show_the_view_its_hidden_voxels_and_the_prediction_of_the_student() -> None:
    method, view = _method(_config(drop_path=0.5)).eval(), _views().main[0]
    seen = method.reconstruct(view)
    cells = random_cells(view.keys, (2, 2, 2), 0.7).grid
    assert torch.equal(seen.image, view.image)
    assert torch.equal(seen.hidden[:, ::16, ::16, ::16], cells)
    assert int(seen.hidden.sum()) == 2 * 6 * 16**3
    _, bottleneck = _encoded(method, view, masked=True, teacher=False)
    assert torch.allclose(seen.prediction, method.pixel_head(bottleneck), atol=1e-5)
    assert not seen.prediction.requires_grad


def test_under_autocast_losses_stay_full_precision_and_near_those_without() -> None:
    method, views = _method(), _views(4)
    assert_half_precision_is_near(method, views, rel=0.05)
