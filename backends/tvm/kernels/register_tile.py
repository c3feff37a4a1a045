"""The micro-kernel of convolutions and matrix products: a tile of accumulators kept in vector registers.

A tile has ``rows`` (pixels, or rows of A) times ``vectors`` (of output channels, or columns of B). One step of the
reduction loads ``vectors`` weight vectors, broadcasts one scalar per row (four small integers, see :mod:`arithmetic`)
and does rows * vectors multiply-adds. The tile is a local array that is only indexed with constants, which LLVM turns
into registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, T, tirx
from shave.backends.tvm.kernels.arithmetic import FLOATS, Arithmetic
from shave.backends.tvm.kernels.base import loop, span, unrolled
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.narrowing import TOGETHER, codes_of
from shave.backends.tvm.kernels.vector_math import STACK_ARRAY_BYTES, as_float32, local_array

FMA_PER_CYCLE = 2
FMA_LATENCY = 4
CYCLES_PER_LOAD = 0.6
CYCLES_PER_SLOW_LOAD = 0.1
CYCLES_PER_STEP = 0.3
CYCLES_PER_OPERAND = {"float32": 0.15, "int32": 0.01}
"""Of loading an operand of a step beside the arithmetic, by the type of the sums: where a core decodes for two threads,
the instructions that it takes count, and a tile of 9 x 3 takes fewer for each product than one of 14 x 2. Integer tiles
that are as nearly square leave LLVM too few registers, and it spills."""
CYCLES_PER_TILE = 30
PACKED_CYCLES, NARROWED_CYCLES = 3, 5
"""Of a vector of sums to float32, scaled, bounded and rounded, to 8 bits: with three others, or by itself."""
LONG_REDUCTION = 256
"""Steps that take longer than a line takes from far caches to level 1."""


@dataclass(frozen=True)
class Part:
    """``width`` lanes from ``first`` on of vector number ``vector`` of a row."""

    vector: int
    first: int | Expr
    width: int


Packing = Literal["rows", "columns"]

LoadOperand = Callable[[int, "int | Expr", Part], Expr]
"""(operand, row, part) to that part of the operand."""

StoreResult = Callable[["int | Expr", Part, Expr], None]
"""(row, part, value): write that part of the result."""


def fits(rows: int, vectors: int, target: Target, arithmetic: Arithmetic = FLOATS) -> bool:
    """Whether the accumulators, one step's weights and broadcasts fit the vector registers."""
    each, besides = arithmetic.registers
    return rows <= most_rows(target) and rows * vectors + each * vectors + besides <= target.vector_registers


def most_rows(target: Target) -> int:
    """Most rows of a tile of which one column of vectors still is a local array on the stack."""
    return (STACK_ARRAY_BYTES - 1) // target.vector_bytes


def cycles_per_step(rows: int, vectors: int, slow_loads: float = 0, arithmetic: Arithmetic = FLOATS) -> float:
    """Estimated cycles of one step of the reduction.

    The slowest of FMA units, load units and the chain through an accumulator, and a stall for each load that is not
    served by the level 1 cache at full speed (fitted to measurements on an AVX-512 core).
    """
    busy = max(
        arithmetic.instructions * rows * vectors / FMA_PER_CYCLE, (rows + vectors) * CYCLES_PER_LOAD, FMA_LATENCY
    )
    loads = (rows + vectors) * CYCLES_PER_OPERAND[arithmetic.sums] + slow_loads * CYCLES_PER_SLOW_LOAD
    return CYCLES_PER_STEP + busy + loads


def cycles_per_tile(rows: int, vectors: int, arithmetic: Arithmetic = FLOATS) -> float:
    """Estimated cycles of a tile besides its reduction: loops, clearing and storing the accumulators."""
    together = rows // TOGETHER * TOGETHER
    each = rows if arithmetic.depth == 1 else PACKED_CYCLES * together + NARROWED_CYCLES * (rows - together)
    return CYCLES_PER_TILE + each * vectors


