"""Suggestions keep the batch of a step, and fit into what is free."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backend.config import TrainConfig
from backend.suggestions import Seen, scans_that_fit, suggested

SEEN = Seen(
    at_once=8,
    memory_mb=3000,
    memory_free_mb=10000,
    memory_per_scan_mb=500,
    step_s=1.0,
    read_s=0.01,
    bf16=False,
)


def asked(seen: Seen, *, share: int = 8, workers: int = 2, least: int = 1, **train: object) -> dict:
    config = TrainConfig(batch_size=8, **train)
    return suggested(config, share=share, workers=workers, least=least, seen=seen)


@pytest.mark.parametrize(
    ("free_mb", "fit", "parts"),
    [
        (10000, 20, 1),
        (3334, 8, 1),
        (3000, 7, 2),
        (1800, 5, 2),
        (1000, 3, 4),
        (200, 2, 4),
        (0, 2, 4),
    ],
)
def test_a_batch_is_cut_into_as_few_parts_as_fit_into_nine_tenths(
    free_mb: int, fit: int, parts: int
) -> None:
    seen = replace(SEEN, memory_free_mb=free_mb)
    assert scans_that_fit(seen) == fit
    assert asked(seen)["train.accumulate"] == parts


def test_a_part_has_as_many_scans_as_the_method_needs() -> None:
    seen = replace(SEEN, memory_free_mb=200, memory_mb=4000)
    assert scans_that_fit(seen) == 0
    assert asked(seen)["train.accumulate"] is None
    three = replace(SEEN, memory_free_mb=1000)
    assert asked(three, least=4)["train.accumulate"] is None


def test_threads_are_as_many_as_keep_up_and_no_fewer_than_are_set() -> None:
    assert asked(SEEN)["data.workers"] == 2
    slow = replace(SEEN, read_s=0.5)
    assert asked(slow)["data.workers"] == 4
    assert asked(slow, workers=6)["data.workers"] == 6


def test_precision_is_changed_only_where_the_device_has_more() -> None:
    assert asked(SEEN)["train.precision"] == "auto"
    assert asked(SEEN, precision="fp32")["train.precision"] == "fp32"
    gpu = replace(SEEN, bf16=True)
    assert asked(gpu, precision="fp32")["train.precision"] == "bf16"
    assert asked(gpu)["train.precision"] == "auto"
