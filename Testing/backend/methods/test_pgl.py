from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from checks import assert_half_precision_is_near
from torch import Tensor, nn
from torch.nn import functional

from backend.config import PRESETS, FinetuneConfig, PretrainConfig, load_config
from backend.methods import build_method
from backend.methods.pgl import Pgl
from backend.settings.encoders import ResnetConfig
from backend.settings.pgl import PglConfig, ProjectorConfig
from backend.settings.views import ViewConfig, ViewsConfig
from backend.views.crops import Cut, Regions, View, ViewSet, cut_views
from backend.views.masking import random_cells

_SIZE = (32, 48, 32)
_REGION = (48, 70, 50)
_FAMILY = (
    *("pgl", "pgl_no_flip", "pgl_no_csalign", "pgl_no_align"),
    *("byol", "simsiam", "mocov3", "pgl_mip"),
)


def _config(**changes: Any) -> PglConfig:
    values = {
        "encoder": ResnetConfig(depths=(1, 1, 1, 1), width=2, stem_stride=(1, 1, 1)),
        "projector": ProjectorConfig(hidden=8, output=6),
        "predictor_hidden": 8,
    }
    return PglConfig(**{**values, **changes})


def _method(config: PglConfig | None = None, *, apart: bool = True) -> Pgl:
    """A method in training mode whose target differs from the online network."""
    torch.manual_seed(0)
    method = Pgl(config or _config(), epochs=10).train()
    if apart:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return method


def _views(samples: int = 3, *, size: tuple[int, int, int] = _SIZE) -> ViewSet:
    generator = torch.Generator().manual_seed(2)
    coarse = torch.randn(samples, 1, 6, 7, 5, generator=generator) * 300
    hu = functional.interpolate(coarse, size=_REGION, mode="trilinear").to(torch.int16)
    regions = Regions(
        hu,
        torch.tensor(_REGION).expand(samples, 3),
        torch.arange(20, 20 + samples),
        torch.tensor([[0.0, 200.0]]).expand(samples, 2),
    )
    cut = Cut(count=2, size=size, scale=(1.1, 1.4), flip_probability=0.5, minimum_overlap=0.1)
    return ViewSet(cut_views(regions, cut, hu_window=(-1024.0, 325.0), zscore=True))


def _sampled(features: Tensor, view: View, other: View, config: PglConfig) -> Tensor:
    """A view's map where both are, sample by sample with `grid_sample` in fp64."""
    maps = []
    for b in range(len(features)):
        axes = []
        for axis, edge in enumerate(_SIZE):
            begin, end = _extent(view, b, axis, edge)
            low, high = min(begin, end), max(begin, end)
            if config.align_crop_scale:
                theirs = _extent(other, b, axis, edge)
                low, high = max(low, min(theirs)), min(high, max(theirs))
            cells = features.shape[2 + axis]
            shares = [
                (low + (j + 0.5) / cells * (high - low) - begin) / (end - begin)
                for j in range(cells)
            ]
            if not config.align_flips:
                shares.sort()
            axes.append(torch.tensor([2 * s - 1 for s in shares], dtype=torch.float64))
        z, y, x = torch.meshgrid(*axes, indexing="ij")
        # The last axis of a grid is (x, y, z).
        grid = torch.stack([x, y, z], dim=-1).unsqueeze(0)
        maps.append(
            functional.grid_sample(
                features[b : b + 1].double(), grid, padding_mode="border", align_corners=False
            )
        )
    return torch.cat(maps)


def _extent(view: View, sample: int, axis: int, edge: int) -> tuple[float, float]:
    affine = view.affine[sample]
    first, step = float(affine[axis, 3]), float(affine[axis, axis])
    return first - step / 2, first + (edge - 0.5) * step


