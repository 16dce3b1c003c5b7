from __future__ import annotations

import itertools

import pytest
import torch

from backend.models.heads import ClassAttention, PixelHead, PrototypeHead
from backend.models.segmentation import parameter_count


def test_head_of_the_paper_has_7614720_parameters() -> None:
    with torch.device("meta"):
        head = PrototypeHead(384, hidden=2048, bottleneck=256, prototypes=8192)
    assert parameter_count(head) == 7_614_720
    frozen = [name for name, p in head.named_parameters() if not p.requires_grad]
    assert frozen == ["prototype_length"]


def test_pixel_head_of_the_released_encoder_has_25198592_parameters() -> None:
    with torch.device("meta"):
        assert parameter_count(PixelHead(768, stride=32)) == 25_198_592


def test_prototype_scores_are_cosines_after_three_linears() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(5, hidden=7, bottleneck=4, prototypes=6)
    tokens = torch.randn(2, 3, 5)
    found = head(tokens)
    x = tokens.double()
    linears = [layer for layer in head.mlp if isinstance(layer, torch.nn.Linear)]
    for number, layer in enumerate(linears):
        x = x @ layer.weight.double().T + layer.bias.double()
        if number < 2:
            x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    weight = head.prototypes.double()
    for b, i, k in itertools.product(range(2), range(3), range(6)):
        cosine = (x[b, i] @ weight[k]) / (x[b, i].norm() * weight[k].norm())
        assert found[b, i, k].item() == pytest.approx(cosine.item(), abs=1e-5)


def test_prototype_scores_are_full_precision_under_autocast() -> None:
    head = PrototypeHead(5, hidden=7, bottleneck=4, prototypes=6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.randn(2, 5)).dtype == torch.float32


def test_every_cell_is_unfolded_into_its_own_place() -> None:
    torch.manual_seed(0)
    head = PixelHead(3, stride=4)
    cells = torch.randn(2, 3, 2, 3, 1)
    found = head(cells)
    assert found.shape == (2, 1, 8, 12, 4)
    weight, bias = head.linear.weight[:, :, 0, 0, 0], head.linear.bias
    for b, z, y, x in itertools.product(range(2), range(2), range(3), range(1)):
        block = (weight @ cells[b, :, z, y, x] + bias).view(4, 4, 4)
        place = found[b, 0, 4 * z : 4 * z + 4, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        assert torch.allclose(place, block, atol=1e-6)


def test_class_attention_gathers_from_all_tokens_in_any_order() -> None:
    torch.manual_seed(0)
    attention = ClassAttention(8)
    tokens = torch.randn(2, 5, 8)
    token = attention(tokens)
    assert token.shape == (2, 8)
    assert torch.allclose(attention(tokens.flip(1)), token, atol=1e-6)
    for i in range(5):
        changed = tokens.clone()
        changed[:, i, 0] += 1
        assert not torch.allclose(attention(changed), token, atol=1e-5)
