from __future__ import annotations

import numpy as np
import pytest
import torch

from shave.passes.factorize.metric import Metric
from shave.passes.statistics import Moments, Sample
from tests.passes.factorize.layers import correlated, metric_of, random


def test_energy_is_that_of_the_outputs_about_their_mean() -> None:
    rows, matrix = correlated(8), random(5, 8)
    outputs = (rows @ matrix.T).numpy()
    wanted = ((outputs - outputs.mean(0)) ** 2).sum() / len(outputs)
    assert metric_of(rows).energy(matrix) == pytest.approx(wanted, rel=1e-3)
    assert np.trace(metric_of(rows).outputs(matrix).numpy()) == pytest.approx(wanted, rel=1e-3)
    assert Metric().energy(matrix) == pytest.approx((matrix.numpy() ** 2).sum())


@pytest.mark.parametrize("axes", [(0,), (0, 1), (2,), (0, 1, 2)])
def test_the_root_of_some_axes_counts_what_lies_along_them(axes: tuple[int, ...]) -> None:
    shape, rows = (3, 2, 2), correlated(12)
    root = metric_of(rows).root(shape, axes)
    assert root is not None
    others = [axis for axis in range(3) if axis not in axes]
    x = (rows - rows.mean(0)).reshape(-1, *shape).permute(0, *(1 + a for a in others), *(1 + a for a in axes))
    flat = x.reshape(-1, root.shape[0]).numpy()
    wanted = flat.T @ flat / len(rows)
    assert (root @ root.T).numpy() == pytest.approx(wanted, rel=0.05, abs=0.02 * np.abs(wanted).max())
    assert Metric().root(shape, axes) is None


def test_rows_stand_for_the_covariance_of_many_features() -> None:
    shape, rows = (3, 2, 2), correlated(12, 60)
    sample = Sample(12, torch.Generator().manual_seed(0))
    sample.add(rows)
    whole, sampled = metric_of(rows), Metric.of(sample)
    assert sampled.covariance is None
    assert (sampled.by_data, sampled.note) == (whole.by_data, whole.note)
    assert sampled.trace == pytest.approx(whole.trace, rel=1e-4)
    for seed in range(3):
        matrix = random(5, 12, seed=seed)
        assert sampled.apply(matrix).numpy() == pytest.approx(whole.apply(matrix).numpy(), rel=1e-3, abs=1e-4)
    for axes in ((0,), (0, 1), (0, 1, 2)):
        roots = [metric.root(shape, axes) for metric in (sampled, whole)]
        assert roots[0].numpy() == pytest.approx(roots[1].numpy(), rel=1e-3, abs=1e-3)


def test_few_rows_are_told_of_and_shrink() -> None:
    metric = metric_of(correlated(30, rows=20))
    assert metric.note.startswith("20 rows of data for 30 features: covariance shrunk by ")
    assert float(torch.linalg.eigvalsh(metric.covariance)[0]) > 0
    assert metric_of(correlated(30, rows=4000)).note == ""


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        (torch.zeros(0, 4), "0 rows of data are too few"),
        (torch.zeros(1, 4), "1 rows of data are too few"),
        (torch.zeros(9, 4), "never varies"),
        (torch.full((9, 4), 3.0), "never varies"),
        (torch.full((9, 4), float("nan")), "not finite"),
        (torch.full((9, 4), 1e200, dtype=torch.float64), "not finite"),
    ],
)
def test_data_of_no_use_leave_the_weights(rows: torch.Tensor, note: str) -> None:
    moments = Moments.empty(4)
    moments.add(rows)
    metric = Metric.of(moments)
    assert note in metric.note
    assert metric.covariance is None
    assert metric.mean is None
