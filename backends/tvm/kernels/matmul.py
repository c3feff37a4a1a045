"""Matrix product with constant weights: C[M, N] = A[M, K] x B[K, N], B packed ahead in column panels.

A panel is one vector wide: [K, lanes]. One register tile (:mod:`register_tile`) multiplies ``rows`` rows of A with
``vectors`` panels over the whole of K; the panels of a tile stay in cache while the rows of a block of A stream by.
M may be known only at run time. N need not be a multiple of the vector: the last panel is padded with zeros and stored
in part. With M = 1 the tile is one row times many panels, and the panels are spread over the threads. A long K is cut
into blocks, so that a block of A and the panels of a tile stay in the level 2 cache; C holds the sums in between.

A is float32, or uint8 with int8 weights, as in convolutions (:mod:`conv`). A panel then is [K / 4, lanes, 4], K is not
cut, and what is left of K behind the fours is read byte by byte. Scale and zero point of an uint8 A may come with the
call, for all of it or for each row: sums then start from the zero point times the sums of the weights' columns.

Method: K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from shave.backends.packing import Packing
from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, IRBuilder, PrimFunc, T, tirx
from shave.backends.tvm.kernels.arithmetic import FLOATS, Arithmetic, InputDtype, arithmetic_of
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
    loop,
    only_if,
    pad_channels,
    quotient,
    remainder,
    root,
    row_runs,
    tensor,
    unravel,
)
from shave.backends.tvm.kernels.epilogue import Epilogue, Scale
from shave.backends.tvm.kernels.narrowing import narrows
from shave.backends.tvm.kernels.operands import BlockedOperands, RowOperands
from shave.backends.tvm.kernels.parameters import NUMBERS, SCALE, ZERO, Measured
from shave.backends.tvm.kernels.prefetch import LINE_BYTES, Prefetch, overlapped
from shave.backends.tvm.kernels.register_tile import (
    LONG_REDUCTION,
    LoadOperand,
    Part,
    RegisterTile,
    cycles_per_step,
    fits,
)
from shave.backends.tvm.kernels.register_tile import Packing as TilePacking
from shave.backends.tvm.kernels.row import repeated

_At = Callable[["int | Expr", Part], "int | Expr"]
"""(row, part) of a tile to its position in the result."""

MAX_ROWS = 28
MAX_VECTORS = 8
MAX_DEPTH = 1024
CHUNK = 16
"""Steps of the reduction between two prefetches; of floats, whose K is cut into multiples of it."""
TYPICAL_ROWS = 128
"""Rows to optimise for where their number is only known at run time."""


@dataclass(frozen=True)
class MatmulShape:
    """C[rows, columns] = A[rows, inner] x B[inner, columns]; ``rows`` is None where only the call knows.

    Attributes:
        rows: Rows of A and C.
        inner: Columns of A, rows of B.
        columns: Columns of B and C.
        positions: Where C is stored as blocked images [rows / positions, blocks, positions, lanes], a row being a
            pixel: how many pixels an image has; ``rows`` is then known. 0 for plain rows.
        dtype: Of A; float32 meets float32 weights, uint8 meets int8 weights.
        measured: What of an uint8 A has a scale and a zero point that come with the call; see :mod:`parameters`.
    """

    rows: Dimension
    inner: int
    columns: int
    positions: int = 0
    dtype: InputDtype = "float32"
    measured: Measured = "nothing"


@dataclass(frozen=True)
class MatmulSchedule:
    """Choices of a matrix product.

    Attributes:
        rows: Largest number of rows of a register tile.
        vectors: Largest number of panels of a register tile.
        block: Row tiles that pass a set of panels before the next set is taken, to stay in cache.
        prefetch: Whether row tiles ask for the next set of panels; see :mod:`prefetch`.
    """

    rows: int
    vectors: int
    block: int
    prefetch: bool = True


def tile_cost(
    rows: int,
    columns: int,
    tile_rows: int,
    tile_vectors: int,
    target: Target,
    arithmetic: Arithmetic = FLOATS,
    panel: int = 0,
) -> float:
    """Estimated cycles of the busiest core per step of K, for register tiles of the given size.

    A panel takes so many bytes; the loads of a tile's panels are slow where these take more than half of the level 1
    cache. That is fitted to floats: of integers, with a quarter of the loads for each product, it is not counted.
    """
    slow = arithmetic is FLOATS and tile_vectors * panel > target.l1_bytes // 2
    row_tiles = even_runs(rows, tile_rows)
    panel_tiles = even_runs(ceil_div(columns, target.lanes), tile_vectors)
    cycles = sum(
        int(r.count) * int(p.count) * cycles_per_step(r.size, p.size, slow * p.size, arithmetic)
        for r, p in itertools.product(row_tiles, panel_tiles)
    )
    units = sum(int(r.count) for r in row_tiles) * sum(int(p.count) for p in panel_tiles)
    return cycles * ceil_div(units, target.cores) / units


def best_tiles(
    rows: int, columns: int, target: Target, arithmetic: Arithmetic = FLOATS, panel: int = 0
) -> list[tuple[int, int]]:
    """The ten best (rows, vectors) of a register tile by :func:`tile_cost`, best first."""
    tiles = [
        (r, v)
        for r, v in itertools.product(range(1, min(rows, MAX_ROWS) + 1), range(1, MAX_VECTORS + 1))
        if fits(r, v, target, arithmetic)
    ]
    return sorted(tiles, key=lambda t: (tile_cost(rows, columns, t[0], t[1], target, arithmetic, panel), -t[0]))[:10]


def candidates(shape: MatmulShape, target: Target) -> list[MatmulSchedule]:
    """The best register tiles by the analytic model, also with all rows or a single tile at a time; best first."""
    rows, arithmetic = shape.rows or TYPICAL_ROWS, arithmetic_of(shape.dtype, target)
    best = [
        MatmulSchedule(tile_rows, vectors, _block(shape, ceil_div(rows, tile_rows), tile_rows, target))
        for tile_rows, vectors in best_tiles(rows, shape.columns, target, arithmetic, _panel_bytes(shape, target))
    ]
    tiles = [1, 4, ceil_div(rows, best[0].rows)]
    other = [replace(s, block=block) for s in best[:4] for block in tiles if block != s.block]
    return list(dict.fromkeys(best + other + [replace(s, prefetch=False) for s in best[:2]]))


def _block(shape: MatmulShape, tiles: int, tile_rows: int, target: Target) -> int:
    """Row tiles whose data fit half of the level 2 cache, in blocks of equal size.

    A small B meets few rows at a time, so that their part of C stays in cache too. A larger one comes from memory once:
    it meets all rows whose part of A fits.
    """
    size = np.dtype(shape.dtype).itemsize
    fitting = target.l2_bytes // 2 // (tile_rows * size * depth(shape, target))
    if stays(shape, target):
        fitting = target.l2_bytes // 8 // (tile_rows * size * (shape.inner + shape.columns))
    return ceil_div(tiles, ceil_div(tiles, max(1, fitting)))


def stays(shape: MatmulShape, target: Target) -> bool:
    """Whether B stays in the level 2 cache from one block of rows to the next."""
    return _weight_bytes(shape, target) <= target.l2_bytes // 2


def _panel_bytes(shape: MatmulShape, target: Target) -> int:
    """Bytes of a panel within a block of K."""
    return np.dtype(arithmetic_of(shape.dtype, target).weights).itemsize * target.lanes * depth(shape, target)


def _weight_bytes(shape: MatmulShape, target: Target) -> int:
    """Bytes of packed weights."""
    arithmetic = arithmetic_of(shape.dtype, target)
    inner = ceil_div(shape.inner, arithmetic.depth) * arithmetic.depth
    return np.dtype(arithmetic.weights).itemsize * inner * ceil_div(shape.columns, target.lanes) * target.lanes


def depth(shape: MatmulShape, target: Target) -> int:
    """Length of a block of K.

    A partial panel is not cut, since sums must be stored between blocks, nor is a single row, which needs no cache, nor
    are integers, whose sums have no place in C.
    """
    if shape.columns % target.lanes or shape.rows == 1 or shape.dtype != "float32":
        return shape.inner
    blocks = ceil_div(shape.inner, MAX_DEPTH)
    return ceil_div(shape.inner, blocks * CHUNK) * CHUNK if blocks > 1 else shape.inner


def default(shape: MatmulShape, target: Target) -> MatmulSchedule:
    """The best register tile by the analytic model."""
    return candidates(shape, target)[0]


def seconds(shape: MatmulShape, schedule: MatmulSchedule, target: Target) -> float:
    """Estimated time of a call, weights read from main memory; rows known only at run time count as one tile."""
    rows = shape.rows or schedule.rows
    arithmetic = arithmetic_of(shape.dtype, target)
    steps = ceil_div(shape.inner, arithmetic.depth)
    panel = _panel_bytes(shape, target)
    cycles = steps * tile_cost(rows, shape.columns, schedule.rows, schedule.vectors, target, arithmetic, panel)
    weights = _weight_bytes(shape, target)
    memory = weights / target.cores / (target.memory_gbytes * 1e9)
    return overlapped(cycles / (target.gigahertz * 1e9), memory, schedule.vectors * panel, target)


def packing(shape: MatmulShape, target: Target) -> Packing:
    """B [inner, columns] as the kernel reads it: block of K after block, each [panels, depth, lanes].

    The result is flat; it has zeros beyond the last column, and integers have them beyond the last row up to a whole
    step, whose rows lie side by side.
    """
    panels = ceil_div(shape.columns, target.lanes)
    inner = _packed_inner(shape, target)
    steps = Packing().pad(inner, panels * target.lanes).reshape(inner, panels, target.lanes)
    if shape.dtype == "float32":
        return steps.blocks(depth(shape, target))
    panel = (panels, inner, target.lanes)
    order = steps.blocks(inner).reshape(*panel).then(arithmetic_of(shape.dtype, target).packing(panel))
    return order.reshape(prod(panel))


def _packed_inner(shape: MatmulShape, target: Target) -> int:
    """Rows of packed weights: whole steps."""
    together = arithmetic_of(shape.dtype, target).depth
    return ceil_div(shape.inner, together) * together


def pack(weight: Array, shape: MatmulShape, target: Target) -> Array:
    """Pack weights, B [inner, columns], float32 or int8; see :func:`packing`."""
    return packing(shape, target).apply(weight.astype(arithmetic_of(shape.dtype, target).weights, copy=False))


def corrections(weight: Array, zero_point: int, target: Target) -> Array:
    """What sums of integers start from, so that an A of ``zero_point`` counts as 0: [panels, lanes], int32.

    Args:
        weight: B [inner, columns], int8.
        zero_point: The element of A that stands for 0.
        target: Gives the number of lanes.
    """
    return pad_channels(-zero_point * weight.astype(np.int64).sum(axis=0), target.lanes, "int32")


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
    """The kernel (a, packed b, *operands, c); operands as :mod:`operands` has them.

    Integers take :func:`corrections` ahead of the operands; those for a zero point of 1, and :mod:`parameters` behind
    them, where the zero point comes with the call. Its scale is part of the result ahead of the epilogue.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("matmul")
        T.func_attr({"tirx.noalias": True})
        _Emitter(shape, schedule, target, epilogue).emit()
    return builder.get()


