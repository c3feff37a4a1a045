"""Float32 LayerNorm, RMSNorm and GroupNorm: rows brought to mean 0 and deviation 1, then scaled and shifted.

A row stays in the level 1 cache while three passes go over it: sum, sum of squared differences from the mean, result.
The squares are summed only after the mean is known, since the difference of the mean square and the squared mean
loses all digits where the mean is large.

Rows may be the channels of the pixels of a blocked tensor; then the result is channels-last, which is what the
matrix product behind reads, or blocked again for a convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, IRBuilder, PrimFunc, T
from shave.backends.tvm.kernels.base import (
    Array,
    Dimension,
    Flat,
    bind,
    ceil_div,
    extent,
    loop,
    quotient,
    remainder,
    root,
    tensor,
    unblock_channels,
)
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.row import in_tasks, over_row, repeated, task_shares, total_of_row

TYPICAL_ROWS = 1024
"""Rows to optimise for where their number is only known at run time."""
TASK_ELEMENTS = 1 << 15
"""Elements, about 10 us of work, for which waking a thread pays."""


@dataclass(frozen=True)
class NormaliseShape:
    """Rows to normalise; None stands for an extent that only the call knows.

    Attributes:
        rows: Number of rows; of a blocked input the batch.
        columns: Elements of a row: of a blocked input its channels, for GroupNorm channels of a group x positions.
        epsilon: What is added to the variance.
        centred: The mean is subtracted (all but RMSNorm).
        weight: There is a factor for each column, or each channel.
        bias: There is a summand for each column, or each channel.
        positions: Of a blocked input [rows, blocks, positions, lanes]: the number of pixels; 0 for [rows, columns].
        groups: Of GroupNorm: number of groups of one sample, ``rows`` being samples x groups; 0 otherwise.
        channels: Of GroupNorm: channels of one group.
        blocked: The result lies like a blocked input.
    """

    rows: Dimension
    columns: int
    epsilon: float
    centred: bool = True
    weight: bool = True
    bias: bool = True
    positions: Dimension = 0
    groups: int = 0
    channels: int = 1
    blocked: bool = False

    @property
    def affine(self) -> int:
        """Number of weights."""
        return self.groups * self.channels if self.groups else self.columns


@dataclass(frozen=True)
class NormaliseSchedule:
    """Choices of a normalisation.

    Attributes:
        rows: Rows that one task takes.
    """

    rows: int


def candidates(shape: NormaliseShape, target: Target) -> list[NormaliseSchedule]:
    """Tasks large enough to wake a thread for, the most even shares first."""
    rows = shape.rows or TYPICAL_ROWS
    if shape.positions != 0:
        rows *= shape.positions or TYPICAL_ROWS
    return [NormaliseSchedule(share) for share in task_shares(rows, shape.columns, TASK_ELEMENTS, target)]


def default(shape: NormaliseShape, target: Target) -> NormaliseSchedule:
    """One task for each core, or fewer where there is little to do."""
    return candidates(shape, target)[0]


def reference(x: Array, affine: Sequence[Array], shape: NormaliseShape) -> Array:
    """The normalised rows in NumPy float64.

    Args:
        x: Rows [rows, columns], or blocked [batch, blocks, positions, lanes].
        affine: The weight, the bias, or both, as far as the shape has them.
        shape: The problem.

    Returns:
        [rows, columns]; [batch, positions, columns] for a blocked input.
    """
    if shape.positions != 0:
        x = unblock_channels(x, shape.columns).swapaxes(1, 2)
    value: Array = x.astype(np.float64)
    if shape.centred:
        value = value - value.mean(axis=-1, keepdims=True)
    value = value / np.sqrt((value**2).mean(axis=-1, keepdims=True) + shape.epsilon)
    given = iter(affine)
    for present, combine in ((shape.weight, np.multiply), (shape.bias, np.add)):
        if present:
            value = combine(value, _spread(next(given), shape, value.shape[0]))
    return value


def _spread(affine: Array, shape: NormaliseShape, rows: int) -> Array:
    """Weights [columns], or for GroupNorm one for each element of each row."""
    if not shape.groups:
        return affine
    of_group = np.repeat(affine, shape.columns // shape.channels).reshape(shape.groups, shape.columns)
    return np.tile(of_group, (rows // shape.groups, 1))


def build(shape: NormaliseShape, schedule: NormaliseSchedule, target: Target, epilogue: Epilogue) -> PrimFunc:
    """The kernel (x, *weight, *bias, y).

    y is [rows, columns]; of a blocked input [batch, positions, columns], or blocked too.
    """
    assert not epilogue.steps, "normalisations have no epilogue"
    lanes, columns = target.lanes, shape.columns
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("normalise")
        T.func_attr({"tirx.noalias": True})
        rows = extent(shape.rows)
        positions: int | Expr = 1
        if shape.positions != 0:
            positions = extent(shape.positions)
            parameters = [tensor("x", (rows, ceil_div(columns, lanes), positions, lanes))]
        else:
            parameters = [tensor("x", (rows, columns))]
        parameters += [tensor("weight", (shape.affine,))] if shape.weight else []
        parameters += [tensor("bias", (shape.affine,))] if shape.bias else []
        if shape.blocked:
            parameters.append(tensor("y", (rows, ceil_div(columns, lanes), positions, lanes)))
        else:
            parameters.append(tensor("y", (rows, positions, columns) if shape.positions != 0 else (rows, columns)))
        with root():
            kernel = _Kernel(shape, lanes, positions, [Flat(parameter) for parameter in parameters])
            in_tasks(rows * positions, schedule.rows, kernel.row)
    return builder.get()


class _Kernel:
    """Emits the statements of one kernel."""

    def __init__(self, shape: NormaliseShape, lanes: int, positions: int | Expr, parameters: Sequence[Flat]) -> None:
        self.shape, self.lanes, self.positions = shape, lanes, positions
        self.x, *affine, self.y = parameters
        self.weight = affine.pop(0) if shape.weight else None
        self.bias = affine.pop(0) if shape.bias else None

    def row(self, row: int | Expr) -> None:
        """One row."""
        shape = self.shape
        if shape.positions != 0:
            blocks = ceil_div(shape.columns, self.lanes)
            sample, pixel = quotient(row, self.positions), remainder(row, self.positions)
            (start,) = bind((sample * (blocks * self.positions) + pixel) * self.lanes)
        else:
            (start,) = bind(row * shape.columns)

        def in_blocks(at: int | Expr) -> int | Expr:
            # Of a blocked row, vectors are as far apart as there are pixels.
            return quotient(at, self.lanes) * self.positions * self.lanes + remainder(at, self.lanes)

        def element(at: int | Expr, width: int) -> Expr:
            return self.x.load(start + (in_blocks(at) if shape.positions != 0 else at), width)

        mean: Expr = T.float32(0)
        if shape.centred:
            (mean,) = bind(total_of_row(element, shape.columns, self.lanes) * T.float32(1 / shape.columns))

        def square(at: int | Expr, width: int) -> Expr:
            difference = T.bind(element(at, width) - repeated(mean, width))
            return difference * difference

        variance = total_of_row(square, shape.columns, self.lanes) * T.float32(1 / shape.columns)
        (inverse,) = bind(T.float32(1) / T.sqrt(variance + T.float32(shape.epsilon)))
        (result,) = bind(start if shape.blocked else row * shape.columns)
        if shape.groups:
            self.grouped(row, result, element, mean, inverse)
            return

        def store(at: int | Expr, width: int) -> None:
            value = (element(at, width) - repeated(mean, width)) * repeated(inverse, width)
            if self.weight is not None:
                value = value * self.weight.load(at, width)
            if self.bias is not None:
                value = value + self.bias.load(at, width)
            self.y.store(result + (in_blocks(at) if shape.blocked else at), value, width)

        over_row(shape.columns, self.lanes, store)

    def grouped(
        self,
        row: int | Expr,
        result: int | Expr,
        element: Callable[[int | Expr, int], Expr],
        mean: Expr,
        inverse: Expr,
    ) -> None:
        """The result of a row in which each channel has one weight and one bias."""
        shape, lanes = self.shape, self.lanes
        size = shape.columns // shape.channels
        with loop(shape.channels) as channel:
            at = remainder(row, shape.groups) * shape.channels + channel
            (scale,) = bind(inverse if self.weight is None else inverse * self.weight.load(at))
            shift = T.float32(0) if self.bias is None else self.bias.load(at)
            (shift, first) = bind(shift, channel * size)

            def store(place: int | Expr, width: int) -> None:
                value = (element(first + place, width) - repeated(mean, width)) * repeated(scale, width)
                value = value + repeated(shift, width)
                self.y.store(result + first + place, value, width)

            over_row(size, lanes, store)
