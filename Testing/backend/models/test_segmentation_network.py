from __future__ import annotations

from typing import Any

import pytest
import torch

from backend.models.segmentation import SwinSegmenter, build_segmentation, freeze

_ENCODER: dict[str, Any] = {
    "kind": "swin",
    "embed_dim": 4,
    "depths": (2, 2, 2, 2),
    "heads": (1, 1, 2, 2),
    "window": 4,
    "patch": 2,
    "mlp_ratio": 2.0,
    "qkv_bias": False,
    "final_merge": True,
    "patch_norm": True,
}


def _network(*, norm: str = "instance", width: int = 4, **changes: Any) -> SwinSegmenter:
    torch.manual_seed(0)
    encoder = {**_ENCODER, **changes}
    return build_segmentation(
        {"encoder": encoder, "decoder": "default", "classes": 3, "width": width, "norm": norm}
    )


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize(
    "changes",
    [
        {"final_merge": True},
        {"final_merge": False, "embed_dim": 8},
        {"final_merge": False, "width": 5},
        {"final_merge": True, "patch": 4, "depths": (1, 1, 1), "heads": (1, 1, 2)},
    ],
)
def test_logits_have_the_size_of_the_input_and_every_weight_learns(
    changes: dict[str, Any], norm: str
) -> None:
    network = _network(norm=norm, **changes)
    # Instance norm needs more than one value: two cells of the bottleneck along each edge.
    edge = 2 * network.encoder.stride
    volume = torch.rand(1, 1, edge, edge, edge, generator=torch.Generator().manual_seed(0))
    logits = network(volume)
    assert logits.shape == (1, 3, edge, edge, edge)
    logits.square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert without == ["encoder.mask_token"]


def test_released_network_is_built_as_the_specification_says() -> None:
    with torch.device("meta"):
        network = build_segmentation(
            {
                "encoder": {**_ENCODER, "embed_dim": 48, "depths": (2, 2, 4, 2), "heads": (4,) * 4}
                | {"mlp_ratio": 4.0},
                "decoder": "default",
                "classes": 14,
                "width": 48,
                "norm": "instance",
            }
        )
    ups = [
        (b.transp_conv.conv.in_channels, b.transp_conv.conv.out_channels) for b in network.up_blocks
    ]
    assert ups == [(768, 384), (384, 192), (192, 96), (96, 48), (48, 48)]
    assert len(network.skip_blocks) == 3  # 48, 96, 192; the 384 skip is used raw
    # About 62.9 million in the released code.
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(62.9e6, rel=0.01)


def test_a_frozen_encoder_gets_no_gradient_and_the_decoder_does() -> None:
    network = _network()
    freeze(network.encoder)
    network(torch.rand(1, 1, 64, 64, 64)).sum().backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert network.out.conv.conv.weight.grad is not None


def test_a_decoder_that_is_none_for_the_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="'unet' is none for the encoder 'swin'"):
        build_segmentation(
            {"encoder": _ENCODER, "decoder": "unet", "classes": 3, "width": 4, "norm": "batch"}
        )
