"""What a step is said to cost, beside what counting by hand says."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import Tensor

from backend import cost
from backend.config import PretrainConfig, load_config
from backend.cost import Cost, FusedAttention, Observer, Rates, rates_of, step_cost, views_of_noise
from backend.methods import build_method


def empty(*shape: int, learns: bool = False) -> Tensor:
    return torch.empty(shape, device="meta", requires_grad=learns)


def test_time_is_the_sum_of_what_each_kind_of_work_takes() -> None:
    work = {"product_flop": 6.0, "convolution_flop": 4.0, "traffic_bytes": 3.0}
    step = Cost(**work, mapped_bytes=10.0, peak_bytes=9.0)
    rates = {"product_flop": 2.0, "convolution_flop": 4.0, "traffic_bytes": 1.0}
    assert step.seconds(Rates(**rates, mapped_bytes=2.0)) == 12.0
    # Where pages are kept, large tensors cost nothing more.
    assert step.seconds(Rates(**rates, mapped_bytes=math.inf)) == 7.0


def test_the_rates_of_this_machine_are_those_of_a_computer() -> None:
    rates = asdict(rates_of(torch.device("cpu")))
    assert rates.pop("mapped_bytes") > 1e7
    assert all(1e7 < rate < 1e14 for rate in rates.values()), rates


def test_products_and_convolutions_are_counted_with_their_gradients() -> None:
    x, w = empty(5, 7, learns=True), empty(7, 3, learns=True)
    image, kernel = empty(1, 2, 4, 4, 4), empty(6, 2, 3, 3, 3, learns=True)
    with Observer(()) as seen:
        (x @ w).sum().backward()
        F.conv3d(image, kernel, padding=1).sum().backward()
    assert seen.product_flop == 3 * 2 * 5 * 7 * 3
    # The image needs no gradient.
    assert seen.convolution_flop == 2 * 2 * 4**3 * 6 * 2 * 27


def test_what_else_there_is_costs_what_it_reads_and_writes_and_views_cost_nothing() -> None:
    a, b = empty(10, 10), empty(10, 10)
    with Observer((a, b)) as seen:
        (a + b).T.reshape(10, 10)[2:]
    assert seen.traffic_bytes == 3 * 400


def test_the_peak_is_what_lives_at_once() -> None:
    present = empty(250)
    with Observer((present,)) as seen:
        for _ in range(3):
            twice = present + 1
            twice = twice.repeat(2)
            del twice
    assert seen.peak_bytes == 1000 + 1000 + 2000


def test_tensors_that_are_mapped_anew_are_told_by_the_size_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Between few scans and the batch many tensors grow beyond the limit.
    monkeypatch.setattr(cost, "MAP_BYTES", 3 * 2**20)
    scans = 8
    config = load_config(
        PretrainConfig, method="mae3d", preset="tiny", overrides=(f"train.batch_size={scans}",)
    )
    with torch.device("meta"):
        method = build_method(config.method, epochs=1).train()
        views = views_of_noise(config, samples=scans, device=torch.device("meta"))
    with Observer((*method.parameters(), *method.buffers())) as seen, FusedAttention():
        torch.autograd.backward(method(views, 0.0).total)
    large = sum(size for size in seen.made if size > cost.MAP_BYTES)
    assert 0 < large < sum(seen.made)
    assert step_cost(config).mapped_bytes == pytest.approx(large)


def test_attention_never_holds_its_logits() -> None:
    q, k, v = (empty(2, 3, 500, 8, learns=True) for _ in range(3))
    with Observer((q, k, v)) as seen, FusedAttention():
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    assert seen.peak_bytes < 4 * 2 * 3 * 500 * 500
    assert seen.product_flop == (2 + 5) * 2 * 2 * 3 * 500 * 500 * 8


def test_a_batch_in_parts_costs_the_arithmetic_of_all_and_the_memory_of_one() -> None:
    def counted(*overrides: str) -> Cost:
        return step_cost(
            load_config(PretrainConfig, method="glmae", preset="tiny", overrides=overrides)
        )

    whole = counted("train.batch_size=4")
    parts = counted("train.batch_size=8", "train.accumulate=2")
    assert parts.peak_bytes == pytest.approx(whole.peak_bytes, rel=0.01)
    assert parts.product_flop == 2 * whole.product_flop
    assert whole.traffic_bytes < parts.traffic_bytes < 2 * whole.traffic_bytes


def test_one_scan_is_counted_where_weights_outweigh_what_scans_take() -> None:
    config = load_config(
        PretrainConfig,
        method="pgl",
        preset="iso",
        overrides=("train.batch_size=1", "train.accumulate=1", "train.optimizer=adamw"),
    )
    with torch.device("meta"):
        method = build_method(config.method, epochs=1).train()
        views = views_of_noise(config, samples=1, device=torch.device("meta"))
        moments = [torch.empty_like(p) for p in (*method.parameters(),) * 2 if p.requires_grad]
    with Observer((*method.parameters(), *method.buffers(), *moments)) as seen:
        torch.autograd.backward(method(views, 0.0).total)
    assert step_cost(config).peak_bytes == pytest.approx(seen.peak_bytes, rel=1e-6)


def test_the_peak_without_numbers_is_that_with_numbers() -> None:
    config = load_config(PretrainConfig, method="pgl", preset="tiny", overrides=())
    peaks = []
    for device in (torch.device("meta"), torch.device("cpu")):
        with device:
            method = build_method(config.method, epochs=1).train()
            views = views_of_noise(config, samples=2, device=device)
        with Observer((*method.parameters(), *method.buffers())) as seen:
            torch.autograd.backward(method(views, 0.0).total)
        peaks.append(seen.peak_bytes)
    assert abs(peaks[0] / peaks[1] - 1) < 0.02, peaks
