from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shave.backends.target import Target
from shave.backends.targets import resolve
from shave.backends.tvm.kernels import softmax
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.softmax import SoftmaxSchedule, SoftmaxShape
from tests.backends.tvm.kernels.execution import TOLERANCE, Array, compiled, each_target, random, unwritten


def check(shape: SoftmaxShape, target: Target, schedule: SoftmaxSchedule | None = None, x: Array | None = None) -> None:
    """Build a kernel, call it and compare with the reference, relative to each element."""
    kernel = compiled(softmax.build(shape, schedule or softmax.default(shape, target), target, Epilogue()), target)
    x = random(shape.rows or 6, shape.columns) * np.float32(5) if x is None else x
    y = unwritten(*x.shape)
    kernel(x, y)
    np.testing.assert_allclose(y, softmax.reference(x, shape), **{**TOLERANCE, "atol": 1e-6 if shape.log else 1e-37})


@each_target
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("columns", [1, 13, 200])
def test_rows(columns, log, target):
    check(SoftmaxShape(5, columns, log), target)


def test_rows_known_only_at_run_time():
    check(SoftmaxShape(None, 21), resolve("x86-64-v3"))


def test_tasks_that_do_not_come_out_even():
    check(SoftmaxShape(7, 21), resolve("x86-64-v3"), SoftmaxSchedule(3))


@pytest.mark.filterwarnings("ignore:invalid value")
def test_infinities_and_nan():
    x = random(5, 21)
    x[0, 3] = np.nan
    x[1, 20] = -np.inf
    x[2] = -np.inf
    x[3, 2] = np.inf
    x[4] *= 1e4
    check(SoftmaxShape(5, 21), resolve("x86-64-v3"), x=x)


def test_small_problems_wake_no_thread():
    target = replace(resolve("x86-64-v3"), cores=8)
    assert softmax.default(SoftmaxShape(16, 64), target).rows >= 16
    assert softmax.default(SoftmaxShape(1 << 14, 64), target).rows == 1 << 11
