"""The least and largest element of each row of float32, zero among them, or the scale and zero point that follow.

A row stays in the level 1 cache while two passes go over it. The bounds of a whole tensor are those of the bounds of
its rows, which the same kernel finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, IRBuilder, PrimFunc, T, tirx
from shave.backends.tvm.kernels.base import (
    Array,
    Dimension,
    Flat,
    bind,
    extent,
    quotient,
    remainder,
    root,
    tensor,
)
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.parameters import NUMBERS
from shave.backends.tvm.kernels.row import in_tasks, largest, smallest, task_shares
from shave.backends.tvm.kernels.vector_math import local_array

TYPICAL_ROWS = 1024
"""Rows to optimise for where their number is only known at run time."""
TYPICAL_COLUMNS = 1024
"""The same for the elements of a row."""
TASK_ELEMENTS = 1 << 16
"""Elements, about 10 us of work, for which waking a thread pays."""


@dataclass(frozen=True)
class Rule:
    """How scale and zero point follow from bounds, in float32, as torch's ``choose_qparams`` operators have it.

    Attributes:
        steps: Between the least and the largest code.
        smallest: Of all scales.
        end: The end of the range from which the zero point is counted: the low one, or that which rounding moves
            less, with codes whose range reaches from just below the negative of its half.
        offset: What is added to the zero point of codes from 0 on.
    """

    steps: int
    smallest: float
    end: Literal["low", "nearer"]
    offset: int = 0


@dataclass(frozen=True)
class BoundsShape:
    """Bounds of each row of [rows, columns]; None stands for an extent that only the call knows.

    Attributes:
        rows: Number of rows.
        columns: Elements of a row.
        rule: If there is one, the result is not bounds but what :mod:`parameters` has.
    """

    rows: Dimension
    columns: Dimension
    rule: Rule | None = None

    @property
    def numbers(self) -> int:
        """Of the result, for each row."""
        return 2 if self.rule is None else NUMBERS


@dataclass(frozen=True)
class BoundsSchedule:
    """Choices of the kernel.

    Attributes:
        rows: Rows that one task takes.
    """

    rows: int


def candidates(shape: BoundsShape, target: Target) -> list[BoundsSchedule]:
    """Tasks large enough to wake a thread for, the most even shares first."""
    rows, columns = shape.rows or TYPICAL_ROWS, shape.columns or TYPICAL_COLUMNS
    return [BoundsSchedule(share) for share in task_shares(rows, columns, TASK_ELEMENTS, target)]


def default(shape: BoundsShape, target: Target) -> BoundsSchedule:
    """One task for each core, or fewer where there is little to do."""
    return candidates(shape, target)[0]


def reference(x: Array) -> Array:
    """The bounds of [rows, columns] in NumPy: [rows, 2]."""
    return np.stack([np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)], axis=1)


def build(shape: BoundsShape, schedule: BoundsSchedule, target: Target, epilogue: Epilogue) -> PrimFunc:
    """The kernel (x [rows, columns], bounds [rows, 2] or parameters [rows, 3])."""
    assert not epilogue.steps, "bounds have no epilogue"
    lanes = target.lanes
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("bounds")
        T.func_attr({"tirx.noalias": True})
        rows, columns = extent(shape.rows), extent(shape.columns)
        parameters = [tensor("x", (rows, columns)), tensor("found", (rows, shape.numbers))]
        with root():
            x, found = (Flat(parameter) for parameter in parameters)

            def row(number: int | Expr) -> None:
                first, at = bind(number * columns, number * shape.numbers)
                ends = _ends(x, first, columns, lanes)
                for place, value in enumerate(ends if shape.rule is None else _parameters(shape.rule, *ends)):
                    found.store(at + place, value, 1)

            in_tasks(rows, schedule.rows, row)
    return builder.get()


def _ends(x: Flat, first: int | Expr, columns: int | Expr, lanes: int) -> list[Expr]:
    """Least and largest element of a row, zero among them, as bound names."""
    whole, rest = quotient(columns, lanes) * lanes, remainder(columns, lanes)
    ends = [reduce(x, first, whole, lanes, 0.0) for reduce in (smallest, largest)]
    if isinstance(rest, int) and rest == 0:
        return ends
    kept = local_array(2, "float32")
    for side, end in enumerate(ends):
        T.buffer_store(kept, end, [side])
    with T.serial(0, rest) as place:
        element = x.load(first + whole + place)
        for side, combine in enumerate((tirx.Min, tirx.Max)):
            T.buffer_store(kept, combine(kept[side], element), [side])
    return [kept[0], kept[1]]


def _parameters(rule: Rule, low: Expr, high: Expr) -> list[Expr]:
    """Scale, zero point, reciprocal."""
    scale: Expr
    (scale,) = bind(tirx.Max((high - low) / T.float32(rule.steps), T.float32(rule.smallest)))
    if rule.end == "low":
        zero = T.float32(0) - tirx.nearbyint(low / scale)
        zero = tirx.Max(tirx.Min(zero, T.float32(rule.steps)), T.float32(0))
    else:
        least, largest_ = -(rule.steps + 1) // 2, rule.steps // 2
        left, right = bind(low / scale, high / scale)
        to_left, to_right = T.float32(least), T.float32(largest_)
        zero = tirx.Select((to_left + left) + (to_right + right) > T.float32(0), to_left - left, to_right - right)
        zero = tirx.nearbyint(tirx.Max(tirx.Min(zero, to_right), to_left)) - to_left
    return [scale, zero + T.float32(rule.offset), T.float32(1) / scale]
