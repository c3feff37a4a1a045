"""Clustering of numbers, against SciPy's k-means from the same starts and against every partition of a few values."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.cluster.vq import kmeans2

from shave.passes.codebook.kmeans import STARTS, Line, equal_masses, kmeans, middles

RNG = np.random.default_rng


def draw(count: int, below: int) -> Any:
    return RNG(0).permutation(below)[:count]


def error(values: Any, centres: Any, weights: Any = 1.0) -> float:
    return float((weights * (values[:, None] - centres).__abs__().min(1) ** 2).sum())


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("clusters", [2, 5, 16])
def test_it_ends_where_scipy_ends(start: str, clusters: int) -> None:
    values = RNG(clusters).normal(size=999)
    line = Line.of(values)
    first = STARTS[start](line, clusters, draw)
    assert first.shape == (clusters,)
    theirs, labels = kmeans2(values[:, None], first[:, None], iter=400, minit="matrix", missing="raise")
    assert len(set(labels)) == clusters
    np.testing.assert_allclose(kmeans(line, first, 400), np.sort(theirs[:, 0]), rtol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_few_values_come_close_to_the_best_partition(seed: int) -> None:
    values = np.sort(RNG(seed).normal(size=11))
    best = min(
        sum(((part - part.mean()) ** 2).sum() for part in np.split(values, cuts))
        for cuts in combinations(range(1, 11), 2)
    )
    line = Line.of(values)
    found = min(error(values, kmeans(line, STARTS[start](line, 3, draw))) for start in STARTS)
    assert best - 1e-12 <= found <= 1.3 * best


def test_weights_count_as_copies() -> None:
    values, copies = RNG(1).normal(size=200), RNG(2).integers(1, 5, 200)
    start = np.array([-1.0, 0.0, 0.5, 2.0])
    repeated = kmeans(Line.of(np.repeat(values, copies)), start)
    np.testing.assert_allclose(kmeans(Line.of(values, copies), start), repeated, rtol=1e-9)


def test_a_centre_without_values_splits_the_cluster_that_errs_most() -> None:
    values = np.concatenate([np.zeros(50), np.linspace(10, 20, 101)])
    found = kmeans(Line.of(values), np.array([-500.0, 0.0, 15.0]))
    assert found[0] == 0
    np.testing.assert_allclose(found[1:], [12.5, 17.5], atol=0.2)


def test_each_centre_is_the_mean_of_what_is_nearest() -> None:
    values = RNG(3).standard_cauchy(5000)
    for start in STARTS.values():
        line = Line.of(values)
        centres = kmeans(line, start(line, 16, draw), 10_000)
        assert (np.diff(centres) > 0).all()
        labels = np.abs(values[:, None] - centres).argmin(1)
        np.testing.assert_allclose([values[labels == k].mean() for k in range(16)], centres, rtol=1e-6)


def test_equal_masses_are_means_of_quantile_ranges() -> None:
    values = RNG(4).permutation(np.arange(100.0))
    np.testing.assert_allclose(equal_masses(Line.of(values), 4), [12, 37, 62, 87], atol=0.5)
    tied = np.concatenate([np.zeros(90), np.arange(1.0, 11)])
    assert equal_masses(Line.of(tied), 4)[0] == 0
    assert (np.diff(equal_masses(Line.of(tied), 4)) > 0).all()


def test_different_values_are_counted() -> None:
    line = Line.of(np.array([3.0, 1.0, 3.0, -2.0]))
    np.testing.assert_array_equal(line.distinct(3), [-2, 1, 3])
    assert line.distinct(2) is None
    np.testing.assert_array_equal(middles(np.array([[0.0, 1.0, 4.0]])), [[0.5, 2.5]])
