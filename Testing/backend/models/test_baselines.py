from __future__ import annotations

from typing import Any

import pytest
import torch

from backend.models.baselines import build_baseline
from backend.settings.baselines import BaselineConfig, BaselineNetworkConfig

_PAPER: dict[str, dict[str, Any]] = {
    "segresnet": {"width": 32},
    "unetr": {"width": 16, "hidden": 768, "patch": [96, 96, 96]},
    "swinunetr": {"width": 48, "window": 7},
    "dynunet": {"width": 32},
}
_SMALL: dict[str, dict[str, Any]] = {
    "segresnet": {"width": 8},
    "unetr": {"width": 4, "hidden": 64, "patch": [32, 16, 32]},
    "swinunetr": {"width": 12, "window": 4},
    "dynunet": {"width": 4},
}
_EDGES = {
    "segresnet": (16, 24, 16),
    "unetr": (32, 16, 32),
    "swinunetr": (64, 64, 64),
    "dynunet": (64, 64, 64),
}


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("segresnet", 18_796_398),
        ("unetr", 92_802_478),
        ("swinunetr", 62_187_296),
        ("dynunet", 31_189_806),
    ],
)
def test_networks_have_their_usual_size_and_are_counted_without_memory(
    kind: str, parameters: int
) -> None:
    with torch.device("meta"):
        network = build_baseline({"kind": kind, **_PAPER[kind]}, classes=14)
    assert sum(p.numel() for p in network.parameters()) == parameters
    logits = network(torch.empty(1, 1, 96, 96, 96, device="meta"))
    assert logits.shape == (1, 14, 96, 96, 96)


@pytest.mark.parametrize("kind", list(_SMALL))
def test_logits_have_the_shape_of_the_volume_and_every_weight_learns(kind: str) -> None:
    torch.manual_seed(0)
    network = build_baseline({"kind": kind, **_SMALL[kind]}, classes=3)
    volume = torch.rand(1, 1, *_EDGES[kind])
    logits = network(volume)
    assert logits.shape == (1, 3, *_EDGES[kind])
    logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    torch.manual_seed(0)
    again = build_baseline({"kind": kind, **_SMALL[kind]}, classes=3)
    with torch.no_grad():
        assert torch.equal(again(volume), logits.detach())


@pytest.mark.parametrize(
    ("kind", "edges", "complaint"),
    [
        ("segresnet", (16, 20, 16), "no multiples of"),
        ("segresnet", (8, 16, 16), "shorter than twice"),
        ("swinunetr", (64, 64, 48), "no multiples of"),
        ("swinunetr", (32, 64, 64), "shorter than twice"),
        ("dynunet", (64, 64, 32), "shorter than twice"),
        ("unetr", (32, 24, 32), "no multiples of"),
        ("unetr", (32, 32, 32), "positions are made for"),
    ],
)
def test_volumes_that_do_not_fit_are_refused(
    kind: str, edges: tuple[int, int, int], complaint: str
) -> None:
    with torch.device("meta"):
        network = build_baseline({"kind": kind, **_SMALL[kind]}, classes=2)
    with pytest.raises(ValueError, match=complaint):
        network(torch.empty(1, 1, *edges, device="meta"))


def test_an_unknown_network_is_an_error() -> None:
    with pytest.raises(KeyError, match="vnet"):
        build_baseline({"kind": "vnet", "width": 8}, classes=2)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"kind": "unetr", "width": 16, "hidden": 768}, "patch is needed by unetr"),
        ({"kind": "unetr", "width": 16, "patch": (96, 96, 96)}, "hidden is needed by unetr"),
        ({"kind": "segresnet", "width": 32, "patch": (96, 96, 96)}, "patch belongs to unetr"),
        ({"kind": "dynunet", "width": 32, "window": 7}, "window belongs to swinunetr"),
        ({"kind": "swinunetr", "width": 48}, "window is needed by swinunetr"),
        ({"kind": "swinunetr", "width": 32, "window": 7}, "no multiple of 12"),
        ({"kind": "segresnet", "width": 12}, "no multiple of 8"),
        ({"kind": "unetr", "width": 16, "hidden": 100, "patch": (96, 96, 96)}, "no multiple of 64"),
        ({"kind": "unetr", "width": 16, "hidden": 128, "patch": (96, 96, 90)}, "no multiple of 16"),
    ],
)
def test_settings_that_no_network_has_are_refused(values: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        BaselineNetworkConfig(**values)


def test_a_network_goes_by_its_own_name() -> None:
    network = BaselineNetworkConfig(kind="dynunet", width=8)
    assert network.stride == (32, 32, 32)
    assert network.first_width == 8
    with pytest.raises(ValueError, match="differs from the name"):
        BaselineConfig(name="segresnet", encoder=network)
