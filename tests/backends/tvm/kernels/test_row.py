from __future__ import annotations

import numpy as np

from shave.backends.tvm.adapter import Expr
from shave.backends.tvm.kernels.row import exp_below_zero
from shave.backends.tvm.kernels.vector_math import Locals
from tests.backends.tvm.kernels.execution import each_target, elementwise


def _exp(x: Expr) -> Expr:
    return exp_below_zero(x, Locals())


@each_target
def test_exponential_below_zero_is_within_two_units(target):
    x = -np.concatenate([np.linspace(0, 87.25, 40000), np.logspace(-30, 0, 4096)]).astype(np.float32)
    x = np.resize(x, x.size // 16 * 16)
    exact = np.exp(x.astype(np.float64))
    result = elementwise(_exp, x, target.lanes, target)
    assert np.abs((result - exact) / np.spacing(exact.astype(np.float32))).max() <= 2


@each_target
def test_exponential_of_the_far_left_is_zero_and_nan_stays(target):
    values = [-87.4, -104.0, -1e4, -1e30, np.finfo(np.float32).min, -np.inf, 0.0, -0.0]
    x = np.resize(np.array(values, np.float32), 16)
    x[15] = np.nan
    result = elementwise(_exp, x, target.lanes, target)
    expected = np.where(np.isnan(x), np.nan, np.where(x < -80, 0, 1))
    np.testing.assert_array_equal(result, expected)
