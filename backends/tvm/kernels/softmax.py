"""Float32 softmax, or its logarithm, over the last axis: three passes over a row that stays in the level 1 cache.

Maximum; powers and their sum; quotients. The powers go straight to the result, so a row needs no scratch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, IRBuilder, PrimFunc, T, tirx
from shave.backends.tvm.kernels.base import Array, Dimension, Flat, bind, extent, root, tensor
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.row import (
    LOWEST,
    exp_below_zero,
    in_tasks,
    largest,
    over_row,
    repeated,
    task_shares,
    total_of_row,
)
from shave.backends.tvm.kernels.vector_math import Locals, log

TYPICAL_ROWS = 1024
"""Rows to optimise for where their number is only known at run time."""
TASK_ELEMENTS = 1 << 14
"""Elements, about 10 us of work, for which waking a thread pays."""


@dataclass(frozen=True)
class SoftmaxShape:
    """Softmax of [rows, columns] over columns; ``rows`` is None where only the call knows.

    Attributes:
        rows: Number of rows.
        columns: Elements of a row.
        log: Give the logarithm of the softmax.
    """

    rows: Dimension
    columns: int
    log: bool = False


@dataclass(frozen=True)
class SoftmaxSchedule:
    """Choices of a softmax.

    Attributes:
        rows: Rows that one task takes.
    """

    rows: int


def candidates(shape: SoftmaxShape, target: Target) -> list[SoftmaxSchedule]:
    """Tasks large enough to wake a thread for, the most even shares first."""
    rows = shape.rows or TYPICAL_ROWS
    return [SoftmaxSchedule(share) for share in task_shares(rows, shape.columns, TASK_ELEMENTS, target)]


def default(shape: SoftmaxShape, target: Target) -> SoftmaxSchedule:
    """One task for each core, or fewer where there is little to do."""
    return candidates(shape, target)[0]


def reference(x: Array, shape: SoftmaxShape) -> Array:
    """The softmax of [rows, columns] in NumPy float64."""
    shifted = x.astype(np.float64) - x.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    total = powers.sum(axis=1, keepdims=True)
    result: Array = shifted - np.log(total) if shape.log else powers / total
    return result


def build(shape: SoftmaxShape, schedule: SoftmaxSchedule, target: Target, epilogue: Epilogue) -> PrimFunc:
    """The kernel (x, y), both [rows, columns]."""
    assert not epilogue.steps, "a softmax has no epilogue"
    lanes, columns = target.lanes, shape.columns
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("softmax")
        T.func_attr({"tirx.noalias": True})
        rows = extent(shape.rows)
        parameters = [tensor(name, (rows, columns)) for name in ("x", "y")]
        with root():
            x, y = (Flat(parameter) for parameter in parameters)

            def row(number: int | Expr) -> None:
                (base,) = bind(number * columns)
                top = largest_of_row(x, base)

                def power(at: int | Expr, width: int) -> Expr:
                    let = Locals()
                    value = let(exp_below_zero(x.load(base + at, width) - repeated(top, width), let))
                    if not shape.log:
                        y.store(base + at, value, width)
                    return value

                sum_ = total_of_row(power, columns, lanes)
                if shape.log:
                    let = Locals()
                    (shift,) = bind(log(sum_, let=let))

                    def store(at: int | Expr, width: int) -> None:
                        value = x.load(base + at, width) - repeated(top, width) - repeated(shift, width)
                        y.store(base + at, value, width)
                else:
                    (inverse,) = bind(T.float32(1) / sum_)

                    def store(at: int | Expr, width: int) -> None:
                        y.store(base + at, y.load(base + at, width) * repeated(inverse, width), width)

                over_row(columns, lanes, store)

            def largest_of_row(x: Flat, base: int | Expr) -> Expr:
                whole = columns // lanes * lanes
                top: Expr = largest(x, base, whole, lanes, LOWEST) if whole else T.float32(LOWEST)
                for at in range(whole, columns):
                    (top,) = bind(tirx.Max(top, x.load(base + at)))
                return top

            in_tasks(rows, schedule.rows, row)
    return builder.get()