@torch.no_grad()
def _outputs(method: Pgl, views: ViewSet) -> tuple[Tensor, Tensor]:
    """Projections of both views: online in training mode, and of the target; fp32."""
    image = torch.cat([view.image for view in views.main])
    online, teacher = copy.deepcopy(method.student), copy.deepcopy(method.teacher)
    hidden = _hidden(method, views)
    seen = image if hidden is None else torch.where(hidden.unsqueeze(1), 0.0, image)
    projected = online.project(online.encoder(seen).bottleneck)
    if teacher is None:
        return projected, projected
    return projected, teacher.project(teacher.encoder(image).bottleneck)


def _hidden(method: Pgl, views: ViewSet) -> Tensor | None:
    if not method.config.weight_mip:
        return None
    keys = torch.cat([view.keys for view in views.main])
    cells = random_cells(keys, (2, 3, 2), method.config.mask_ratio).grid
    for axis in (1, 2, 3):
        cells = cells.repeat_interleave(16, dim=axis)
    return cells


def _local_by_hand(method: Pgl, views: ViewSet) -> float:
    """Equations 8 and 9, place by place in fp64."""
    first, second = views.main
    projected, target = _outputs(method, views)
    pairs = (((first, second), 0), ((second, first), 1))
    online = [_placed(method, projected.chunk(2)[i], *pair) for pair, i in pairs]
    wanted = [_placed(method, target.chunk(2)[i], *pair) for pair, i in pairs]
    # The predictor normalises over both views, as the projector does.
    with torch.no_grad():
        predicted = copy.deepcopy(method.predictor)(torch.cat(online).float()).double().chunk(2)
    total = 0.0
    for q, z in ((predicted[0], wanted[1]), (predicted[1], wanted[0])):
        distances = []
        for one, two in zip(_vectors(q), _vectors(z), strict=True):
            dot = sum(a * b for a, b in zip(one, two, strict=True))
            lengths = math.sqrt(sum(a * a for a in one) * sum(b * b for b in two))
            distances.append(2 - 2 * dot / lengths)
        total += sum(distances) / len(distances)
    return total


def _placed(method: Pgl, features: Tensor, view: View, other: View) -> Tensor:
    c = method.config
    if c.features == "pooled" or not (c.align_flips or c.align_crop_scale):
        return features.double()
    return _sampled(features, view, other, c)


def _vectors(features: Tensor) -> list[list[float]]:
    vectors: list[list[float]] = features.movedim(1, -1).flatten(0, -2).tolist()
    return vectors


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"align_flips": False},
        {"align_crop_scale": False},
        {"align_flips": False, "align_crop_scale": False},
        {"target": "online"},
        {"target_statistics": "batch"},
        {"features": "pooled"},
        {"features": "pooled", "target": "online"},
        {"features": "pooled", "target_statistics": "batch"},
        {"weight_mip": 5.0},
    ],
)
def test_consistency_equals_the_equations_of_the_paper(changes: dict[str, Any]) -> None:
    method, views = _method(_config(**changes)), _views()
    wanted = _local_by_hand(method, views)
    found = method(views, 0.5)
    term = "global" if changes.get("features") == "pooled" else "local"
    assert float(found.terms[term]) == pytest.approx(wanted, rel=1e-4)
    if "weight_mip" not in changes:
        assert list(found.terms) == [term]
        assert found.total.item() == pytest.approx(wanted, rel=1e-4)


def test_info_nce_tells_the_own_target_from_those_of_other_scans() -> None:
    config = _config(features="pooled", loss="info_nce", temperature=0.3, weight_consistency=0.5)
    method, views = _method(config), _views()
    projected, target = _outputs(method, views)
    with torch.no_grad():
        predicted = copy.deepcopy(method.predictor)(projected)
    queries = [functional.normalize(q.double().flatten(1)) for q in predicted.chunk(2)]
    keys = [functional.normalize(k.double().flatten(1)) for k in target.chunk(2)]
    wanted = 0.0
    for q, k in ((queries[0], keys[1]), (queries[1], keys[0])):
        for i in range(3):
            logits = [float(q[i] @ k[j]) / 0.3 for j in range(3)]
            wanted += 2 * 0.3 * math.log(sum(math.exp(v - logits[i]) for v in logits)) / 3
    found = method(views, 0.5)
    assert float(found.terms["global"]) == pytest.approx(wanted, rel=1e-4)
    assert found.total.item() == pytest.approx(0.5 * wanted, rel=1e-4)


