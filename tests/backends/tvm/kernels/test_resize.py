from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from shave.backends.targets import resolve
from shave.backends.tvm.kernels import resize
from shave.backends.tvm.kernels.base import unblock_channels
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.resize import ResizeShape
from tests.backends.tvm.kernels.execution import blocked_with_poison, compiled, each_target, random, unwritten

TORCH = {
    "linear": {1: "linear", 2: "bilinear", 3: "trilinear"},
    "cubic": {2: "bicubic"},
    "nearest": dict.fromkeys((1, 2, 3), "nearest"),
    "nearest-exact": dict.fromkeys((1, 2, 3), "nearest-exact"),
}


def torchs(x, shape):
    """What torch makes of it, in float32: near whole numbers float64 may take another pixel."""
    mode = TORCH[shape.mode][len(shape.spatial)]
    options = {} if shape.taps == 1 else {"align_corners": shape.align_corners}
    given = torch.from_numpy(x)
    if None in shape.scales:
        return F.interpolate(given, shape.out_spatial, mode=mode, **options).numpy()
    return F.interpolate(given, scale_factor=shape.scales, mode=mode, **options).numpy()


def check(shape, target, schedule=None, batch=None):
    """Build a kernel, call it and compare with torch."""
    n = batch or shape.batch or 1
    x = random(n, shape.channels, *shape.spatial)
    y = unwritten(n, -(-shape.channels // target.lanes), *shape.out_spatial, target.lanes)
    kernel = compiled(resize.build(shape, schedule or resize.default(shape, target), target, Epilogue()), target)
    kernel(blocked_with_poison(x, target.lanes), resize.pack(shape), y)
    found = unblock_channels(y, shape.channels)
    # Weights next to 0 differ by a rounding of the position, which grows with the extent.
    np.testing.assert_allclose(found, torchs(x, shape), rtol=1e-5, atol=3e-5 * max(shape.spatial) / 8)


SHAPES = {
    "nearest": ResizeShape("nearest", 2, 20, (5, 7), (8, 11)),
    "nearest, twice": ResizeShape("nearest", 1, 32, (4, 6), (8, 12)),
    "nearest, smaller": ResizeShape("nearest", 1, 5, (9, 10), (3, 4)),
    "nearest, scaled": ResizeShape("nearest", 1, 16, (5, 7), (8, 11), scales=(1.7, 1.7)),
    "nearest exact": ResizeShape("nearest-exact", 1, 20, (5, 7), (8, 11)),
    "bilinear": ResizeShape("linear", 2, 20, (5, 7), (8, 11)),
    "bilinear, corners": ResizeShape("linear", 1, 33, (5, 7), (10, 13), True),
    "bilinear, scaled": ResizeShape("linear", 1, 16, (5, 7), (8, 11), scales=(1.7, 1.7)),
    "bilinear, smaller": ResizeShape("linear", 1, 16, (12, 30), (3, 4)),
    "bilinear, one pixel": ResizeShape("linear", 1, 16, (1, 1), (3, 2)),
    "bilinear, to one pixel": ResizeShape("linear", 1, 16, (4, 3), (1, 1), True),
    "bilinear, unchanged": ResizeShape("linear", 1, 16, (4, 3), (4, 3)),
    "bicubic": ResizeShape("cubic", 2, 20, (5, 7), (8, 11)),
    "bicubic, corners": ResizeShape("cubic", 1, 20, (5, 7), (8, 11), True),
    "bicubic, smaller": ResizeShape("cubic", 1, 7, (13, 9), (4, 5)),
    "1-d linear": ResizeShape("linear", 2, 20, (9,), (20,)),
    "1-d nearest": ResizeShape("nearest", 2, 20, (9,), (20,)),
    "trilinear": ResizeShape("linear", 1, 18, (3, 4, 5), (4, 5, 9)),
    "3-d nearest": ResizeShape("nearest", 1, 18, (3, 4, 5), (4, 5, 9)),
}


@each_target
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_torch(shape, target):
    for schedule in resize.candidates(shape, target):
        check(shape, target, schedule)


@pytest.mark.parametrize("batch", [1, 3])
def test_batch_known_only_at_run_time(batch):
    for name in ("nearest", "bilinear", "bicubic"):
        check(dataclasses.replace(SHAPES[name], batch=None), resolve("x86-64-v3"), batch=batch)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_tasks_that_do_not_divide_the_rows(rows):
    target = resolve("x86-64-v3")
    schedule = dataclasses.replace(resize.default(SHAPES["bilinear"], target), rows=rows)
    check(SHAPES["bilinear"], target, schedule)


def test_reference_agrees_with_torch():
    for shape in SHAPES.values():
        x = random(shape.batch, shape.channels, *shape.spatial)
        np.testing.assert_allclose(resize.reference(x, shape), torchs(x, shape), rtol=1e-5, atol=3e-5)


def test_rows_are_combined_where_that_takes_fewer_loads():
    target = resolve("x86-64-v4")
    assert resize.default(SHAPES["bicubic"], target).combine
    assert not resize.default(SHAPES["bilinear, smaller"], target).combine


def test_unknown_interpolation_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown interpolation 'lanczos': choose one of nearest,"):
        dataclasses.replace(SHAPES["bilinear"], mode="lanczos")


@st.composite
def shapes(draw):
    mode = draw(st.sampled_from(list(TORCH)))
    rank = draw(st.sampled_from(list(TORCH[mode])))
    spatial = tuple(draw(st.integers(1, 12)) for _ in range(rank))
    out = tuple(draw(st.integers(1, 20)) for _ in range(rank))
    batch, align = draw(st.sampled_from([None, 1, 2])), draw(st.booleans()) and resize.TAPS[mode] > 1
    return ResizeShape(mode, batch, draw(st.integers(1, 40)), spatial, out, align)


@pytest.mark.sweep
@given(shapes(), st.sampled_from(["x86-64-v3", "x86-64-v4"]))
@settings(max_examples=150, deadline=None)
def test_random_shapes_agree_with_torch(shape, name):
    check(shape, resolve(name), batch=shape.batch or 2)


@given(shapes())
@settings(max_examples=6, deadline=None, derandomize=True)
def test_some_random_shapes_agree_with_torch(shape):
    check(shape, resolve("x86-64-v3"), batch=shape.batch or 2)
