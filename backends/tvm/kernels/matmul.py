"""Float32 matrix product with constant weights: C[M, N] = A[M, K] x B[K, N], B packed ahead in column panels.

A panel is one vector wide: [K, lanes]. One register tile (:mod:`register_tile`) multiplies ``rows`` rows of A with
``vectors`` panels over the whole of K; the panels of a tile stay in cache while the rows of a block of A stream by.
M may be known only at run time. N need not be a multiple of the vector: the last panel is padded with zeros and stored
in part. With M = 1 the tile is one row times many panels, and the panels are spread over the threads.

Method: K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

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
    even_runs,
    extent,
    for_tile,
    only_if,
    quotient,
    root,
    row_runs,
    tensor,
    unravel,
)
from shave.backends.tvm.kernels.epilogue import Bias, Epilogue
from shave.backends.tvm.kernels.register_tile import Part, RegisterTile, cycles_per_step, fits

MAX_ROWS = 28
MAX_VECTORS = 8
TYPICAL_ROWS = 128
"""Rows to optimise for where their number is only known at run time."""


@dataclass(frozen=True)
class MatmulShape:
    """C[rows, columns] = A[rows, inner] x B[inner, columns]; ``rows`` is None where only the call knows."""

    rows: Dimension
    inner: int
    columns: int


@dataclass(frozen=True)
class MatmulSchedule:
    """Choices of a matrix product.

    Attributes:
        rows: Largest number of rows of a register tile.
        vectors: Largest number of panels of a register tile.
        block: Row tiles that pass a set of panels before the next set is taken, to stay in cache.
    """

    rows: int
    vectors: int
    block: int


def tile_cost(rows: int, columns: int, tile_rows: int, tile_vectors: int, target: Target) -> float:
    """Estimated cycles of the busiest core per unit of K, for register tiles of the given size."""
    row_tiles = even_runs(rows, tile_rows)
    panel_tiles = even_runs(ceil_div(columns, target.lanes), tile_vectors)
    cycles = sum(
        int(r.count) * int(p.count) * cycles_per_step(r.size, p.size)
        for r, p in itertools.product(row_tiles, panel_tiles)
    )
    units = sum(int(r.count) for r in row_tiles) * sum(int(p.count) for p in panel_tiles)
    return cycles * ceil_div(units, target.cores) * target.cores / units


def best_tiles(rows: int, columns: int, target: Target) -> list[tuple[int, int]]:
    """The ten best (rows, vectors) of a register tile by the analytic model, best first."""
    tiles = [
        (r, v)
        for r, v in itertools.product(range(1, min(rows, MAX_ROWS) + 1), range(1, MAX_VECTORS + 1))
        if fits(r, v, target)
    ]
    return sorted(tiles, key=lambda t: (tile_cost(rows, columns, t[0], t[1], target), -t[0]))[:10]


def candidates(shape: MatmulShape, target: Target) -> list[MatmulSchedule]:
    """The best register tiles by the analytic model, best first."""
    schedules = []
    for rows, vectors in best_tiles(shape.rows or TYPICAL_ROWS, shape.columns, target):
        fitting = target.l2_bytes // 2 // (rows * shape.inner * 4)
        schedules.append(MatmulSchedule(rows, vectors, max(1, fitting)))
    return schedules


def default(shape: MatmulShape, target: Target) -> MatmulSchedule:
    """The best register tile by the analytic model."""
    return candidates(shape, target)[0]


def seconds(shape: MatmulShape, schedule: MatmulSchedule, target: Target) -> float:
    """Estimated time of a call, weights read from main memory; rows known only at run time count as one tile."""
    rows = shape.rows or schedule.rows
    cycles = shape.inner * tile_cost(rows, shape.columns, schedule.rows, schedule.vectors, target)
    weights = 4 * shape.inner * ceil_div(shape.columns, target.lanes) * target.lanes
    return max(cycles / (target.gigahertz * 1e9), weights / target.cores / (target.memory_gbytes * 1e9))


def pack(weight: Array, shape: MatmulShape, target: Target) -> Array:
    """B [inner, columns] as the kernel reads it: [panels, inner, lanes], zeros beyond the last column."""
    panels = ceil_div(shape.columns, target.lanes)
    padded = np.zeros((shape.inner, panels * target.lanes), np.float32)
    padded[:, : shape.columns] = weight
    return np.ascontiguousarray(padded.reshape(shape.inner, panels, target.lanes).swapaxes(0, 1))


def reference(a: Array, weight: Array, epilogue: Epilogue, operands: Sequence[Array]) -> Array:
    """The product in NumPy float64; operands broadcast to [rows, columns]."""
    return epilogue.reference(a.astype(np.float64) @ weight.astype(np.float64), operands)


def panel_runs(columns: int, vectors: int, lanes: int) -> list[Run]:
    """Tiles of panels; the last tile has a run of its own where it holds a partial panel."""
    runs = even_runs(ceil_div(columns, lanes), vectors)
    last = runs[-1]
    if columns % lanes and last.count != 1:
        runs[-1:] = [Run(last.count - 1, last.size), Run(1, last.size)]
    return runs


def build(shape: MatmulShape, schedule: MatmulSchedule, target: Target, epilogue: Epilogue) -> PrimFunc:
    """The kernel (a, packed b, *operands, c). Bias is [columns], residual is [rows, columns]."""
    lanes, inner, columns = target.lanes, shape.inner, shape.columns
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("matmul")
        T.func_attr({"tirx.noalias": True})
        rows = extent(shape.rows)
        parameters = [
            tensor("a", (rows, inner)),
            tensor("b", (ceil_div(columns, lanes), inner, lanes)),
            *(
                tensor("bias", (columns,)) if isinstance(step, Bias) else tensor("residual", (rows, columns))
                for step in epilogue.operands
            ),
            tensor("c", (rows, columns)),
        ]
        with root():
            a, b, *operands, c = [Flat(parameter) for parameter in parameters]
            row_tiles = row_runs(rows, schedule.rows)
            panel_tiles = panel_runs(columns, schedule.vectors, lanes)
            count = sum((run.count for run in row_tiles[1:]), row_tiles[0].count)
            block = min(schedule.block, count) if isinstance(count, int) else schedule.block
            blocks = quotient(count + block - 1, block)
            units = [blocks, sum(int(run.count) for run in panel_tiles), block]

            def tile(first_row: int | Expr, row_run: Run, first_panel: int | Expr, panel_run: Run) -> None:
                accumulators = RegisterTile(row_run.size, panel_run.size, lanes)
                left, right = bind(first_row * inner, first_panel * (inner * lanes))
                with T.serial(0, inner) as k:
                    accumulators.multiply_add(
                        range(row_run.size),
                        lambda row: a.load(left + (row * inner + k)),
                        lambda v: b.load(right + (v * inner * lanes + k * lanes), lanes),
                    )
                result, column = bind(first_row * columns + first_panel * lanes, first_panel * lanes)

                def load(operand: int, row: int | Expr, part: Part) -> Expr:
                    start = column if isinstance(epilogue.operands[operand], Bias) else result + row * columns
                    return operands[operand].load(start + (part.vector * lanes + part.first), part.width)

                def store(row: int | Expr, part: Part, value: Expr) -> None:
                    c.store(result + (row * columns + part.vector * lanes + part.first), value, part.width)

                before_last = ceil_div(columns, lanes) - panel_run.size
                partial = panel_run is panel_tiles[-1] and columns % lanes
                accumulators.finish(epilogue, load, store, columns - before_last * lanes if partial else None)

            with T.parallel(0, units[0] * units[1] * units[2]) as index:
                outer, panel, within = bind(*unravel(index, units))
                (row_tile,) = bind(outer * block + within)
                known = isinstance(count, int) and count % block == 0
                with only_if(known or row_tile < count):
                    for_tile(
                        row_tile,
                        row_tiles,
                        lambda first_row, row_run: for_tile(
                            panel,
                            panel_tiles,
                            lambda first_panel, panel_run: tile(first_row, row_run, first_panel, panel_run),
                        ),
                    )
    return builder.get()
