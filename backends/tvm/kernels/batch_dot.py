"""Product of two tensors of 8-bit codes that both arrive with the call: C[b] = scale * (A[b] - za) x (B[b] - zb).

The sum of (a - za) (b - zb) is that of a * b, less za times the sum of the column of B and zb times the sum of the row
of A, and K * za * zb more. The sums of columns are taken when B is packed (:mod:`code_panel`); those of rows once for
all columns of a group of panels, which one unit of work packs and keeps. Zero points and the scale are tensors, so that
layers with the same shapes share one kernel. Every extent may be known only at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, IRBuilder, PrimFunc, T, tirx
from shave.backends.tvm.kernels.arithmetic import InputDtype, integers_of
from shave.backends.tvm.kernels.base import (
    Array,
    Flat,
    Run,
    bind,
    ceil_div,
    extent,
    loop,
    only_if,
    quotient,
    remainder,
    root,
    row_runs,
    span,
    tensor,
    unravel,
)
from shave.backends.tvm.kernels.batch_matmul import TYPICAL_COLUMNS, BatchMatmulShape
from shave.backends.tvm.kernels.code_panel import CENTRE, CodePanel
from shave.backends.tvm.kernels.epilogue import Epilogue, Scale
from shave.backends.tvm.kernels.matmul import TYPICAL_ROWS, best_tiles, tile_cost
from shave.backends.tvm.kernels.narrowing import narrows
from shave.backends.tvm.kernels.operands import RowOperands
from shave.backends.tvm.kernels.register_tile import Part, RegisterTile, cycles_per_tile
from shave.backends.tvm.kernels.vector_math import local_array

TYPICAL_INNER = 64
"""Length of the reduction to plan for where it is only known at run time."""
_TOGETHER = 4
_PACKING_CYCLES = 8
"""Of a vector of four codes for each column."""


@dataclass(frozen=True)
class BatchDotShape(BatchMatmulShape):
    """The same problem for codes.

    Attributes:
        dtype: Of A and B.
    """

    dtype: InputDtype = "uint8"


@dataclass(frozen=True)
class BatchDotSchedule:
    """Choices of a product.

    Attributes:
        rows: Largest number of rows of a register tile.
        vectors: Vectors of columns of a register tile.
        panels: Panels, of as many columns as a tile, that are packed together.
        share: Row tiles that use a group of packed panels before it is given up.
    """

    rows: int
    vectors: int
    panels: int
    share: int


def candidates(shape: BatchDotShape, target: Target) -> list[BatchDotSchedule]:
    """The best register tiles by the analytic model, best first; panels fill half of a level 2 cache at most."""
    rows, columns = shape.rows or TYPICAL_ROWS, shape.columns or TYPICAL_COLUMNS
    arithmetic = integers_of(target)
    schedules = []
    for tile_rows, vectors in best_tiles(rows, columns, target, arithmetic):
        width = vectors * target.lanes
        bytes_of_panel = width * (shape.inner or TYPICAL_INNER) * np.dtype(arithmetic.weights).itemsize
        fitting = max(1, target.l2_bytes // 2 // bytes_of_panel)
        panels = min(fitting, ceil_div(columns, width))
        row_tiles = ceil_div(rows, tile_rows)
        groups = (shape.batch or target.cores) * ceil_div(columns, width * panels)
        shares = max(1, min(row_tiles, target.cores // groups))
        schedules.append(BatchDotSchedule(tile_rows, vectors, panels, ceil_div(row_tiles, shares)))
    return schedules


def default(shape: BatchDotShape, target: Target) -> BatchDotSchedule:
    """The best register tile by the analytic model."""
    return candidates(shape, target)[0]


def seconds(shape: BatchDotShape, schedule: BatchDotSchedule, target: Target) -> float:
    """Estimated time of a call: arithmetic, stores, and the packing of B; an unknown batch counts as one product."""
    rows, columns, inner = shape.rows or TYPICAL_ROWS, shape.columns or TYPICAL_COLUMNS, shape.inner or TYPICAL_INNER
    arithmetic, steps = integers_of(target), ceil_div(inner, _TOGETHER)
    row_tiles, vectors = ceil_div(rows, schedule.rows), ceil_div(columns, target.lanes)
    tiles = row_tiles * ceil_div(vectors, schedule.vectors)
    cycles = steps * tile_cost(
        rows, columns, schedule.rows, schedule.vectors, replace(target, cores=1), arithmetic
    ) + tiles * cycles_per_tile(schedule.rows, schedule.vectors, arithmetic)
    cycles += steps * vectors * _PACKING_CYCLES
    batch, cores = shape.batch or 1, target.cores
    share = ceil_div(batch, cores) if batch > 1 else 1 / min(cores, row_tiles)
    return cycles * share / (target.gigahertz * 1e9)


def reference(
    a: Array,
    b: Array,
    zeros: Sequence[int],
    scale: float,
    shape: BatchDotShape,
    epilogue: Epilogue,
    operands: Sequence[Array],
) -> Array:
    """The product in NumPy's integers; operands broadcast to [batch, rows, columns]."""
    left, right = (x.astype(np.int64) - zero for x, zero in zip((a, b), zeros, strict=True))
    return epilogue.reference(scale * (left @ (right.swapaxes(1, 2) if shape.transposed else right)), operands)


