from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shave.backends.target import Target
from shave.backends.targets import resolve
from shave.backends.tvm.kernels import normalise
from shave.backends.tvm.kernels.base import unblock_channels
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.normalise import NormaliseSchedule, NormaliseShape
from tests.backends.tvm.kernels.execution import (
    TOLERANCE,
    blocked_with_poison,
    compiled,
    each_target,
    random,
    unwritten,
)


def check(
    shape: NormaliseShape,
    target: Target,
    schedule: NormaliseSchedule | None = None,
    rows: int = 6,
    positions: int = 5,
    mean: float = 0.0,
) -> None:
    """Build a kernel, call it and compare with the reference."""
    kernel = compiled(normalise.build(shape, schedule or normalise.default(shape, target), target, Epilogue()), target)
    rows = shape.rows or rows
    affine = [random(shape.affine) + i for i, present in enumerate((shape.weight, shape.bias)) if present]
    if shape.positions == 0:
        x = random(rows, shape.columns) + np.float32(mean)
        y = unwritten(rows, shape.columns)
    else:
        positions = shape.positions or positions
        x = blocked_with_poison(random(rows, shape.columns, positions) + np.float32(mean), target.lanes)
        y = unwritten(*x.shape) if shape.blocked else unwritten(rows, positions, shape.columns)
    kernel(x, *affine, y)
    if shape.blocked:
        y = unblock_channels(y, shape.columns).swapaxes(1, 2)
    np.testing.assert_allclose(y, normalise.reference(x, affine, shape), **TOLERANCE)


@each_target
@pytest.mark.parametrize("columns", [1, 37, 200])
def test_rows(columns, target):
    check(NormaliseShape(5, columns, 1e-5), target)


@each_target
@pytest.mark.parametrize("channels", [5, 32, 50])
def test_channels_of_a_blocked_tensor(channels, target):
    check(NormaliseShape(2, channels, 1e-5, positions=7), target)


@each_target
@pytest.mark.parametrize("channels", [5, 32, 50])
def test_channels_that_stay_blocked(channels, target):
    check(NormaliseShape(2, channels, 1e-5, positions=7, blocked=True), target)


@each_target
def test_groups_of_channels(target):
    check(NormaliseShape(6, 5 * 21, 1e-5, groups=3, channels=5), target)


@pytest.mark.parametrize(("weight", "bias"), [(True, False), (False, True), (False, False)])
def test_without_weight_or_bias(weight, bias):
    target = resolve("x86-64-v3")
    shape = NormaliseShape(5, 19, 1e-5, weight=weight, bias=bias)
    check(shape, target)
    check(replace(shape, rows=6, columns=18, groups=2, channels=3), target)


@each_target
def test_root_mean_square(target):
    check(NormaliseShape(5, 37, 1e-5, centred=False, bias=False), target, mean=1.0)


def test_extents_known_only_at_run_time():
    target = resolve("x86-64-v3")
    check(NormaliseShape(None, 37, 1e-5), target)
    check(NormaliseShape(None, 20, 1e-5, positions=None), target)


def test_a_large_mean_takes_no_digits_from_the_deviation():
    check(NormaliseShape(5, 64, 1e-5, weight=False, bias=False), resolve("x86-64-v3"), mean=16.0)


def test_tasks_that_do_not_come_out_even():
    check(NormaliseShape(7, 19, 1e-5), resolve("x86-64-v3"), NormaliseSchedule(3))


def test_small_problems_wake_no_thread():
    target = replace(resolve("x86-64-v3"), cores=8)
    assert normalise.default(NormaliseShape(16, 64, 1e-5), target).rows >= 16
    assert normalise.default(NormaliseShape(1 << 14, 64, 1e-5), target).rows == 1 << 11


@pytest.mark.sweep
@given(st.integers(1, 20), st.integers(1, 300), st.sampled_from([0, 1, 7]), st.sampled_from([3, 4]))
@settings(max_examples=60, deadline=None)
def test_random_shapes_agree_with_the_reference(rows, columns, positions, level):
    check(NormaliseShape(rows, columns, 1e-3, positions=positions), resolve(f"x86-64-v{level}"))
