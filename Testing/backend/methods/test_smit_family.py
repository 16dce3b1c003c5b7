from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from backend.cards import deviations
from backend.config import PRESETS, PretrainConfig, load_config
from backend.errors import UserError
from backend.methods import build_method
from backend.methods.smit import Smit
from backend.models.segmentation import parameter_count
from backend.settings.encoders import SwinConfig
from backend.settings.smit import HeadConfig, SmitConfig
from backend.views.crops import Cut, Regions, View, ViewSet, cut_views
from backend.views.masking import drawn_cells, random_cells

_FAMILY = ("mip", "simmim", "fullrec", "ml_mip", "ibot", "dino")
_DISTIL = ("ibot", "dino")
_SMALL = (
    "method.encoder.embed_dim=4",
    "method.encoder.heads=[1, 1, 1]",
    # It is told apart from the papers' terms, and tested on its own.
    "method.weight_koleo=0",
    "method.encoder.depths=[1, 1, 1]",
    "method.head={hidden: 8, bottleneck: 6, prototypes: 10}",
    "method.teacher_temperature=[0.04, 0.07]",
)


def _config(name: str, *overrides: str) -> PretrainConfig:
    """The tiny preset, smaller still."""
    return load_config(PretrainConfig, method=name, preset="tiny", overrides=[*_SMALL, *overrides])


def _method(config: SmitConfig, *, apart: bool = True) -> Smit:
    """A method in training mode whose teacher and centres differ from their first values."""
    torch.manual_seed(0)
    method = build_method(config, epochs=100).train()
    assert isinstance(method, Smit)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters() if apart else ():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for centre in (method.patch_centre, method.class_centre):
            if centre is not None and apart:
                centre.value.normal_(0, 0.02, generator=generator)
    return method


def _family(name: str, *overrides: str) -> Smit:
    config = _config(name, "method.encoder.drop_path=0", *overrides).method
    assert isinstance(config, SmitConfig)
    return _method(config)


def _views(samples: int = 2, *, main: int = 2, local: int = 0, first: int = 10) -> ViewSet:
    generator = torch.Generator().manual_seed(2)
    hu = torch.randint(-300, 400, (samples, 1, 56, 56, 56), generator=generator)
    # Smoothed, so that there is something to learn.
    hu = torch.nn.functional.avg_pool3d(hu.float(), 5, 1, 2).mul(3).to(torch.int16)
    sizes = torch.tensor(hu.shape[2:]).expand(samples, 3)
    keys = torch.arange(first, first + samples)
    regions = Regions(hu, sizes, keys, torch.zeros(samples, 2))
    window = (-175.0, 250.0)
    return ViewSet(
        cut_views(regions, Cut(count=main, size=(48, 48, 48)), hu_window=window),
        cut_views(regions, Cut(count=local, size=(24, 24, 24)), hu_window=window, local=True),
    )


def _views_of(name: str, samples: int = 2) -> ViewSet:
    main, local = 1 if name == "simmim" else 2, 2 if name == "dino" else 0
    return _views(samples, main=main, local=local)


def _tokens(branch: Any, image: Tensor, grid: Tensor | None = None) -> Tensor:
    out = branch.encoder(image, grid).pyramid[-1].double().flatten(2).transpose(1, 2)
    centred = out - out.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)


def _softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def _entropy_across(p: list[float], q: list[float]) -> float:
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))


def _target(head: Any, token: Tensor, centre: Tensor, temperature: float) -> list[float]:
    logits = head(token.float()).double()
    return _softmax(((logits - centre.double()) / temperature).tolist())


def _guess(head: Any, token: Tensor) -> list[float]:
    return _softmax((head(token.float()).double() / 0.1).tolist())


# --- masks -------------------------------------------------------------------------------------


def test_one_share_for_all_hides_the_cells_of_smit() -> None:
    keys = torch.arange(20)
    wanted = random_cells(keys, (6, 6, 6), 0.7)
    found = drawn_cells(keys, (6, 6, 6), (0.7, 0.7))
    assert torch.equal(found.grid, wanted.grid)
    assert torch.equal(found.listed, wanted.hidden)
    assert found.counted is None


