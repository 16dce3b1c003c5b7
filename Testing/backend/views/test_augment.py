from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from backend.views.augment import Labelled, mirror, turn_axial

Change = Callable[..., Labelled]


def _crops(*size: int) -> Labelled:
    """Crops in which every voxel has a value of its own, the same in image and target."""
    target = torch.arange(torch.Size(size).numel()).view(size)
    return Labelled(target.float().unsqueeze(1), target)


KEYS = torch.arange(64, dtype=torch.int64)


@pytest.mark.parametrize("change", [turn_axial, mirror])
def test_what_is_never_turned_nor_mirrored_may_have_any_shape(change: Change) -> None:
    crops = _crops(64, 2, 4, 6)
    same = change(crops, KEYS, probability=0)
    assert torch.equal(same.image, crops.image)
    assert torch.equal(same.target, crops.target)


def test_crops_of_any_shape_are_mirrored_with_their_target() -> None:
    crops = _crops(64, 2, 4, 6)
    changed = mirror(crops, KEYS, probability=1)
    assert torch.equal(changed.target, crops.target.flip(1, 2, 3))
    assert torch.equal(changed.image[:, 0].long(), changed.target)


def test_a_turn_is_one_of_three_and_the_target_goes_with_it() -> None:
    crops = _crops(64, 2, 3, 3)
    changed = turn_axial(crops, KEYS, probability=1)
    assert torch.equal(changed.image[:, 0].long(), changed.target)
    found = set()
    for before, after in zip(crops.target, changed.target, strict=True):
        turns = [k for k in range(4) if torch.equal(torch.rot90(before, k, (1, 2)), after)]
        found.add(*turns)
    assert found == {1, 2, 3}
