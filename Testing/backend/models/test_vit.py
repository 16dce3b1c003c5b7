from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from backend.models.encoder import build_encoder, feature_maps
from backend.models.segmentation import parameter_count
from backend.models.vit import (
    MaeDecoder,
    VitEncoder,
    patchify,
    sincos_positions,
    unpatchify,
)
from backend.views.masking import random_cells

_CPU = torch.device("cpu")


def _encoder(*, width: int = 12, depth: int = 3, heads: int = 2, patch: int = 4) -> VitEncoder:
    torch.manual_seed(0)
    return VitEncoder(width=width, depth=depth, heads=heads, patch=patch)


def _volume(samples: int = 2, size: tuple[int, int, int] = (8, 12, 4)) -> Tensor:
    return torch.rand(samples, 1, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("width", "heads", "count"), [(192, 3, 6_125_568), (768, 12, 88_203_264)], ids=["T", "B"]
)
def test_encoders_of_the_paper_have_as_many_parameters_as_specified(
    width: int, heads: int, count: int
) -> None:
    with torch.device("meta"):
        encoder = build_encoder({"kind": "vit", "width": width, "depth": 12, "heads": heads})
        out = encoder(torch.zeros(1, 1, 160, 160, 160), torch.zeros(1, 250, dtype=torch.int64))
    assert parameter_count(encoder) == count
    assert out.tokens.shape == (1, 250, width)
    assert out.grid == (10, 10, 10)
    # Positions belong to a grid, not to the weights.
    assert sum(t.numel() for t in encoder.state_dict().values()) == count


@pytest.mark.parametrize("width", [12, 24, 16])
def test_positions_are_the_sines_and_cosines_of_each_axis_in_turn(width: int) -> None:
    grid, count = (3, 2, 4), width // 6
    table = sincos_positions(grid, width, _CPU)
    assert table.shape == (24, width)
    for row, place in zip(table, itertools.product(*(range(n) for n in grid)), strict=True):
        wanted = []
        for along in place:
            angles = [along / 10000 ** (i / count) for i in range(count)]
            wanted += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        # Channels that three axes cannot share stay empty.
        wanted += [0.0] * (width % 6)
        assert row.tolist() == pytest.approx(wanted, abs=1e-7)


def test_every_token_of_both_grids_of_the_paper_has_a_position_of_its_own() -> None:
    for grid in ((10, 10, 10), (6, 6, 6)):
        table = sincos_positions(grid, 192, _CPU).double()
        apart = torch.cdist(table, table).fill_diagonal_(torch.inf)
        assert float(apart.min()) > 0.1


def test_positions_made_while_segmenting_serve_training() -> None:
    sincos_positions.cache_clear()
    encoder = _encoder()
    with torch.inference_mode():
        encoder(_volume())
    encoder(_volume()).cls.sum().backward()
    assert encoder.cls_token.grad is not None


def _by_hand(encoder: VitEncoder, volume: Tensor, visible: list[int]) -> list[Tensor]:
    """The tokens of one volume after no, one, ... all blocks, in fp64, class token first."""
    weight = encoder.patch_embed.weight.double()[:, 0]
    p, positions = encoder.patch, sincos_positions((2, 3, 1), encoder.width, _CPU).double()
    tokens = [encoder.cls_token.double()[0, 0]]
    places = list(itertools.product(range(2), range(3), range(1)))
    for number in visible:
        z, y, x = (p * i for i in places[number])
        cube = volume[0, z : z + p, y : y + p, x : x + p].double()
        token = (weight * cube).sum((1, 2, 3)) + encoder.patch_embed.bias.double()
        tokens.append(token + positions[number])
    states = [torch.stack(tokens)]
    for block in encoder.blocks:
        states.append(_block_by_hand(block, states[-1]))
    return states


