"""Products of codes that both arrive with the call, against integers in NumPy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shave.backends.targets import resolve
from shave.backends.tvm.kernels import batch_dot
from shave.backends.tvm.kernels.batch_dot import BatchDotSchedule, BatchDotShape
from shave.backends.tvm.kernels.epilogue import Activation, Bias, Epilogue, Quantize, Residual
from tests.backends.tvm.kernels.execution import (
    CODES,
    assert_same,
    codes,
    compiled,
    each_integer_target,
    row_operands,
)

FULL = Epilogue((Residual(), Activation("sigmoid"), Bias()))
PLAIN = Epilogue()
REQUANTIZE = Epilogue((Quantize(),))
layouts = pytest.mark.parametrize("transposed", [False, True], ids=["[b,K,N]", "[b,N,K]"])


def check(shape, target, epilogue=PLAIN, extents=(), schedule=None, zeros=((131, 17),)):
    """Build a kernel once, call it for each (batch, rows, inner, columns) and pair of zero points, and compare."""
    schedule = schedule or batch_dot.default(shape, target)
    kernel = compiled(batch_dot.build(shape, schedule, target, epilogue), target)
    known = (shape.batch, shape.rows, shape.inner, shape.columns)
    for (batch, rows, inner, columns), both in itertools.product(extents or [known], zeros):
        a = codes(batch, rows, inner)
        b = codes(batch, columns, inner) if shape.transposed else codes(batch, inner, columns)
        operands = row_operands(epilogue, (batch, rows, columns))
        scale = np.float32(1 / 100 / inner**0.5)
        c = np.zeros((batch, rows, columns), epilogue.dtype)
        kernel(a, b, np.array(both, np.int32), np.array([scale], np.float32), *operands, c)
        exact = batch_dot.reference(a, b, both, float(scale), shape, epilogue, operands)
        assert_same(c, exact, epilogue, CODES)


@each_integer_target
@layouts
def test_is_exact(transposed, target):
    for rows, inner, columns in ((1, 3, 7), (30, 33, 99), (4, 90, 17)):
        check(BatchDotShape(2, rows, inner, columns, transposed), target)
    check(BatchDotShape(2, 9, 64, 200, transposed), target, REQUANTIZE)


@each_integer_target
@layouts
def test_everything_known_only_at_run_time(transposed, target):
    extents = [(1, 1, 1, 1), (2, 13, 66, 100), (3, 4, 8, 32), (2, 30, 17, 33), (1, 6, 64, 64)]
    check(BatchDotShape(None, None, None, None, transposed), target, FULL, extents=extents)


@layouts
def test_any_one_extent_known_only_at_run_time(transposed):
    known = (2, 9, 37, 21)
    for unknown in range(4):
        extents = [None if i == unknown else n for i, n in enumerate(known)]
        check(BatchDotShape(*extents, transposed), resolve("x86-64-v3"), REQUANTIZE, extents=[known])


@each_integer_target
def test_zero_points(target):
    check(BatchDotShape(1, 5, 23, 18, True), target, zeros=list(itertools.product((0, 128, 255), (0, 128, 255))))


@layouts
def test_groups_of_panels_and_shares_of_rows(transposed):
    for panels, share, rows in ((1, 1, 23), (2, 2, None), (9, 1, None), (2, 2, 23)):
        shape = BatchDotShape(2, rows, 9, 50, transposed)
        check(shape, resolve("x86-64-v3"), schedule=BatchDotSchedule(4, 2, panels, share), extents=[(2, 23, 9, 50)])


@layouts
def test_every_candidate_computes_the_same(transposed):
    shape, target = BatchDotShape(2, 21, 40, 90, transposed), resolve("x86-64-v3")
    for schedule in batch_dot.candidates(shape, target)[::3]:
        check(shape, target, schedule=schedule)


def test_a_panel_of_a_long_reduction_fits_the_cache():
    target = resolve("x86-64-v3")
    for schedule in batch_dot.candidates(BatchDotShape(1, 64, 1 << 14, 1 << 10), target):
        assert schedule.panels == 1


@pytest.mark.sweep
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 140), st.integers(1, 80)),
    st.sets(st.integers(0, 3)),
    st.booleans(),
    st.sampled_from(["x86-64-v3", "x86-64-v4", "x86-64-v4-vnni"]),
)
@settings(max_examples=100, deadline=None)
def test_random_shapes_are_exact(extents, unknown, transposed, name):
    shape = BatchDotShape(*(None if i in unknown else n for i, n in enumerate(extents)), transposed)
    check(shape, resolve(name), extents=[extents])
