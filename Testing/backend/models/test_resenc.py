from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from backend.models.resenc import Densifier, ResencBackbone, SparseNorm, visible_at
from backend.models.unet import UnetSegmenter


def _backbone() -> ResencBackbone:
    torch.manual_seed(0)
    backbone = ResencBackbone(widths=(4, 6, 6), blocks=(1, 2, 1))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return backbone


def _densifier(*, convolution: bool) -> Densifier:
    torch.manual_seed(2)
    return Densifier(widths=(4, 6, 6), convolution=convolution)


def _volume(samples: int = 2, edge: int = 16) -> Tensor:
    return torch.rand(samples, 1, edge, edge, edge, generator=torch.Generator().manual_seed(3))


def _visible(cells: int, samples: int = 2) -> Tensor:
    return torch.rand(samples, *[cells] * 3, generator=torch.Generator().manual_seed(4)) < 0.4


def test_default_network_has_the_size_of_resenc_l_without_its_output_layer() -> None:
    with torch.device("meta"):
        backbone = ResencBackbone()
        out = backbone(torch.rand(1, 1, 32, 64, 32))
    # nnU-Net's own ResEnc-L has 102,348,160 besides its layers of logits.
    assert sum(p.numel() for p in backbone.parameters()) == 102_348_160
    assert backbone.stride == (32, 32, 32)
    assert out.decoded.shape == (1, 32, 32, 64, 32)
    assert [x.shape[1] for x in out.pyramid] == [32, 64, 128, 256, 320]
    assert out.bottleneck.shape == (1, 320, 1, 2, 1)


def test_residual_blocks_pool_and_project_their_input_where_the_shape_changes() -> None:
    first, second = _backbone().down[1]
    x = torch.rand(2, 4, 4, 4, 4)
    pooled = torch.nn.functional.avg_pool3d(x, 2)
    wanted = first.second(
        torch.nn.functional.leaky_relu(first.first(x, None), 0.01), None
    ) + first.project(pooled, None)
    assert torch.allclose(first(x, None), torch.nn.functional.leaky_relu(wanted, 0.01), atol=1e-6)
    assert second.project is None
    assert second.pool is None
    assert first.project.convolution.bias is None


@pytest.mark.parametrize(("cells", "size"), [(4, 8), (4, 4), (4, 2), (6, 2), (2, 1)])
def test_a_place_may_be_seen_if_a_cell_that_touches_it_may(cells: int, size: int) -> None:
    visible = _visible(cells)
    found = visible_at(visible, (size, size, size))
    assert found.shape == (2, 1, size, size, size)
    for b, z, y, x in itertools.product(range(2), *[range(size)] * 3):
        touching = [
            bool(visible[(b, *cell)])
            for cell in itertools.product(range(cells), repeat=3)
            if all(
                max(c * size, p * cells) < min((c + 1) * size, (p + 1) * cells)
                for c, p in zip(cell, (z, y, x), strict=True)
            )
        ]
        assert float(found[b, 0, z, y, x]) == float(any(touching))


def test_cells_that_do_not_fit_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="do not divide each other"):
        visible_at(_visible(6), (4, 4, 4))


def test_norm_takes_its_statistics_from_visible_voxels_alone() -> None:
    norm = SparseNorm(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.3, -1.0]))
    x = torch.randn(2, 2, 3, 4, 2, generator=torch.Generator().manual_seed(5))
    seen = torch.rand(2, 1, 3, 4, 2, generator=torch.Generator().manual_seed(6)) < 0.5
    found = norm(x, seen.float())
    for b, c in itertools.product(range(2), range(2)):
        values = x[b, c][seen[b, 0]].double()
        scaled = (values - values.mean()) / torch.sqrt(values.var(correction=0) + 1e-5)
        wanted = scaled * norm.weight[c] + norm.bias[c]
        assert torch.allclose(found[b, c][seen[b, 0]].double(), wanted, atol=1e-5)
        assert not found[b, c][~seen[b, 0]].any()


