from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.models.resnet import BottleneckBlock, ResnetEncoder


def _tiny(**changes: Any) -> ResnetEncoder:
    torch.manual_seed(0)
    return ResnetEncoder(**{"depths": (1, 1, 1, 1), "width": 4, **changes})


def _volume(*edges: int, samples: int = 2) -> Tensor:
    return torch.rand(samples, 1, *edges, generator=torch.Generator().manual_seed(0))


def test_the_encoder_of_pgl_has_the_size_and_strides_of_the_paper() -> None:
    with torch.device("meta"):
        encoder = ResnetEncoder()
        out = encoder(torch.empty(1, 1, 16, 96, 96))
    assert sum(p.numel() for p in encoder.parameters()) == 46_155_072
    assert encoder.stride == (16, 32, 32)
    assert encoder.widths == (256, 512, 1024, 2048)
    assert [tuple(stage.shape[1:]) for stage in out.pyramid] == [
        (256, 8, 24, 24),
        (512, 4, 12, 12),
        (1024, 2, 6, 6),
        (2048, 1, 3, 3),
    ]
    assert out.bottleneck is out.pyramid[-1]


@pytest.mark.parametrize("stem_stride", [(1, 2, 2), (2, 2, 2), (1, 1, 2)])
def test_maps_are_as_many_cells_large_as_the_strides_say(
    stem_stride: tuple[int, int, int],
) -> None:
    encoder = _tiny(stem_stride=stem_stride)
    size = tuple(2 * s for s in encoder.stride)
    for stage, strides, width in zip(
        encoder(_volume(*size)).pyramid, encoder.strides, encoder.widths, strict=True
    ):
        assert stage.shape == (2, width, *(n // s for n, s in zip(size, strides, strict=True)))


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_every_weight_learns_with_every_norm(norm: str) -> None:
    encoder = _tiny(norm=norm, depths=(1, 2, 1, 1))
    encoder(_volume(32, 64, 64)).bottleneck.square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_what_is_no_multiple_of_the_stride_or_no_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(32, 64, 48\) are no multiples of \(16, 32, 32\)"):
        _tiny()(_volume(32, 64, 48))
    with pytest.raises(ValueError, match="'layer' is none of batch, instance, group"):
        _tiny(norm="layer")


def _normalised(x: Tensor, norm: nn.Module) -> Tensor:
    """Batch statistics by hand."""
    assert isinstance(norm, nn.BatchNorm3d)
    mean = x.mean((0, 2, 3, 4), keepdim=True)
    variance = (x - mean).square().mean((0, 2, 3, 4), keepdim=True)
    scale, shift = (p.double().view(1, -1, 1, 1, 1) for p in (norm.weight, norm.bias))
    return (x - mean) / torch.sqrt(variance + norm.eps) * scale + shift


def test_a_block_is_three_convolutions_beside_a_shortcut() -> None:
    torch.manual_seed(0)
    block = BottleneckBlock(8, 4, stride=2, norm="batch").train()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    x = torch.randn(2, 8, 4, 6, 8)
    w1, w2, w3 = (c.weight.double() for c in (block.conv1, block.conv2, block.conv3))
    assert isinstance(block.shortcut, nn.Sequential)
    short, short_norm = block.shortcut
    with torch.no_grad():
        one = _normalised(
            torch.einsum("oi,bizyx->bozyx", w1[..., 0, 0, 0], x.double()), block.norm1
        )
        two = functional.conv3d(one.relu(), w2, stride=2, padding=1)
        two = _normalised(two, block.norm2).relu()
        three = torch.einsum("oi,bizyx->bozyx", w3[..., 0, 0, 0], two)
        beside = torch.einsum(
            "oi,bizyx->bozyx", short.weight.double()[..., 0, 0, 0], x.double()[..., ::2, ::2, ::2]
        )
        wanted = (_normalised(three, block.norm3) + _normalised(beside, short_norm)).relu()
        found = block(x)
    assert found.shape == (2, 16, 2, 3, 4)
    assert torch.allclose(found.double(), wanted, atol=1e-5)


def test_blocks_that_keep_their_shape_have_a_plain_shortcut() -> None:
    assert isinstance(BottleneckBlock(16, 4, stride=1, norm="batch").shortcut, nn.Identity)
    assert isinstance(BottleneckBlock(8, 4, stride=1, norm="batch").shortcut, nn.Sequential)