def power_of_two_parts(width: int) -> list[tuple[int, int]]:
    """(first, width) of vectors that cover ``width`` lanes exactly: 11 is 8 + 2 + 1."""
    parts = []
    first = 0
    while first < width:
        part = 1 << ((width - first).bit_length() - 1)
        parts.append((first, part))
        first += part
    return parts


class RegisterTile:
    """Accumulators of one tile; emits its statements into the function being built.

    Rows and vectors are unrolled by TVM, near the end of its passes: the loops keep the function small until then.
    """

    def __init__(self, rows: int, vectors: int, lanes: int, arithmetic: Arithmetic = FLOATS) -> None:
        """Allocate and clear the accumulators."""
        self.rows = rows
        self.vectors = vectors
        self.lanes = lanes
        self._arithmetic = arithmetic
        # One array for each vector of the tile: a single one would be too large for the stack.
        self._accumulators = [local_array(rows * lanes, arithmetic.sums) for _ in range(vectors)]
        zero = T.broadcast(tirx.const(0, arithmetic.sums), lanes)
        with unrolled(0, rows) as row:
            for accumulators in self._accumulators:
                T.buffer_store(accumulators, zero, [span(row * lanes, lanes)])

    def prefetch(self, ask: Callable[[int | Expr, int], None]) -> None:
        """Ask for each line of the result, by row and vector, so that storing it waits for no other cache or memory."""
        with loop(self.rows) as row:
            for vector in range(self.vectors):
                ask(row, vector)

    def load(self, value: Callable[[int | Expr, Part], Expr]) -> None:
        """Set each accumulator to the value of that row and vector."""
        with unrolled(0, self.rows) as row:
            for v, accumulators in enumerate(self._accumulators):
                index = span(row * self.lanes, self.lanes)
                start = value(row, Part(v, 0, self.lanes))
                T.buffer_store(accumulators, as_float32(start) if self._arithmetic is FLOATS else start, [index])

    def multiply_add(self, rows: range, x: Callable[[int | Expr], Expr], weight: Callable[[int], Expr]) -> None:
        """Add the products of x(row) and weight(vector) to the accumulators of some consecutive rows."""
        with unrolled(rows.start, rows.stop) as row:
            for v, accumulators in enumerate(self._accumulators):
                index = span(row * self.lanes, self.lanes)
                total = self._arithmetic.multiply_add(accumulators[index], x(row), weight(v))
                T.buffer_store(accumulators, total, [index])

    def multiply_add_vectors(self, rows: range, value: Callable[[int | Expr], Expr], weight: Expr) -> None:
        """Add value(row) * weight, both vectors, to the accumulators of some consecutive rows of one vector each."""
        self.combine(rows, lambda row, total: total + value(row) * weight)

    def combine(self, rows: range, change: Callable[[int | Expr, Expr], Expr]) -> None:
        """Set the accumulators of some consecutive rows of one vector each to ``change(row, accumulator)``."""
        (accumulators,) = self._accumulators
        with unrolled(rows.start, rows.stop) as row:
            index = span(row * self.lanes, self.lanes)
            T.buffer_store(accumulators, change(row, accumulators[index]), [index])

    def change(self, row: int, vector: int, change: Callable[[Expr], Expr]) -> None:
        """Set one accumulator to ``change(accumulator)``."""
        accumulators, index = self._accumulators[vector], span(row * self.lanes, self.lanes)
        T.buffer_store(accumulators, change(accumulators[index]), [index])

    def finish(
        self,
        epilogue: Epilogue,
        load: LoadOperand,
        store: StoreResult,
        columns: int | Expr | None = None,
        packing: Packing | None = None,
    ) -> None:
        """Apply the epilogue and store.

        Args:
            epilogue: Steps between accumulator and store.
            load: Gives parts of the operands of the epilogue.
            store: Writes parts of the result.
            columns: Lanes of the tile that exist in the result, counted over its vectors; all by default.
            packing: The target packs codes, and either rows or the vectors of a row follow each other in memory:
                ``store`` may get several as one part.
        """
        columns = self.vectors * self.lanes if columns is None else columns
        parts: list[Part] = []
        if isinstance(columns, int):
            parts = [
                Part(v, first, width)
                for v in range(self.vectors)
                for first, width in power_of_two_parts(min(self.lanes, columns - v * self.lanes))
            ]
        whole = len(parts) == self.vectors
        if whole and not epilogue.transcendental:
            source, repeat = self._accumulators, unrolled
        else:
            # A copy in memory may be indexed with a loop variable, so a long epilogue is emitted once and not per row.
            source, repeat = self._staged(), _counted
        if any(part.width != self.lanes for part in parts) or not parts or epilogue.quantize is None:
            packing = None
        packed = self.rows // TOGETHER if packing == "rows" else 0
        if packed:
            with repeat(0, packed) as group:
                for part in parts:
                    places = [(group * TOGETHER + k, part.vector) for k in range(TOGETHER)]
                    self._finish_together(source, places, epilogue, load, store)
        if packed * TOGETHER == self.rows:
            return
        with repeat(packed * TOGETHER, self.rows) as row:
            if packing == "columns":
                for first in range(0, self.vectors, TOGETHER):
                    places = [(row, v) for v in range(first, min(first + TOGETHER, self.vectors))]
                    self._finish_together(source, places, epilogue, load, store)
            elif isinstance(columns, int):
                for part in parts:
                    self._finish_part(source, row, part, epilogue, load, store)
            else:
                for v in range(self.vectors):
                    existing = T.max(0, T.min(self.lanes, columns - v * self.lanes))
                    with T.serial(0, existing) as lane:
                        self._finish_part(source, row, Part(v, lane, 1), epilogue, load, store)

    def _staged(self) -> list[Any]:
        """A copy of the accumulators in memory."""
        staged = [local_array(self.rows * self.lanes, self._arithmetic.sums) for _ in range(self.vectors)]
        with unrolled(0, self.rows) as row:
            for source, target in zip(self._accumulators, staged, strict=True):
                index = span(row * self.lanes, self.lanes)
                T.buffer_store(target, source[index], [index])
        return staged

    def _finish_part(
        self,
        source: Sequence[Any],
        row: int | Expr,
        part: Part,
        epilogue: Epilogue,
        load: LoadOperand,
        store: StoreResult,
    ) -> None:
        value = as_float32(source[part.vector][span(row * self.lanes + part.first, part.width)])
        store(row, part, epilogue.apply(value, lambda operand: load(operand, row, part)))

    def _finish_together(
        self,
        source: Sequence[Any],
        places: Sequence[tuple[int | Expr, int]],
        epilogue: Epilogue,
        load: LoadOperand,
        store: StoreResult,
    ) -> None:
        """The same for codes of up to four (row, vector), one behind the other in memory."""
        assert epilogue.quantize is not None
        values = []
        for row, vector in places:

            def operand(number: int, row: int | Expr = row, vector: int = vector) -> Expr:
                return load(number, row, Part(vector, 0, self.lanes))

            value = as_float32(source[vector][span(row * self.lanes, self.lanes)])
            values.append(T.bind(epilogue.unrounded.apply(value, operand)))
        row, vector = places[0]
        numbers = epilogue.numbers(lambda number: load(number, row, Part(vector, 0, self.lanes)))
        codes = T.bind(codes_of(values + values[-1:] * (TOGETHER - len(values)), epilogue.quantize, numbers))
        for first, width in power_of_two_parts(len(places) * self.lanes):
            whole = width == TOGETHER * self.lanes
            part = codes if whole else tirx.Shuffle([codes], list(range(first, first + width)))
            store(row, Part(vector, first, width), part)


@contextmanager
def _counted(start: int, stop: int) -> Iterator[int | Expr]:
    """A loop at run time, in the place of an unrolled one."""
    with loop(stop - start) as variable:
        yield start + variable
