from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers torch.ops.quantized_decomposed

from shave.backends.target import Target
from shave.backends.targets import resolve
from shave.backends.tvm.kernels import bounds
from shave.backends.tvm.kernels.bounds import BoundsSchedule, BoundsShape, Rule
from shave.backends.tvm.kernels.epilogue import Epilogue
from tests.backends.tvm.kernels.execution import Array, compiled, each_integer_target, random, unwritten

Q = torch.ops.quantized_decomposed
TENSOR = Rule(255, 2.0**-100, "low")
ROW = Rule(255, float(np.finfo(np.float32).eps), "nearer")
TARGET = resolve("x86-64-v3")


def found(x: Array, shape: BoundsShape, target: Target = TARGET, schedule: BoundsSchedule | None = None) -> Array:
    kernel = compiled(bounds.build(shape, schedule or bounds.default(shape, target), target, Epilogue()), target)
    result = unwritten(len(x), shape.numbers)
    kernel(x, result)
    return result


def rows_of_all_kinds(columns: int) -> Array:
    """Both signs, positive, negative, constant, zero, huge, tiny, and one value among zeros."""
    x = random(9, columns)
    x[1], x[2], x[3], x[4] = abs(x[1]), -abs(x[2]), 0.3, 0
    x[5] *= np.float32(3e37)
    x[6] *= np.float32(1e-5)
    x[7], x[8] = 0, -0.7
    x[7, columns // 2] = 5
    return x


@each_integer_target
@pytest.mark.parametrize("columns", [1, 7, 16, 77, 200])
def test_bounds_of_rows(columns, target):
    x = rows_of_all_kinds(columns)
    np.testing.assert_array_equal(found(x, BoundsShape(9, columns), target), bounds.reference(x))


@pytest.mark.parametrize("columns", [3, 40, 77])
def test_extents_known_only_at_run_time(columns):
    x = rows_of_all_kinds(columns)
    np.testing.assert_array_equal(found(x, BoundsShape(None, None)), bounds.reference(x))


def test_tasks_that_do_not_come_out_even():
    x = rows_of_all_kinds(21)
    np.testing.assert_array_equal(found(x, BoundsShape(9, 21), schedule=BoundsSchedule(4)), bounds.reference(x))


@each_integer_target
@pytest.mark.parametrize("columns", [1, 77])
def test_parameters_of_rows_are_those_of_torch(columns, target):
    x = rows_of_all_kinds(columns)
    scale, zero = Q.choose_qparams_per_token_asymmetric(torch.from_numpy(x), torch.int8)
    got = found(x, BoundsShape(9, columns, ROW), target)
    np.testing.assert_array_equal(got[:, 0], scale[:, 0].float().numpy())
    np.testing.assert_array_equal(got[:, 1], zero[:, 0].numpy() + 128)
    np.testing.assert_allclose(got[:, 2], 1 / scale[:, 0].numpy(), rtol=1e-7)


@each_integer_target
@pytest.mark.parametrize("low", [0, -128])
def test_parameters_of_a_tensor_are_those_of_torch(low, target):
    shape = BoundsShape(1, 77, replace(TENSOR, offset=low))
    kernel = compiled(bounds.build(shape, bounds.default(shape, target), target, Epilogue()), target)
    for row in rows_of_all_kinds(77):
        dtype, got = torch.uint8 if low == 0 else torch.int8, unwritten(1, 3)
        scale, zero = Q.choose_qparams.tensor(torch.from_numpy(row), low, low + 255, 2.0**-100, dtype)
        kernel(row[None], got)
        assert got[0].tolist() == [np.float32(float(scale)), int(zero), np.float32(1 / float(scale))]


def test_bounds_of_bounds_are_those_of_the_whole():
    x = rows_of_all_kinds(33)
    ends = found(x, BoundsShape(9, 33))
    np.testing.assert_array_equal(
        found(ends.reshape(1, -1), BoundsShape(1, 18, TENSOR)), found(x.reshape(1, -1), BoundsShape(1, 297, TENSOR))
    )


def test_small_problems_wake_no_thread():
    target = replace(TARGET, cores=8)
    assert bounds.default(BoundsShape(16, 64), target).rows >= 16
    assert bounds.default(BoundsShape(1 << 14, 64), target).rows == 1 << 11
