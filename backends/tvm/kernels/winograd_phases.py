"""The three phases of a Winograd convolution, as code; see :mod:`winograd`."""

from __future__ import annotations

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
from shave.backends.tvm.kernels.epilogue import Bias, Epilogue, Residual
from shave.backends.tvm.kernels.register_tile import Part, RegisterTile
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
        self.depth = min(schedule.depth, self.in_blocks)
        self.slices = ceil_div(self.in_blocks, self.depth)
        self.batch = extent(shape.batch)
        self.tiles = shape.grid[0] * shape.grid[1] * self.batch
        self.block_tiles = schedule.rows * schedule.block
        # An odd number of vectors from one element to the next, so that the elements of a tile fall into different
        # sets of the caches.
        self.factor_step = (self.block_tiles * self.in_blocks | 1) * self.lanes
        self.product_step = self.elements | 1
        outputs = (self.batch, self.out_blocks, *shape.out_spatial, self.lanes)
        self.x: Any = tensor("x", (self.batch, self.in_blocks, *shape.spatial, self.lanes))
        self.weight: Any = tensor("weight", (self.out_blocks, shape.in_channels, TAPS * TAPS, self.lanes))
        self.operands: list[Any] = [
            tensor("bias", (self.out_blocks, self.lanes)) if isinstance(step, Bias) else tensor("residual", outputs)
            for step in epilogue.operands
        ]
        self.y: Any = tensor("y", outputs)

    def emit(self) -> None:
        """Emit the body."""
        with root():
            self.x, self.weight, self.y = Flat(self.x), Flat(self.weight), Flat(self.y)
            self.operands = [Flat(operand) for operand in self.operands]
            runs = even_runs(self.out_blocks, self.schedule.vectors)
            groups = sum(int(run.count) for run in runs)
            expanded = None
            if self.schedule.expand == "once":
                expanded = _scratch(self._weight_base(self.out_blocks, 0, 0) // self.lanes, self.lanes)

                def expand(first: int | Expr, run: Run) -> None:
                    with loop(self.slices) as part:
                        (base,) = bind(self._weight_base(first, part, run.size))
                        self._expand(expanded, base, first, part, run.size)

                with T.parallel(0, groups) as group:
                    for_tile(group, runs, expand)
            blocks = quotient(self.tiles + (self.block_tiles - 1), self.block_tiles)
            if self.schedule.split == "tiles":
                with T.parallel(0, blocks) as block:
                    first, count = self._members(block)
                    factors = _scratch(self.elements * self.factor_step // self.lanes, self.lanes)
                    with T.serial(0, count) as t:
                        self._gather(factors, first, t)
                    self._clear(factors, count)
                    with loop(groups) as group:
                        for_tile(group, runs, lambda o, run: self._channels(factors, expanded, first, count, o, run))
            else:
                factors = _scratch(self.elements * self.factor_step // self.lanes, self.lanes)
                with loop(blocks) as block:
                    first, count = self._members(block)
                    with T.parallel(0, count) as t:
                        self._gather(factors, first, t)
                    self._clear(factors, count)
                    with T.parallel(0, groups) as group:
                        for_tile(group, runs, lambda o, run: self._channels(factors, expanded, first, count, o, run))

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

    def _gather(self, factors: Flat, first: int | Expr, t: int | Expr) -> None:
        """All input channels of tile ``t`` of the block that starts with tile ``first``."""
        lanes, size, tile = self.lanes, self.size, self.shape.tile
        (height, width), (top, left) = self.shape.spatial, self.shape.padding
        place = self._place(first + t)
        y, x = bind(place.row * tile - top, place.column * tile - left)
        scratch = _scratch(self.elements, lanes)
        target = offset(
            (self.in_blocks, self.schedule.rows, lanes),
            quotient(t, self.schedule.rows), 0, remainder(t, self.schedule.rows), 0,
        )  # fmt: skip

        def blocks(load: Any) -> None:
            with loop(self.in_blocks) as b:
                source, goal = bind(
                    (((place.image * self.in_blocks + b) * height + y) * width + x) * lanes,
                    target + b * (self.schedule.rows * lanes),
                )

                def store(row: Expr, values: list[Expr]) -> None:
                    (base,) = bind(goal + row * (size * self.factor_step))
                    for column, value in enumerate(values):
                        factors.store(base + column * self.factor_step, value, lanes)

                transform(self.matrices.BT, load(source), store, scratch, lanes)

        def inside(source: int | Expr) -> Any:
            return lambda row, column: self.x.load(source + (row * width + column) * lanes, lanes)

        def border() -> None:
            rows = bind(T.max(0, 0 - y), T.min(size, height - y))
            columns = bind(T.max(0, 0 - x), T.min(size, width - x))
            patch = _scratch(self.elements, lanes)
            with T.serial(0, self.elements) as element:
                patch.store(element * lanes, T.broadcast(T.float32(0), lanes), lanes)

            def copied(source: int | Expr) -> Any:
                with T.serial(rows[0], rows[1]) as row, T.serial(columns[0], columns[1]) as column:
                    value = self.x.load(source + (row * width + column) * lanes, lanes)
                    patch.store((row * size + column) * lanes, value, lanes)
                return lambda row, column: patch.load((row * size + column) * lanes, lanes)

            blocks(copied)

        axes = zip(self.shape.grid, self.shape.spatial, self.shape.padding, strict=True)
        kinds = [{self._is_inside(q, extent, pad) for q in range(count)} for count, extent, pad in axes]
        if all(kind == {True} for kind in kinds):
            blocks(inside)
        elif any(kind == {False} for kind in kinds):
            border()
        else:
            with T.If(tirx.all(y >= 0, x >= 0, y + size <= height, x + size <= width)):
                with T.Then():
                    blocks(inside)
                with T.Else():
                    border()

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
            base = offset((self.in_blocks, rows, lanes), quotient(t, rows), 0, remainder(t, rows), 0)
            with T.serial(0, self.elements) as element, loop(self.in_blocks) as b:
                at = base + (element * self.factor_step + b * (rows * lanes))
                factors.store(at, T.broadcast(T.float32(0), lanes), lanes)

    # Phase 2: products

    def _slice(self, number: int | Expr) -> list[int | Expr]:
        """Input channels of a slice: the first, and how many."""
        inputs, depth = self.shape.in_channels, self.depth * self.lanes
        if inputs % depth == 0:
            return [*bind(number * depth), depth]
        return bind(number * depth, T.min(depth, inputs - number * depth))

    def _weight_base(self, first: int | Expr, part: int | Expr, vectors: int) -> int | Expr:
        """Where the transformed weights of a slice begin in the memory for all weights."""
        return (first * self.slices + part * vectors) * (self.elements * self._weight_step(1))

    def _weight_step(self, vectors: int) -> int:
        """From one element of the transformed weights to the next; odd in vectors as that of factors is."""
        return vectors * (self.depth * self.lanes + 1) * self.lanes

    def _expand(self, weights: Flat, base: int | Expr, first: int | Expr, part: int | Expr, vectors: int) -> None:
        """Transform one slice of the weights of the output blocks from ``first`` on: [element, in, vectors, lanes]."""
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
                    step = self._weight_step(vectors)
                    (base,) = bind(goal + row * (self.size * step))
                    for column, value in enumerate(values):
                        weights.store(base + column * step, value, lanes)

                transform(self.matrices.G, load, store, scratch, lanes)

    def _channels(
        self, factors: Flat, expanded: Flat | None, first: int | Expr, count: int | Expr, out: int | Expr, run: Run
    ) -> None:
        """Multiply and scatter ``run.size`` blocks of output channels from ``out`` on, for all tiles of the block."""
        lanes, vectors = self.lanes, run.size
        products = _scratch(vectors * self.block_tiles * self.product_step, lanes)
        weights = expanded or _scratch(self.elements * self._weight_step(vectors) // lanes, lanes)
        with loop(self.slices) as part:
            base: int | Expr = 0
            if expanded is None:
                self._expand(weights, base, out, part, vectors)
            else:
                (base,) = bind(self._weight_base(out, part, vectors))
            with T.serial(0, self.elements) as element:
                (at,) = bind(base + element * self._weight_step(vectors))
                with loop(quotient(count + (self.schedule.rows - 1), self.schedule.rows)) as tile:
                    self._multiply(factors, weights, products, element, at, part, tile, vectors)
        scratch = _scratch(self.size * self.shape.tile, lanes)
        with T.serial(0, count) as t:
            place = self._place(first + t)
            with loop(vectors) as v:
                self._scatter(products, scratch, place, offset((self.block_tiles,), v, t), out + v)

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
    ) -> None:
        """Add the products of one slice of channels for one register tile of one element."""
        lanes, rows = self.lanes, self.schedule.rows
        accumulators = RegisterTile(rows, vectors, lanes)
        block = tile * self.in_blocks + part * self.depth
        (source,) = bind(element * self.factor_step + block * (rows * lanes))

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

        (goal,) = bind((tile * (rows * self.product_step) + element) * lanes)

        def at(row: int | Expr, part: Part) -> int | Expr:
            return goal + (part.vector * self.block_tiles + row) * (self.product_step * lanes)

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

    def _scatter(self, products: Flat, scratch: Flat, place: _Place, number: int | Expr, block: int | Expr) -> None:
        """One tile of output block ``block``; its products are the ``number``-th of the scratch memory."""
        lanes, size, tile = self.lanes, self.size, self.shape.tile
        height, width = self.shape.out_spatial
        y, x, source = bind(place.row * tile, place.column * tile, number * (self.product_step * lanes))
        goal = offset((self.out_blocks, height, width, lanes), place.image, block, y, x, 0)
        rows, columns = bind(T.min(tile, height - y), T.min(tile, width - x))

        def finish(at: int | Expr, value: Expr) -> None:
            def load(operand: int) -> Expr:
                if isinstance(self.epilogue.operands[operand], Bias):
                    return self.operands[operand].load(block * lanes, lanes)
                return self.operands[operand].load(at, lanes)

            self.y.store(at, self.epilogue.apply(value, load), lanes)

        def store(row: Expr, values: list[Expr]) -> None:
            (base,) = bind(goal + row * (width * lanes))
            with only_if(row < rows):
                for column, value in enumerate(values):
                    with only_if(column < columns):
                        finish(base + column * lanes, value)

        def load(row: int, column: Expr) -> Expr:
            return products.load(source + (row * size + column) * lanes, lanes)

        transform(self.matrices.AT, load, store, scratch, lanes)
