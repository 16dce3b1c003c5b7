from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import Tensor, nn

from backend.models.chunked import mlp, pays, window_attention


def gradients(result: Tensor, *inputs: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, result.numel()).view_as(result)
    return list(torch.autograd.grad((result * weights).sum(), inputs))


@pytest.mark.parametrize(("width", "inner", "tokens"), [(16, 256, 300), (512, 24, 7)])
def test_an_mlp_has_the_values_and_gradients_of_the_plain_one_in_chunks_or_when_wide(
    width: int, inner: int, tokens: int
) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(width, inner), nn.Linear(inner, 16)
    x = torch.randn(3, 5, tokens, width, requires_grad=True)
    inputs = (x, *first.parameters(), *second.parameters())
    ours, plain = mlp(x, first, second), second(F.gelu(first(x)))
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(gradients(ours, *inputs), gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("width", "kept"), [(511, 0), (512, 1)])
def test_the_first_product_of_an_mlp_is_kept_once_where_it_is_wide(width: int, kept: int) -> None:
    first, second = nn.Linear(width, 24), nn.Linear(24, 16)
    shapes: list[tuple[int, ...]] = []

    def told(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(told, lambda tensor: tensor):
        mlp(torch.randn(7, width), first, second)
    assert shapes.count((7, 24)) == kept


@pytest.mark.parametrize("masked", [True, False])
def test_windows_in_chunks_have_the_values_and_gradients_of_one_attention(masked: bool) -> None:
    torch.manual_seed(0)
    b, w, n, heads, c = 2, 60, 64, 2, 8
    qkv = torch.randn(b, w, n, 3 * c, requires_grad=True)
    bias = torch.randn(heads, n, n, requires_grad=True)
    mask = torch.zeros(w, n, n).masked_fill(torch.rand(w, n, n) < 0.3, float("-inf"))
    mask.diagonal(dim1=1, dim2=2).zero_()
    q, k, v = qkv.view(b, w, n, 3, heads, -1).permute(3, 0, 1, 4, 2, 5)
    added = bias + (mask.unsqueeze(1) if masked else 0)
    plain = F.scaled_dot_product_attention(q, k, v, attn_mask=added).transpose(2, 3)
    ours = window_attention(qkv, bias, mask if masked else None)
    torch.testing.assert_close(ours, plain.reshape(b, w, n, c))
    wanted = gradients(plain.reshape(b, w, n, c), qkv, bias)
    for mine, theirs in zip(gradients(ours, qkv, bias), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_chunks_are_for_training_in_full_precision_on_a_processor() -> None:
    x = torch.rand(2)
    assert pays(x)
    assert not pays(x.bfloat16())
    assert pays(x.to("meta")) is not torch.cuda.is_available()
    with torch.no_grad():
        assert not pays(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not pays(x)
