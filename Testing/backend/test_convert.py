import math
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from monai.networks.nets.swin_unetr import (
    SwinTransformer,
    SwinUNETR,
    compute_mask,
    get_window_size,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backend import convert
from backend.config import FinetuneConfig, PretrainConfig, load_config
from backend.data.readers import read_volume
from backend.errors import UserError
from backend.geometry import reorient
from backend.models.encoder import build_encoder
from backend.models.swin import PatchMerging, SwinEncoder
from backend.provenance import encoder_arguments
from backend.weights import load_into, load_weights

Weights = dict[str, Tensor]

# Offsets (x, y, z) of the eight neighbours as the released code concatenates them.
RELEASED_MERGE = ("000", "100", "010", "001", "110", "011", "101", "111")
BEFORE_1_5_MERGE = ("000", "100", "010", "001", "101", "010", "001", "111")


def randomise(tensors: Weights, seed: int = 0) -> Weights:
    """Values that make every tensor matter: none is zero, no scale is one."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            values[name] = tensor
            continue
        random = torch.randn(tensor.shape, generator=generator)
        scale = 1 / math.sqrt(tensor[0].numel()) if tensor.ndim > 1 else 0.3
        if "relative_position_bias_table" in name:
            scale = 1.0
        values[name] = random * scale + (1 if "norm" in name and name.endswith("weight") else 0)
    return values


def position_index(window: int) -> Tensor:
    edge = 2 * window - 1
    places = list(product(range(window), repeat=3))
    rows = []
    for a in places:
        distance = [[i - j + window - 1 for i, j in zip(a, b, strict=True)] for b in places]
        rows.append([(x * edge + y) * edge + z for x, y, z in distance])
    return torch.tensor(rows)


def released_weights(
    *, embed: int, depths: Sequence[int], heads: Sequence[int], window: int = 4, seed: int = 0
) -> Weights:
    """Random weights under the names that SMIT's released encoder gives them."""
    shapes: dict[str, tuple[int, ...]] = {
        "mask_token": (1, 1, embed),
        "patch_embed.proj.weight": (embed, 1, 2, 2, 2),
        "patch_embed.proj.bias": (embed,),
        "patch_embed.norm.weight": (embed,),
        "patch_embed.norm.bias": (embed,),
    }
    for stage, (depth, stage_heads) in enumerate(zip(depths, heads, strict=True)):
        c = embed * 2**stage
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            shapes |= {
                f"{name}.norm1.weight": (c,),
                f"{name}.norm1.bias": (c,),
                f"{name}.attn.relative_position_bias_table": ((2 * window - 1) ** 3, stage_heads),
                f"{name}.attn.qkv.weight": (3 * c, c),
                f"{name}.attn.proj.weight": (c, c),
                f"{name}.attn.proj.bias": (c,),
                f"{name}.norm2.weight": (c,),
                f"{name}.norm2.bias": (c,),
                f"{name}.mlp.fc1.weight": (4 * c, c),
                f"{name}.mlp.fc1.bias": (4 * c,),
                f"{name}.mlp.fc2.weight": (c, 4 * c),
                f"{name}.mlp.fc2.bias": (c,),
            }
        shapes |= {
            f"layers.{stage}.downsample.reduction.weight": (2 * c, 8 * c),
            f"layers.{stage}.downsample.norm.weight": (8 * c,),
            f"layers.{stage}.downsample.norm.bias": (8 * c,),
            f"norm{stage}.weight": (c,),
            f"norm{stage}.bias": (c,),
        }
    weights = randomise({name: torch.empty(shape) for name, shape in shapes.items()}, seed)
    index = position_index(window)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            weights[f"layers.{stage}.blocks.{block}.attn.relative_position_index"] = index.clone()
    return weights


def norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def attention_window_by_window(
    x: Tensor, weights: Weights, name: str, *, heads: int, window: int, shift: int
) -> Tensor:
    """Attention inside each (shifted) window of a grid (x, y, z, c), one window after the other."""
    size, c = x.shape[:3], x.shape[3]
    padded = [math.ceil(n / window) * window for n in size]
    grid = torch.zeros(*padded, c)
    grid[: size[0], : size[1], : size[2]] = x
    out = torch.zeros_like(grid)
    inner = torch.tensor(list(product(range(window), repeat=3)))
    bias = weights[f"{name}.relative_position_bias_table"][position_index(window)].permute(2, 0, 1)
    extent = torch.tensor(padded)
    for corner in product(*(range(0, n, window) for n in padded)):
        rolled = inner + torch.tensor(corner)
        # Which of the three bands of the rolled grid a token stands in, along each axis.
        bands = (rolled >= extent - window).long() + (rolled >= extent - shift).long()
        apart = (bands[:, None] != bands[None]).any(-1) if shift else torch.zeros(1, 1).bool()
        i, j, k = ((rolled + shift) % extent).unbind(1)
        q, key, v = (
            part.view(-1, heads, c // heads).transpose(0, 1)
            for part in linear(grid[i, j, k], weights, f"{name}.qkv").chunk(3, dim=-1)
        )
        logits = q @ key.transpose(1, 2) / math.sqrt(c // heads) + bias
        mixed = logits.masked_fill(apart, float("-inf")).softmax(-1) @ v
        out[i, j, k] = linear(mixed.transpose(0, 1).flatten(1), weights, f"{name}.proj")
    return out[: size[0], : size[1], : size[2]]


def released_encoder(
    volume: Tensor, mask: Tensor, weights: Weights, *, heads: Sequence[int], window: int = 4
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The released encoder as its specification says, on a volume (x, y, z).

    Returns:
        Normalised skips and the bottleneck, each (x, y, z, c), and what enters the last stage.
    """
    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    x = F.conv3d(volume[None, None], kernel, bias, stride=2)[0].permute(1, 2, 3, 0)
    x = norm(x, weights, "patch_embed.norm")
    hidden = mask.unsqueeze(-1).float()
    x = x * (1 - hidden) + weights["mask_token"][0, 0] * hidden
    skips, before_last = [], x
    for stage, stage_heads in enumerate(heads):
        before_last = x
        block = 0
        while f"layers.{stage}.blocks.{block}.norm1.weight" in weights:
            name = f"layers.{stage}.blocks.{block}"
            x = x + attention_window_by_window(
                norm(x, weights, f"{name}.norm1"),
                weights,
                f"{name}.attn",
                heads=stage_heads,
                window=window,
                shift=window // 2 if block % 2 else 0,
            )
            inner = F.gelu(linear(norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1"))
            x = x + linear(inner, weights, f"{name}.mlp.fc2")
            block += 1
        skips.append(norm(x, weights, f"norm{stage}"))
        x = torch.cat([x[int(i) :: 2, int(j) :: 2, int(k) :: 2] for i, j, k in RELEASED_MERGE], -1)
        x = norm(x, weights, f"layers.{stage}.downsample.norm")
        x = linear(x, weights, f"layers.{stage}.downsample.reduction")
    return skips, x, before_last


def loaded(path: Path) -> SwinEncoder:
    tensors, header = load_weights(path)
    encoder = build_encoder(header.architecture["encoder"])
    assert load_into(encoder, tensors, minimum_share=1.0, what="test").share == 1.0
    return encoder.eval()


def turned(features: Tensor) -> Tensor:
    """From the source's (x, y, z, c) to ours, (1, c, z, y, x)."""
    return features.permute(3, 2, 1, 0).unsqueeze(0)


SMALL = {"embed": 8, "depths": (2, 2), "heads": (2, 4)}


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small synthetic checkpoint under the released names."""

    def write(change: Callable[[Weights], object] = lambda w: w, name: str = "smit.pt") -> Path:
        weights = released_weights(**SMALL)  # type: ignore[arg-type]
        content = change(weights)
        torch.save(weights if content is None else content, tmp_path / name)
        return tmp_path / name

    return write


@torch.no_grad()
def test_converted_smit_gives_the_features_of_the_released_encoder(
    small: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights: Weights = {}

    def wrap(tensors: Weights) -> object:
        weights.update(tensors)
        return {"epoch": 1, "state_dict": tensors, "optimizer": {"state": {0: torch.ones(3)}}}

    convert.run(small(wrap), source="smit", output=tmp_path / "x.safetensors")
    generator = torch.Generator().manual_seed(1)
    volume = torch.rand(24, 32, 40, generator=generator)  # x, y, z
    mask = torch.rand(12, 16, 20, generator=generator) < 0.5
    skips, bottleneck, before_last = released_encoder(volume, mask, weights, heads=(2, 4))
    ours = loaded(tmp_path / "x.safetensors")(
        volume.permute(2, 1, 0)[None, None], mask.permute(2, 1, 0)[None]
    )
    for mine, theirs in zip(ours.pyramid, skips, strict=True):
        torch.testing.assert_close(mine, turned(theirs), atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.bottleneck, turned(bottleneck), atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.before_last_stage, turned(before_last), atol=1e-4, rtol=0)
    # The agreement must be able to fail: without turning the volume it does.
    other = loaded(tmp_path / "x.safetensors")(volume[None, None], mask[None])
    assert (other.bottleneck - turned(bottleneck).transpose(2, 4)).abs().max() > 0.1
    text = capsys.readouterr().out
    assert "100.0% of the parameters" in text
    assert "in state_dict" in text


def test_released_architecture_is_recognised_with_its_preset_and_preprocessing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = released_weights(embed=48, depths=(2, 2, 4, 2), heads=(4, 4, 4, 4))
    torch.save(weights, tmp_path / "released.pt")
    convert.run(tmp_path / "released.pt", source="smit", output=tmp_path / "x.safetensors")
    _, header = load_weights(tmp_path / "x.safetensors")
    preset = load_config(PretrainConfig, method="smit", preset="released")
    assert (header.kind, header.method, header.preset) == ("encoder", "smit", "released")
    assert header.architecture["encoder"] == encoder_arguments(preset.method)
    assert header.preprocessing["orientation"] == "RAS"
    assert header.preprocessing["spacing_mm"] == [2.0, 2.0, 2.0]
    assert header.preprocessing["hu_window"] == [-175, 250]
    assert "Jiang" in header.citations[0]
    assert header.fingerprint["bytes"] == (tmp_path / "released.pt").stat().st_size
    assert len(header.fingerprint["sha256"]) == 64
    assert "8,763,832 parameters" in capsys.readouterr().out


def test_the_orientation_in_the_header_gives_the_axes_that_the_source_calls_ras(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    convert.run(small(), source="smit", output=tmp_path / "x.safetensors")
    _, header = load_weights(tmp_path / "x.safetensors")
    values = (np.arange(2 * 3 * 4, dtype=np.int16) * 50 - 600).reshape(2, 3, 4)
    # Axes grow towards Posterior, Left and Superior.
    affine = np.array([[0, -2.0, 0, 9], [-3.0, 0, 0, 8], [0, 0, 4.0, 7], [0, 0, 0, 1]])
    scan = nibabel.Nifti1Image(values, affine)
    nibabel.save(scan, tmp_path / "scan.nii")
    theirs = nibabel.as_closest_canonical(scan).get_fdata()  # x, y, z
    ours = reorient(read_volume([tmp_path / "scan.nii"]), header.preprocessing["orientation"])
    assert np.array_equal(ours.voxels, theirs.transpose(2, 1, 0))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {f"module.{k}": v for k, v in w.items()},
        lambda w: {"state_dict": {f"module.backbone.transformer.{k}": v for k, v in w.items()}},
        lambda w: {
            "student": {f"module.backbone.{k}": v for k, v in w.items()}
            | {"module.head.weight": torch.ones(2)},
            "teacher": {f"backbone.{k}": torch.zeros_like(v) for k, v in w.items()},
        },
        lambda w: {k: v.half() if v.is_floating_point() else v for k, v in w.items()},
    ],
    ids=["bare", "module", "nested", "student and teacher", "half precision"],
)
def test_any_wrapping_gives_the_same_encoder(
    small: Callable[..., Path], tmp_path: Path, wrap: Callable[[Weights], object]
) -> None:
    convert.run(small(), source="smit", output=tmp_path / "plain.safetensors")
    convert.run(small(wrap, "wrapped.pt"), source="smit", output=tmp_path / "wrapped.safetensors")
    plain, wrapped = (load_file(tmp_path / f"{n}.safetensors") for n in ("plain", "wrapped"))
    assert plain.keys() == wrapped.keys()
    assert all(v.dtype == torch.float32 for v in wrapped.values())
    assert all(torch.allclose(plain[k], wrapped[k], atol=1e-3, rtol=1e-2) for k in plain)


def test_safetensors_are_read_as_well(tmp_path: Path) -> None:
    save_file(released_weights(**SMALL), tmp_path / "in.safetensors")  # type: ignore[arg-type]
    convert.run(tmp_path / "in.safetensors", source="smit", output=tmp_path / "out.safetensors")
    assert loaded(tmp_path / "out.safetensors").widths == (8, 16)
    with pytest.raises(UserError, match="is the input itself"):
        convert.run(
            tmp_path / "in.safetensors",
            source="smit",
            output=tmp_path / "in.safetensors",
            overwrite=True,
        )


def monai_version() -> tuple[int, ...]:
    return tuple(int(number) for number in version("monai").split(".")[:2])


def monai_encoder(**changes: object) -> SwinTransformer:
    arguments: dict[str, object] = {
        "in_chans": 1,
        "embed_dim": 8,
        "window_size": (3, 3, 3),
        "patch_size": (2, 2, 2),
        "depths": (2, 1, 1, 2),
        "num_heads": (2, 4, 4, 8),
        "patch_norm": True,
        "downsample": "mergingv2",
    }
    network = SwinTransformer(**(arguments | changes)).eval()
    network.load_state_dict(randomise(network.state_dict()))
    return network


def monai_features(
    network: SwinTransformer, volume: Tensor
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What enters and what leaves the blocks of each stage, and the end, each (x, y, z, c).

    MONAI's own modules one after the other: its forward pass needs an optional package.
    """
    inputs, outputs = [], []
    x = network.patch_embed(volume).permute(0, 2, 3, 4, 1)
    for stage in range(1, 5):
        layer = getattr(network, f"layers{stage}")[0]
        inputs.append(x[0])
        grid = x.shape[1:4]
        window, shift = get_window_size(grid, layer.window_size, layer.shift_size)
        padded = [math.ceil(n / w) * w for n, w in zip(grid, window, strict=True)]
        mask = compute_mask(padded, window, shift, x.device)
        for block in layer.blocks:
            x = block(x, mask)
        outputs.append(x[0])
        x = layer.downsample(x)
    return inputs, outputs, x[0]


@pytest.mark.parametrize("merging", ["merging", "mergingv2"])
@pytest.mark.parametrize(("qkv_bias", "patch_norm"), [(True, True), (False, True), (True, False)])
@torch.no_grad()
def test_converted_monai_gives_the_features_of_monai(
    tmp_path: Path, merging: convert.Merging, qkv_bias: bool, patch_norm: bool
) -> None:
    if merging == "merging" and monai_version() < (1, 5):
        pytest.skip("this MONAI still has two neighbours twice")
    theirs = monai_encoder(downsample=merging, qkv_bias=qkv_bias, patch_norm=patch_norm)
    torch.save(theirs.state_dict(), tmp_path / "monai.pt")
    output = tmp_path / "x.safetensors"
    convert.run(tmp_path / "monai.pt", source="monai", output=output, merging=merging)
    ours = loaded(output)
    volume = torch.rand(1, 1, 64, 96, 128, generator=torch.Generator().manual_seed(2))  # x, y, z
    inputs, skips, bottleneck = monai_features(theirs, volume)
    found = ours(volume.transpose(2, 4))
    torch.testing.assert_close(found.bottleneck, turned(bottleneck), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.before_last_stage, turned(inputs[-1]), atol=1e-4, rtol=0)
    for mine, skip in zip(found.pyramid, skips, strict=True):
        plain = F.layer_norm(skip, skip.shape[-1:])
        torch.testing.assert_close(mine, turned(plain), atol=1e-4, rtol=0)
    assert torch.count_nonzero(ours.mask_token) == 0


def test_a_whole_swin_unetr_gives_its_encoder_and_says_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = SwinUNETR(in_channels=1, out_channels=3, feature_size=12, depths=(1, 1, 2, 1))
    torch.save({"state_dict": network.state_dict()}, tmp_path / "swin_unetr_segmentation.pt")
    output = tmp_path / "x.safetensors"
    file = tmp_path / "swin_unetr_segmentation.pt"
    convert.run(file, source="monai", output=output)
    tensors, header = load_weights(output)
    assert header.architecture["encoder"] == {
        "kind": "swin",
        "embed_dim": 12,
        "depths": [1, 1, 2, 1],
        "heads": [3, 6, 12, 24],
        "window": 7,
        "patch": 2,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "final_merge": True,
        "patch_norm": False,
    }
    assert header.preset == ""
    assert "Swin UNETR" in header.citations[1]
    text = capsys.readouterr().out
    decoder = [name for name in network.state_dict() if not name.startswith("swinViT.")]
    assert f"{len(decoder)} tensors of other parts" in text
    for said in (
        "mask token",
        "without scale and shift",
        "does not tell",
    ):
        assert said in text
    assert text.count("note:") == len(header.fingerprint["notes"])
    assert torch.equal(tensors["norms.1.weight"], torch.ones(24))
    assert not any(name.startswith("patch_norm") for name in tensors)


def test_the_command_told_at_the_end_builds_the_converted_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(monai_encoder().state_dict(), tmp_path / "monai.pt")
    convert.run(tmp_path / "monai.pt", source="monai", output=tmp_path / "x.safetensors")
    _, header = load_weights(tmp_path / "x.safetensors")
    words = capsys.readouterr().out.splitlines()[-1].replace("'", "").split("--set ")[1:]
    config = load_config(FinetuneConfig, method="smit", overrides=[word.strip() for word in words])
    assert encoder_arguments(config.method) == header.architecture["encoder"]
    assert config.preprocess.orientation == "RAS"


@torch.no_grad()
def test_neighbours_that_stand_twice_are_folded_without_loss_where_each_has_the_same_statistics(
    tmp_path: Path,
) -> None:
    weights = randomise(monai_encoder().state_dict())
    torch.save(weights, tmp_path / "old.pt")
    output = tmp_path / "x.safetensors"
    old = partial(convert.run, tmp_path / "old.pt", source="monai", output=output)
    with pytest.raises(UserError, match=r"neighbours twice.*--approximate"):
        old(merging="merging_before_1_5")
    old(merging="merging_before_1_5", approximate=True)
    merge = PatchMerging(8)
    load_into(merge, load_weights(output)[0], prefix="merges.0.", minimum_share=1.0, what="test")
    # Every token with mean 0 and variance 1: whichever stand twice, the norm is the same.
    grid = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(3))  # x, y, z, c
    grid = F.layer_norm(grid, (8,))
    parts = [grid[int(i) :: 2, int(j) :: 2, int(k) :: 2] for i, j, k in BEFORE_1_5_MERGE]
    wanted = linear(
        norm(torch.cat(parts, -1), weights, "layers1.0.downsample.norm"),
        weights,
        "layers1.0.downsample.reduction",
    )
    found = merge(grid.permute(2, 1, 0, 3)[None])[0].permute(2, 1, 0, 3)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


class Stranger:
    pass


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"state_dict": {"a": torch.ones(2)}, "args": Stranger()},
            r"Stranger.*not read.*state_dict",
        ),
        (nn.Linear(2, 2), r"torch\.nn.*not read"),
        ([torch.ones(2)], "holds a list"),
        ({"epoch": 3}, "no Swin encoder.*no tensors"),
        ({"conv.weight": torch.ones(2)}, r"no Swin encoder.*conv\.weight"),
    ],
)
def test_what_is_no_encoder_of_plain_tensors_is_refused(
    tmp_path: Path, content: object, said: str
) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=said):
        convert.run(tmp_path / "x.pt", source="smit", output=tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors").exists()


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04nothing", b"\x80\x02garbage", b"plain text"])
def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=r"x\.(pt|safetensors)") as caught:
        convert.run(tmp_path / name, source="smit", output=tmp_path / "y.safetensors")
    assert "\n" not in str(caught.value)


