from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shave.backends.target import Target
from shave.backends.targets import resolve
from shave.backends.tvm.kernels import attention
from shave.backends.tvm.kernels.attention import AttentionSchedule, AttentionShape, View
from shave.backends.tvm.kernels.epilogue import Epilogue
from tests.backends.tvm.kernels.execution import TOLERANCE, Array, compiled, each_target, random, unwritten


def inside(heads: int, size: int, parts: int = 1, part: int = 0) -> View:
    """Matrices inside of [batch, length, parts, heads, size], where only the call knows the length."""
    return View((None, size), parts * heads * size, part * heads * size)


def split(heads: int, size: int, length: int, parts: int = 1, part: int = 0) -> View:
    """The same with a known length."""
    return replace(inside(heads, size, parts, part), lead=(length * parts * heads * size, size))


def plain(lead: Sequence[int], length: int, width: int, pitch: int | None = None) -> View:
    """Matrices [*lead, length, width] one after another, rows ``pitch`` apart."""
    row = pitch or width
    steps, inner = [], length * row
    for size in reversed(lead):
        steps.append(inner)
        inner *= size
    return View(tuple(steps[::-1]), row)


def self_attention(
    batch: int | None = 2, heads: int = 3, rows: int = 7, columns: int = 9, size: int = 8, width: int = 5
) -> AttentionShape:
    """Heads inside of the rows of Q, K, V and of the result."""
    return AttentionShape(
        (batch, heads),
        rows,
        columns,
        size,
        width,
        0.3,
        split(heads, size, rows),
        split(heads, size, columns),
        split(heads, width, columns),
        split(heads, width, rows),
    )


def span(view: View, lead: Sequence[int], length: int, width: int) -> int:
    """Elements from the start of a tensor to the end of the last row in it."""
    steps = attention.steps(view, lead, length)
    return (
        view.start + sum(int(s) * (n - 1) for s, n in zip(steps, lead, strict=True)) + view.row * (length - 1) + width
    )


