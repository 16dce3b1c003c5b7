from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from backend.models.unet import GENESIS_WIDTHS, Norm, UnetBackbone, UnetSegmenter


def _backbone(norm: Norm = "instance", widths: tuple[int, ...] = (4, 6, 8)) -> UnetBackbone:
    torch.manual_seed(0)
    return UnetBackbone(widths=widths, norm=norm)


def _volume(*edges: int, samples: int = 2) -> Tensor:
    return torch.rand(samples, 1, *edges, generator=torch.Generator().manual_seed(1))


def test_published_widths_give_the_published_network() -> None:
    with torch.device("meta"):
        backbone = UnetBackbone(widths=GENESIS_WIDTHS, norm="batch")
        out = backbone(torch.rand(1, 1, 64, 64, 32))
    convolutions = [
        [(m.in_channels, m.out_channels) for m in level if isinstance(m, nn.Conv3d)]
        for level in (*backbone.down, *reversed(backbone.decoder.joins))
    ]
    assert convolutions == [
        [(1, 32), (32, 64)],
        [(64, 64), (64, 128)],
        [(128, 128), (128, 256)],
        [(256, 256), (256, 512)],
        [(768, 256), (256, 256)],
        [(384, 128), (128, 128)],
        [(192, 64), (64, 64)],
    ]
    kernels = sum(27 * a * b + 3 * b for level in convolutions for a, b in level)
    ups = sum(8 * w * w + w for w in (512, 256, 128))
    assert sum(p.numel() for p in backbone.parameters()) == kernels + ups == 19_073_600
    assert out.decoded.shape == (1, 64, 64, 64, 32)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_maps_come_finest_first_and_every_weight_learns(norm: Norm) -> None:
    segmenter = UnetSegmenter(_backbone(norm), classes=3)
    out = segmenter.encoder(_volume(8, 16, 12))
    assert segmenter.encoder.stride == (4, 4, 4)
    assert torch.equal(out.decoded, out.pyramid[0])
    assert [tuple(x.shape[1:]) for x in out.pyramid] == [(4, 8, 16, 12), (6, 4, 8, 6)]
    assert [tuple(x.shape[1:]) for x in out.skips] == [(4, 8, 16, 12), (6, 4, 8, 6)]
    assert out.bottleneck.shape == (2, 8, 2, 4, 3)
    logits = segmenter(_volume(8, 16, 12))
    assert logits.shape == (2, 3, 8, 16, 12)
    logits.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in segmenter.out.parameters())
    assert all(p.grad is not None for p in segmenter.parameters())


def test_forward_equals_the_network_written_out_in_fp64() -> None:
    backbone = _backbone().double()
    volume = _volume(8, 8, 8).double()
    weights = dict(backbone.named_parameters())

    def layer(x: Tensor, name: str) -> Tensor:
        for convolution, norm in ((0, 1), (3, 4)):
            x = nn.functional.conv3d(
                x,
                weights[f"{name}.{convolution}.weight"],
                weights[f"{name}.{convolution}.bias"],
                padding=1,
            )
            mean = x.mean((2, 3, 4), keepdim=True)
            variance = x.var((2, 3, 4), correction=0, keepdim=True)
            x = (x - mean) / torch.sqrt(variance + 1e-5)
            x = x * weights[f"{name}.{norm}.weight"].view(1, -1, 1, 1, 1)
            x = nn.functional.relu(x + weights[f"{name}.{norm}.bias"].view(1, -1, 1, 1, 1))
        return x

    def up(x: Tensor, name: str) -> Tensor:
        return nn.functional.conv_transpose3d(
            x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2
        )

    first = layer(volume, "down.0")
    second = layer(nn.functional.max_pool3d(first, 2), "down.1")
    third = layer(nn.functional.max_pool3d(second, 2), "down.2")
    middle = layer(torch.cat([up(third, "decoder.ups.1"), second], 1), "decoder.joins.1")
    wanted = layer(torch.cat([up(middle, "decoder.ups.0"), first], 1), "decoder.joins.0")
    out = backbone(volume)
    assert torch.allclose(out.decoded, wanted, atol=1e-10)
    assert torch.allclose(out.pyramid[1], middle, atol=1e-10)
    assert torch.allclose(out.bottleneck, third, atol=1e-10)


def test_an_edge_that_pooling_would_cut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"edges \(8, 10, 8\) are no multiples of \(4, 4, 4\)"):
        _backbone()(_volume(8, 10, 8))


def test_without_a_decoder_a_network_only_encodes_and_a_segmenter_adds_one() -> None:
    half = UnetBackbone(widths=(4, 6, 8), decoder=False)
    whole = UnetBackbone(widths=(4, 6, 8))
    assert set(half.state_dict()) == {n for n in whole.state_dict() if n.startswith("down.")}
    levels, out = half.encode(_volume(8, 8, 8)), half(_volume(8, 8, 8))
    assert torch.equal(out.bottleneck, levels[-1])
    assert torch.equal(out.decoded, levels[0])
    segmenter = UnetSegmenter(half, classes=2)
    assert segmenter(_volume(8, 8, 8)).shape == (2, 2, 8, 8, 8)
    names = {name.removeprefix("encoder.") for name in segmenter.state_dict()}
    assert names == {*whole.state_dict(), "out.weight", "out.bias"}
