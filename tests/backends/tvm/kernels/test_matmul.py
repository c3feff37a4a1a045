import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shave.backends.targets import resolve
from shave.backends.tvm.kernels import matmul
from shave.backends.tvm.kernels.arithmetic import arithmetic_of
from shave.backends.tvm.kernels.epilogue import Activation, Bias, Epilogue, Residual, Scale
from shave.backends.tvm.kernels.matmul import MatmulSchedule, MatmulShape
from tests.backends.tvm.kernels.execution import check_matmul, each_target

FULL = Epilogue((Bias(), Residual(), Activation("gelu")))


@each_target
@pytest.mark.parametrize("rows", [1, 5, 29])
@pytest.mark.parametrize("columns", [7, 32, 99])
def test_agrees_with_the_reference(rows, columns, target):
    check_matmul(MatmulShape(rows, 33, columns), target, FULL)
    check_matmul(MatmulShape(rows, 33, columns), target, Epilogue((Bias(),)))


@each_target
def test_rows_known_only_at_run_time(target):
    check_matmul(MatmulShape(None, 17, 100), target, FULL, rows=[1, 3, 4, 6, 13, 14, 31, 200])


@each_target
@pytest.mark.parametrize("block", [1, 2, 100])
def test_blocks_that_do_not_divide_the_rows(block, target):
    check_matmul(MatmulShape(23, 8, 40), target, schedule=MatmulSchedule(4, 2, block))
    check_matmul(MatmulShape(None, 8, 40), target, schedule=MatmulSchedule(4, 2, block), rows=[1, 4, 23])


@each_target
@pytest.mark.parametrize(("rows", "columns"), [(29, 48), (29, 35), (87, 20)])
def test_rows_stored_as_pixels_of_blocked_images(rows, columns, target):
    epilogue = Epilogue((Bias(), Scale(per_image=True), Residual(), Activation("gelu")))
    check_matmul(MatmulShape(rows, 33, columns, positions=29), target, epilogue)
    check_matmul(MatmulShape(rows, 2500, columns, positions=29), target, Epilogue((Bias(), Scale(), Residual())))


@each_target
def test_long_reductions_in_blocks(target):
    for inner in (2048, 2500):
        shape = MatmulShape(11, inner, 48)
        assert 1 < -(-inner // matmul.depth(shape, target)) < 4
        check_matmul(shape, target, FULL)
    shape = MatmulShape(None, 2500, 48)
    check_matmul(shape, target, FULL, rows=[1, 5, 40])


@each_target
@pytest.mark.parametrize("columns", [48, 50])
def test_large_b_with_several_blocks_of_rows(columns, target):
    shape = MatmulShape(23, 1100, columns)
    check_matmul(shape, dataclasses.replace(target, l2_bytes=64 << 10), FULL)


def test_every_candidate_computes_the_same():
    shape, target = MatmulShape(15, 9, 50), resolve("x86-64-v3")
    for schedule in matmul.candidates(shape, target)[::3]:
        check_matmul(shape, target, schedule=schedule)


def test_default_uses_the_registers_but_no_more():
    for name, registers in (("x86-64-v4", 32), ("x86-64-v3", 16)):
        schedule = matmul.default(MatmulShape(128, 768, 768), resolve(name))
        needed = schedule.rows * schedule.vectors + schedule.vectors + 1
        assert 0.75 * registers <= needed <= registers


@pytest.mark.sweep
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 150), st.booleans(), st.sampled_from([3, 4]))
@settings(max_examples=150, deadline=None)
def test_random_shapes_agree_with_the_reference(rows, inner, columns, known, level):
    shape = MatmulShape(rows if known else None, inner, columns)
    check_matmul(shape, resolve(f"x86-64-v{level}"), FULL, rows=[rows])


def test_seconds_are_arithmetic_at_the_peak_or_weights_from_memory():
    target = dataclasses.replace(resolve("x86-64-v4"), cores=1, l2_bytes=2 << 20)
    for rows in (1, 128):
        shape = MatmulShape(rows, 768, 768)
        limit = max(
            2 * rows * 768**2 / (target.peak_gflops * 1e9),
            4 * 768**2 / (target.memory_gbytes * 1e9),
        )
        assert limit <= matmul.seconds(shape, matmul.default(shape, target), target) < 1.25 * limit


def test_tiles_are_narrow_where_their_panels_outgrow_the_level_1_cache():
    target = dataclasses.replace(resolve("x86-64-v4"), cores=1)
    assert target.l1_bytes == 32 * 1024
    assert matmul.best_tiles(196, 1536, target)[0] == (5, 5)  # 25 products of 10 operands
    assert matmul.best_tiles(196, 1536, target, panel=24 * 1024)[0] == (9, 3)  # 27 products of 12, fewer from level 2


def test_tiles_of_integers_do_not_depend_on_the_size_of_panels():
    target = dataclasses.replace(resolve("x86-64-v4-vnni"), cores=1)
    integers = arithmetic_of("uint8", target)
    near = matmul.best_tiles(128, 768, target, integers)
    assert near[0] == (8, 3)
    assert near == matmul.best_tiles(128, 768, target, integers, panel=64 * 1024)
