"""Every observer over one matrix: dtypes, ranks, and data at the edge of what can be expected."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from shave.passes.quantize.affine import ACTIVATIONS, UINT8
from shave.passes.quantize.observers import OBSERVERS
from shave.passes.quantize.observers.histogram import BINS, Histogram

NAMES = list(OBSERVERS)


def observed(name: str, *batches: torch.Tensor, scheme: str = "uint8") -> tuple[float, float]:
    observer = OBSERVERS[name]()
    for batch in batches:
        observer.observe(batch)
    return observer.range(ACTIVATIONS[scheme])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32])
@pytest.mark.parametrize(("rank", "scheme"), [(0, "uint8"), (1, "int8"), (2, "int16"), (4, "uint8"), (5, "int8")])
def test_the_range_lies_in_what_was_seen(name: str, scheme: str, dtype: torch.dtype, rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    values = (torch.randn([3, 2, 5, 4, 2][:rank], generator=generator) * 10).to(dtype)
    low, high = observed(name, values, values[:1] if rank else values, scheme=scheme)
    assert min(float(values.min()), 0) <= low <= high <= max(float(values.max()), 0)
    if values.numel() > 1:
        assert high - low > 0.1 * float(values.max().double() - values.min().double())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("value", "count"), [(0.0, 9), (3.5, 1), (-2.0, 64), (1e-40, 2), (-1e-40, 1), (3e38, 7)])
def test_a_constant_is_its_own_range(name: str, value: float, count: int) -> None:
    low, high = observed(name, torch.full((count,), value))
    want = float(torch.tensor(value))
    assert (min(low, 0.0), max(high, 0.0)) == (min(want, 0.0), max(want, 0.0))
    got = UINT8.fit(low, high).round(torch.tensor(value))
    assert float(got) == pytest.approx(want, rel=2e-7, abs=2.0**-101)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_gives_zero(name: str) -> None:
    assert observed(name) == (0.0, 0.0)
    assert observed(name, torch.zeros(0, 3)) == (0.0, 0.0)
    assert observed(name, torch.tensor([float("inf"), float("nan")])) == (0.0, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_values_that_are_not_finite_are_left_out(name: str) -> None:
    plain = torch.randn(4, 100, generator=torch.Generator().manual_seed(1))
    spoiled = torch.cat([plain.reshape(-1), torch.tensor([float("inf"), -float("inf"), float("nan")])])
    assert observed(name, spoiled) == observed(name, plain)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "moving-average"])
def test_batches_and_their_order_do_not_matter(name: str) -> None:
    batches = [torch.randn(50, generator=torch.Generator().manual_seed(seed)) * (seed + 1) for seed in range(5)]
    once = observed(name, torch.cat(batches))
    assert observed(name, *batches) == once
    assert observed(name, *reversed(batches)) == once


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_flat(name: str) -> None:
    observer, generator = OBSERVERS[name](), torch.Generator().manual_seed(0)

    def feed(count: int) -> None:
        for _ in range(count):
            observer.observe(torch.randn(512, generator=generator) * 7)

    feed(20)
    tracemalloc.start()
    feed(200)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 200_000  # 200 batches hold as many bytes twice over


def test_a_moving_average_follows_the_batches() -> None:
    batches = [torch.tensor([-1.0 * k, 2.0 * k]) for k in range(1, 5)]
    assert observed("moving-average", *batches) == pytest.approx((-2.5, 5.0))  # the plain mean of few batches


def test_a_percentile_is_that_of_the_values() -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(2))
    observer = OBSERVERS["percentile"](99.0)  # type: ignore[call-arg]
    observer.observe(values)
    want = np.quantile(values.numpy(), [0.01, 0.99])
    np.testing.assert_allclose(observer.range(UINT8), want, atol=2 * (values.max() - values.min()).item() / BINS)


@pytest.mark.parametrize("scheme", ["uint8", "int8"])
@pytest.mark.parametrize("outlier", [6.0, 40.0, 400.0])
@pytest.mark.parametrize("rectified", [False, True])
def test_mse_is_near_the_best_of_a_fine_search(scheme: str, outlier: float, rectified: bool) -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(3))
    values[0] = outlier
    values = values.relu() if rectified else values
    integers = ACTIVATIONS[scheme]

    def error(low: float, high: float) -> float:
        return float((integers.fit(low, high).round(values.double()) - values).square().mean())

    low, high = float(values.min()), float(values.max())
    best = min(error(low * a, high * b) for a in np.linspace(0.3, 1, 15) for b in np.linspace(0.005, 1, 200))
    assert error(*observed("mse", values, scheme=scheme)) <= 1.1 * best
    assert error(*observed("mse", values, scheme=scheme)) <= error(low, high) * 1.001


@pytest.mark.parametrize(("name", "outlier", "limit"), [("percentile", 1e4, 50), ("entropy", 60, 40), ("mse", 60, 50)])
def test_a_far_outlier_is_clipped(name: str, outlier: float, limit: float) -> None:
    values = torch.randn(300_000, generator=torch.Generator().manual_seed(4))
    values[7] = outlier
    _, high = observed(name, values)
    assert 3 < high < limit


def test_a_histogram_counts_every_value_in_its_bin() -> None:
    generator = torch.Generator().manual_seed(5)
    values = torch.cat([torch.randn(1000, generator=generator) * scale for scale in (1e-3, 1.0, 37.0)])
    histogram = Histogram()
    for batch in values.split(100):
        histogram.add(batch, float(batch.min()), float(batch.max()))
    centres, counts = histogram.bins()
    places = np.floor(values.double().numpy() / histogram.width)
    wanted, number = np.unique(places, return_counts=True)
    np.testing.assert_array_equal(counts, number)
    np.testing.assert_allclose(centres, (wanted + 0.5) * histogram.width, atol=histogram.width)
    assert BINS / 2 - 2 <= (histogram.high - histogram.low) / histogram.width <= BINS
