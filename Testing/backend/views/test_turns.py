from __future__ import annotations

import numpy as np
import torch

from backend.views.swaps import swap_cells
from backend.views.turns import INDICATOR_LENGTH, Turns, draw_turns, no_turns, turned


def test_samples_are_mirrored_and_turned_as_numpy_does_it() -> None:
    turns = draw_turns(torch.arange(60))
    image = torch.randn(60, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = turned(image, turns)
    for number in range(60):
        wanted = image[number].numpy()
        for axis in range(3):
            if turns.flips[number, axis]:
                wanted = np.flip(wanted, axis + 1)
        wanted = np.rot90(wanted, int(turns.quarters[number]), axes=(2, 3))
        assert np.array_equal(found[number].numpy(), wanted), number
        told = [*map(float, turns.flips[number]), *np.eye(4)[int(turns.quarters[number])]]
        assert turns.indicator[number].tolist() == told
    assert torch.equal(turned(image, no_turns(torch.arange(60))), image)
    assert turns.indicator.shape[1] == INDICATOR_LENGTH


def test_each_mirror_and_each_turn_is_drawn_equally_often() -> None:
    turns = draw_turns(torch.arange(4000))
    assert torch.allclose(turns.flips.float().mean(0), torch.tensor(0.5), atol=0.03)
    assert (turns.quarters.bincount() / 4000 - 0.25).abs().max() < 0.03


def test_turns_of_a_sample_do_not_depend_on_its_batch() -> None:
    whole, part = draw_turns(torch.arange(9)), draw_turns(torch.arange(4, 6))
    assert torch.equal(whole.indicator[4:6], part.indicator)
    assert isinstance(part, Turns)


def test_pairs_of_cells_change_places_and_nothing_else_does() -> None:
    size, cell, pairs = (4, 6, 8), (2, 3, 4), 3
    image = torch.arange(2 * 4 * 6 * 8, dtype=torch.float32).view(2, 1, *size)
    found = swap_cells(image, torch.tensor([5, 6]), pairs=pairs, cell=cell)
    boxes = [
        tuple(slice(i * edge, (i + 1) * edge) for i, edge in zip(place, cell, strict=True))
        for place in np.ndindex(2, 2, 2)
    ]
    moves = []
    for sample in range(2):
        came_from = []
        for box in boxes:
            moved, old = found[sample, 0][box], image[sample, 0]
            same = [n for n, other in enumerate(boxes) if torch.equal(moved, old[other])]
            assert len(same) == 1
            came_from += same
        # Twice the same exchange is none: cells moved in pairs.
        assert [came_from[n] for n in came_from] == list(range(8))
        assert sum(n != place for place, n in enumerate(came_from)) == 2 * pairs
        moves.append(came_from)
    assert moves[0] != moves[1]
    assert torch.equal(swap_cells(image, torch.tensor([5, 6]), pairs=0, cell=cell), image)
