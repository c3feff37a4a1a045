from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from shave.backends.targets import resolve
from shave.backends.tvm.kernels import pooling
from shave.backends.tvm.kernels.base import unblock_channels
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.pooling import PoolSchedule, PoolShape
from tests.backends.tvm.kernels.execution import (
    TOLERANCE,
    blocked_with_poison,
    compiled,
    each_target,
    random,
    unwritten,
)


def check(shape, target, schedule=None, batch=None, x=None):
    """Build a kernel, call it and compare with the reference."""
    n = batch or shape.batch or 1
    x = random(n, shape.channels, *shape.spatial) if x is None else x
    y = unwritten(n, -(-shape.channels // target.lanes), *shape.out_spatial, target.lanes)
    kernel = compiled(pooling.build(shape, schedule or pooling.default(shape, target), target, Epilogue()), target)
    kernel(blocked_with_poison(x, target.lanes), y)
    found = unblock_channels(y, shape.channels)
    with np.errstate(invalid="ignore"):  # infinities of both signs in one mean
        expected = pooling.reference(x, shape)
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    return found


def windows(kind, spatial, kernel, stride=(), padding=(), dilation=(), ceil=False, channels=20, batch=1, **options):
    """A pooling whose outputs are as many as torch makes."""
    rank = len(spatial)
    stride, padding, dilation = stride or kernel, padding or (0,) * rank, dilation or (1,) * rank
    out = []
    for size, k, s, p, d in zip(spatial, kernel, stride, padding, dilation, strict=True):
        steps = size + 2 * p - d * (k - 1) - 1
        count = -(-steps // s) + 1 if ceil else steps // s + 1
        # torch drops a window that starts behind the input and its padding in front.
        out.append(count - (ceil and (count - 1) * s >= size + p))
    return PoolShape(kind, batch, channels, spatial, tuple(out), kernel, stride, padding, dilation, **options)


SHAPES = {
    "3x3, stride 2": windows("max", (15, 14), (3, 3), (2, 2), (1, 1), batch=2),
    "2x2": windows("max", (8, 33), (2, 2)),
    "ceil": windows("max", (13, 12), (3, 3), (2, 2), ceil=True),
    "dilated": windows("max", (11, 17), (3, 2), (1, 2), (1, 1), (2, 3)),
    "windows in the padding": windows("max", (3, 3), (2, 2), (1, 1), (1, 1), (4, 4)),
    "long windows": windows("max", (30,), (9,), (2,), (4,)),
    "mean": windows("mean", (14, 30), (2, 2), channels=33),
    "mean, padding counts": windows("mean", (7, 19), (3, 3), (1, 1), (1, 1)),
    "mean, padding does not count": windows("mean", (7, 19), (3, 3), (1, 1), (1, 1), count_padding=False),
    "mean, ceil": windows("mean", (12, 12), (3, 3), (2, 2), (1, 1), ceil=True),
    "mean, divisor": windows("mean", (7, 9), (3, 3), (2, 2), (1, 1), divisor=7),
    "1-d": windows("mean", (31,), (4,), (3,), (1,)),
    "3-d": windows("max", (5, 6, 7), (2, 3, 2), (2, 1, 1), (1, 1, 0)),
    "3-d mean": windows("mean", (5, 6, 7), (3, 3, 2), (2, 1, 1), (1, 1, 0)),
    "whole map": windows("mean", (7, 7), (7, 7), channels=40, batch=3),
    "whole line": windows("max", (5,), (5,)),
    "one pixel": windows("mean", (1, 1), (1, 1)),
    "adaptive": PoolShape("mean", 2, 20, (10, 13), (7, 5), adaptive=True),
    "adaptive, larger": PoolShape("max", 1, 5, (3, 4, 3), (5, 3, 7), adaptive=True),
}


@each_target
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_the_reference(shape, target):
    check(shape, target)


@pytest.mark.parametrize("batch", [1, 3])
def test_batch_known_only_at_run_time(batch):
    for name in ("3x3, stride 2", "whole map", "adaptive"):
        check(dataclasses.replace(SHAPES[name], batch=None), resolve("x86-64-v3"), batch=batch)


def test_every_tile_computes_the_same():
    target = resolve("x86-64-v3")
    for name in ("3x3, stride 2", "mean, padding does not count"):
        for pixels in (1, 2, 5, 7):
            check(SHAPES[name], target, PoolSchedule(pixels))


def test_candidates_fit_the_registers_and_the_best_comes_first():
    for name in ("x86-64-v3", "x86-64-v4"):
        target = resolve(name)
        for shape in SHAPES.values():
            found = pooling.candidates(shape, target)
            assert found[0] == pooling.default(shape, target)
            assert all(schedule.pixels < target.vector_registers for schedule in found)


@each_target
@pytest.mark.parametrize("name", ["3x3, stride 2", "whole line", "adaptive, larger", "mean"])
def test_nan_and_infinities_stay(name, target):
    shape = SHAPES[name]
    x = random(shape.batch, shape.channels, *shape.spatial)
    flat = x.reshape(-1)
    flat[::11], flat[5::13], flat[7::17] = np.nan, np.inf, -np.inf
    found = check(shape, target, x=x)
    assert np.isnan(found).any()
    assert not np.isnan(found).all()


def test_of_equal_maxima_the_first_stays():
    shape = windows("max", (1, 8), (1, 2), channels=1)
    x = np.array([0.0, -0.0, -0.0, 0.0, -0.0, -0.0, -1.0, -0.0], np.float32).reshape(1, 1, 1, 8)
    found = check(shape, resolve("x86-64-v3"), x=x)
    expected = F.max_pool2d(torch.from_numpy(x), (1, 2)).numpy()
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


def test_reference_agrees_with_torch():
    x = random(2, 20, 12, 12)
    given = torch.from_numpy(x).double()
    cases = [
        (windows("mean", (12, 12), (3, 3), (2, 2), (1, 1), ceil=True), F.avg_pool2d(given, 3, 2, 1, ceil_mode=True)),
        (
            windows("mean", (12, 12), (3, 3), (2, 2), (1, 1), ceil=True, count_padding=False),
            F.avg_pool2d(given, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        ),
        (windows("max", (12, 12), (3, 3), (2, 2), (1, 1), (2, 2)), F.max_pool2d(given, 3, 2, 1, 2)),
        (PoolShape("mean", 2, 20, (12, 12), (5, 7), adaptive=True), F.adaptive_avg_pool2d(given, (5, 7))),
    ]
    for shape, expected in cases:
        np.testing.assert_allclose(pooling.reference(x, shape), expected.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": (2,)}, "stride has 1 entries for 2 spatial axes"),
        ({"dilation": (2, 1)}, "the windows of a mean have no dilation"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SHAPES["mean"], **changes)


@st.composite
def shapes(draw):
    rank = draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    spatial = tuple(draw(st.integers(k, 15)) for k in kernel)
    stride = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    kind, ceil, counted = draw(st.sampled_from(["max", "mean"])), draw(st.booleans()), draw(st.booleans())
    channels, batch = draw(st.integers(1, 40)), draw(st.sampled_from([None, 1, 2]))
    return windows(
        kind, spatial, kernel, stride, padding, ceil=ceil, channels=channels, batch=batch, count_padding=counted
    )


@pytest.mark.sweep
@given(shapes(), st.sampled_from(["x86-64-v3", "x86-64-v4"]))
@settings(max_examples=150, deadline=None)
def test_random_shapes_agree_with_the_reference(shape, name):
    check(shape, resolve(name), batch=shape.batch or 2)


@given(shapes())
@settings(max_examples=6, deadline=None, derandomize=True)
def test_some_random_shapes_agree_with_the_reference(shape):
    check(shape, resolve("x86-64-v3"), batch=shape.batch or 2)