def test_seeing_every_cell_is_the_same_as_having_no_mask() -> None:
    backbone, volume = _backbone(), _volume()
    everything = torch.ones(2, 4, 4, 4, dtype=torch.bool)
    masked = backbone(volume, everything, _densifier(convolution=False))
    assert torch.allclose(masked.decoded, backbone(volume).decoded, atol=1e-4)


@pytest.mark.parametrize("cells", [2, 4, 8])
@pytest.mark.parametrize("convolution", [False, True])
def test_what_is_hidden_never_matters_and_is_0_at_every_level(
    cells: int, convolution: bool
) -> None:
    backbone, visible, volume = _backbone(), _visible(cells), _volume()
    densifier = _densifier(convolution=convolution)
    voxels = visible_at(visible, (16, 16, 16)).bool()
    changed = torch.where(voxels, volume, torch.full_like(volume, 7.0))
    levels = backbone.encode(volume, visible)
    for level, other in zip(levels, backbone.encode(changed, visible), strict=True):
        assert torch.equal(level, other)
        seen = visible_at(visible, level.shape[2:]).bool().expand_as(level)
        assert not level[~seen].any()
        assert level[seen].any()
    assert torch.equal(
        backbone(volume, visible, densifier).decoded, backbone(changed, visible, densifier).decoded
    )


def test_a_sample_of_which_nothing_can_be_seen_gives_finite_numbers() -> None:
    none = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    out = _backbone()(_volume(1), none, _densifier(convolution=True))
    assert bool(out.decoded.isfinite().all())


def test_tokens_of_each_level_stand_in_hidden_places_only() -> None:
    densifier, visible = _densifier(convolution=False), _visible(4)
    levels = [torch.rand(2, w, n, n, n) for w, n in ((4, 16), (6, 8), (6, 4))]
    for level, (x, filled) in enumerate(zip(levels, densifier(levels, visible), strict=True)):
        seen = visible_at(visible, x.shape[2:]).bool()[:, 0]
        assert torch.equal(filled.movedim(1, -1)[seen], x.movedim(1, -1)[seen])
        hidden = filled.movedim(1, -1)[~seen]
        assert torch.equal(hidden, densifier.tokens[level].expand_as(hidden))


def test_densifying_convolutions_work_on_normalised_and_filled_maps() -> None:
    densifier, visible = _densifier(convolution=True), _visible(4)
    levels = [torch.rand(2, w, n, n, n) for w, n in ((4, 16), (6, 8), (6, 4))]
    assert [c.kernel_size[0] for c in densifier.convolutions] == [3, 3, 1]
    for level, (x, filled) in enumerate(zip(levels, densifier(levels, visible), strict=True)):
        seen = visible_at(visible, x.shape[2:])
        dense = densifier.norms[level](x, seen)
        dense = dense + (1 - seen) * densifier.tokens[level].view(1, -1, 1, 1, 1)
        assert torch.allclose(filled, densifier.convolutions[level](dense), atol=1e-5)


@pytest.mark.parametrize("convolution", [False, True])
def test_every_weight_learns(convolution: bool) -> None:
    backbone, densifier = _backbone(), _densifier(convolution=convolution)
    backbone(_volume(), _visible(4), densifier).decoded.square().mean().backward()
    parameters = [*backbone.named_parameters(), *densifier.named_parameters()]
    assert [name for name, p in parameters if p.grad is None] == []
    # Offsets before a norm cancel out; everything with more than one axis must move.
    assert [name for name, p in parameters if p.grad.ndim > 1 and not p.grad.any()] == []
    segmenter = UnetSegmenter(backbone, classes=2)
    assert segmenter(_volume()).shape == (2, 2, 16, 16, 16)


@torch.no_grad()
def test_autocast_keeps_statistics_in_full_precision() -> None:
    backbone, visible, densifier = _backbone(), _visible(4), _densifier(convolution=True)
    wanted = backbone(_volume(), visible, densifier).decoded
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = backbone(_volume(), visible, densifier).decoded
    assert found.dtype == torch.bfloat16
    assert float((found.float() - wanted).abs().mean()) < 0.05 * float(wanted.abs().max())