@pytest.mark.parametrize("blocks", [False, True])
def test_shares_are_drawn_evenly_and_only_a_part_of_the_views_is_masked(blocks: bool) -> None:
    mask = drawn_cells(torch.arange(3000), (6, 6, 6), (0.1, 0.5), chance=0.5, blocks=blocks)
    hidden = mask.grid.flatten(1).sum(1)
    masked = hidden[hidden > 0]
    assert abs(len(masked) / 3000 - 0.5) < 6 * 0.5 / 3000**0.5
    assert int(masked.min()) >= math.ceil(0.1 * 216)
    assert int(masked.max()) == 108
    # Whole numbers, rounded up: evenly from 22 to 108.
    spread = 0.4 * 216 / 12**0.5
    assert abs(float(masked.double().mean()) - (0.3 * 216 + 0.5)) < 6 * spread / len(masked) ** 0.5
    assert mask.listed.shape == (3000, 108)
    assert mask.counted is not None
    for grid, listed, counted in zip(mask.grid[:50], mask.listed, mask.counted, strict=False):
        assert sorted(set(listed.tolist())) == listed.tolist()
        assert listed[counted].tolist() == grid.flatten().nonzero()[:, 0].tolist()


def test_hidden_boxes_hang_together_more_than_scattered_cells_and_reach_every_cell() -> None:
    keys = torch.arange(600)
    neighbours = []
    for blocks in (False, True):
        grid = drawn_cells(keys, (6, 6, 6), (0.3, 0.3), blocks=blocks).grid
        assert grid.flatten(1).sum(1).tolist() == [65] * 600
        pairs = [(grid.roll(-1, axis) & grid).narrow(axis, 0, 5).sum() for axis in (1, 2, 3)]
        neighbours.append(float(sum(pairs)) / 600)
        often = grid.double().mean(0)
        assert float(often.min()) > 0.02
    # Of 540 pairs of neighbours 0.09 are hidden both by chance; a cube of 4³ has 144 of them.
    assert 40 < neighbours[0] < 56
    assert 110 < neighbours[1] < 160


def test_a_mask_follows_from_its_key_alone() -> None:
    keys = torch.tensor([5, -7, 2**62])
    together = drawn_cells(keys, (4, 4, 4), (0.1, 0.5), chance=0.7, blocks=True)
    torch.rand(5)
    for i in range(3):
        alone = drawn_cells(keys[i : i + 1], (4, 4, 4), (0.1, 0.5), chance=0.7, blocks=True)
        assert torch.equal(alone.grid[0], together.grid[i])


# --- terms -------------------------------------------------------------------------------------


@torch.no_grad()
def test_dino_pairs_each_main_view_of_the_teacher_with_every_other_view_of_the_student() -> None:
    method, views = _family("dino"), _views(3, local=3)
    found = method(views, 0.1)
    temperature = method.settings(0.1)["temperature/teacher_cls"]
    student, teacher = method.student, method.teacher
    everything = (*views.main, *views.local)
    terms = []
    for b, (t, one), (s, other) in itertools.product(
        range(3), enumerate(views.main), enumerate(everything)
    ):
        if t == s:
            continue
        wanted = _tokens(teacher, one.image[b : b + 1])[0].mean(0)
        seen = _tokens(student, other.image[b : b + 1])[0].mean(0)
        p = _target(teacher.class_head, wanted, method.class_centre.value, temperature)
        terms.append(_entropy_across(p, _guess(student.class_head, seen)))
    assert len(terms) == 3 * (2 + 2 * 3)
    assert set(found.terms) == {"itd"}
    assert float(found.terms["itd"]) == pytest.approx(sum(terms) / len(terms), rel=2e-4)
    assert found.total.item() == pytest.approx(float(found.terms["itd"]))


