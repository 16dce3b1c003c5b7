from __future__ import annotations

import io
import math

import pytest
import torch
from torch import Tensor, nn

from backend.engine.lars import Lars, lars

_DECAY, _TRUST = 0.1, 0.01


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 3, 2), nn.BatchNorm3d(3), nn.Conv3d(3, 2, 1))
    with torch.no_grad():
        # Weights of length 0 take their gradient as it is.
        network[2].weight.zero_()
    return network


def _optimizer(network: nn.Module) -> Lars:
    return lars(network.named_parameters(), learning_rate=0.5, weight_decay=_DECAY, trust=_TRUST)


def _gradients(network: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    if step == 2:
        network.get_parameter("2.bias").grad = None


def _length(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values))


def _step_by_hand(
    weight: list[float], gradient: list[float], moment: list[float], *, rate: float, adapted: bool
) -> tuple[list[float], list[float]]:
    if adapted:
        gradient = [g + _DECAY * w for g, w in zip(gradient, weight, strict=True)]
        if _length(weight) > 0 and _length(gradient) > 0:
            scale = _TRUST * _length(weight) / _length(gradient)
            gradient = [scale * g for g in gradient]
    moment = [0.9 * m + rate * g for m, g in zip(moment, gradient, strict=True)]
    return [w - m for w, m in zip(weight, moment, strict=True)], moment


def _flat(tensor: Tensor) -> list[float]:
    return tensor.detach().double().flatten().tolist()


def test_steps_equal_those_of_the_algorithm_also_when_the_rate_changes() -> None:
    network = _network()
    optimizer = _optimizer(network)
    weights = {name: _flat(p) for name, p in network.named_parameters()}
    moments = {name: [0.0] * len(values) for name, values in weights.items()}
    for step, rate in enumerate((0.5, 0.3, 0.2, 0.7)):
        _gradients(network, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, p in network.named_parameters():
            if p.grad is not None:
                weights[name], moments[name] = _step_by_hand(
                    weights[name], _flat(p.grad), moments[name], rate=rate, adapted=p.ndim > 1
                )
        optimizer.step()
        for name, p in network.named_parameters():
            assert _flat(p) == pytest.approx(weights[name], rel=1e-5, abs=1e-6), (step, name)


def test_norms_and_biases_neither_decay_nor_adapt_and_frozen_weights_are_left_out() -> None:
    network = _network()
    network[0].bias.requires_grad_(False)
    optimizer = _optimizer(network)
    matrices, vectors = optimizer.param_groups
    assert {id(p) for p in matrices["params"]} == {id(network[0].weight), id(network[2].weight)}
    assert {id(p) for p in vectors["params"]} == {
        id(network[1].weight),
        id(network[1].bias),
        id(network[2].bias),
    }
    assert (matrices["weight_decay"], matrices["adapted"]) == (_DECAY, True)
    assert (vectors["weight_decay"], vectors["adapted"]) == (0.0, False)


def test_a_saved_state_goes_on_as_if_nothing_had_happened() -> None:
    whole, parted = _network(), _network()
    optimizers = [_optimizer(whole), _optimizer(parted)]
    for step in range(3):
        for network, optimizer in zip((whole, parted), optimizers, strict=True):
            _gradients(network, step)
            optimizer.step()
    file = io.BytesIO()
    torch.save(optimizers[1].state_dict(), file)
    file.seek(0)
    optimizers[1] = _optimizer(parted)
    optimizers[1].load_state_dict(torch.load(file, weights_only=True))
    for network, optimizer in zip((whole, parted), optimizers, strict=True):
        _gradients(network, 3)
        optimizer.step()
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_closure_is_called_with_gradients_and_its_loss_returned() -> None:
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = Lars([{"params": [weight]}], learning_rate=1.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert weight.item() == pytest.approx(2.0 - 1e-3 * 2.0)