class _Emitter:
    """Emits parameters and body of one kernel into the function being built."""

    def __init__(self, shape: MatmulShape, schedule: MatmulSchedule, target: Target, epilogue: Epilogue) -> None:
        self.shape = shape
        self.schedule = schedule
        self.epilogue = epilogue
        self.lanes = target.lanes
        self.panels = ceil_div(shape.columns, self.lanes)
        self.depth = depth(shape, target)
        self.arithmetic = arithmetic_of(shape.dtype, target)
        self.chunk = CHUNK * self.arithmetic.depth
        self.stays = stays(shape, target)
        self.packing: TilePacking | None = "columns" if narrows(target) and not shape.positions else None
        self.rows = extent(shape.rows)
        result: tuple[int | Expr, ...] = (self.rows, shape.columns)
        if shape.positions:
            assert shape.rows is not None
            result = (shape.rows // shape.positions, self.panels, shape.positions, self.lanes)
        self.a = tensor("a", (self.rows, shape.inner), shape.dtype)
        packed = ceil_div(shape.inner, self.arithmetic.depth) * self.arithmetic.depth
        self.b = tensor("b", (self.panels * packed * self.lanes,), self.arithmetic.weights)
        self.corrections: Any = None
        if self.arithmetic.sums == "int32":
            self.corrections = tensor("corrections", (self.panels, self.lanes), "int32")
        self.parameters: Any = None
        if shape.measured != "nothing":
            self.parameters = tensor("parameters", (self.rows if shape.measured == "row" else 1, NUMBERS))
            self.epilogue = Epilogue((Scale(), *epilogue.steps))
        self.operands = BlockedOperands(epilogue, result) if shape.positions else RowOperands(epilogue, result)
        self.c = tensor("c", result, epilogue.dtype)

    def emit(self) -> None:
        with root():
            self.a, self.b, self.c = Flat(self.a), Flat(self.b), Flat(self.c)
            self.operands.flatten()
            if self.corrections is not None:
                self.corrections = Flat(self.corrections)
            if self.parameters is not None:
                self.parameters = Flat(self.parameters)
            with loop(ceil_div(self.shape.inner, self.depth)) as block:
                self._block(block)

    def _block(self, block: int | Expr) -> None:
        """All products with one block of K."""
        row_tiles = row_runs(self.rows, self.schedule.rows)
        panel_tiles = panel_runs(self.shape.columns, self.schedule.vectors, self.lanes)
        count = sum((run.count for run in row_tiles[1:]), row_tiles[0].count)
        within = min(self.schedule.block, count) if isinstance(count, int) else self.schedule.block
        units = [quotient(count + within - 1, within), sum(int(run.count) for run in panel_tiles), within]
        with T.parallel(0, units[0] * units[1] * units[2]) as index:
            outer, panel, visit = bind(*unravel(index, units))
            (row_tile,) = bind(outer * within + visit)
            known = isinstance(count, int) and count % within == 0
            # A B that stays in cache has to be asked for once only, others for each block of rows.
            visiting = row_tile if self.stays else visit

            def columns(first_panel: int | Expr, panel_run: Run) -> None:
                partial = panel_run is panel_tiles[-1] and self.shape.columns % self.lanes
                for_tile(
                    row_tile,
                    row_tiles,
                    lambda first_row, row_run: self._tile(
                        block, first_row, row_run.size, first_panel, panel_run.size, bool(partial), within, visiting
                    ),
                )

            with only_if(known or row_tile < count):
                for_tile(panel, panel_tiles, columns)

    def _tile(
        self,
        block: int | Expr,
        first_row: int | Expr,
        rows: int,
        first_panel: int | Expr,
        vectors: int,
        partial: bool,
        visits: int,
        visit: int | Expr,
    ) -> None:
        """One register tile, number ``visit`` of ``visits`` with its panels; ``partial`` if the last is not full."""
        lanes, inner, columns = self.lanes, self.shape.inner, self.shape.columns
        tile = RegisterTile(rows, vectors, lanes, self.arithmetic)
        first_k = block * self.depth
        steps = self.depth if inner % self.depth == 0 else T.min(self.depth, inner - first_k)
        pitch = steps if self.arithmetic.depth == 1 else ceil_div(inner, self.arithmetic.depth) * self.arithmetic.depth
        left, panel = bind(first_row * inner + first_k, first_k * (self.panels * lanes) + first_panel * (pitch * lanes))
        place = self._pixels(first_row, first_panel) if self.shape.positions else self._row(first_row, first_panel)
        at, operand_of = place

        def load(operand: int, row: int | Expr, part: Part) -> Expr:
            if self.parameters is None:
                return operand_of(operand, row, part)
            if operand:
                return operand_of(operand - 1, row, part)
            return repeated(self._parameter(first_row + row, SCALE), part.width)

        def store(row: int | Expr, part: Part, value: Expr) -> None:
            self.c.store(at(row, part), value, part.width)

        level = 1 if self.depth >= LONG_REDUCTION else 2
        tile.prefetch(lambda row, v: self.c.prefetch(at(row, Part(v, 0, lanes)), level))
        if self.corrections is not None:
            (start,) = bind(first_panel * lanes)

            def first_sum(row: int | Expr, part: Part) -> Expr:
                correction = self.corrections.load(start + part.vector * lanes, lanes)
                if self.parameters is None:
                    return correction
                zero = tirx.Cast("int32", self._parameter(first_row + row, ZERO))
                return correction * T.broadcast(zero, lanes)

            tile.load(first_sum)
        whole = inner == self.depth
        if not whole:
            with T.If(block > 0), T.Then():
                tile.load(lambda row, part: self.c.load(at(row, part), part.width))

        ahead = None
        if self.schedule.prefetch:
            elements = vectors * self.depth * lanes
            line = LINE_BYTES // np.dtype(self.arithmetic.weights).itemsize
            ahead = Prefetch.of(elements, ceil_div(self.depth, self.chunk), visits, line=line)
        asked = -1 if ahead is None else ahead.first(panel + vectors * lanes * pitch, visit)
        together = self.arithmetic.depth

        def multiply(k: int | Expr, a: Callable[[int | Expr], Expr]) -> None:
            tile.multiply_add(
                range(rows), a, lambda v: self.b.load(panel + ((v * pitch + k) * lanes), lanes * together)
            )

        def reduce(start: int | Expr, count: int | Expr) -> None:
            with T.serial(0, count) as step:
                k = start + step * together
                multiply(k, lambda row: self.a.load(left + (row * inner + k), together))

        chunks = quotient(steps, self.chunk)
        with loop(chunks) as chunk:
            if ahead is not None:
                ahead.ask(self.b, asked, chunk)
            reduce(chunk * self.chunk, self.chunk // together)
        tail = remainder(steps, self.chunk)
        if not isinstance(tail, int) or tail >= together:
            reduce(chunks * self.chunk, quotient(tail, together))
        if rest := inner % together:
            multiply(inner - rest, lambda row: self.a.load_first(left + (row * inner + (inner - rest)), rest, together))

        before_last = self.panels - vectors
        stored = columns - before_last * lanes if partial and not self.shape.positions else None
        if whole:
            tile.finish(self.epilogue, load, store, stored, self.packing)
        else:
            with T.If((block + 1) * self.depth < inner):
                with T.Then():
                    tile.finish(Epilogue(), load, store)
                with T.Else():
                    tile.finish(self.epilogue, load, store)

    def _parameter(self, row: int | Expr, number: int) -> Expr:
        """One of the numbers that belong to a row of A."""
        return self.parameters.load((row * NUMBERS if self.shape.measured == "row" else 0) + number)

    def _row(self, first_row: int | Expr, first_panel: int | Expr) -> tuple[_At, LoadOperand]:
        """Where the elements of a tile lie in plain rows, and the parts of operands that meet them."""
        lanes, columns = self.lanes, self.shape.columns
        result, column = bind(first_row * columns + first_panel * lanes, first_panel * lanes)

        def at(row: int | Expr, part: Part) -> int | Expr:
            return result + (row * columns + part.vector * lanes + part.first)

        def load(operand: int, row: int | Expr, part: Part) -> Expr:
            assert isinstance(self.operands, RowOperands)
            first = column + (part.vector * lanes + part.first)
            return self.operands.load(operand, first, at(row, part), part.width)

        return at, load

    def _pixels(self, first_row: int | Expr, first_panel: int | Expr) -> tuple[_At, LoadOperand]:
        """The same in blocked images."""
        lanes, positions = self.lanes, self.shape.positions
        one_image = self.shape.rows == positions
        (panel,) = bind(first_panel)

        def image(row: int | Expr) -> int | Expr:
            return 0 if one_image else quotient(first_row + row, positions)

        def at(row: int | Expr, part: Part) -> int | Expr:
            number = first_row + row
            pixel = number if one_image else remainder(number, positions)
            block = image(row) * self.panels + panel + part.vector
            return (block * positions + pixel) * lanes + part.first

        def load(operand: int, row: int | Expr, part: Part) -> Expr:
            assert isinstance(self.operands, BlockedOperands)
            return self.operands.load(operand, image(row), panel + part.vector, at(row, part), part.first, part.width)

        return at, load
