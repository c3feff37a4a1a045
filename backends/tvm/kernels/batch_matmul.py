"""Float32 matrix product of two run-time tensors: C[b] = A[b] x B[b], for attention and its like.

The register tiles are those of :mod:`matmul`. Since B arrives with the call, each unit of work first packs the columns
of its tile into a scratch panel [K, vectors * lanes]; B given as [b, N, K] is transposed on the way, lanes x lanes
values at a time in registers. Then all (or a share of the) rows of A pass that panel. Every extent may be known only
at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, IRBuilder, PrimFunc, T
from shave.backends.tvm.kernels.base import (
    Array,
    Dimension,
    Flat,
    Run,
    bind,
    ceil_div,
    extent,
    for_tile,
    loop,
    quotient,
    remainder,
    root,
    row_runs,
    tensor,
    unravel,
)
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.matmul import TYPICAL_ROWS, best_tiles, tile_cost
from shave.backends.tvm.kernels.operands import RowOperands
from shave.backends.tvm.kernels.packing import transposed
from shave.backends.tvm.kernels.register_tile import Part, RegisterTile, power_of_two_parts

TYPICAL_COLUMNS = 128
"""Columns to optimise for where their number is only known at run time."""


@dataclass(frozen=True)
class BatchMatmulShape:
    """C[batch, rows, columns] = A[batch, rows, inner] x B; None stands for an extent that only the call knows.

    Attributes:
        batch: Number of products.
        rows: Rows of A.
        inner: Columns of A.
        columns: Columns of C.
        transposed: B is [batch, columns, inner], else [batch, inner, columns].
    """

    batch: Dimension
    rows: Dimension
    inner: Dimension
    columns: Dimension
    transposed: bool = False


@dataclass(frozen=True)
class BatchMatmulSchedule:
    """Choices of a batched product.

    Attributes:
        rows: Largest number of rows of a register tile.
        vectors: Vectors of columns of a register tile.
        share: Row tiles that use a packed panel before it is given up; more save packing, fewer spread over more cores.
    """

    rows: int
    vectors: int
    share: int


def candidates(shape: BatchMatmulShape, target: Target) -> list[BatchMatmulSchedule]:
    """The best register tiles by the analytic model, best first."""
    rows, columns = shape.rows or TYPICAL_ROWS, shape.columns or TYPICAL_COLUMNS
    schedules = []
    for tile_rows, vectors in best_tiles(rows, columns, target):
        row_tiles = ceil_div(rows, tile_rows)
        panels = (shape.batch or target.cores) * ceil_div(columns, vectors * target.lanes)
        shares = max(1, min(row_tiles, target.cores // panels))
        schedules.append(BatchMatmulSchedule(tile_rows, vectors, ceil_div(row_tiles, shares)))
    return schedules


def default(shape: BatchMatmulShape, target: Target) -> BatchMatmulSchedule:
    """The best register tile by the analytic model."""
    return candidates(shape, target)[0]


def seconds(shape: BatchMatmulShape, schedule: BatchMatmulSchedule, target: Target) -> float:
    """Estimated time of a call: arithmetic, and the packing of B; an unknown batch counts as one product."""
    rows, columns, inner = shape.rows or TYPICAL_ROWS, shape.columns or TYPICAL_COLUMNS, shape.inner or TYPICAL_COLUMNS
    tiles = tile_cost(rows, columns, schedule.rows, schedule.vectors, replace(target, cores=1))
    cycles = inner * (tiles + 2 * ceil_div(columns, target.lanes))  # a vector of B is read and written
    batch, cores = shape.batch or 1, target.cores
    return (
        cycles
        * (ceil_div(batch, cores) if batch > 1 else 1 / min(cores, ceil_div(rows, schedule.rows)))
        / (target.gigahertz * 1e9)
    )


def reference(a: Array, b: Array, shape: BatchMatmulShape, epilogue: Epilogue, operands: Sequence[Array]) -> Array:
    """The product in NumPy float64; operands broadcast to [batch, rows, columns]."""
    right = b.astype(np.float64)
    return epilogue.reference(a.astype(np.float64) @ (right.swapaxes(1, 2) if shape.transposed else right), operands)


def build(shape: BatchMatmulShape, schedule: BatchMatmulSchedule, target: Target, epilogue: Epilogue) -> PrimFunc:
    """The kernel (a, b, *operands, c). Operands as ``operands.RowOperands`` has them."""
    lanes, vectors = target.lanes, schedule.vectors
    width = vectors * lanes
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("batch_matmul")
        T.func_attr({"tirx.noalias": True})
        batch, rows, inner, columns = (extent(d) for d in (shape.batch, shape.rows, shape.inner, shape.columns))
        parameters = [
            tensor("a", (batch, rows, inner)),
            tensor("b", (batch, columns, inner) if shape.transposed else (batch, inner, columns)),
        ]
        operands = RowOperands(epilogue, (batch, rows, columns))
        parameters.append(tensor("c", (batch, rows, columns)))
        with root():
            a, b, c = [Flat(parameter) for parameter in parameters]
            operands.flatten()
            panel_tiles = _panel_runs(columns, width)
            panel_count = sum((run.count for run in panel_tiles[1:]), panel_tiles[0].count)
            share = schedule.share * schedule.rows
            shares = quotient(rows + share - 1, share)

            def rows_of(product: Expr, group: Expr, panel: Flat, column: int | Expr, existing: int | Expr) -> None:
                """All row tiles of one share, against one packed panel of which ``existing`` columns exist."""

                def tile(first_row: int | Expr, run: Run) -> None:
                    accumulators = RegisterTile(run.size, vectors, lanes)
                    (left,) = bind((product * rows + first_row) * inner)
                    with T.serial(0, inner) as k:
                        accumulators.multiply_add(
                            range(run.size),
                            lambda row: a.load(left + row * inner + k),
                            lambda v: panel.load(k * width + v * lanes, lanes),
                        )
                    (result,) = bind((product * rows + first_row) * columns + column)

                    def load(operand: int, row: int | Expr, part: Part) -> Expr:
                        inside = part.vector * lanes + part.first
                        return operands.load(operand, column + inside, result + row * columns + inside, part.width)

                    def store(row: int | Expr, part: Part, value: Expr) -> None:
                        c.store(result + row * columns + (part.vector * lanes + part.first), value, part.width)

                    accumulators.finish(epilogue, load, store, existing)

                one_share = isinstance(shares, int) and shares == 1
                (first_row,) = bind(group * share)
                for run in row_runs(rows if one_share else T.min(share, rows - first_row), schedule.rows):
                    with loop(run.count) as t:
                        tile(first_row + t * run.size, run)
                    (first_row,) = bind(first_row + run.count * run.size)

            with T.parallel(0, batch * panel_count * shares) as index:
                product, panel_tile, group = bind(*unravel(index, [batch, panel_count, shares]))

                def panel_of(first: int | Expr, run: Run) -> None:
                    (column,) = bind(first * width)
                    existing = width if run is panel_tiles[0] else columns - column
                    if isinstance(columns, int):
                        existing = width if run is panel_tiles[0] and columns >= width else columns % width
                    scratch = Flat(T.alloc_buffer((inner * width,), "float32", layout=None))
                    if shape.transposed:
                        _pack_transposed(b, scratch, product, column, inner, columns, width, lanes)
                    else:
                        _pack(b, scratch, product, column, existing, inner, columns, width, lanes)
                    rows_of(product, group, scratch, column, existing)

                for_tile(panel_tile, panel_tiles, panel_of)
    return builder.get()


def _panel_runs(columns: int | Expr, width: int) -> list[Run]:
    """Tiles of ``width`` columns: the whole ones, then one for the rest if there is (or may be) one."""
    if isinstance(columns, int):
        return [run for run in (Run(columns // width, 1), Run(min(1, columns % width), 1)) if run.count]
    return [Run(quotient(columns, width), 1), Run(T.min(1, remainder(columns, width)), 1)]


def _pack(
    b: Flat,
    scratch: Flat,
    product: Expr,
    column: int | Expr,
    existing: int | Expr,
    inner: int | Expr,
    columns: int | Expr,
    width: int,
    lanes: int,
) -> None:
    """Copy ``existing`` columns of B [inner, columns] to a panel [inner, width]; the rest becomes 0."""
    with T.serial(0, inner) as k:
        source, target = bind((product * inner + k) * columns + column, k * width)
        whole = existing // lanes if isinstance(existing, int) else 0
        for v in range(whole):
            scratch.store(target + v * lanes, b.load(source + v * lanes, lanes), lanes)
        for v in range(whole, width // lanes):
            # Left as it was, the memory may hold subnormals, which would slow every multiply-add down.
            scratch.store(target + v * lanes, T.broadcast(T.float32(0), lanes), lanes)
        if isinstance(existing, int):
            for first, part in power_of_two_parts(existing % lanes):
                scratch.store(target + whole * lanes + first, b.load(source + whole * lanes + first, part), part)
        else:
            with T.serial(0, existing) as n:
                scratch.store(target + n, b.load(source + n), 1)


def _pack_transposed(
    b: Flat,
    scratch: Flat,
    product: Expr,
    column: int | Expr,
    inner: int | Expr,
    columns: int | Expr,
    width: int,
    lanes: int,
) -> None:
    """Copy rows ``column`` ... of B [columns, inner] to the columns of a panel [inner, width].

    Beyond the last row the last one is repeated: its products are never stored.
    """
    with T.serial(0, width // lanes) as v:
        first = column + v * lanes
        starts = bind(*((product * columns + T.min(first + i, columns - 1)) * inner for i in range(lanes)))
        with T.serial(0, quotient(inner, lanes)) as block:
            tile = [T.bind(b.load(start + block * lanes, lanes)) for start in starts]
            for k, column_of_tile in enumerate(transposed(tile)):
                scratch.store((block * lanes + k) * width + v * lanes, column_of_tile, lanes)
        with T.serial(0, remainder(inner, lanes)) as rest:
            (k,) = bind(quotient(inner, lanes) * lanes + rest)
            for i, start in enumerate(starts):
                scratch.store(k * width + v * lanes + i, b.load(start + k), 1)
