import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shave.backends.targets import resolve
from shave.backends.tvm.kernels.batch_matmul import BatchMatmulSchedule, BatchMatmulShape
from shave.backends.tvm.kernels.epilogue import Activation, Bias, Epilogue, Residual
from tests.backends.tvm.kernels.execution import check_batch_matmul, each_target

FULL = Epilogue((Residual(), Activation("gelu"), Bias()))
layouts = pytest.mark.parametrize("transposed", [False, True], ids=["[b,K,N]", "[b,N,K]"])


@each_target
@layouts
@pytest.mark.parametrize(("rows", "inner", "columns"), [(1, 3, 7), (5, 16, 32), (30, 33, 99)])
def test_agrees_with_the_reference(rows, inner, columns, transposed, target):
    check_batch_matmul(BatchMatmulShape(2, rows, inner, columns, transposed), target, FULL)


@each_target
@layouts
def test_everything_known_only_at_run_time(transposed, target):
    extents = [(1, 1, 1, 1), (2, 13, 40, 100), (3, 4, 8, 32), (2, 30, 17, 33)]
    check_batch_matmul(BatchMatmulShape(None, None, None, None, transposed), target, FULL, extents=extents)


@layouts
def test_any_one_extent_known_only_at_run_time(transposed):
    known = (2, 9, 17, 21)
    for unknown in range(4):
        extents = [None if i == unknown else n for i, n in enumerate(known)]
        check_batch_matmul(BatchMatmulShape(*extents, transposed), resolve("x86-64-v3"), extents=[known])


@layouts
def test_rows_in_shares(transposed):
    for share, rows in itertools.product((1, 2), (23, None)):
        shape = BatchMatmulShape(2, rows, 9, 20, transposed)
        check_batch_matmul(
            shape, resolve("x86-64-v3"), schedule=BatchMatmulSchedule(4, 2, share), extents=[(2, 23, 9, 20)]
        )


@pytest.mark.sweep
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 80)),
    st.sets(st.integers(0, 3)),
    st.booleans(),
    st.sampled_from([3, 4]),
)
@settings(max_examples=100, deadline=None)
def test_random_shapes_agree_with_the_reference(extents, unknown, transposed, level):
    shape = BatchMatmulShape(*(None if i in unknown else n for i, n in enumerate(extents)), transposed)
    check_batch_matmul(shape, resolve(f"x86-64-v{level}"), extents=[extents])
