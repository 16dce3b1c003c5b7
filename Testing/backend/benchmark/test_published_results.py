"""The committed benchmarks: their summaries follow from their rows, and they stay small."""

from __future__ import annotations

import pytest
from published_results import RESULTS, found_in, published, read_rows

from backend.benchmark.summary import summary_rows

LARGEST_BYTES = 1_500_000


@pytest.mark.parametrize("name", [folder.name for folder in published()])
def test_a_summary_is_what_the_rows_of_all_cases_say(name: str) -> None:
    folder = RESULTS / name
    assert read_rows(folder / "summary.csv") == summary_rows(found_in(folder))


@pytest.mark.parametrize("name", [folder.name for folder in published()])
def test_what_is_committed_of_a_benchmark_is_small(name: str) -> None:
    sizes = {path.name: path.stat().st_size for path in (RESULTS / name).iterdir()}
    assert max(sizes.values()) < LARGEST_BYTES, sizes
