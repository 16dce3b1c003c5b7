from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.views.corruption import (
    bend_intensity,
    bezier_curves,
    corrupt,
    paint_boxes,
    shuffle_locally,
)
from backend.views.randomness import uniform

_EDGES = (32, 21, 16)


def _image(samples: int = 3, edges: tuple[int, ...] = _EDGES) -> Tensor:
    return torch.rand(samples, 1, *edges, generator=torch.Generator().manual_seed(0))


def _keys(samples: int = 3) -> Tensor:
    return torch.arange(50, 50 + samples)


def _shuffled_by_hand(image: Tensor, key: Tensor, blocks: int) -> Tensor:
    """Block after block, each shuffled in the original and put over what earlier ones left."""
    size = image.shape[1:]
    largest = [n // 10 for n in size]
    count = int(np.prod(largest))
    draws = uniform(key[None], blocks * 6, stream=602).view(blocks, 6).double().numpy()
    scores = uniform(key[None], blocks * count, stream=603).view(blocks, *largest).numpy()
    result = image[0].clone()
    for block in range(blocks):
        edges = [1 + int(draws[block, a] * largest[a]) for a in range(3)]
        first = [int(draws[block, 3 + a] * (size[a] - edges[a] + 1)) for a in range(3)]
        box = tuple(slice(f, f + e) for f, e in zip(first, edges, strict=True))
        inside = scores[block][tuple(slice(e) for e in edges)]
        window = image[0][box].flatten()[torch.from_numpy(np.argsort(inside, None, kind="stable"))]
        result[box] = window.view(edges)
    return result[None]


@pytest.mark.parametrize("blocks", [1, 7, 400])
def test_local_shuffling_equals_a_loop_over_blocks(blocks: int) -> None:
    image, keys = _image(), _keys()
    found = shuffle_locally(image, keys, probability=1.0, blocks=blocks)
    for sample, key, result in zip(image, keys, found, strict=True):
        assert torch.equal(result, _shuffled_by_hand(sample, key, blocks))
    assert not torch.equal(found, image)


def test_local_shuffling_takes_values_from_no_farther_than_a_block() -> None:
    edges = (20, 30, 40)
    places = torch.arange(20 * 30 * 40).view(1, 1, *edges).float() / 24_000
    found = (shuffle_locally(places, _keys(1), probability=1.0) * 24_000).round().long()
    origin = torch.stack([found // 1200, found // 40 % 30, found % 40])[:, 0, 0]
    here = torch.stack(torch.meshgrid(*(torch.arange(n) for n in edges), indexing="ij"))
    assert (origin - here).abs().amax((1, 2, 3)).tolist() == [1, 2, 3]
    assert float((origin != here).any(0).float().mean()) > 0.5


def test_bent_values_are_those_of_numpy_along_the_curve() -> None:
    image, keys = _image(40, (8, 8, 8)), _keys(40)
    found = bend_intensity(image, keys, probability=1.0)
    control = uniform(keys, 4, stream=612).double().numpy()
    upside_down = uniform(keys, 2, stream=611)[:, 1].numpy() < 0.5
    t = np.linspace(0, 1, 100_000)
    for b, (x1, y1, x2, y2) in enumerate(control):
        x = 3 * (1 - t) ** 2 * t * x1 + 3 * (1 - t) * t**2 * x2 + t**3
        y = 3 * (1 - t) ** 2 * t * y1 + 3 * (1 - t) * t**2 * y2 + t**3
        assert (np.diff(x) >= 0).all()
        wanted = np.interp(image[b].numpy(), x, y[::-1] if upside_down[b] else y)
        # Where x nearly stands still, the curve is steep and few points define it.
        assert np.abs(found[b].numpy() - wanted).max() < 5e-3
        assert np.abs(found[b].numpy() - wanted).mean() < 1e-5
    assert 10 <= upside_down.sum() <= 30


def test_control_points_on_the_diagonal_change_nothing_or_turn_values_over() -> None:
    x, y = bezier_curves(torch.tensor([[1 / 3, 1 / 3, 2 / 3, 2 / 3]]))
    assert torch.allclose(x, y, atol=1e-6)
    assert torch.allclose(x[0], torch.linspace(0, 1, x.shape[1]), atol=1e-6)


def _painted_by_hand(image: Tensor, key: Tensor, inpaint: float) -> Tensor:
    size = image.shape[1:]
    inner = float(uniform(key[None], 2, stream=621)[0, 1]) < inpaint
    draws = uniform(key[None], 35, stream=622).view(5, 7).double().numpy()
    noise = uniform(key[None], int(np.prod(size)), stream=623).view(image.shape)
    result, other = (image.clone(), noise) if inner else (noise.clone(), image)
    for number, box in enumerate(draws):
        if box[6] >= 0.95 and (inner or number > 0):
            break
        place = []
        for axis, n in enumerate(size):
            low, high = (n // 6, n // 3) if inner else (n - 4 * n // 7, n - 3 * n // 7)
            edge = low + int(box[2 * axis] * (high - low + 1))
            first = 3 + int(box[2 * axis + 1] * (n - edge - 3 - 3 + 1))
            place.append(slice(first, first + edge))
        result[(0, *place)] = other[(0, *place)]
    return result


@pytest.mark.parametrize("inpaint", [0.0, 1.0, 0.5])
def test_painting_equals_a_loop_over_boxes(inpaint: float) -> None:
    image, keys = _image(30), _keys(30)
    found = paint_boxes(image, keys, probability=1.0, inpaint=inpaint)
    for sample, key, result in zip(image, keys, found, strict=True):
        assert torch.equal(result, _painted_by_hand(sample, key, inpaint))


def test_a_border_of_three_voxels_is_painted_outside_and_kept_inside() -> None:
    image, keys = _image(20), _keys(20)
    border = torch.ones(_EDGES, dtype=torch.bool)
    border[3:-3, 3:-3, 3:-3] = False
    inside = paint_boxes(image, keys, probability=1.0, inpaint=1.0)
    outside = paint_boxes(image, keys, probability=1.0, inpaint=0.0)
    assert torch.equal(inside[:, 0, border], image[:, 0, border])
    assert not (outside == image)[:, 0, border].any()
    kept = (outside == image).flatten(1).float().mean(1)
    assert bool(((kept > 0.05) & (kept < 0.9)).all())


@pytest.mark.parametrize("name", ["shuffle", "bend", "paint"])
def test_each_corruption_befalls_its_share_of_samples_and_spares_the_others(name: str) -> None:
    image, keys = _image(400, (14, 14, 14)), _keys(400)
    rates = {"shuffle": 0.0, "bend": 0.0, "paint": 0.0, name: 0.3}
    if name == "shuffle":
        image = _image(400, (20, 20, 20))
    found = corrupt(image, keys, **rates, blocks=50)
    touched = (found != image).flatten(1).any(1)
    assert int(touched.sum()) == pytest.approx(120, abs=35)


def test_corruption_is_shuffling_then_bending_then_painting_and_stays_in_0_to_1() -> None:
    image, keys = _image(), _keys()
    found = corrupt(image, keys, shuffle=1.0, bend=1.0, paint=1.0, inpaint=0.5, blocks=100)
    wanted = shuffle_locally(image, keys, probability=1.0, blocks=100)
    wanted = bend_intensity(wanted, keys, probability=1.0)
    wanted = paint_boxes(wanted, keys, probability=1.0, inpaint=0.5)
    assert torch.equal(found, wanted)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1


def test_a_sample_is_corrupted_alike_in_any_batch() -> None:
    image, keys = _image(), _keys()
    together = corrupt(image, keys, shuffle=1.0, blocks=100)
    for b in range(3):
        alone = corrupt(image[b : b + 1], keys[b : b + 1], shuffle=1.0, blocks=100)
        assert torch.equal(alone[0], together[b])


def test_an_image_without_room_for_boxes_is_refused() -> None:
    with pytest.raises(ValueError, match="are below 14"):
        paint_boxes(_image(1, (13, 20, 20)), _keys(1), probability=1.0, inpaint=0.0)


def test_corruption_runs_where_nothing_is_computed() -> None:
    with torch.device("meta"):
        out = corrupt(torch.rand(2, 1, *_EDGES), torch.arange(2), blocks=10)
    assert out.shape == (2, 1, *_EDGES)