def _normed(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
    return scaled * norm.weight.double() + norm.bias.double()


def _linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.double().T + layer.bias.double()


def _block_by_hand(block: torch.nn.Module, x: Tensor) -> Tensor:
    width, heads = x.shape[-1], block.heads
    each = width // heads
    qkv = _linear(block.qkv, _normed(block.norm1, x))
    gathered = torch.zeros_like(x)
    for head, i in itertools.product(range(heads), range(len(x))):
        q, k, v = (
            qkv[:, j * width + head * each : j * width + (head + 1) * each] for j in range(3)
        )
        scores = [math.exp(float(q[i] @ k[j]) / math.sqrt(each)) for j in range(len(x))]
        for j in range(len(x)):
            gathered[i, head * each : (head + 1) * each] += scores[j] / sum(scores) * v[j]
    x = x + _linear(block.project, gathered)
    inner = _linear(block.linear1, _normed(block.norm2, x))
    inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    return x + _linear(block.linear2, inner)


def _shaken(module: torch.nn.Module) -> None:
    """Norms and biases no longer 1 and 0."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


@torch.no_grad()
@pytest.mark.parametrize("picked", [None, [[0, 2, 5], [1, 2, 4]]], ids=["all", "visible"])
def test_tokens_equal_those_of_a_slow_transformer(picked: list[list[int]] | None) -> None:
    encoder, volume = _encoder(), _volume()
    _shaken(encoder)
    visible = None if picked is None else torch.tensor(picked)
    found = encoder(volume, visible, hidden_after=(1, 2))
    assert found.grid == (2, 3, 1)
    for b in range(2):
        states = _by_hand(encoder, volume[b], list(range(6)) if picked is None else picked[b])
        final = _normed(encoder.norm, states[-1])
        assert torch.allclose(found.cls[b].double(), final[0], atol=1e-5)
        assert torch.allclose(found.tokens[b].double(), final[1:], atol=1e-5)
        for hidden, number in zip(found.hidden, (1, 2), strict=True):
            assert torch.allclose(hidden[b].double(), states[number][1:], atol=1e-5)


def test_what_is_not_visible_does_not_matter() -> None:
    encoder, volume = _encoder(), _volume()
    mask = random_cells(torch.tensor([4, 9]), (2, 3, 1), 0.5)
    hidden = mask.grid.unsqueeze(1)
    for axis in (2, 3, 4):
        hidden = hidden.repeat_interleave(4, dim=axis)
    found = encoder(volume, mask.visible)
    changed = encoder(torch.where(hidden, 1 - volume, volume), mask.visible)
    assert torch.equal(found.cls, changed.cls)
    assert torch.equal(found.tokens, changed.tokens)


@torch.no_grad()
def test_decoder_puts_visible_tokens_in_place_and_the_mask_token_elsewhere() -> None:
    torch.manual_seed(0)
    decoder = MaeDecoder(encoder_width=5, width=8, depth=2, heads=2, patch=2)
    _shaken(decoder)
    cls, tokens = torch.randn(2, 5), torch.randn(2, 3, 5)
    visible = torch.tensor([[0, 2, 5], [1, 2, 4]])
    found = decoder(cls, tokens, visible, (2, 3, 1))
    assert found.shape == (2, 6, 8)
    positions = sincos_positions((2, 3, 1), 8, _CPU).double()
    for b in range(2):
        rows = [_linear(decoder.embed, cls[b].double())]
        for number in range(6):
            where = visible[b].tolist()
            token = decoder.mask_token[0, 0].double()
            if number in where:
                token = _linear(decoder.embed, tokens[b, where.index(number)].double())
            rows.append(token + positions[number])
        x = torch.stack(rows)
        for block in decoder.blocks:
            x = _block_by_hand(block, x)
        wanted = _linear(decoder.predict, _normed(decoder.norm, x))[1:]
        assert torch.allclose(found[b].double(), wanted, atol=1e-5)


def test_every_weight_of_encoder_and_decoder_learns() -> None:
    encoder = _encoder()
    decoder = MaeDecoder(encoder_width=12, width=12, depth=1, heads=2, patch=4)
    visible = torch.tensor([[0, 2], [1, 5]])
    out = encoder(_volume(), visible)
    decoder(out.cls, out.tokens, visible, out.grid).square().mean().backward()
    for module in (encoder, decoder):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name


def test_patches_and_their_voxels_stand_in_z_y_x_order() -> None:
    volume = _volume()
    patches = patchify(volume, 4)
    assert patches.shape == (2, 6, 64)
    for number, (z, y, x) in enumerate(itertools.product(range(2), range(3), range(1))):
        cube = volume[:, 0, 4 * z : 4 * z + 4, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        assert torch.equal(patches[:, number], cube.flatten(1))
    assert torch.equal(unpatchify(patches, (2, 3, 1), 4), volume)


def test_half_precision_stays_near_full_precision() -> None:
    encoder, volume = _encoder(), _volume()
    wanted = encoder(volume)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = encoder(volume, hidden_after=(1,))
    assert torch.allclose(found.tokens.float(), wanted.tokens, atol=0.1)
    found.cls.float().sum().backward()


def test_sizes_that_do_not_fit_are_refused_with_their_value() -> None:
    with pytest.raises(ValueError, match="width 16 is no multiple of 6"):
        VitEncoder(width=16, depth=1, heads=2)
    with pytest.raises(ValueError, match="5 heads do not divide width 12"):
        VitEncoder(width=12, depth=1, heads=5)
    with pytest.raises(ValueError, match=r"edges \(8, 10, 4\) are no multiples of 4"):
        _encoder()(_volume(size=(8, 10, 4)))
    for numbers in ((0,), (4,), (2, 1)):
        with pytest.raises(ValueError, match="must rise within 1 to 3"):
            _encoder()(_volume(), hidden_after=numbers)


@torch.no_grad()
def test_a_decoder_reads_the_tokens_after_some_blocks_and_the_final_ones_as_maps() -> None:
    encoder = VitEncoder(width=24, depth=4, heads=2, patch=8).eval()
    volume = torch.rand(1, 1, 8, 16, 24)
    first, second, last = feature_maps(encoder, volume)
    found = encoder(volume, hidden_after=(1, 2))
    for made, tokens in zip((first, second, last), (*found.hidden, found.tokens), strict=True):
        assert made.shape == (1, 24, 1, 2, 3)
        # Token 4 is the patch at (0, 1, 1).
        assert torch.equal(made[0, :, 0, 1, 1], tokens[0, 4])
