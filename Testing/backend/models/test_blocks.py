"""Our blocks against MONAI's, weight for weight and number for number."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from backend.geometry import Index3
from backend.models.blocks import OutBlock, ResidualBlock, TokenUpBlock, UpBlock

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.networks.blocks.dynunet_block import UnetOutBlock
    from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock

Build = Callable[[], nn.Module]


def _residual(outputs: int, norm: str) -> tuple[Build, Build]:
    ours = {"in_channels": 3, "out_channels": outputs, "norm": norm}
    theirs = {"in_channels": 3, "out_channels": outputs, "norm_name": norm}
    return (
        lambda: ResidualBlock(**ours),
        lambda: UnetrBasicBlock(3, kernel_size=3, stride=1, res_block=True, **theirs),
    )


def _up(factor: int | Index3, norm: str) -> tuple[Build, Build]:
    return (
        lambda: UpBlock(in_channels=3, out_channels=2, factor=factor, norm=norm),
        lambda: UnetrUpBlock(3, 3, 2, 3, factor, norm, res_block=True),
    )


def _tokens(steps: int, norm: str) -> tuple[Build, Build]:
    return (
        lambda: TokenUpBlock(in_channels=3, out_channels=2, steps=1 + steps, norm=norm),
        lambda: UnetrPrUpBlock(3, 3, 2, steps, 3, 1, 2, norm, conv_block=True, res_block=True),
    )


PAIRS = {
    "residual": _residual(5, "instance"),
    "residual, as many channels": _residual(3, "instance"),
    "residual, batch norm": _residual(5, "batch"),
    "up": _up(2, "instance"),
    "up by 4, batch norm": _up(4, "batch"),
    "up by another factor along each axis": _up((1, 2, 4), "instance"),
    "tokens": _tokens(2, "instance"),
    "tokens, one step, batch norm": _tokens(0, "batch"),
    "out": (
        lambda: OutBlock(in_channels=3, out_channels=4),
        lambda: UnetOutBlock(3, 3, 4),
    ),
}


def _seeded(build: Build) -> nn.Module:
    torch.manual_seed(0)
    return build()


def _inputs(block: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 4, 5, 6, generator=generator)
    if not isinstance(block, UpBlock):
        return [x]
    factors = block.transp_conv.conv.stride
    finer = (k * n for k, n in zip(factors, x.shape[2:], strict=True))
    return [x, torch.randn(2, 2, *finer, generator=generator)]


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_block_starts_learns_and_ends_as_monais_does(pair: tuple[Build, Build]) -> None:
    ours, theirs = map(_seeded, pair)
    start = copy.deepcopy(theirs.state_dict())
    assert list(ours.state_dict()) == list(start)
    assert all(torch.equal(ours.state_dict()[name], start[name]) for name in start)
    inputs = _inputs(ours)
    results = []
    for block in (ours, theirs):
        given = [x.clone().requires_grad_() for x in inputs]
        out = block(*(x * 1 for x in given))
        out.square().sum().backward()
        grads = [p.grad for p in (*block.parameters(), *given)]
        # Running means of the batch norm too.
        results.append([out, *grads, *block.state_dict().values()])
    assert len(results[0]) > 3
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_another_norm_is_refused() -> None:
    with pytest.raises(KeyError, match="layer"):
        ResidualBlock(in_channels=1, out_channels=1, norm="layer")