def test_masked_image_prediction_is_the_error_of_hidden_voxels_and_stands_beside_the_rest() -> None:
    config = _config(weight_mip=5.0, weight_consistency=2.0)
    method, views = _method(config), _views()
    image = torch.cat([view.image for view in views.main])
    hidden = _hidden(method, views)
    assert hidden is not None
    # 8 of 12 cells of 16³ voxels are hidden from each view.
    assert hidden.flatten(1).sum(1).tolist() == [8 * 16**3] * 6
    assert method.pixel_head is not None
    with torch.no_grad():
        seen = torch.where(hidden.unsqueeze(1), 0.0, image)
        bottleneck = copy.deepcopy(method.student).encoder(seen).bottleneck
        prediction = copy.deepcopy(method.pixel_head)(bottleneck).double()
    error = (prediction - image.double()).abs()[:, 0]
    wanted = float((error * hidden).sum() / (hidden.sum() + 1e-5))
    found = method(views, 0.5)
    assert float(found.terms["mip"]) == pytest.approx(wanted, rel=1e-5)
    total = 2 * float(found.terms["local"]) + 5 * wanted
    assert found.total.item() == pytest.approx(total, rel=1e-5)


def test_no_gradient_reaches_the_moving_average() -> None:
    method = _method()
    method(_views(), 0.5).total.backward()
    assert method.teacher is not None
    assert all(not p.requires_grad and p.grad is None for p in method.teacher.parameters())


def test_no_gradient_goes_through_the_target_where_it_is_the_online_network() -> None:
    method, views = _method(_config(features="pooled", target="online")), _views()
    method(views, 0.5).total.backward()
    # The same loss against the same target as plain numbers has the same gradient.
    still = _method(method.config)
    _, target = _outputs(still, views)
    image = torch.cat([view.image for view in views.main])
    predicted = still.predictor(still.student.project(still.student.encoder(image).bottleneck))
    wanted = torch.cat(target.chunk(2)[::-1])
    similar = functional.cosine_similarity(predicted, wanted, dim=1)
    (2 * (2 - 2 * similar).mean()).backward()
    for (name, p), other in zip(method.named_parameters(), still.parameters(), strict=True):
        assert p.grad is not None, name
        assert other.grad is not None, name
        assert torch.allclose(p.grad, other.grad, atol=1e-6, rtol=1e-3), name


@pytest.mark.parametrize("name", _FAMILY)
def test_every_part_learns_and_nothing_else_in_every_tiny_preset(name: str) -> None:
    config = load_config(PretrainConfig, method=name, preset="tiny").method
    torch.manual_seed(0)
    method = build_method(config, epochs=10).train()
    assert isinstance(method, Pgl)
    views = _views(2)
    method(views, 0.5).total.backward()
    learning = {id(p) for part in method.parts.values() for p in part.parameters()}
    for path, parameter in method.named_parameters():
        if path.startswith("teacher."):
            assert not parameter.requires_grad
            assert parameter.grad is None, path
        else:
            assert id(parameter) in learning, path
            assert parameter.grad is not None, path
            # A bias before a difference of views may have none by symmetry; a weight may not.
            assert parameter.ndim == 1 or float(parameter.grad.abs().max()) > 0, path
    assert (method.teacher is None) == (name == "simsiam")
    assert ("pixel_head" in method.parts) == (name == "pgl_mip")
    assert next(iter(method.parts)) == "encoder"
    assert method.parts["encoder"] is method.encoder


