from __future__ import annotations

import numpy as np
import pytest
import torch

from shave.passes.factorize.fit import alternate
from shave.passes.factorize.metric import Metric
from tests.passes.factorize.layers import correlated, metric_of, random


def test_one_factor_becomes_the_solution_of_least_squares() -> None:
    basis, target = random(9, 4), random(9, 12, seed=1)

    def product(factors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return basis @ factors[0]

    (found,) = alternate((random(4, 12, seed=2),), product, target, Metric(), 4)
    wanted = np.linalg.lstsq(basis.numpy(), target.numpy(), rcond=None)[0]
    assert found.numpy() == pytest.approx(wanted, abs=1e-6)


def test_in_a_metric_it_is_that_of_weighted_least_squares() -> None:
    rows, target = correlated(6), random(5, 6, seed=1)
    basis, metric = random(3, 6, seed=2), metric_of(rows)
    (found,) = alternate((random(5, 3, seed=3),), lambda factors: factors[0] @ basis, target, metric, 20)
    x = (rows - rows.mean(0)).numpy()
    wanted = np.linalg.lstsq(x @ basis.numpy().T, x @ target.numpy().T, rcond=None)[0].T
    assert found.numpy() == pytest.approx(wanted, rel=0.02, abs=0.02)


def test_a_solution_stays() -> None:
    left, right = random(7, 2), random(2, 9, seed=1)
    found = alternate((left, right), lambda f: f[0] @ f[1], left @ right, Metric(), 3)
    assert (found[0] @ found[1]).numpy() == pytest.approx((left @ right).numpy(), abs=1e-12)
