"""The three phases of a Winograd convolution, as code; see :mod:`winograd`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, T, tirx
from shave.backends.tvm.kernels.base import (
    Flat,
    Run,
    bind,
    ceil_div,
    even_runs,
    extent,
    for_tile,
    loop,
    offset,
    only_if,
    quotient,
    remainder,
    root,
    tensor,
)
from shave.backends.tvm.kernels.epilogue import Epilogue, Residual
from shave.backends.tvm.kernels.operands import BlockedOperands
from shave.backends.tvm.kernels.register_tile import Part, RegisterTile
from shave.backends.tvm.kernels.vector_math import Locals, larger
from shave.backends.tvm.kernels.winograd_shape import TAPS, WinogradSchedule, WinogradShape
from shave.backends.tvm.kernels.winograd_transform import transform
from shave.ir.winograd import transforms


def _scratch(vectors: int, lanes: int) -> Flat:
    """Memory of one thread, for as long as the enclosing scope."""
    return Flat(T.alloc_buffer((vectors * lanes,), "float32", layout=None))


@dataclass(frozen=True)
class _Place:
    """Where one tile lies: image, and its first row and column in the grid of tiles."""

    image: int | Expr
    row: int | Expr
    column: int | Expr


class Phases:
    """Emits parameters and body of one kernel into the function being built."""

    def __init__(self, shape: WinogradShape, schedule: WinogradSchedule, target: Target, epilogue: Epilogue) -> None:
        self.shape = shape
        self.schedule = schedule
        self.epilogue = epilogue
        self.lanes = target.lanes
        self.matrices = transforms(shape.tile)
        self.size = self.matrices.size
        self.elements = self.size**2
        self.in_blocks = ceil_div(shape.in_channels, self.lanes)
        self.out_blocks = ceil_div(shape.out_channels, self.lanes)
        self.depth = self.in_blocks if schedule.order == "elements" else min(schedule.depth, self.in_blocks)
        self.slices = ceil_div(self.in_blocks, self.depth)
        self.batch = extent(shape.batch)
        self.tiles = shape.grid[0] * shape.grid[1] * self.batch
        self.block_tiles = schedule.rows * schedule.block
        # An odd number of vectors from one element to the next, so that the elements of a tile fall into different
        # sets of the caches.
        self.factor_step = (self.block_tiles * self.depth | 1) * self.lanes
        outputs = (self.batch, self.out_blocks, *shape.out_spatial, self.lanes)
        self.x: Any = tensor("x", (self.batch, self.in_blocks, *shape.spatial, self.lanes))
        self.weight: Any = tensor("weight", (self.out_blocks, shape.in_channels, TAPS * TAPS, self.lanes))
        self.operands = BlockedOperands(epilogue, outputs)
        self.y: Any = tensor("y", (self.batch, self.out_blocks, *shape.stored_spatial, self.lanes), epilogue.dtype)

    def emit(self) -> None:
        """Emit the body."""
        with root():
            self.x, self.weight, self.y = Flat(self.x), Flat(self.weight), Flat(self.y)
            self.operands.flatten()
            runs = even_runs(self.out_blocks, self.schedule.vectors)
            groups = sum(int(run.count) for run in runs)
            blocks = quotient(self.tiles + (self.block_tiles - 1), self.block_tiles)
            if self.schedule.order == "elements":
                self._by_elements(runs, groups, blocks)
            else:
                self._by_channels(runs, groups, blocks)

    def _by_elements(self, runs: list[Run], groups: int, blocks: int | Expr) -> None:
        """All weights transformed first; then each thread takes blocks of tiles, in them one element at a time."""
        inputs = self.shape.in_channels
        weight_step = (self.out_blocks * inputs | 1) * self.lanes
        weights = _scratch(self.elements * weight_step // self.lanes, self.lanes)
        with T.parallel(0, groups) as group:
            for_tile(
                group,
                runs,
                lambda out, run: self._expand(weights, out * (inputs * self.lanes), weight_step, out, 0, run.size),
            )
        with T.parallel(0, blocks) as block:
            first, count = self._members(block)
            factors = self._factors()
            products = _scratch(self.elements * self._product_step(self.out_blocks), self.lanes)
            # One plane of the image after the other, along its rows, as the hardware's prefetch foresees.
            with loop(self.in_blocks) as b, T.serial(0, count) as t:
                self._gather(factors, first, t, b)
            self._clear(factors, count)
            with T.serial(0, self.elements) as element, loop(groups) as group:

                def multiply(out: int | Expr, run: Run) -> None:
                    (base,) = bind(element * weight_step + out * (inputs * self.lanes))
                    with loop(self._register_tiles(count)) as tile:
                        self._multiply(factors, weights, products, element, base, 0, tile, run.size, out)

                for_tile(group, runs, multiply)
            self._scatter_all(products, first, count, 0, self.out_blocks)

    def _by_channels(self, runs: list[Run], groups: int, blocks: int | Expr) -> None:
        """One block of tiles after the other; each thread takes output channels, and transforms their weights."""
        factors = self._factors()
        with loop(blocks) as block:
            first, count = self._members(block)
            with T.parallel(0, count) as t, loop(self.in_blocks) as b:
                self._gather(factors, first, t, b)
            self._clear(factors, count)
            with T.parallel(0, groups) as group:
                for_tile(group, runs, lambda out, run: self._channels(factors, first, count, out, run.size))

    def _channels(self, factors: Flat, first: int | Expr, count: int | Expr, out: int | Expr, vectors: int) -> None:
        """Multiply and scatter ``vectors`` blocks of output channels from ``out`` on, for all tiles of the block."""
        # An odd number of vectors per element, as for factors, but for the factor ``vectors``.
        weight_step = vectors * (self.depth * self.lanes + 1) * self.lanes
        weights = _scratch(self.elements * weight_step // self.lanes, self.lanes)
        products = _scratch(self.elements * self._product_step(vectors), self.lanes)
        with loop(self.slices) as part:
            self._expand(weights, 0, weight_step, out, part, vectors)
            with T.serial(0, self.elements) as element:
                (base,) = bind(element * weight_step)
                with loop(self._register_tiles(count)) as tile:
                    self._multiply(factors, weights, products, element, base, part, tile, vectors, 0)
        self._scatter_all(products, first, count, out, vectors)

    def _register_tiles(self, count: int | Expr) -> int | Expr:
        """How many hold ``count`` tiles."""
        return quotient(count + (self.schedule.rows - 1), self.schedule.rows)

    def _product_step(self, vectors: int) -> int:
        """Vectors from one element to the next of the products of some output blocks: [element, block, tile]."""
        return vectors * self.block_tiles | 1

    def _factors(self) -> Flat:
        """Memory for the factors of a block of tiles."""
        return _scratch(self.slices * self.elements * self.factor_step // self.lanes, self.lanes)

    def _members(self, block: int | Expr) -> list[int | Expr]:
        """Number of the first tile of a block, and how many it has."""
        first = block * self.block_tiles
        if isinstance(self.tiles, int) and self.tiles % self.block_tiles == 0:
            return [*bind(first), self.block_tiles]
        return bind(first, T.min(self.block_tiles, self.tiles - first))

    def _place(self, index: int | Expr) -> _Place:
        """Of a tile by its number in the batch."""
        rows, columns = self.shape.grid
        (image,) = bind(quotient(index, rows * columns))
        (inside,) = bind(remainder(index, rows * columns))
        return _Place(image, *bind(quotient(inside, columns), remainder(inside, columns)))

    # Phase 1: the image to factors

    def _gather(self, factors: Flat, first: int | Expr, t: int | Expr, b: int | Expr) -> None:
        """Input channel block ``b`` of tile ``t`` of the block that starts with tile ``first``."""
        lanes, size, tile = self.lanes, self.size, self.shape.tile
        (height, width), (top, left) = self.shape.spatial, self.shape.padding
        place = self._place(first + t)
        y, x = bind(place.row * tile - top, place.column * tile - left)
        source, goal = bind(
            (((place.image * self.in_blocks + b) * height + y) * width + x) * lanes,
            self._factor_row(t) + self._factor_block(b),
        )
        scratch = _scratch(self.elements, lanes)

        def image(row: int | Expr, column: Expr) -> Expr:
            return self.x.load(source + (row * width + column) * lanes, lanes)

        def store(row: Expr, values: list[Expr]) -> None:
            (base,) = bind(goal + row * (size * self.factor_step))
            for column, value in enumerate(values):
                factors.store(base + column * self.factor_step, value, lanes)

        def inside() -> None:
            transform(self.matrices.BT, image, store, scratch, lanes)

        def border() -> None:
            patch = _scratch(self.elements, lanes)
            with T.serial(0, self.elements) as element:
                patch.store(element * lanes, T.broadcast(T.float32(0), lanes), lanes)
            rows = bind(T.max(0, 0 - y), T.min(size, height - y))
            columns = bind(T.max(0, 0 - x), T.min(size, width - x))
            with T.serial(*rows) as row, T.serial(*columns) as column:
                patch.store((row * size + column) * lanes, image(row, column), lanes)
            transform(
                self.matrices.BT,
                lambda row, column: patch.load((row * size + column) * lanes, lanes),
                store,
                scratch,
                lanes,
            )

        axes = zip(self.shape.grid, self.shape.spatial, self.shape.padding, strict=True)
        kinds = [{self._is_inside(q, extent, pad) for q in range(count)} for count, extent, pad in axes]
        if all(kind == {True} for kind in kinds):
            inside()
        elif any(kind == {False} for kind in kinds):
            border()
        else:
            with T.If(tirx.all(y >= 0, x >= 0, y + size <= height, x + size <= width)):
                with T.Then():
                    inside()
                with T.Else():
                    border()

    def _factor_row(self, t: int | Expr) -> int | Expr:
        """Where the factors of a tile begin: [slice, element, register tile, block of the slice, row, lanes]."""
        rows = self.schedule.rows
        return offset((self.depth, rows, self.lanes), quotient(t, rows), 0, remainder(t, rows), 0)

    def _factor_block(self, b: int | Expr) -> int | Expr:
        """From there to an input channel block."""
        inside = remainder(b, self.depth) * (self.schedule.rows * self.lanes)
        return quotient(b, self.depth) * (self.elements * self.factor_step) + inside

    def _is_inside(self, position: int, size: int, padding: int) -> bool:
        """Whether no input of a tile lies in the padding, along one axis."""
        first = position * self.shape.tile - padding
        return first >= 0 and first + self.size <= size

    def _clear(self, factors: Flat, count: int | Expr) -> None:
        """Zero the rows of the last register tile that are no tiles, since old memory may hold anything."""
        rows, lanes = self.schedule.rows, self.lanes
        if isinstance(count, int):
            return
        with T.serial(0, quotient(count + (rows - 1), rows) * rows - count) as missing:
            t = count + missing
            base = self._factor_row(t)
            with T.serial(0, self.elements) as element, loop(self.in_blocks) as b:
                at = base + (element * self.factor_step + self._factor_block(b))
                factors.store(at, T.broadcast(T.float32(0), lanes), lanes)

    # Phase 2: products

    def _slice(self, number: int | Expr) -> list[int | Expr]:
        """Input channels of a slice: the first, and how many."""
        inputs, depth = self.shape.in_channels, self.depth * self.lanes
        if inputs % depth == 0:
            return [*bind(number * depth), depth]
        return bind(number * depth, T.min(depth, inputs - number * depth))

    def _expand(
        self, weights: Flat, base: int | Expr, step: int, first: int | Expr, part: int | Expr, vectors: int
    ) -> None:
        """Transform one slice of the weights of the output blocks from ``first`` on: [element, in, vectors, lanes].

        They go to ``base``; from one element to the next it is ``step``.
        """
        lanes = self.lanes
        scratch = _scratch(self.size * TAPS, lanes)
        start, count = self._slice(part)
        with T.serial(0, count) as c:
            for v in range(vectors):
                source = offset((self.shape.in_channels, TAPS * TAPS, lanes), first + v, start + c, 0, 0)
                (goal,) = bind(base + (c * vectors + v) * lanes)

                def load(row: int, column: Expr, source: int | Expr = source) -> Expr:
                    return self.weight.load(source + (row * TAPS + column) * lanes, lanes)

                def store(row: Expr, values: list[Expr], goal: int | Expr = goal) -> None:
                    (base,) = bind(goal + row * (self.size * step))
                    for column, value in enumerate(values):
                        weights.store(base + column * step, value, lanes)

                transform(self.matrices.G, load, store, scratch, lanes)

    def _multiply(
        self,
        factors: Flat,
        weights: Flat,
        products: Flat,
        element: Expr,
        base: int | Expr,
        part: int | Expr,
        tile: int | Expr,
        vectors: int,
        out: int | Expr,
    ) -> None:
        """Add the products of one slice of channels for one register tile of one element.

        ``out`` counts the output blocks of which ``products`` holds those ahead.
        """
        lanes, rows = self.lanes, self.schedule.rows
        accumulators = RegisterTile(rows, vectors, lanes)
        step = self._product_step(self.out_blocks if self.schedule.order == "elements" else vectors)
        panel = self.depth * rows * lanes
        (source,) = bind((part * self.elements + element) * self.factor_step + tile * panel)

        def add(done: int | Expr, count: int | Expr) -> None:
            factor, weight = bind(source + done * (rows * lanes), base + done * (lanes * vectors * lanes))
            with loop(count) as c:
                accumulators.multiply_add(
                    range(rows),
                    lambda row: factors.load(factor + c + row * lanes),
                    lambda v: weights.load(weight + (c * vectors + v) * lanes, lanes),
                )

        full, rest = divmod(self.shape.in_channels, lanes)
        whole = (
            self.depth
            if self.shape.in_channels % (self.depth * lanes) == 0
            else T.min(self.depth, full - part * self.depth)
        )
        if full:
            with loop(whole) as b:
                add(b, lanes)
        if rest:
            with only_if(self.slices == 1 or part == self.slices - 1):
                add(full - part * self.depth, rest)

        (goal,) = bind((element * step + out * self.block_tiles + tile * rows) * lanes)

        def at(row: int | Expr, part: Part) -> int | Expr:
            return goal + (part.vector * self.block_tiles + row) * lanes

        def load(_: int, row: int | Expr, part: Part) -> Expr:
            return products.load(at(row, part), lanes)

        def store(row: int | Expr, part: Part, value: Expr) -> None:
            products.store(at(row, part), value, lanes)

        if self.slices == 1:
            accumulators.finish(Epilogue(), load, store)
            return
        with T.If(part == 0):
            with T.Then():
                accumulators.finish(Epilogue(), load, store)
            with T.Else():
                accumulators.finish(Epilogue((Residual(),)), load, store)

    # Phase 3: products to the image

    def _scatter_all(self, products: Flat, first: int | Expr, count: int | Expr, out: int | Expr, vectors: int) -> None:
        """All tiles of a block for the output blocks from ``out`` on."""
        scratch = _scratch(self.size * self.shape.tile, self.lanes)
        with loop(vectors) as v, T.serial(0, count) as t:
            self._scatter(
                products,
                self._product_step(vectors),
                scratch,
                self._place(first + t),
                offset((self.block_tiles,), v, t),
                out + v,
            )

    def _scatter(
        self, products: Flat, step: int, scratch: Flat, place: _Place, number: int | Expr, block: int | Expr
    ) -> None:
        """One tile of output block ``block``; its products are the ``number``-th of each element, ``step`` apart."""
        lanes, size, tile = self.lanes, self.size, self.shape.tile
        height, width = self.shape.out_spatial
        y, x, source = bind(place.row * tile, place.column * tile, number * lanes)
        goal = offset((self.out_blocks, height, width, lanes), place.image, block, y, x, 0)
        rows, columns = bind(T.min(tile, height - y), T.min(tile, width - x))

        def finished(at: int | Expr, value: Expr) -> Expr:
            return self.epilogue.apply(
                value, lambda operand: self.operands.load(operand, place.image, block, at, 0, lanes)
            )

        def store(row: Expr, values: list[Expr]) -> None:
            (base,) = bind(goal + row * (width * lanes))
            with only_if(row < rows):
                for column, value in enumerate(values):
                    with only_if(column < columns):
                        result = finished(base + column * lanes, value)
                        if self.shape.pooled:
                            # The place of what this row was computed from.
                            scratch.store((row * size + column) * lanes, result, lanes)
                        else:
                            self.y.store(base + column * lanes, result, lanes)

        def load(row: int, column: Expr) -> Expr:
            return products.load(source + (row * size + column) * (step * lanes), lanes)

        transform(self.matrices.AT, load, store, scratch, lanes)
        if self.shape.pooled:
            self._pool(scratch, place, block, rows, columns)

    def _pool(self, scratch: Flat, place: _Place, block: int | Expr, rows: int | Expr, columns: int | Expr) -> None:
        """The largest of each 2x2 window of the outputs of one tile, of which ``rows`` times ``columns`` exist."""
        lanes, size, half = self.lanes, self.size, self.shape.tile // 2
        height, width = self.shape.stored_spatial
        goal = offset(
            (self.out_blocks, height, width, lanes), place.image, block, place.row * half, place.column * half, 0
        )
        with T.serial(0, quotient(rows, 2)) as row:
            for column in range(half):
                with only_if(2 * column + 1 < columns):
                    window = [
                        scratch.load(((2 * row + dy) * size + 2 * column + dx) * lanes, lanes)
                        for dy in range(2)
                        for dx in range(2)
                    ]
                    let = Locals()
                    result = functools.reduce(lambda a, b: let(larger(a, b)), window)
                    self.y.store(goal + (row * width + column) * lanes, result, lanes)