def test_target_equals_the_online_network_at_the_first_step_and_follows_it_to_the_end() -> None:
    method, total = _method(apart=False), 8
    assert method.teacher is not None
    student, teacher = method.student.state_dict(), method.teacher.state_dict()
    assert all(torch.equal(student[name], teacher[name]) for name in student)
    name = "encoder.stages.3.0.conv1.weight"
    mean = "encoder.stem_norm.running_mean"
    wanted = {n: teacher[n].double() for n in (name, mean)}
    for step in range(1, total + 1):
        with torch.no_grad():
            for value in student.values():
                if value.is_floating_point():
                    value.add_(step)
        used = method.after_step(step / total)
        momentum = 1 - (1 - 0.996) * (math.cos(math.pi * step / total) + 1) / 2
        assert used == {"ema_momentum": pytest.approx(momentum)}
        for n in wanted:
            wanted[n] = momentum * wanted[n] + (1 - momentum) * student[n].double()
            assert torch.allclose(method.teacher.state_dict()[n].double(), wanted[n], rtol=1e-5)
    assert method.after_step(0.0)["ema_momentum"] == pytest.approx(0.996)
    assert method.after_step(1.0)["ema_momentum"] == 1
    assert _method(_config(target="online")).after_step(0.5) == {}


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_target_normalises_with_the_statistics_that_are_set(statistics: Any) -> None:
    method = _method(_config(target_statistics=statistics))
    assert method.teacher is not None
    norms = [m for m in method.teacher.modules() if isinstance(m, nn.BatchNorm3d)]
    assert norms
    assert all(norm.training == (statistics == "batch") for norm in norms)
    assert not method.teacher.training
    method.eval()
    assert not any(norm.training for norm in norms)
    assert method.train() is method
    assert all(norm.training == (statistics == "batch") for norm in norms)
    views = _views()
    alone = ViewSet(tuple(View(v.image[:2], v.affine[:2], v.keys[:2]) for v in views.main))
    with torch.no_grad():
        image = torch.cat([v.image for v in views.main])
        few = torch.cat([v.image for v in alone.main])
        of_all = method._target(image, image)[[0, 1, 3, 4]]
        of_few = method._target(few, few)
    assert torch.allclose(of_all, of_few, atol=1e-5) == (statistics == "running")


def test_the_same_views_give_the_same_losses_and_the_order_of_samples_does_not_matter() -> None:
    views = _views()
    turned = ViewSet(
        tuple(View(v.image[[2, 0, 1]], v.affine[[2, 0, 1]], v.keys[[2, 0, 1]]) for v in views.main)
    )
    swapped = ViewSet((views.main[1], views.main[0]))
    first = _method()(views, 0.2).total
    assert torch.equal(first, _method()(views, 0.2).total)
    assert torch.allclose(first, _method()(turned, 0.2).total, atol=1e-4)
    assert torch.allclose(first, _method()(swapped, 0.2).total, atol=1e-4)


def test_under_autocast_losses_stay_full_precision_and_near_those_without() -> None:
    method, views = _method(_config(weight_mip=5.0)), _views()
    assert_half_precision_is_near(method, views, rel=0.1)


def test_the_monitor_tells_a_collapse_from_health() -> None:
    method, views = _method(_config(target_statistics="batch")), _views(4)
    low, _ = method.healthy["feature_std"]
    assert float(method(views, 0.5).monitors["feature_std"]) > 2 * low
    assert method.teacher is not None
    with torch.no_grad():
        last = method.teacher.projector[-1]
        last.weight.zero_()
        last.bias.fill_(1.0)
    assert float(method(views, 0.5).monitors["feature_std"]) < 0.1 * low


def test_pictures_show_the_hidden_voxels_and_only_where_some_are_hidden() -> None:
    views = _views(1)
    assert _method().eval().reconstruct(views.main[0]) is None
    method = _method(_config(weight_mip=5.0)).eval()
    seen = method.reconstruct(views.main[0])
    assert seen is not None
    assert torch.equal(seen.image, views.main[0].image)
    assert int(seen.hidden.sum()) == 8 * 16**3
    assert seen.prediction.shape == seen.image.shape
    assert not seen.prediction.requires_grad


