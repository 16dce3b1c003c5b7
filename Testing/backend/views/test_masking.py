from __future__ import annotations

import itertools
import math

import pytest
import torch

from backend.cells import hidden_count
from backend.models.swin import upsample_cells
from backend.views.masking import random_cells
from backend.views.randomness import derive_keys


@pytest.mark.parametrize(
    ("cells", "ratio", "count"),
    [(216, 0.7, 152), (1000, 0.25, 250), (216, 0.25, 54), (10, 0.7, 7), (8, 0.5, 4), (27, 0.1, 3)],
)
def test_hidden_cells_are_the_ratio_rounded_up(cells: int, ratio: float, count: int) -> None:
    assert hidden_count(cells, ratio) == count


def test_every_sample_hides_152_of_216_cells_and_indices_tell_the_same_as_the_grid() -> None:
    mask = random_cells(torch.arange(20), (6, 6, 6), 0.7)
    assert mask.grid.shape == (20, 6, 6, 6)
    assert mask.grid.flatten(1).sum(1).tolist() == [152] * 20
    for grid, hidden in zip(mask.grid, mask.hidden, strict=True):
        assert hidden.tolist() == grid.flatten().nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("edge", "kept"), [(10, 250), (6, 54)])
def test_three_quarters_hidden_leave_250_of_1000_and_54_of_216_cells(edge: int, kept: int) -> None:
    mask = random_cells(torch.arange(3), (edge, edge, edge), 0.75)
    assert mask.visible.shape == (3, kept)
    for grid, visible in zip(mask.grid, mask.visible, strict=True):
        assert visible.tolist() == (~grid).flatten().nonzero()[:, 0].tolist()


def test_each_cell_is_hidden_equally_often() -> None:
    samples, cells = 4000, 27
    mask = random_cells(torch.arange(samples), (3, 3, 3), 0.7)
    share = hidden_count(cells, 0.7) / cells
    counts = mask.grid.flatten(1).sum(0).double()
    # Cells of a sample exclude each other, so that the statistic has 26 degrees of freedom.
    variance = samples * share * (1 - share) * cells / (cells - 1)
    statistic = float(((counts - samples * share) ** 2 / variance).sum())
    assert abs(statistic - 26) < 6 * math.sqrt(2 * 26)


def test_each_subset_is_drawn_equally_often() -> None:
    mask = random_cells(torch.arange(6000), (1, 2, 3), 0.5)
    drawn = [tuple(row) for row in mask.hidden.tolist()]
    subsets = list(itertools.combinations(range(6), 3))
    counts = [drawn.count(subset) for subset in subsets]
    assert sum(counts) == 6000
    statistic = sum((count - 300) ** 2 / 300 for count in counts)
    assert abs(statistic - 19) < 6 * math.sqrt(2 * 19)


def test_views_and_samples_hide_independent_cells() -> None:
    keys = torch.arange(300)
    u = random_cells(derive_keys(keys, 1), (6, 6, 6), 0.7).grid.flatten(1)
    v = random_cells(derive_keys(keys, 2), (6, 6, 6), 0.7).grid.flatten(1)
    expected = 152 * 152 / 216  # cells hidden in both, if independent
    spread = math.sqrt(152 * (152 / 216) * (64 / 216) * (64 / 215))  # hypergeometric
    for one, other in ((u, v), (u, u.roll(1, 0))):
        overlap = (one & other).sum(1).double()
        assert abs(float(overlap.mean()) - expected) < 6 * spread / math.sqrt(len(keys))
        assert abs(float(overlap.std()) / spread - 1) < 0.25


def test_mask_follows_from_the_key_alone() -> None:
    keys = torch.tensor([5, -7, 2**62])
    together = random_cells(keys, (4, 4, 4), 0.7)
    torch.manual_seed(1)
    torch.rand(10)
    alone = [random_cells(keys[i : i + 1], (4, 4, 4), 0.7) for i in range(3)]
    assert torch.equal(together.grid, torch.cat([mask.grid for mask in alone]))
    assert torch.equal(together.hidden, torch.cat([mask.hidden for mask in alone]))


def test_cells_are_repeated_over_tokens_and_voxels() -> None:
    cells = random_cells(torch.tensor([3]), (2, 3, 2), 0.5).grid
    fine = upsample_cells(cells, (8, 12, 8))
    for z, y, x in itertools.product(range(8), range(12), range(8)):
        assert fine[0, z, y, x] == cells[0, z // 4, y // 4, x // 4]
    with pytest.raises(ValueError, match="do not divide"):
        upsample_cells(cells, (8, 13, 8))
