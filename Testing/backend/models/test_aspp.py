from __future__ import annotations

import pytest
import torch
from torch import nn

from backend.models.aspp import Aspp, AsppSegmenter, ResnetUnetSegmenter
from backend.models.resnet import ResnetEncoder


def _encoder(stem_stride: tuple[int, int, int] = (1, 2, 2), norm: str = "batch") -> ResnetEncoder:
    torch.manual_seed(0)
    return ResnetEncoder(depths=(1, 1, 1, 1), width=2, stem_stride=stem_stride, norm=norm)


@pytest.mark.parametrize(
    ("classes", "separable", "wanted"),
    [(1, 1, 2_380_929), (14, 1, 2_381_358), (1, 2, 2_408_929)],
)
def test_what_stands_on_the_encoder_of_pgl_has_2_38_million_parameters(
    classes: int, separable: int, wanted: int
) -> None:
    with torch.device("meta"):
        network = AsppSegmenter(ResnetEncoder(), classes=classes, separable=separable)
    every = sum(p.numel() for p in network.parameters())
    assert every - sum(p.numel() for p in network.encoder.parameters()) == wanted
    # The paper's 48.54 million are the whole network.
    if separable == 1:
        assert every == pytest.approx(48.54e6, abs=0.01e6)


@pytest.mark.parametrize("network_of", [AsppSegmenter, ResnetUnetSegmenter])
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("stem_stride", [(1, 2, 2), (2, 2, 2)])
def test_logits_have_the_size_of_the_input_and_every_weight_learns(
    network_of: type[AsppSegmenter | ResnetUnetSegmenter],
    norm: str,
    stem_stride: tuple[int, int, int],
) -> None:
    encoder = _encoder(stem_stride, norm)
    network = network_of(encoder, classes=3, width=4, norm=norm)
    z, y, x = encoder.stride
    # One sample, and unequal edges.
    volume = torch.rand(1, 1, 2 * z, y, 2 * x, generator=torch.Generator().manual_seed(0))
    logits = network(volume)
    assert logits.shape == (1, 3, *volume.shape[2:])
    logits.square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_the_pyramid_sees_as_far_as_its_dilations_and_the_whole_map() -> None:
    torch.manual_seed(0)
    aspp = Aspp(2, 4, norm="batch").eval()
    with torch.no_grad():
        for module in aspp.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.fill_(0.1)
        place = torch.zeros(1, 2, 17, 1, 1)
        place[:, :, 8] = 1.0
        for branch, dilation in zip(aspp.dilated, (2, 4, 8), strict=True):
            seen = branch(place)[0, 0, :, 0, 0].nonzero()[:, 0].tolist()
            assert seen == [8 - dilation, 8, 8 + dilation]
        assert aspp.near(place)[0, 0, :, 0, 0].nonzero()[:, 0].tolist() == [8]
        # All of the map hears of one place through the mean.
        aspp.pooled.weight[0].neg_()
        changed = (aspp(place) - aspp(torch.zeros_like(place))).abs()[0, 0, :, 0, 0]
    assert bool((changed > 1e-4).all())


def test_steps_add_what_comes_up_and_the_stage_beside_it() -> None:
    network = AsppSegmenter(_encoder(), classes=1, width=4).eval()
    step = network.steps[0]
    below, stage = torch.randn(1, 20, 2, 2, 2), torch.randn(1, 32, 4, 4, 4)
    with torch.no_grad():
        both = torch.relu(step.up_norm(step.up(below)) + step.skip_norm(step.skip(stage)))
        wanted = both + step.block(both)
        assert torch.equal(step(below, stage), wanted)
        assert not torch.allclose(step(below, torch.zeros_like(stage)), wanted)
        assert not torch.allclose(step(torch.zeros_like(below), stage), wanted)