@pytest.mark.parametrize("name", _FAMILY)
def test_a_few_steps_lower_the_loss_without_a_collapse(name: str) -> None:
    config = load_config(PretrainConfig, method=name, preset="tiny").method
    heads = config.projector
    small = {
        "encoder": ResnetConfig(depths=(1, 1, 1, 1), width=2, stem_stride=(1, 1, 1)),
        "projector": replace(heads, hidden=32, output=16),
        "predictor_hidden": 32,
        "mask_cell": 16,
    }
    torch.manual_seed(0)
    method = Pgl(replace(config, **small), epochs=10).train()
    views = _views(4, size=(16, 32, 32))
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for step in range(8):
        optimizer.zero_grad()
        found = method(views, step / 8)
        found.total.backward()
        optimizer.step()
        method.after_step((step + 1) / 8)
        losses.append(found.total.item())
    assert losses[-1] < 0.9 * losses[0], losses
    assert float(found.monitors["feature_std"]) > method.healthy["feature_std"][0]


def test_ablations_leave_out_the_transformation_with_its_alignment() -> None:
    for preset in PRESETS["pgl_no_flip"]:
        whole, flip, crop, none = (
            load_config(PretrainConfig, method=m, preset=preset)
            for m in ("pgl", "pgl_no_flip", "pgl_no_csalign", "pgl_no_align")
        )
        for config in (whole, flip, crop, none):
            cut = Cut(
                count=2,
                size=_SIZE,
                scale=config.views.main.scale,
                flip_probability=config.views.main.flip_probability,
                minimum_overlap=config.views.minimum_overlap,
            )
            generator = torch.Generator().manual_seed(0)
            regions = Regions(
                torch.randint(-500, 500, (6, 1, *_REGION), generator=generator).to(torch.int16),
                torch.tensor(_REGION).expand(6, 3),
                torch.arange(6),
                torch.zeros(6, 2),
            )
            first, second = cut_views(regions, cut, hu_window=(-1024.0, 325.0))
            mirrored = [
                bool((v.affine.diagonal(dim1=1, dim2=2) < 0).any()) for v in (first, second)
            ]
            assert all(mirrored) == config.method.align_flips
            same = torch.equal(first.affine.abs()[:, :3, :3], second.affine.abs()[:, :3, :3])
            assert same != config.method.align_crop_scale
            if not (config.method.align_flips or config.method.align_crop_scale):
                assert torch.equal(first.affine, second.affine)


def test_the_paper_presets_are_those_of_the_papers() -> None:
    pgl = load_config(PretrainConfig, method="pgl", preset="paper")
    assert pgl.method == PglConfig(target_statistics="batch")
    assert pgl.train.optimizer == "lars"
    with torch.device("meta"):
        parts = build_method(pgl.method, epochs=1).parts
        sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert sizes == {"encoder": 46_155_072, "projector": 9_445_632, "predictor": 2_105_600}
    byol = load_config(PretrainConfig, method="byol", preset="paper")
    assert (byol.method.features, byol.views) == ("pooled", pgl.views)
    moco = load_config(PretrainConfig, method="mocov3", preset="paper").method
    assert (moco.loss, moco.temperature, moco.ema_momentum) == ("info_nce", 0.2, (0.99, 1.0))
    assert load_config(PretrainConfig, method="simsiam", preset="paper").method.target == "online"
    for name in _FAMILY:
        for preset in PRESETS[name]:
            tuned = load_config(FinetuneConfig, method=name, preset=preset)
            learnt = load_config(PretrainConfig, method=name, preset=preset)
            assert tuned.method.encoder == learnt.method.encoder


def test_settings_that_do_not_go_together_are_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match="set features=pooled"):
        PglConfig(loss="info_nce")
    with pytest.raises(ValueError, match=r"views\.main\.count 3: byol compares 2 views"):
        PglConfig(name="byol").check_views(ViewsConfig(main=ViewConfig(count=3)))
    with pytest.raises(ValueError, match=r"leave views\.local out"):
        PglConfig().check_views(ViewsConfig(local=ViewConfig(size=48)))
    with pytest.raises(ValueError, match=r"mask_cell \[32, 32, 32\] does not divide"):
        PglConfig(weight_mip=1.0, mask_cell=32).check_views(ViewsConfig(main=ViewConfig(size=48)))