def _two_encoders(weights: Weights) -> object:
    return {f"{who}.{k}": v for who in ("a", "b") for k, v in weights.items()}


def _not_finite(weights: Weights) -> None:
    weights["norm1.weight"][3] = torch.nan


def _other_index(weights: Weights) -> None:
    weights["layers.0.blocks.0.attn.relative_position_index"] += 1


def _four_channels(weights: Weights) -> None:
    weights["patch_embed.proj.weight"] = torch.ones(8, 4, 2, 2, 2)


def _flat_window(weights: Weights) -> None:
    for name in [n for n in weights if n.endswith("bias_table")]:
        weights[name] = torch.ones(7 * 7 * 3, weights[name].shape[1])


def _positions(weights: Weights) -> None:
    weights["absolute_pos_embed"] = torch.ones(1, 8, 2, 2, 2)


def _thin_linears(weights: Weights) -> None:
    for name in [n for n in weights if n.endswith(("fc2.weight", "reduction.weight"))]:
        weights[name] = weights[name][:, :-8]


def _half_gone(weights: Weights) -> None:
    for name in [n for n in weights if ".mlp.fc1" in n or ".attn.qkv" in n][1:]:
        if not name.startswith(("layers.0.blocks.0.", "layers.1.blocks.0.")):
            del weights[name]
    for name in [n for n in weights if n.endswith("reduction.weight")]:
        del weights[name]


