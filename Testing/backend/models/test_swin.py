from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from backend.models.segmentation import parameter_count
from backend.models.swin import (
    EncoderOutput,
    Grid,
    PatchMerging,
    SwinBlock,
    SwinEncoder,
    WindowAttention,
    branch_rates,
    fitting_window,
    join_windows,
    relative_index,
    shift_mask,
    split_windows,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.networks.nets import swin_unetr


def _encoder(*, final_merge: bool = True, qkv_bias: bool = False) -> SwinEncoder:
    torch.manual_seed(0)
    encoder = SwinEncoder(
        embed_dim=4,
        depths=(2, 2, 2, 2),
        heads=(1, 2, 2, 4),
        final_merge=final_merge,
        qkv_bias=qkv_bias,
    )
    return _shaken(encoder).eval()


def _shaken(module: nn.Module) -> nn.Module:
    """Weights so large that every part of the network shows in the result."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def _volume(samples: int = 2, edge: int = 32) -> Tensor:
    return torch.rand(samples, 1, edge, edge, edge, generator=torch.Generator().manual_seed(2))


def _cells(grid: Grid) -> list[tuple[int, int, int]]:
    return list(itertools.product(*(range(n) for n in grid)))


def test_windows_are_cut_in_order_and_joined_to_the_same_grid() -> None:
    x = torch.randn(2, 4, 6, 2, 3)
    window = (2, 3, 1)
    windows = split_windows(x, window)
    assert windows.shape == (2, 8, 6, 3)
    corners = itertools.product((0, 2), (0, 3), (0, 1))
    for number, (z, y, w) in enumerate(corners):
        block = x[:, z : z + 2, y : y + 3, w : w + 1]
        assert torch.equal(windows[:, number], block.reshape(2, 6, 3))
    assert torch.equal(join_windows(windows, window, (4, 6, 2)), x)


@pytest.mark.parametrize("window", [(4, 4, 4), (3, 2, 4), (1, 1, 1)])
def test_each_pair_of_tokens_uses_the_row_of_its_offset(window: Grid) -> None:
    found = relative_index(window, 4)
    for i, a in enumerate(_cells(window)):
        for j, b in enumerate(_cells(window)):
            dz, dy, dx = (p - q + 3 for p, q in zip(a, b, strict=True))
            assert int(found[i, j]) == (dz * 7 + dy) * 7 + dx


def test_shift_mask_keeps_apart_what_the_roll_brought_together() -> None:
    size, window, shift = (8, 4, 8), (4, 4, 4), (2, 0, 2)
    mask = shift_mask(size, window, shift)
    assert mask.shape == (4, 64, 64)
    for w, (wz, wx) in enumerate(itertools.product((0, 4), repeat=2)):
        for i, (az, _, ax) in enumerate(_cells(window)):
            for j, (bz, _, bx) in enumerate(_cells(window)):
                # Neighbours in the rolled grid that were neighbours before: no wrap between them.
                together = _wrapped(wz + az) == _wrapped(wz + bz)
                together &= _wrapped(wx + ax) == _wrapped(wx + bx)
                assert float(mask[w, i, j]) == (0 if together else -math.inf)


def _wrapped(place: int, *, size: int = 8, shift: int = 2) -> bool:
    return place + shift >= size


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [((6, 8, 3), (4, 4, 3), (2, 2, 0)), ((4, 4, 4), (4, 4, 4), (0, 0, 0))],
)
def test_a_grid_not_larger_than_a_window_is_one_window_without_shift(
    size: Grid, window: Grid, shift: Grid
) -> None:
    assert fitting_window(size, 4, 2) == (window, shift)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 4, 8), (6, 6, 6), (3, 6, 8), (2, 3, 4)])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_window_attention_equals_a_loop_over_windows(
    size: Grid, shift: int, qkv_bias: bool
) -> None:
    torch.manual_seed(0)
    block = SwinBlock(6, heads=2, window=4, shift=shift, mlp_ratio=2.0, qkv_bias=qkv_bias)
    _shaken(block)
    x = torch.randn(2, *size, 6)
    with torch.no_grad():
        found = block(x)
        first = _attention_by_hand(block.norm1(x), block.attention, shift=shift)
        wanted = x.double() + first
        hidden = torch.nn.functional.gelu(block.linear1(block.norm2(wanted.float())))
        wanted = wanted + block.linear2(hidden)
    assert torch.allclose(found.double(), wanted, atol=2e-5)


def _attention_by_hand(x: Tensor, attention: WindowAttention, *, shift: int) -> Tensor:
    """Attention in fp64, token by token: who may see whom is told from places alone."""
    weights = {name: value.double() for name, value in attention.state_dict().items()}
    size = x.shape[1:4]
    windows = [min(n, 4) for n in size]
    shifts = [0 if n <= 4 else shift for n in size]
    padded = [-(-n // w) * w for n, w in zip(size, windows, strict=True)]
    width = x.shape[-1] // attention.heads
    out = torch.zeros(x.shape, dtype=torch.float64)
    groups: dict[tuple[tuple[int, int], ...], list[tuple[int, ...]]] = {}
    for place in itertools.product(*(range(n) for n in padded)):
        rolled = [(p - s) % n for p, s, n in zip(place, shifts, padded, strict=True)]
        # Window number, and on which side of the wrap the token came from.
        label = tuple(
            (r // w, int(p < s)) for r, w, p, s in zip(rolled, windows, place, shifts, strict=True)
        )
        groups.setdefault(label, []).append(place)
    for b in range(len(x)):
        for members in groups.values():
            inside = [all(p < n for p, n in zip(place, size, strict=True)) for place in members]
            tokens = torch.stack(
                [
                    x[(b, *place)].double() if real else torch.zeros(x.shape[-1]).double()
                    for place, real in zip(members, inside, strict=True)
                ]
            )
            qkv = tokens @ weights["qkv.weight"].T + weights.get("qkv.bias", torch.zeros(1))
            q, k, v = qkv.view(len(members), 3, attention.heads, width).unbind(1)
            bias = torch.stack([_bias_row(weights, p, members, padded, shifts) for p in members])
            logits = torch.einsum("ihc,jhc->ijh", q, k) / math.sqrt(width) + bias
            seen = torch.einsum("ijh,jhc->ihc", torch.softmax(logits, dim=1), v)
            result = seen.flatten(1) @ weights["project.weight"].T + weights["project.bias"]
            for place, real, value in zip(members, inside, result, strict=True):
                if real:
                    out[(b, *place)] = value
    return out


def _bias_row(
    weights: dict[str, Tensor],
    query: tuple[int, ...],
    members: list[tuple[int, ...]],
    padded: list[int],
    shifts: list[int],
) -> Tensor:
    rows = []
    for other in members:
        dz, dy, dx = (
            (p - s) % n - (o - s) % n + 3
            for p, o, n, s in zip(query, other, padded, shifts, strict=True)
        )
        rows.append(weights["relative_bias"][(dz * 7 + dy) * 7 + dx])
    return torch.stack(rows)


def test_merging_concatenates_neighbours_in_lexicographic_order() -> None:
    torch.manual_seed(0)
    merging = PatchMerging(3)
    _shaken(merging)
    x = torch.randn(2, 4, 3, 2, 3)  # y is odd: padded with zeros
    found = merging(x)
    assert found.shape == (2, 2, 2, 1, 6)
    for b, z, y in itertools.product(range(2), range(2), range(2)):
        neighbours = [
            x[b, 2 * z + i, 2 * y + j, k] if 2 * y + j < 3 else torch.zeros(3)
            for i, j, k in itertools.product(range(2), repeat=3)
        ]
        row = torch.cat(neighbours).double()
        normed = (row - row.mean()) / torch.sqrt(row.var(correction=0) + 1e-5)
        normed = normed * merging.norm.weight.double() + merging.norm.bias.double()
        assert torch.allclose(
            found[b, z, y, 0].double(), merging.reduction.weight.double() @ normed, atol=1e-5
        )


@pytest.mark.parametrize(("edge", "qkv_bias"), [(32, False), (64, True), (96, False)])
def test_encoder_equals_the_swin_transformer_of_monai_with_the_same_weights(
    edge: int, qkv_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MONAI transposes with einops, which nothing else here needs.
    monkeypatch.setattr(swin_unetr, "rearrange", _transposed)
    encoder = _encoder(qkv_bias=qkv_bias)
    theirs = swin_unetr.SwinTransformer(
        in_chans=1,
        embed_dim=4,
        window_size=(4, 4, 4),
        patch_size=(2, 2, 2),
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 2, 4),
        qkv_bias=qkv_bias,
        patch_norm=True,
        downsample="mergingv2",
    ).eval()
    left = theirs.load_state_dict(_as_monai(encoder.state_dict()), strict=False)
    assert not left.unexpected_keys
    assert all(name.endswith("relative_position_index") for name in left.missing_keys)
    volume = _volume(1, edge)
    with torch.no_grad():
        ours = encoder(volume)
        reference = theirs(volume, normalize=False)
    # Where the grid is smaller than the window MONAI takes other rows of the bias table.
    grids = [edge // 2 ** (i + 1) for i in range(4)]
    whole = [i for i, grid in enumerate(grids) if grid >= 4]
    assert len(whole) >= 3
    if 3 in whole:
        assert torch.allclose(ours.bottleneck, reference[4], atol=1e-4)
    assert torch.allclose(ours.before_last_stage, reference[3], atol=1e-4)


def _transposed(x: Tensor, pattern: str) -> Tensor:
    before, after = (side.split() for side in pattern.split("->"))
    return x.permute([before.index(axis) for axis in after])


def _as_monai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "patch_embed.": "patch_embed.proj.",
        "patch_norm.": "patch_embed.norm.",
        "attention.relative_bias": "attn.relative_position_bias_table",
        "attention.project.": "attn.proj.",
        "attention.": "attn.",
        "linear1.": "mlp.linear1.",
        "linear2.": "mlp.linear2.",
    }
    result = {}
    for name, value in state.items():
        if name.startswith(("norms.", "mask_token")):
            continue
        first, number, rest = (*name.split(".", 2), "")[:3]
        if first == "stages":
            prefix, name = f"layers{int(number) + 1}.0.blocks.", rest
        elif first == "merges":
            prefix, name = f"layers{int(number) + 1}.0.downsample.", rest
        else:
            prefix = ""
        for ours, theirs in names.items():
            if ours in name:
                name = name.replace(ours, theirs)
                break
        result[prefix + name] = value
    return result


def test_encoder_gives_the_pyramid_of_the_released_and_of_the_paper_encoder() -> None:
    released, paper = _encoder()(_volume()), _encoder(final_merge=False)(_volume())
    shapes = [(2, 4, *[16] * 3), (2, 8, *[8] * 3), (2, 16, *[4] * 3), (2, 32, *[2] * 3)]
    for out in (released, paper):
        assert [tuple(x.shape) for x in out.pyramid] == shapes
        assert out.before_last_stage.shape == (2, 32, 2, 2, 2)
    assert released.bottleneck.shape == (2, 64, 1, 1, 1)
    assert torch.equal(paper.bottleneck, paper.pyramid[-1])


def test_pyramid_is_normalised_with_a_scale_and_offset_of_its_own() -> None:
    encoder = _encoder()
    out = encoder(_volume())
    for level, norm in zip(out.pyramid, encoder.norms, strict=True):
        plain = (level.movedim(1, -1) - norm.bias) / norm.weight
        assert torch.allclose(plain.mean(-1), torch.zeros(1), atol=1e-3)
        assert torch.allclose(plain.var(-1, correction=0), torch.ones(1), atol=1e-2)


def test_mask_token_replaces_the_embedded_tokens_of_hidden_cells() -> None:
    encoder = _encoder()
    volume = _volume()
    mask = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    mask[0, 1, 0, 1] = True
    changed = volume.clone()
    changed[0, :, 16:, :16, 16:] = 0.5  # what lies behind the mask must not matter
    _same(encoder(changed, mask), encoder(volume, mask), equal=True)
    _same(encoder(volume, mask), encoder(volume), equal=False)
    embedded = encoder.patch_norm(encoder.patch_embed(volume).permute(0, 2, 3, 4, 1))
    wanted = embedded.clone()
    wanted[0, 8:, :8, 8:] = encoder.mask_token
    for block in encoder._stages()[0]:
        wanted = block(wanted)
    wanted = encoder.norms[0](wanted).permute(0, 4, 1, 2, 3)
    assert torch.allclose(encoder(volume, mask).pyramid[0], wanted, atol=1e-5)


def _same(one: EncoderOutput, other: EncoderOutput, *, equal: bool) -> None:
    assert torch.equal(one.bottleneck, other.bottleneck) is equal


def test_samples_of_a_batch_do_not_touch_each_other() -> None:
    encoder, volume = _encoder(), _volume(3)
    mask = torch.rand(3, 2, 2, 2, generator=torch.Generator().manual_seed(3)) < 0.5
    together = encoder(volume, mask)
    for b in range(3):
        alone = encoder(volume[b : b + 1], mask[b : b + 1])
        assert torch.allclose(alone.bottleneck[0], together.bottleneck[b], atol=1e-4)


def test_branch_scale_of_0_skips_a_branch_of_one_sample_and_1_changes_nothing() -> None:
    encoder, volume = _encoder(), _volume()
    assert encoder.drop_sites == 16
    kept = torch.ones(16, 2)
    _same(encoder(volume, None, kept), encoder(volume), equal=True)
    none = torch.zeros(16, 2)
    none[:, 1] = 1
    dropped = encoder(volume, None, none)
    assert torch.allclose(dropped.bottleneck[1], encoder(volume).bottleneck[1], atol=1e-5)
    x = encoder.patch_norm(encoder.patch_embed(volume[:1]).permute(0, 2, 3, 4, 1))
    for merge in encoder.merges:
        x = merge(x)
    assert torch.allclose(dropped.bottleneck[0], x[0].movedim(-1, 0), atol=1e-5)


def test_stochastic_depth_rises_linearly_over_the_blocks_from_0() -> None:
    rates = branch_rates(0.3, 20)
    assert rates[::2] == rates[1::2]
    assert rates[::2] == pytest.approx([0.3 * i / 9 for i in range(10)])


def test_edges_that_are_no_multiples_of_the_stride_are_refused() -> None:
    with pytest.raises(ValueError, match="no multiples of 32"):
        _encoder()(torch.zeros(1, 1, 32, 48, 32))
    assert _encoder(final_merge=False)(torch.zeros(1, 1, 32, 48, 32)).bottleneck.shape[3] == 3


def test_released_encoder_has_8763832_parameters() -> None:
    with torch.device("meta"):
        encoder = SwinEncoder(embed_dim=48, depths=(2, 2, 4, 2), heads=(4, 4, 4, 4))
    assert parameter_count(encoder) == 8_763_832


def test_initial_weights_are_small_linears_and_neutral_norms() -> None:
    torch.manual_seed(0)
    encoder = SwinEncoder(embed_dim=16, depths=(2, 2), heads=(2, 2))
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert bool((module.weight == 1).all())
            assert not module.bias.any()
    assert float(encoder.mask_token.detach().abs().max()) > 0


def test_tables_made_while_segmenting_serve_training_too() -> None:
    relative_index.cache_clear()
    shift_mask.cache_clear()
    encoder, volume = _encoder(), _volume(1)
    with torch.inference_mode():
        encoder(volume)
    encoder(volume).bottleneck.sum().backward()
    assert encoder.stages[0][1].attention.relative_bias.grad is not None
