from __future__ import annotations

import itertools

import pytest
import torch

from backend.models.heads import ClassAttention, ConvProjector, PixelHead, PrototypeHead
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


def test_cells_of_unequal_edges_are_unfolded_axis_by_axis() -> None:
    torch.manual_seed(0)
    head = PixelHead(3, stride=(1, 2, 4))
    cells = torch.randn(1, 3, 3, 2, 1)
    found = head(cells)
    assert found.shape == (1, 1, 3, 4, 4)
    weight, bias = head.linear.weight[:, :, 0, 0, 0], head.linear.bias
    for z, y in itertools.product(range(3), range(2)):
        block = (weight @ cells[0, :, z, y, 0] + bias).view(1, 2, 4)
        assert torch.allclose(found[0, 0, z : z + 1, 2 * y : 2 * y + 2], block, atol=1e-6)


def test_projector_and_predictor_of_pgl_have_the_size_of_1_by_1_by_1_convolutions() -> None:
    with torch.device("meta"):
        assert parameter_count(ConvProjector(2048, (4096, 256))) == 9_445_632
        assert parameter_count(ConvProjector(256, (4096, 256))) == 2_105_600


def test_a_projector_keeps_places_apart_and_may_end_in_a_norm() -> None:
    torch.manual_seed(0)
    projector = ConvProjector(3, (8, 6, 4), last_norm=True).train()
    x = torch.randn(4, 3, 1, 2, 2)
    found = projector(x)
    y = x.double()
    convolutions = [layer for layer in projector if isinstance(layer, torch.nn.Conv3d)]
    assert len(convolutions) == 3
    for number, layer in enumerate(convolutions):
        y = torch.einsum("oi,bizyx->bozyx", layer.weight.double()[..., 0, 0, 0], y)
        y = y - y.mean((0, 2, 3, 4), keepdim=True)
        y = y / torch.sqrt(y.square().mean((0, 2, 3, 4), keepdim=True) + 1e-5)
        y = y.relu() if number < 2 else y
    assert torch.allclose(found.double(), y, atol=1e-5)