def _one_small_table(weights: Weights) -> None:
    weights["layers.1.blocks.1.attn.relative_position_bias_table"] = torch.ones(27, 4)


def _whole_numbers(weights: Weights) -> None:
    weights["norm1.weight"] = weights["norm1.weight"].long()


def _sparse(weights: Weights) -> None:
    weights["norm1.weight"] = weights["norm1.weight"].to_sparse()


def _flat_mlp(weights: Weights) -> None:
    weights["layers.0.blocks.0.mlp.fc1.weight"] = torch.ones(64)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_two_encoders, r"several encoders \(a\., b\.\)"),
        (_not_finite, r"norm1\.weight holds values that are not finite"),
        (_other_index, "order unknown"),
        (_four_channels, "one channel"),
        (_flat_window, "147 rows"),
        (_positions, "absolute positions"),
        (_thin_linears, r"layers\.0\..*numbers where the rest of the network asks for"),
        (_half_gone, r"only \d+\.\d% of the network's parameters.*Missing"),
        (_one_small_table, r"layers\.1\.blocks\.1\.attn.*\(27, 4\).*asks for"),
        (_whole_numbers, r"norm1\.weight is of torch\.int64"),
        (_sparse, r"norm1\.weight is of .*sparse"),
        (_flat_mlp, "stage 0 lacks its attention or MLP"),
    ],
)
def test_weights_that_our_encoder_cannot_hold_are_refused_with_the_reason(
    small: Callable[..., Path], tmp_path: Path, change: Callable[[Weights], object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        convert.run(small(change), source="smit", output=tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_what_little_is_missing_stays_out_of_the_file_and_is_named(
    small: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small(lambda w: w.pop("layers.1.blocks.0.attn.proj.bias") is None or w)
    convert.run(path, source="smit", output=tmp_path / "x.safetensors")
    assert "left out: stages.1.0.attention.project.bias" in capsys.readouterr().out
    tensors, _ = load_weights(tmp_path / "x.safetensors")
    assert "stages.1.0.attention.project.bias" not in tensors


def test_a_wrong_source_names_the_right_one(small: Callable[..., Path], tmp_path: Path) -> None:
    torch.save(monai_encoder().state_dict(), tmp_path / "monai.pt")
    with pytest.raises(UserError, match="--from monai"):
        convert.run(tmp_path / "monai.pt", source="smit", output=tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="--from smit"):
        convert.run(small(), source="monai", output=tmp_path / "x.safetensors")


def test_convolutions_between_stages_are_refused(tmp_path: Path) -> None:
    torch.save(monai_encoder(use_v2=True).state_dict(), tmp_path / "v2.pt")
    with pytest.raises(UserError, match="use_v2"):
        convert.run(tmp_path / "v2.pt", source="monai", output=tmp_path / "x.safetensors")


def test_an_output_is_replaced_only_on_request(small: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "x.safetensors"
    output.write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        convert.run(small(), source="smit", output=output)
    assert output.read_text() == "mine"
    convert.run(small(), source="smit", output=output, overwrite=True)
    assert loaded(output).stride == 8
    with pytest.raises(UserError, match=r"End it \.safetensors"):
        convert.run(small(), source="smit", output=tmp_path / "x.pt")
    with pytest.raises(UserError, match="no such weights file"):
        convert.run(tmp_path / "none.pt", source="smit", output=tmp_path / "y.safetensors")