@torch.no_grad()
def test_ibot_averages_hidden_tokens_of_each_view_and_views_without_any_count_as_0() -> None:
    method, views = _family("ibot"), _views(4)
    found = method(views, 0.2)
    temperature = method.settings(0.2)["temperature/teacher_patch"]
    head, student, teacher = method.student.patch_head, method.student, method.teacher
    assert student.class_head is head
    patches, counts = 0.0, []
    for view in views.main:
        mask = drawn_cells(view.keys, (6, 6, 6), (0.1, 0.5), chance=0.5, blocks=True).grid
        seen, wanted = _tokens(student, view.image, mask), _tokens(teacher, view.image)
        for b in range(4):
            hidden = mask[b].flatten().nonzero()[:, 0].tolist()
            counts.append(len(hidden))
            terms = [
                _entropy_across(
                    _target(
                        teacher.patch_head, wanted[b, i], method.patch_centre.value, temperature
                    ),
                    _guess(head, seen[b, i]),
                )
                for i in hidden
            ]
            patches += sum(terms) / max(1, len(terms)) / 8
    assert 0 in counts
    assert len(set(counts)) > 3
    assert float(found.terms["mpd"]) == pytest.approx(patches, rel=2e-4)
    total = float(found.terms["mpd"]) + float(found.terms["itd"])
    assert found.total.item() == pytest.approx(total, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mip", "simmim", "fullrec", "ml_mip"])
def test_image_prediction_is_the_mean_error_over_the_voxels_that_count(name: str) -> None:
    method, views = _family(name), _views_of(name)
    cell, ratio = {"simmim": (16, 0.6), "fullrec": (8, 0.0)}.get(name, (8, 0.7))
    above = below = 0.0
    for view in views.main:
        grid = random_cells(view.keys, (48 // cell,) * 3, ratio).grid
        voxels = grid.double()
        for axis in (1, 2, 3):
            voxels = voxels.repeat_interleave(cell, dim=axis)
        if name == "fullrec":
            voxels = torch.ones_like(voxels)
        seen = method.student.encoder(view.image, None if name == "fullrec" else grid)
        error = (method.pixel_head(seen.bottleneck).double() - view.image.double()).abs()[:, 0]
        above, below = above + float((error * voxels).sum()), below + float(voxels.sum())
    found = method(views, 0.5)
    assert set(found.terms) == {"mip"}
    assert float(found.terms["mip"]) == pytest.approx(above / below, rel=1e-4)
    assert found.total.item() == pytest.approx(above / below, rel=1e-4)


# --- parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _FAMILY)
def test_every_part_that_is_built_learns_and_a_teacher_never_does(name: str) -> None:
    method = _family(name)
    method(_views_of(name), 0.5).total.backward()
    expected = {
        "ibot": ["encoder", "shared_head"],
        "dino": ["encoder", "class_head"],
    }.get(name, ["encoder", "pixel_head"])
    assert list(method.parts) == expected
    for part, module in method.parts.items():
        without = {n for n, p in module.named_parameters() if p.requires_grad and p.grad is None}
        # The skips' norms serve fine-tuning; behind the mask token nothing may be hidden.
        allowed = {f"norms.{i}.{w}" for i in range(3) for w in ("weight", "bias")}
        if name in {"fullrec", "dino"}:
            allowed |= {"mask_token"}
        assert without <= (allowed if part == "encoder" else set()), part
    learned = {id(p) for module in method.parts.values() for p in module.parameters()}
    mine = {id(p) for n, p in method.named_parameters() if not n.startswith("teacher.")}
    assert learned == mine
    assert (method.teacher is not None) == (name in _DISTIL)
    if method.teacher is None:
        assert method.patch_centre is None
        assert method.class_centre is None
        assert method.settings(0.5) == {}
        assert method.after_step(0.5) == {}
        method.after_backward(0.0)
        method.restart_teacher()
    else:
        assert all(p.grad is None for p in method.teacher.parameters())


@pytest.mark.parametrize("name", _DISTIL)
def test_the_teachers_encoder_is_kept_and_the_students_learns(name: str) -> None:
    method = _family(name)
    assert method.encoder is method.teacher.encoder
    assert method.parts["encoder"] is method.student.encoder
    other = _family(name, "method.kept=student")
    assert other.encoder is other.student.encoder
    assert method.reconstruct(_views().main[0]) is None


def test_the_decoder_of_several_layers_has_five_of_them_in_the_papers_preset() -> None:
    config = load_config(PretrainConfig, method="ml_mip", preset="paper").method
    with torch.device("meta"):
        head = build_method(config, epochs=400).parts["pixel_head"]
    widths = [(layer.in_channels, layer.out_channels) for layer in head]
    assert widths == [(768, 384), (384, 192), (192, 96), (96, 48), (48, 1)]


@pytest.mark.parametrize("name", _FAMILY)
def test_paper_preset_learns_on_the_meta_device(name: str) -> None:
    config = load_config(PretrainConfig, method=name, preset="paper")
    with torch.device("meta"):
        method = build_method(config.method, epochs=400).train()

        def view(edge: int) -> View:
            keys = torch.zeros(2, dtype=torch.int64)
            return View(torch.zeros(2, 1, edge, edge, edge), torch.zeros(2, 4, 4), keys)

        v = config.views
        local = () if v.local is None else (view(v.local.size),) * v.local.count
        views = ViewSet((view(v.main.size),) * v.main.count, local)
        method(views, 0.0).total.backward()
        heads = {n: parameter_count(p) for n, p in method.parts.items() if n.endswith("head")}
    prototypes = 768 * 2048 + 2048 + 2048**2 + 2048 + 2048 * 256 + 256
    assert heads == {
        "ibot": {"shared_head": prototypes + 8192 * 257},
        "dino": {"class_head": prototypes + 65536 * 257},
        "ml_mip": {"pixel_head": 8 * 391_728 + 721},
    }.get(name, {"pixel_head": 768 * 4096 + 4096})
    assert deviations(config)


def test_full_reconstruction_shows_the_image_and_judges_every_voxel() -> None:
    method, view = _family("fullrec").eval(), _views().main[0]
    seen = method.reconstruct(view)
    assert seen is not None
    assert seen.shown is not None
    assert torch.equal(seen.shown, view.image)
    assert bool(seen.hidden.all())
    wanted = method.pixel_head(method.student.encoder(view.image).bottleneck)
    assert torch.allclose(seen.prediction, wanted, atol=1e-5)


@pytest.mark.parametrize("name", _FAMILY)
def test_the_same_views_give_the_same_losses_whatever_was_drawn_before(name: str) -> None:
    config = _config(name, "method.encoder.drop_path=0.5").method
    first = _method(config)(_views_of(name), 0.2)
    method = _method(config)
    torch.rand(100)
    assert torch.equal(first.total, method(_views_of(name), 0.2).total)


@pytest.mark.parametrize("name", _DISTIL)
def test_under_autocast_losses_stay_full_precision_and_near_those_without(name: str) -> None:
    method, views = _family(name), _views_of(name)
    wanted = method(views, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method(views, 0.5)
    for term, value in wanted.terms.items():
        assert found.terms[term].dtype == torch.float32
        assert float(found.terms[term]) == pytest.approx(float(value), rel=0.05), term


# --- learning ----------------------------------------------------------------------------------


def _steps(method: Smit, steps: int, *, rate: float) -> list[Any]:
    """Losses of steps on one batch, whose masks are drawn anew each time."""
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=rate)
    name, found = method.config.name, []
    views = _views_of(name)
    for step in range(steps):
        keys = [view._replace(keys=view.keys + 100 * step) for view in views.main]
        optimizer.zero_grad()
        losses = method(ViewSet(tuple(keys), views.local), step / steps)
        torch.autograd.backward(losses.total)
        optimizer.step()
        method.after_step((step + 1) / steps)
        found.append(losses)
    return found


@pytest.mark.parametrize("name", ["mip", "simmim", "fullrec", "ml_mip"])
def test_a_few_steps_of_each_tiny_preset_lower_the_loss_of_image_prediction(name: str) -> None:
    assert PRESETS[name] == ("paper", "tiny")
    method = _method(_config(name).method, apart=False)
    totals = [losses.total.item() for losses in _steps(method, 8, rate=5e-3)]
    assert sum(totals[-3:]) < 0.9 * sum(totals[:3])


@pytest.mark.parametrize("name", _DISTIL)
def test_a_few_steps_of_each_tiny_preset_bring_the_student_nearer_to_its_teacher(
    name: str,
) -> None:
    method = _family(name, "method.centre_momentum=0.99999", "method.ema_momentum=[0.9999999, 1]")
    found = _steps(method, 8, rate=3e-3)
    # What is left of the cross-entropy when the teacher's own entropy is taken off.
    apart = [losses.terms["itd"] - losses.monitors["teacher_entropy_cls"] for losses in found]
    assert float(sum(apart[-3:])) < 0.8 * float(sum(apart[:3]))


def _left(method: Smit, views: ViewSet) -> set[str]:
    monitors = method(views, 1.0).monitors
    return {
        name
        for name, (low, high) in method.healthy.items()
        if name in monitors and not low <= float(monitors[name]) <= high
    }


@pytest.mark.parametrize("name", ["smit", *_DISTIL])
def test_monitors_leave_their_bounds_without_sharpening_or_without_centring(name: str) -> None:
    views = _views_of(name, samples=4)
    entropies = {n for n in _family(name).healthy if n.startswith("teacher_entropy")}
    assert entropies
    first = _method(_config(name).method, apart=False).eval()
    assert not _left(first, views)
    # Without sharpening the distribution is flat.
    assert _left(_family(name, "method.teacher_temperature=[10, 10]"), views) == entropies
    # Without centring one prototype may take all: the others are turned away from every token.
    method = _family(name)
    with torch.no_grad():
        for head in {method.teacher.patch_head, method.teacher.class_head} - {None}:
            head.mlp[-1].weight.zero_()
            head.prototypes.copy_(-head.mlp[-1].bias.expand_as(head.prototypes))
            head.prototypes[3] = head.mlp[-1].bias
        for centre in (method.patch_centre, method.class_centre):
            if centre is not None:
                centre.value.zero_()
    assert _left(method, views) == {n for n in method.healthy if n.startswith("marginal_entropy")}
    # Centring undoes it: the same teacher, once the centre has followed, is no longer sure.
    for centre in (method.patch_centre, method.class_centre):
        if centre is not None:
            centre.momentum = 0.0
    method.after_step(1.0)
    assert all(float(method(views, 1.0).monitors[n]) > 1 for n in entropies)


def test_alike_features_leave_their_bound() -> None:
    method, views = _family("mip"), _views_of("mip")
    assert not _left(method, views)
    with torch.no_grad():
        for parameter in method.student.encoder.patch_embed.parameters():
            parameter.zero_()
        method.student.encoder.mask_token.copy_(method.student.encoder.patch_norm.bias)
    assert _left(method, views) == {"feature_std"}


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("mip", "method.kept=teacher", ["kept=teacher", "there is none"]),
        ("mip", "method.mask_ratio=0", ["mask_ratio=0", "weight_mip"]),
        ("ibot", "method.mask_ratio=0", ["mask_ratio 0 +- mask_ratio_spread 0.2"]),
        ("ibot", "method.mask_ratio=0.9", ["mask_ratio 0.9 +- mask_ratio_spread 0.2"]),
        ("ibot", "method.masked_views=0", ["masked_views"]),
        ("ibot", "views.main.count=1", ["views.main.count 1", "2 views or more"]),
        ("ibot", "method.mask_cell=16", ["mask_cell 16", "8 voxels"]),
        ("ibot", "method.tokens=before_last_stage", ["tokens=last_stage"]),
        ("mip", "views.local={count: 2, size: 32}", ["views.local", "weight_itd is 0"]),
        ("mip", "method.mask_cell=9", ["mask_cell 9", "encoder.patch 2"]),
        ("mip", "method.mask_cell=10", ["views.main.size 48", "mask_cell 10"]),
        ("mip", "method.weight_mip=0", ["nothing to learn"]),
        ("ml_mip", "method.encoder.patch=3", ["pixel_decoder=deconv", "24 is no power of 2"]),
        ("dino", "method={weight_mpd: 0.1, mask_ratio: 0}", ["mask_ratio=0", "weight_mpd"]),
    ],
)
def test_settings_that_cannot_work_are_refused(name: str, override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(PretrainConfig, method=name, preset="tiny", overrides=[override])
    assert all(word in caught.value.message for word in words), caught.value.message


def test_an_image_may_be_judged_everywhere_though_a_part_is_hidden() -> None:
    config = SmitConfig(
        encoder=SwinConfig(embed_dim=4, depths=(1, 1, 1), heads=(1, 1, 1), drop_path=0.0),
        head=HeadConfig(hidden=8, bottleneck=6, prototypes=10),
        mask_cell=8,
        loss_on="all",
    )
    method, views = _method(config), _views()
    image = torch.cat([view.image for view in views.main])
    keys = torch.cat([view.keys for view in views.main])
    grid = random_cells(keys, (6, 6, 6), 0.7).grid
    with torch.no_grad():
        seen = method.student.encoder(image, grid)
        wanted = (method.pixel_head(seen.bottleneck) - image).abs().mean()
        assert float(method(views, 0.5).terms["mip"]) == pytest.approx(float(wanted), rel=1e-4)
