from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from backend.config import PRESETS, PretrainConfig, load_config
from backend.errors import UserError
from backend.methods import build_method
from backend.methods.trio import Trio, version
from backend.models.heads import ConvUpHead, DeconvHead
from backend.models.segmentation import parameter_count
from backend.settings.encoders import SwinConfig
from backend.settings.trio import TrioConfig
from backend.views.crops import Cut, Regions, View, ViewSet, cut_views
from backend.views.cutouts import cut_outs, noise_like, partners

_EDGE = 16


def _config(**changes: Any) -> TrioConfig:
    small = {"embed_dim": 4, "depths": (1, 2), "heads": (1, 2), "window": 3, "qkv_bias": True}
    encoder = SwinConfig(**{"drop_path": 0.0, **small, **changes.pop("encoder", {})})
    return TrioConfig(encoder=encoder, contrast_width=6, **{"cut_out_edges": (0.1, 0.6), **changes})


def _method(config: TrioConfig | None = None) -> Trio:
    torch.manual_seed(0)
    method = build_method(config or _config(), epochs=10).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    assert isinstance(method, Trio)
    return method


def _views(samples: int = 4) -> ViewSet:
    generator = torch.Generator().manual_seed(2)
    shape = (samples, 1, _EDGE + 4, _EDGE + 4, _EDGE + 4)
    hu = torch.randint(-900, 900, shape, generator=generator).to(torch.int16)
    sizes = torch.tensor(shape[2:]).expand(samples, 3)
    regions = Regions(hu, sizes, torch.arange(samples) + 50, torch.zeros(samples, 2))
    cut = Cut(count=1, size=(_EDGE, _EDGE, _EDGE))
    return ViewSet(cut_views(regions, cut, hu_window=(-1000.0, 1000.0)))