def build(shape: BatchDotShape, schedule: BatchDotSchedule, target: Target, epilogue: Epilogue) -> PrimFunc:
    """The kernel (a, b, zero points of both, scale, *operands, c), uint8, int32 [2] and float32 [1].

    Operands as ``operands.RowOperands`` has them.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("batch_dot")
        T.func_attr({"tirx.noalias": True})
        _Emitter(shape, schedule, target, epilogue).emit()
    return builder.get()


class _Emitter:
    """Emits parameters and body of one kernel into the function being built."""

    def __init__(self, shape: BatchDotShape, schedule: BatchDotSchedule, target: Target, epilogue: Epilogue) -> None:
        self.schedule = schedule
        self.transposed = shape.transposed
        self.epilogue = Epilogue((Scale(), *epilogue.steps))
        self.lanes = target.lanes
        self.packs = narrows(target)
        self.width = schedule.vectors * target.lanes
        self.arithmetic = integers_of(target)
        extents = [extent(d) for d in (shape.batch, shape.rows, shape.inner, shape.columns)]
        self.batch, self.rows, self.inner, self.columns = extents
        self.pitch = quotient(self.inner + (_TOGETHER - 1), _TOGETHER) * (_TOGETHER * self.width)
        """Elements of a packed panel."""
        right = (self.batch, self.columns, self.inner) if shape.transposed else (self.batch, self.inner, self.columns)
        result = (self.batch, self.rows, self.columns)
        self.a = tensor("a", (self.batch, self.rows, self.inner), "uint8")
        self.b = tensor("b", right, "uint8")
        self.zeros = tensor("zeros", (2,), "int32")
        self.scale = tensor("scale", (1,))
        self.operands = RowOperands(epilogue, result)
        self.c = tensor("c", result, epilogue.dtype)

    def emit(self) -> None:
        with root():
            self.a, self.b, self.c = Flat(self.a), Flat(self.b), Flat(self.c)
            self.operands.flatten()
            panels, schedule = quotient(self.columns + (self.width - 1), self.width), self.schedule
            groups = quotient(panels + (schedule.panels - 1), schedule.panels)
            share = schedule.share * schedule.rows
            shares = quotient(self.rows + (share - 1), share)
            with T.parallel(0, self.batch * groups * shares) as index:
                product, group, part = bind(*unravel(index, [self.batch, groups, shares]))
                (first_panel,) = bind(group * schedule.panels)
                count = T.min(schedule.panels, panels - first_panel)
                packed = Flat(T.alloc_buffer((self.pitch * schedule.panels,), self.arithmetic.weights, layout=None))
                starts = Flat(T.alloc_buffer((schedule.panels * self.width,), "int32", layout=None))
                with T.serial(0, count) as panel:
                    self._pack(product, first_panel + panel, panel, packed, starts)
                one_share = isinstance(shares, int) and shares == 1
                (row,) = bind(part * share)
                for run in row_runs(self.rows if one_share else T.min(share, self.rows - row), schedule.rows):
                    with loop(run.count) as tile:
                        self._rows(product, row + tile * run.size, run, first_panel, count, packed, starts)
                    (row,) = bind(row + run.count * run.size)

    def _pack(self, product: Expr, number: Expr, panel: Expr, packed: Flat, starts: Flat) -> None:
        """Copy panel ``number`` of B to place ``panel``, and note what sums of each of its columns start from."""
        first, place = bind(number * self.width, panel * self.pitch)
        along, across = (1, self.inner) if self.transposed else (self.columns, 1)
        source = CodePanel(
            self.arithmetic, self.b, product * (self.inner * self.columns) + first * across, along, across, self.inner,
            T.min(self.width, self.columns - first), self.schedule.vectors, self.lanes,
        )  # fmt: skip
        source.fill(packed, place)
        left, right = self.zeros[0], self.zeros[1] - CENTRE
        constant = left * right * tirx.Cast("int32", self.inner)
        with loop(self.schedule.vectors) as vector:
            total = source.sums(packed, place, vector)
            start = self._splat(constant) - total * self._splat(left)
            starts.store(panel * self.width + vector * self.lanes, start, self.lanes)

    def _rows(
        self,
        product: Expr,
        first_row: int | Expr,
        run: Run,
        first_panel: Expr,
        count: Expr,
        packed: Flat,
        starts: Flat,
    ) -> None:
        """A tile of rows against a group of panels."""
        (left,) = bind((product * self.rows + first_row) * self.inner)
        terms = local_array(run.size, "int32")
        with loop(run.size) as row:
            T.buffer_store(terms, self._row_sum(left + row * self.inner) * (CENTRE - self.zeros[1]), [row])
        with T.serial(0, count) as panel:
            (column,) = bind((first_panel + panel) * self.width)
            whole = self.columns - column >= self.width

            def tile(existing: int | Expr, panel: Expr = panel, column: int | Expr = column) -> None:
                self._tile(product, first_row, run, left, terms, panel, column, existing, packed, starts)

            rest = self.columns % self.width if isinstance(self.columns, int) else self.columns - column
            if isinstance(rest, int) and rest == 0:
                tile(self.width)
            elif isinstance(self.columns, int) and self.columns < self.width:
                tile(rest)
            else:
                with T.If(whole):
                    with T.Then():
                        tile(self.width)
                    with T.Else():
                        tile(rest)

    def _tile(
        self,
        product: Expr,
        first_row: int | Expr,
        run: Run,
        left: int | Expr,
        terms: Any,
        panel: Expr,
        column: int | Expr,
        existing: int | Expr,
        packed: Flat,
        starts: Flat,
    ) -> None:
        lanes, width = self.lanes, self.width
        tile = RegisterTile(run.size, self.schedule.vectors, lanes, self.arithmetic)
        place, first = bind(panel * self.pitch, panel * width)
        tile.load(lambda row, part: starts.load(first + part.vector * lanes, lanes) + self._splat(terms[row]))

        def multiply(step: int | Expr, a: Callable[[int | Expr], Expr]) -> None:
            begin = place + step * (width * _TOGETHER)
            tile.multiply_add(
                range(run.size), a, lambda v: packed.load(begin + v * (lanes * _TOGETHER), lanes * _TOGETHER)
            )

        steps, rest = quotient(self.inner, _TOGETHER), remainder(self.inner, _TOGETHER)
        with T.serial(0, steps) as step:
            multiply(step, lambda row: self.a.load(left + row * self.inner + step * _TOGETHER, _TOGETHER))
        for count in range(1, _TOGETHER):
            if isinstance(rest, int) and rest != count:
                continue
            with only_if(True if isinstance(rest, int) else rest == count):

                def last(row: int | Expr, count: int = count) -> Expr:
                    return self.a.load_first(left + row * self.inner + steps * _TOGETHER, count, _TOGETHER)

                multiply(steps, last)
        (result,) = bind((product * self.rows + first_row) * self.columns + column)

        def load(operand: int, row: int | Expr, part: Part) -> Expr:
            if operand == 0:
                return T.broadcast(self.scale[0], part.width) if part.width > 1 else self.scale[0]
            inside = part.vector * lanes + part.first
            return self.operands.load(operand - 1, column + inside, result + row * self.columns + inside, part.width)

        def store(row: int | Expr, part: Part, value: Expr) -> None:
            self.c.store(result + row * self.columns + (part.vector * lanes + part.first), value, part.width)

        tile.finish(self.epilogue, load, store, existing, "columns" if self.packs else None)

    def _row_sum(self, start: int | Expr) -> Expr:
        """The sum of a row of A."""
        lanes = self.lanes
        total, here = local_array(lanes, "int32"), span(0, lanes)
        T.buffer_store(total, self._splat(T.int32(0)), [here])
        with loop(quotient(self.inner, lanes)) as block:
            codes = self.a.load(start + block * lanes, lanes)
            T.buffer_store(total, total[here] + tirx.Cast(f"int32x{lanes}", codes), [here])
        done, rest = quotient(self.inner, lanes) * lanes, remainder(self.inner, lanes)
        if isinstance(rest, int):
            if rest:
                codes = self.a.load_first(start + done, rest, lanes)
                T.buffer_store(total, total[here] + tirx.Cast(f"int32x{lanes}", codes), [here])
        else:
            with T.serial(0, rest) as k:
                T.buffer_store(total, total[0] + tirx.Cast("int32", self.a.load(start + done + k)), [0])
        half = lanes // 2
        while half:
            turned = tirx.Shuffle([total[here]], [(lane + half) % lanes for lane in range(lanes)])
            T.buffer_store(total, total[here] + turned, [here])
            half //= 2
        return total[0]

    def _splat(self, value: Expr) -> Expr:
        return T.broadcast(value, self.lanes)