def check(
    shape: AttentionShape,
    target: Target,
    schedule: AttentionSchedule | None = None,
    extents: Sequence[tuple[int, int, int]] = ((2, 7, 9),),
    masks: Sequence[Array] | None = None,
    factor: float = 1.0,
) -> Array:
    """Build a kernel once, call it for each (batch, rows, columns) and compare with the reference."""
    schedule = schedule or attention.default(shape, target)
    kernel = compiled(attention.build(shape, schedule, target, Epilogue()), target)
    for batch, rows, columns in extents:
        lead = [batch if size is None else size for size in shape.lead]
        rows, columns = shape.rows or rows, shape.columns or columns
        q = random(span(shape.query, lead, rows, shape.size)) * np.float32(factor)
        k, v = random(span(shape.key, lead, columns, shape.size)), random(span(shape.value, lead, columns, shape.width))
        given = k
        if shape.columns is None:
            # The kernel reads the number of columns from the shape.
            whole = -(-k.size // (columns * shape.key.row)) * columns * shape.key.row
            given = np.pad(k, (0, whole - k.size)).reshape(-1, columns, shape.key.row)
        vector = target.lanes
        added = masks or [random(span(m, lead, rows, columns) + vector) for m in shape.masks]
        known = [*lead, rows]
        made = unwritten(*[known[axis] for axis in attention.result_order(shape)], shape.width)
        kernel(q, given, v, *added, made)
        expected = attention.reference(q, k, v, added, shape, lead, rows, columns)
        strides = [4 * int(s) for s in (*attention.steps(shape.result, lead, rows), shape.result.row, 1)]
        result = np.lib.stride_tricks.as_strided(made.reshape(-1)[shape.result.start :], expected.shape, strides)
        np.testing.assert_allclose(result, expected, **TOLERANCE)
    return result


@each_target
@pytest.mark.parametrize(
    ("rows", "columns", "size", "width"),
    [(1, 1, 1, 1), (7, 9, 8, 5), (49, 49, 32, 32), (30, 99, 20, 40), (5, 33, 64, 80)],
)
def test_agrees_with_the_reference(rows, columns, size, width, target):
    check(self_attention(2, 3, rows, columns, size, width), target)


@each_target
def test_every_extent_known_only_at_run_time(target):
    views = [inside(2, 20), inside(2, 20), inside(2, 12), inside(2, 12)]
    shape = AttentionShape((None, 2), None, None, 20, 12, 0.2, *views)
    check(shape, target, extents=[(1, 1, 1), (3, 15, 17), (1, 40, 600)])


def test_heads_outside_of_the_rows_known_only_at_run_time():
    views = [View((None, None), width) for width in (8, 8, 5, 5)]
    shape = AttentionShape((None, 3), None, None, 8, 5, 0.2, *views)
    check(shape, resolve("x86-64-v3"), extents=[(2, 7, 9), (1, 3, 20)])


@each_target
def test_blocks_of_columns_correct_what_came_before(target):
    shape = self_attention(1, 2, 17, 70, 16, 40)
    check(shape, target, AttentionSchedule(5, 2, 2 * target.lanes, 2), factor=8)
    check(replace(shape, causal=True), target, AttentionSchedule(5, 2, 2 * target.lanes, 2), factor=8)


@each_target
@pytest.mark.parametrize("rows", [5, 21, 40])
def test_causal_rows_see_no_later_column(rows, target):
    check(replace(self_attention(rows=rows, columns=21), causal=True), target)


@each_target
def test_masks_are_added_and_repeated(target):
    masks = (View((0, 9 * 16), 16), View((16, 0), 0), View((3 * 7 * 16, 7 * 16), 16))
    check(replace(self_attention(), masks=masks), target)


def test_three_projections_in_one_tensor():
    views = [split(3, 8, 7, 3, part) for part in range(3)]
    shape = AttentionShape((2, 3), 7, 7, 8, 8, 0.3, *views, split(3, 8, 7))
    check(shape, resolve("x86-64-v3"))


def test_query_heads_that_share_keys_and_values():
    lead = (2, 2, 3)
    query, result = plain(lead, 7, 8), plain(lead, 7, 5)
    key, value = (View((18 * w, 9 * w, 0), w) for w in (8, 5))
    shape = AttentionShape(lead, 7, 9, 8, 5, 0.3, query, key, value, result)
    assert shape.shared == 1
    check(shape, resolve("x86-64-v3"))
    everything = replace(shape, key=View((0, 0, 0), 8), value=View((0, 0, 0), 5))
    assert everything.shared == 3
    check(everything, resolve("x86-64-v3"))


@pytest.mark.parametrize("hidden", [True, False])
def test_a_row_of_which_nothing_is_seen(hidden):
    mask = np.zeros((7, 16), np.float32)
    mask[3] = -np.inf
    mask[4, 1:] = -np.inf
    shape = replace(self_attention(), masks=(View((0, 0), 16),), hidden=hidden)
    result = check(shape, resolve("x86-64-v3"), masks=[mask.ravel()])
    assert np.isnan(result[:, :, 3]).all() == (not hidden)
    assert np.isfinite(np.delete(result, 3, axis=2)).all()


def test_a_mask_of_the_lowest_number_leaves_equal_weights():
    mask = np.full((7, 16), np.finfo(np.float32).min, np.float32)
    check(replace(self_attention(), masks=(View((0, 0), 16),)), resolve("x86-64-v3"), masks=[mask.ravel()])


def test_nan_spreads():
    mask = np.zeros((7, 16), np.float32)
    mask[3, 2] = np.nan
    result = check(replace(self_attention(), masks=(View((0, 0), 16),)), resolve("x86-64-v3"), masks=[mask.ravel()])
    assert np.isnan(result[:, :, 3]).all()


def test_threads_share_the_rows_of_few_heads():
    target = replace(resolve("x86-64-v3"), cores=2)
    shape = self_attention(1, 1, 40, 21)
    assert attention.default(shape, target).share < 7
    check(shape, target)


def test_order_of_the_result():
    assert attention.result_order(self_attention()) == [0, 2, 1]
    heads_first = replace(self_attention(), result=plain((2, 3), 7, 5))
    assert attention.result_order(heads_first) == [0, 1, 2]


@pytest.mark.sweep
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 90)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.booleans(),
    st.sampled_from([3, 4]),
)
@settings(max_examples=60, deadline=None)
def test_random_shapes_agree_with_the_reference(extents, widths, causal, level):
    shape = replace(self_attention(*extents, *widths), causal=causal)
    target = resolve(f"x86-64-v{level}")
    check(shape, target)
    check(shape, target, AttentionSchedule(3, 2, 2 * target.lanes, 2))
