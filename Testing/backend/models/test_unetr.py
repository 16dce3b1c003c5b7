from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backend.models.segmentation import freeze, parameter_count
from backend.models.unetr import UnetrSegmenter
from backend.models.vit import VitEncoder, as_map


def _network(*, patch: int = 4, depth: int = 2, norm: str = "instance") -> UnetrSegmenter:
    torch.manual_seed(0)
    encoder = VitEncoder(width=12, depth=depth, heads=2, patch=patch)
    return UnetrSegmenter(encoder, classes=3, width=4, norm=norm)


def _volume(*size: int) -> Tensor:
    return torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_logits_have_the_size_of_any_grid_and_every_weight_learns(patch: int, norm: str) -> None:
    network = _network(patch=patch, depth=3, norm=norm)
    size = (2 * patch, 3 * patch, patch)
    logits = network(_volume(*size))
    assert logits.shape == (1, 3, *size)
    logits.square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("depth", "patch", "blocks"),
    [(12, 16, (3, 6, 9)), (4, 16, (1, 2, 3)), (6, 8, (2, 4)), (3, 2, ())],
)
def test_skips_come_after_even_shares_of_the_blocks(
    depth: int, patch: int, blocks: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        assert _network(depth=depth, patch=patch).encoder.read_after == blocks


@torch.no_grad()
def test_each_skip_joins_at_its_own_stride() -> None:
    """The figure of the paper, written out for its patch of 16 and blocks 3, 6 and 9."""
    network = _network(patch=16, depth=12).eval()
    volume = _volume(16, 32, 16)
    features = network.encoder(volume, hidden_after=(3, 6, 9))
    z3, z6, z9 = (as_map(tokens, (1, 2, 1)) for tokens in features.hidden)
    eighth, quarter, half, full = network.up_blocks
    of_half, of_quarter, of_eighth = network.skip_blocks
    skip = of_eighth(z9)
    assert skip.shape == (1, 32, 2, 4, 2)
    x = eighth(as_map(features.tokens, (1, 2, 1)), skip)
    skip = of_quarter(z6)
    assert skip.shape == (1, 16, 4, 8, 4)
    x = quarter(x, skip)
    skip = of_half(z3)
    assert skip.shape == (1, 8, 8, 16, 8)
    x = full(half(x, skip), network.image_block(volume))
    assert torch.equal(network(volume), network.out(x))


def test_network_of_the_paper_has_the_widths_of_vit_b() -> None:
    with torch.device("meta"):
        encoder = VitEncoder(width=768, depth=12, heads=12)
        network = UnetrSegmenter(encoder, classes=14, width=48, norm="instance")
        logits = network(torch.zeros(1, 1, 96, 96, 96))
    ups = [
        (b.transp_conv.conv.in_channels, b.transp_conv.conv.out_channels) for b in network.up_blocks
    ]
    assert ups == [(768, 384), (384, 192), (192, 96), (96, 48)]
    assert logits.shape == (1, 14, 96, 96, 96)


def test_network_of_the_unetr_paper_has_as_many_parameters_as_it_states() -> None:
    with torch.device("meta"):
        encoder = VitEncoder(width=768, depth=12, heads=12)
        network = UnetrSegmenter(encoder, classes=14, width=16, norm="instance")
    # 92.58 million there, with learned positions and without bias in queries, keys and values.
    assert parameter_count(network) == pytest.approx(92.58e6, rel=2e-3)


def test_tokens_return_to_their_places() -> None:
    tokens = torch.arange(24.0).view(1, 12, 2)
    placed = as_map(tokens, (2, 3, 2))
    assert placed.shape == (1, 2, 2, 3, 2)
    assert placed[0, :, 1, 2, 0].tolist() == tokens[0, 1 * 6 + 2 * 2].tolist()


def test_a_frozen_encoder_gets_no_gradient_and_the_decoder_does() -> None:
    network = _network()
    freeze(network.encoder)
    network(_volume(8, 8, 8)).square().sum().backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert network.up_blocks[0].transp_conv.conv.weight.grad is not None


@pytest.mark.parametrize(("patch", "depth"), [(6, 4), (1, 4), (16, 3)])
def test_patches_without_whole_steps_are_refused(patch: int, depth: int) -> None:
    with pytest.raises(ValueError, match=f"patch {patch} must be a power of 2 from 2 to"):
        _network(patch=patch, depth=depth)