class _Spy:
    """Keeps what goes through a network, to look at it from outside."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.seen: list[Tensor] = []
        module.register_forward_pre_hook(lambda _, given: self.seen.append(given[0]))


@torch.no_grad()
def _terms_by_hand(method: Trio, shown: Tensor, image: Tensor, quarters: list[int]) -> list[float]:
    """The three losses in fp64 and loops; versions stand one after the other."""
    both, b = len(shown), len(shown) // 2
    cells = method.network(shown).bottleneck.double()
    mean, variance = cells.mean(1, keepdim=True), cells.var(1, keepdim=True, correction=0)
    cells = (cells - mean) / torch.sqrt(variance + 1e-5)
    rotation = reconstruction = contrast = 0.0
    vectors = []
    for i in range(both):
        tokens = cells[i].flatten(1).T
        pooled = tokens.mean(0)
        corner = method.config.tokens == "corner"
        logits = method.rotation_head.double()(tokens[0] if corner else pooled)
        rotation -= float(torch.log_softmax(logits, 0)[quarters[i]]) / both
        vector = method.contrast_head.double()(tokens[1] if corner else pooled)
        vectors.append(vector / vector.norm())
        restored = method.pixel_head.double()(cells[i : i + 1])
        reconstruction += float((restored[0] - image[i].double()).abs().mean()) / both
    for i in range(both):
        other = (i + b) % both
        against = sum(math.exp(float(vectors[i] @ vectors[j]) / 0.5) for j in range(both) if j != i)
        contrast -= math.log(math.exp(float(vectors[i] @ vectors[other]) / 0.5) / against) / both
    method.float()
    return [rotation, contrast, reconstruction]


@pytest.mark.parametrize(
    "changes", [{}, {"tokens": "pooled"}, {"decoder": "deconv"}, {"decoder": "linear"}]
)
def test_terms_equal_loops_over_what_the_network_saw(changes: dict[str, Any]) -> None:
    method, views = _method(_config(**changes)), _views()
    spy = _Spy(method.network)
    found = method(views, 0.3)
    shown = spy.seen[0]
    crop = views.main[0].image
    wanted_quarters, turned = [], []
    for i, picture in enumerate(shown):
        # Most voxels are not replaced: the quarter turn that fits best is the one that was made.
        fits = [float((crop[i % 4].rot90(k, (2, 3)) == picture).float().mean()) for k in range(4)]
        wanted_quarters.append(fits.index(max(fits)))
        turned.append(crop[i % 4].rot90(wanted_quarters[-1], (2, 3)))
    assert len(set(wanted_quarters)) > 1
    values = _terms_by_hand(method, shown, torch.stack(turned), wanted_quarters)
    for name, value in zip(("rotation", "contrast", "reconstruction"), values, strict=True):
        assert float(found.terms[name]) == pytest.approx(value, rel=1e-4), name
    assert found.total.item() == pytest.approx(sum(values), rel=1e-4)


def test_a_version_shows_noise_and_another_turned_crop_where_it_is_replaced() -> None:
    image = _views(6).main[0].image
    keys = torch.arange(6) + 3
    made = version(image, keys, _config(), turn=True)
    for i in range(6):
        assert torch.equal(made.image[i], image[i].rot90(int(made.quarters[i]), (2, 3)))
    kept = ~made.replaced.unsqueeze(1)
    assert torch.equal(made.shown[kept], made.image[kept])
    partner, noise = partners(keys), noise_like(image, keys)
    from_other = made.shown == made.image[partner]
    assert bool((kept | from_other | (made.shown == noise)).all())
    own = partner == torch.arange(6)
    assert not bool(own.all())
    strangers = from_other & made.replaced.unsqueeze(1)
    assert bool(strangers[~own].flatten(1).any(1).all())


def test_each_quarter_turn_is_made_equally_often_and_both_versions_draw_their_own() -> None:
    keys = torch.arange(1000)
    image = torch.zeros(1, 1, 2, 2, 2).expand(1000, -1, -1, -1, -1)
    config = _config(cut_out_edges=(0.5, 1.0))
    first = version(image, keys, config, turn=True).quarters
    second = version(image, keys + 1000, config, turn=True).quarters
    counts = torch.bincount(first, minlength=4).double()
    assert float(((counts - 250) ** 2 / 250).sum()) < 3 + 6 * (2 * 3) ** 0.5
    assert abs(float((first == second).double().mean()) - 0.25) < 6 * (0.25 * 0.75 / 1000) ** 0.5


def test_boxes_are_added_until_their_volumes_reach_a_share_drawn_up_to_the_most() -> None:
    mask = cut_outs(torch.arange(100), (32, 32, 32), most=0.3, edges=(0.05, 0.25))
    share = mask.flatten(1).double().mean(1)
    # Overlaps make it less than the sum of the boxes, the last box at most a box more.
    assert float(share.max()) < 0.3 + 0.25**3
    assert float(share.min()) < 0.02
    assert 0.1 < float(share.mean()) < 0.17
    few = cut_outs(torch.arange(100), (32, 32, 32), most=1e-6, edges=(0.05, 0.25))
    for grid in few:
        # A single box: where it is, everything between its ends is hidden too.
        inside = grid.nonzero()
        low, high = inside.amin(0), inside.amax(0) + 1
        assert int(grid.sum()) == int((high - low).prod())
        assert int((high - low).max()) < 8


def test_boxes_of_unequal_edges_follow_each_axis_and_reach_every_place() -> None:
    mask = cut_outs(torch.arange(200), (8, 16, 24), most=1e-6, edges=(0.25, 0.5))
    for grid in mask:
        inside = grid.nonzero()
        size = inside.amax(0) + 1 - inside.amin(0)
        assert bool((size <= torch.tensor([3, 7, 11])).all())
    for others in ((0, 2, 3), (0, 1, 3), (0, 1, 2)):
        assert bool(mask.any(dim=others).all())


def test_noise_spans_0_to_1_in_each_sample() -> None:
    noise = noise_like(torch.zeros(5, 1, 9, 9, 9), torch.arange(5)).flatten(1)
    assert noise.amin(1).tolist() == [0.0] * 5
    assert noise.amax(1).tolist() == pytest.approx([1.0] * 5)
    assert 0.08 < float(noise.std()) < 0.25


def test_turns_are_recognised_as_often_as_the_record_says() -> None:
    method = _method()
    with torch.no_grad():
        method.rotation_head.weight.zero_()
        method.rotation_head.bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0]))
    view = _views(12).main[0]
    accuracy = float(method(ViewSet((view,)), 0.0).monitors["rotation_accuracy"])
    assert 0 < accuracy < 0.6  # always "two quarters": right for about a quarter


@pytest.mark.parametrize("name", ["rotation", "contrast", "reconstruction"])
def test_a_task_of_weight_0_has_neither_term_nor_head(name: str) -> None:
    method = _method(_config(**{f"weight_{name}": 0.0}))
    head = {"rotation": "rotation_head", "contrast": "contrast_head"}.get(name, "pixel_head")
    assert head not in method.parts
    assert name not in method(_views(), 0.5).terms
    if name == "reconstruction":
        assert method.reconstruct(_views().main[0]) is None


@pytest.mark.parametrize("decoder", ["vae", "deconv", "linear"])
def test_gradient_reaches_every_part(decoder: Any) -> None:
    method = _method(_config(decoder=decoder))
    method(_views(), 0.5).total.backward()
    without = {n for n, p in method.named_parameters() if p.grad is None}
    # The skips' norms serve fine-tuning; nothing is hidden behind the mask token.
    norms = {f"network.norms.{i}.{w}" for i in range(2) for w in ("weight", "bias")}
    assert without == norms | {"network.mask_token"}
    assert method.encoder is method.network
    assert list(method.parts) == ["encoder", "rotation_head", "contrast_head", "pixel_head"]


def test_the_same_views_give_the_same_losses_whatever_was_drawn_before() -> None:
    config = _config(encoder={"drop_path": 0.5})
    first = _method(config)(_views(), 0.2)
    method = _method(config)
    torch.rand(100)
    assert torch.equal(first.total, method(_views(), 0.2).total)


def test_branches_are_dropped_while_training_alone() -> None:
    dropping, steady = _method(_config(encoder={"drop_path": 0.9})), _method()
    views = _views()
    assert not torch.equal(dropping(views, 0.5).total, steady(views, 0.5).total)
    assert torch.equal(dropping.eval()(views, 0.5).total, steady.eval()(views, 0.5).total)


def test_pictures_show_the_crop_as_it_lies_with_its_cut_outs() -> None:
    method, view = _method().eval(), _views().main[0]
    seen = method.reconstruct(view)
    assert seen is not None
    assert seen.shown is not None
    assert torch.equal(seen.image, view.image)
    kept = ~seen.hidden.unsqueeze(1)
    assert torch.equal(seen.shown[kept], view.image[kept])
    assert not torch.equal(seen.shown, view.image)
    cells = method.network(seen.shown).bottleneck.movedim(1, -1)
    cells = torch.nn.functional.layer_norm(cells, cells.shape[-1:]).movedim(-1, 1)
    assert torch.allclose(seen.prediction, method.pixel_head(cells), atol=1e-5)


def test_under_autocast_losses_stay_full_precision_and_near_those_without() -> None:
    method, views = _method(), _views()
    wanted = method(views, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method(views, 0.5)
    for name, value in wanted.terms.items():
        assert found.terms[name].dtype == torch.float32
        assert float(found.terms[name]) == pytest.approx(float(value), rel=0.1), name


def test_decoders_of_the_released_network_have_its_layers_and_sizes() -> None:
    with torch.device("meta"):
        deconv, convs = DeconvHead(768, stride=32), ConvUpHead(768, stride=32)
        widths = [768, 384, 192, 96, 48]
        wanted = [(a, b) for a, b in zip(widths, [*widths[1:], 1], strict=True)]
        assert [(layer.in_channels, layer.out_channels) for layer in deconv] == wanted
        assert parameter_count(deconv) == sum(8 * a * b + b for a, b in wanted)
        sizes = [(768, 384), (384, 192), (192, 96), (96, 48), (48, 48)]
        assert parameter_count(convs) == sum(27 * a * b + b for a, b in sizes) + 48 + 1
        for head in (deconv, convs):
            assert head(torch.zeros(2, 768, 3, 3, 3)).shape == (2, 1, 96, 96, 96)
    with pytest.raises(ValueError, match="24 is no power of 2"):
        DeconvHead(8, stride=24)


def test_paper_preset_is_the_released_network_and_counts_on_the_meta_device() -> None:
    config = load_config(PretrainConfig, method="swinunetr_trio", preset="paper")
    with torch.device("meta"):
        method = build_method(config.method, epochs=400).train()
        image, affine = torch.zeros(2, 1, 96, 96, 96), torch.zeros(2, 4, 4)
        view = View(image, affine, torch.zeros(2, dtype=torch.int64))
        method(ViewSet((view,)), 0.0).total.backward()
    sizes = {name: parameter_count(part) for name, part in method.parts.items()}
    assert sizes["rotation_head"] == 768 * 4 + 4
    assert sizes["contrast_head"] == 768 * 512 + 512
    assert config.preprocess.spacing_mm is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("views.main.count=2", ["views.main.count must be 1"]),
        ("views.local={count: 2, size: 16}", ["without views.local"]),
        ("views.main.size=[48, 32, 48]", ["quarter turns need equal y and x"]),
        ("views={region: 32, main: {size: 16, count: 1}}", ["16 gives one token"]),
        ("method.cut_out_edges=[0.2, 0.1]", ["cut_out_edges must rise", "[0.2, 0.1]"]),
        ("method.cut_out_edges=[0.001, 0.1]", ["less than a voxel"]),
        ("method.encoder.patch=3", ["decoder=vae", "24 is no power of 2"]),
        (
            "method={weight_rotation: 0, weight_contrast: 0, weight_reconstruction: 0}",
            ["nothing to learn"],
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(PretrainConfig, method="swinunetr_trio", preset="tiny", overrides=[override])
    assert all(word in caught.value.message for word in words), caught.value.message


def test_a_few_steps_of_the_tiny_preset_lower_the_loss() -> None:
    assert PRESETS["swinunetr_trio"] == ("paper", "tiny")
    config = load_config(
        PretrainConfig,
        method="swinunetr_trio",
        preset="tiny",
        overrides=["method.encoder.depths=[1, 1, 1]", "views.main.size=32"],
    )
    torch.manual_seed(0)
    method = build_method(config.method, epochs=10).train()
    optimizer = torch.optim.AdamW(method.parameters(), lr=5e-4)
    smooth = torch.nn.functional.avg_pool3d(torch.rand(4, 1, 32, 32, 32), 5, 1, 2)
    affine = torch.eye(4, dtype=torch.float64).expand(4, 4, 4)
    totals, errors = [], []
    for step in range(10):
        optimizer.zero_grad()
        found = method(ViewSet((View(smooth, affine, torch.arange(4) + 4 * step),)), step / 10)
        torch.autograd.backward(found.total)
        optimizer.step()
        totals.append(found.total.item())
        errors.append(float(found.terms["reconstruction"]))
    assert sum(errors[-3:]) < 0.9 * sum(errors[:3])
    assert sum(totals[-3:]) < 0.95 * sum(totals[:3])
