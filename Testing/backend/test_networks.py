"""Every network that can be fine-tuned: from settings to a weights file and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backend.config import BASELINES, PRESETS, FinetuneConfig, load_config
from backend.inference.predictor import load_predictor
from backend.losses.segmentation import dice_cross_entropy
from backend.models.encoder import build_encoder
from backend.models.segmentation import build_segmentation, encoder_of
from backend.preparation import require_same_encoder
from backend.provenance import encoder_arguments, preprocessing, segmentation_architecture
from backend.weights import WeightsHeader, load_into, load_weights, read_header, save_weights

CLASSES = 3

SMALL: dict[str, tuple[str, ...]] = {
    "smit": ("method.encoder.embed_dim=4", "method.encoder.heads=[1, 1, 2]", "decoder.width=4"),
    "glmae": ("method.encoder={width: 12, depth: 3, heads: 2, patch: 8}", "decoder.width=4"),
    "pgl": ("method.encoder.width=4", "decoder.width=4"),
    "pgl_mip": ("method.encoder.width=4", "decoder={width: 4, kind: unet}"),
    "models_genesis": ("method.encoder.widths=[4, 8, 16]",),
    "rubik": ("method.encoder.widths=[4, 8, 16]",),
    "spark": ("method.encoder={widths: [4, 8, 16], blocks: [1, 1, 1]}", "method.mask_cell=8"),
    "segresnet": (),
}
"""One network of each kind, narrow: settings over the preset tiny."""


def _config(method: str) -> FinetuneConfig:
    overrides = (*SMALL[method], "crop=32")
    return load_config(FinetuneConfig, method=method, preset="tiny", overrides=overrides)


def _network(config: FinetuneConfig) -> nn.Module:
    torch.manual_seed(5)
    return build_segmentation(segmentation_architecture(config, classes=CLASSES))


def _header(config: FinetuneConfig, *, kind: Any) -> WeightsHeader:
    architecture = segmentation_architecture(config, classes=CLASSES)
    labels = tuple(
        {"value": n, "name": f"part {n}", "color": [n, 2, 3], "terminology": ""} for n in (1, 2)
    )
    return WeightsHeader(
        kind=kind,
        method=config.method.name,
        preset=config.preset,
        preprocessing=preprocessing(config.preprocess),
        architecture=architecture
        if kind == "segmentation"
        else {"encoder": architecture["encoder"]},
        labels=labels if kind == "segmentation" else (),
    )


@pytest.mark.parametrize("method", [*PRESETS, *BASELINES])
def test_the_network_of_every_preset_gives_logits_as_large_as_its_crop(method: str) -> None:
    for preset in (PRESETS | BASELINES)[method]:
        config = load_config(FinetuneConfig, method=method, preset=preset)
        with torch.device("meta"):
            network = build_segmentation(segmentation_architecture(config, classes=14))
            logits = network.eval()(torch.empty(1, 1, *config.crop_size))
        assert logits.shape == (1, 14, *config.crop_size)


@pytest.mark.parametrize("method", SMALL)
def test_every_weight_of_a_network_learns(method: str) -> None:
    config = _config(method)
    network = _network(config)
    # Instance norm of a single cell would be 0 throughout.
    edges = [max(32, 2 * stride) for stride in config.method.encoder.stride]
    volume = torch.rand(2, 1, *edges, generator=torch.Generator().manual_seed(0))
    network(volume).square().mean().backward()
    unused = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    # What stands for hidden tokens has nothing to do in fine-tuning.
    assert [name for name in unused if not name.endswith("mask_token")] == []


@pytest.mark.parametrize("method", SMALL)
def test_channels_last_changes_no_loss(method: str) -> None:
    config = _config(method)
    edges = [max(32, 2 * stride) for stride in config.method.encoder.stride]
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(2, 1, *edges, generator=generator)
    target = torch.randint(CLASSES, (2, *edges), generator=generator)
    traces = []
    for memory in (torch.contiguous_format, torch.channels_last_3d):
        network = _network(config).to(memory_format=memory)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        traces.append([])
        for _ in range(3):
            optimizer.zero_grad()
            torch.manual_seed(1)
            loss = sum(dice_cross_entropy(network(volume.contiguous(memory_format=memory)), target))
            loss.backward()
            optimizer.step()
            traces[-1].append(loss.item())
    assert traces[1] == pytest.approx(traces[0], rel=1e-5)


@pytest.mark.parametrize("method", SMALL)
def test_a_weights_file_builds_the_network_again_bit_for_bit(method: str, tmp_path: Path) -> None:
    config = _config(method)
    network = _network(config).eval()
    file = tmp_path / "model.safetensors"
    save_weights(file, network.state_dict(), _header(config, kind="segmentation"))
    again = load_predictor(file, device="cpu")
    assert again.window == (32, 32, 32)
    volume = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(again.network(volume), network(volume))


@pytest.mark.parametrize("method", [name for name in SMALL if name not in BASELINES])
def test_an_encoder_file_is_the_beginning_of_a_segmentation_network(
    method: str, tmp_path: Path
) -> None:
    config = _config(method)
    torch.manual_seed(8)
    pretrained = build_encoder(encoder_arguments(config.method))
    file = tmp_path / "encoder.safetensors"
    save_weights(file, pretrained.state_dict(), _header(config, kind="encoder"))
    require_same_encoder(file, read_header(file), config.method)
    network = _network(config)
    tensors, _ = load_weights(file)
    report = load_into(encoder_of(network), tensors, minimum_share=1.0, what="test")
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    kept = encoder_of(network).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in pretrained.state_dict().items())


def test_arguments_of_a_network_survive_json() -> None:
    for method in SMALL:
        architecture = segmentation_architecture(_config(method), classes=CLASSES)
        assert json.loads(json.dumps(architecture)) == architecture
