"""Float32 attention: softmax(scale * Q K^T + masks) V, one call for all heads, scores kept in the level 1 cache.

One unit of work owns one matrix of keys and values: it copies K transposed into panels of a few vectors and V into
rows of whole vectors, then takes the rows of Q a register tile (:mod:`register_tile`) at a time. A tile computes its
scores, turns them into weights and multiplies them with V before the next tile starts, so the scores need a scratch of
a few kilobytes. Rows longer than a block of columns keep a running maximum and sum and correct what they have so far
at each block (online softmax).

Q, K, V and the result may lie inside of larger tensors: a :class:`View` gives a step for every axis. So heads are
never transposed, three projections may share one tensor, and query heads that share a key head have steps of 0 in K.

Methods: M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867; T. Dao et al.,
"FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", arXiv:2205.14135.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, IRBuilder, PrimFunc, T, tirx
from shave.backends.tvm.kernels.base import (
    Array,
    Dimension,
    Flat,
    bind,
    ceil_div,
    extent,
    loop,
    quotient,
    root,
    row_runs,
    tensor,
    unravel,
)
from shave.backends.tvm.kernels.batch_matmul import TYPICAL_COLUMNS
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.matmul import TYPICAL_ROWS, best_tiles
from shave.backends.tvm.kernels.packing import copy_rows, transpose_rows
from shave.backends.tvm.kernels.register_tile import Part, RegisterTile, power_of_two_parts
from shave.backends.tvm.kernels.row import LOWEST, exp_below_zero, largest, total
from shave.backends.tvm.kernels.vector_math import Locals, local_array

BLOCK = 512
"""Columns of scores that a tile of rows holds at a time, roughly: 14 rows of them are half of a level 1 cache."""


@dataclass(frozen=True)
class View:
    """Where the elements of an operand lie: a start and one step, in elements, for each axis.

    Attributes:
        lead: Steps of the leading axes (batch, heads). None, where extents are known only at run time, stands for the
            rows that lie inside, one after another: extent of the rows times ``row``, times the extents of the later
            axes that have None as well.
        row: Step from one row to the next; the elements of a row are neighbours.
        start: Position of the first element.
    """

    lead: tuple[Dimension, ...]
    row: int
    start: int = 0


@dataclass(frozen=True)
class AttentionShape:
    """softmax(scale * Q K^T + masks) V over leading axes; None stands for an extent that only the call knows.

    Attributes:
        lead: Extents of the leading axes. At the innermost ones K and V may have steps of 0 (shared by query heads).
        rows: Number of queries.
        columns: Number of keys and values.
        size: Elements of a query and of a key.
        width: Elements of a value.
        scale: Factor of the scores, before masks are added.
        query: Where Q [*lead, rows, size] lies.
        key: Where K [*lead, columns, size] lies.
        value: Where V [*lead, columns, width] lies.
        result: Where the result [*lead, rows, width] goes.
        masks: Tensors that are added to the scores [*lead, rows, columns]; a step of 0 repeats them. Memory behind a
            row must be readable up to a multiple of the vector: make rows that long.
        causal: Query i sees keys 0 to i only.
        hidden: What a row gives in which every score is minus infinity: 0 as torch's attention (True), or NaN as a
            softmax (False).
    """

    lead: tuple[Dimension, ...]
    rows: Dimension
    columns: Dimension
    size: int
    width: int
    scale: float
    query: View
    key: View
    value: View
    result: View
    masks: tuple[View, ...] = ()
    causal: bool = False
    hidden: bool = True

    @property
    def shared(self) -> int:
        """Number of innermost leading axes over which K and V stay the same."""
        count = 0
        for key, value in zip(reversed(self.key.lead), reversed(self.value.lead), strict=True):
            if key != 0 or value != 0:
                break
            count += 1
        return count


@dataclass(frozen=True)
class AttentionSchedule:
    """Choices of an attention kernel.

    Attributes:
        rows: Largest number of rows of a register tile.
        vectors: Largest number of vectors of a register tile.
        block: Columns of scores held at a time, a multiple of the tile's; all of them where there are no more.
        share: Row tiles that use the copies of K and V before they are given up.
    """

    rows: int
    vectors: int
    block: int
    share: int


def candidates(shape: AttentionShape, target: Target) -> list[AttentionSchedule]:
    """The best register tiles by the analytic model, best first."""
    rows, columns = shape.rows or TYPICAL_ROWS, shape.columns or TYPICAL_COLUMNS
    outer = shape.lead[: len(shape.lead) - shape.shared]
    units = math.prod(size or 1 for size in outer)
    schedules = []
    for tile_rows, vectors in best_tiles(rows, columns, target):
        tiles = ceil_div(rows, tile_rows)
        shares = 1 if units >= 4 * target.cores else min(tiles, ceil_div(2 * target.cores, units))
        width = vectors * target.lanes
        block = ceil_div(BLOCK, width) * width
        share = ceil_div(tiles, 1 if target.cores == 1 else shares)
        schedules.append(AttentionSchedule(tile_rows, vectors, block, share))
    return schedules


def default(shape: AttentionShape, target: Target) -> AttentionSchedule:
    """The best register tile by the analytic model."""
    return candidates(shape, target)[0]


def steps(view: View, lead: Sequence[int | Expr], rows: int | Expr) -> list[int | Expr]:
    """Steps of the leading axes, with what only the call knows filled in."""
    inside: int | Expr = rows * view.row
    filled: list[int | Expr] = []
    for step, size in zip(reversed(view.lead), reversed(lead), strict=True):
        filled.append(inside if step is None else step)
        inside = inside * size if step is None else inside
    return filled[::-1]


def reference(
    query: Array,
    key: Array,
    value: Array,
    masks: Sequence[Array],
    shape: AttentionShape,
    lead: Sequence[int],
    rows: int,
    columns: int,
) -> Array:
    """Attention in NumPy float64: operands as the kernel takes them (any shape), result [*lead, rows, width]."""

    def seen(array: Array, view: View, length: int, width: int) -> Array:
        flat = array.reshape(-1).astype(np.float64)
        size = flat.itemsize
        strides = [size * int(step) for step in steps(view, lead, length)]
        return np.lib.stride_tricks.as_strided(
            flat[view.start :], (*lead, length, width), (*strides, size * view.row, size), writeable=False
        )

    q = seen(query, shape.query, rows, shape.size)
    k, v = seen(key, shape.key, columns, shape.size), seen(value, shape.value, columns, shape.width)
    scores = shape.scale * (q @ k.swapaxes(-1, -2))
    for mask, view in zip(masks, shape.masks, strict=True):
        scores = scores + seen(mask, view, rows, columns)
    if shape.causal:
        scores = np.where(np.tri(rows, columns, dtype=bool), scores, -np.inf)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = weights / weights.sum(axis=-1, keepdims=True)
    if shape.hidden:
        weights = np.where(np.isneginf(scores).all(axis=-1, keepdims=True), 0, weights)
    result: Array = weights @ v
    return result


def build(shape: AttentionShape, schedule: AttentionSchedule, target: Target, epilogue: Epilogue) -> PrimFunc:
    """The kernel (q, k, v, *masks, result), all of them seen as one row of elements.

    Where the number of columns is known only at run time, k is [anything, columns, ``shape.key.row``]; where a leading
    extent or the number of rows is, the result is [*lead, rows, width] in the order of its steps.
    """
    assert not epilogue.steps, "attention has no epilogue"
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("attention")
        T.func_attr({"tirx.noalias": True})
        lead, rows, columns = [extent(d) for d in shape.lead], extent(shape.rows), extent(shape.columns)
        somewhere = None
        parameters = [
            tensor("q", (extent(somewhere),)),
            tensor("k", (extent(somewhere),) if shape.columns else (extent(somewhere), columns, shape.key.row)),
            tensor("v", (extent(somewhere),)),
            *(tensor(f"mask{i}", (extent(somewhere),)) for i in range(len(shape.masks))),
            tensor("result", _result_shape(shape, lead, rows)),
        ]
        with root():
            _Kernel(shape, schedule, target, lead, rows, columns, [Flat(p) for p in parameters]).emit()
    return builder.get()


def _result_shape(shape: AttentionShape, lead: Sequence[int | Expr], rows: int | Expr) -> list[int | Expr]:
    return [lead[axis] if axis < len(lead) else rows for axis in result_order(shape)] + [shape.width]


def result_order(shape: AttentionShape) -> list[int]:
    """Order of the axes of the result in memory, outermost first; ``len(lead)`` stands for its rows."""
    known = [1 if size is None else size for size in (*shape.lead, shape.rows)]
    assumed = [int(s) for s in steps(shape.result, known[:-1], known[-1])]
    inner = shape.width
    order: list[int] = []
    left = list(range(len(known)))
    # Axes of extent 1 may have any step; the innermost of the others is the one whose step is what lies inside.
    for _ in range(len(known)):
        at = next((a for a in reversed(left) if [*assumed, shape.result.row][a] == inner), left[-1])
        left.remove(at)
        order.append(at)
        inner *= known[at]
    return order[::-1]


@contextmanager
def _loops(extents: Sequence[int | Expr]) -> Iterator[list[int | Expr]]:
    with ExitStack() as stack:
        yield [stack.enter_context(loop(count)) for count in extents]


class _Kernel:
    """Emits the statements of one kernel."""

    def __init__(
        self,
        shape: AttentionShape,
        schedule: AttentionSchedule,
        target: Target,
        lead: Sequence[int | Expr],
        rows: int | Expr,
        columns: int | Expr,
        parameters: Sequence[Flat],
    ) -> None:
        self.shape, self.schedule = shape, schedule
        self.lanes = target.lanes
        self.width = schedule.vectors * target.lanes
        self.lead, self.rows, self.columns = lead, rows, columns
        self.q, self.k, self.v, *self.masks, self.result = parameters
        self.value_vectors = ceil_div(shape.width, self.lanes)
        self.one_block = isinstance(columns, int) and columns <= schedule.block
        held = self.round_up(columns) if self.one_block else schedule.block
        # One vector more: rows a power of two apart would share a few sets of the cache.
        self.pitch = held + self.lanes

    def round_up(self, columns: int | Expr) -> int | Expr:
        """Columns of whole panels."""
        return quotient(columns + self.width - 1, self.width) * self.width

    def emit(self) -> None:
        """All units of work."""
        shape, lanes = self.shape, self.lanes
        outer = len(shape.lead) - shape.shared
        most = self.schedule.rows
        share = self.schedule.share * most
        shares = quotient(self.rows + share - 1, share)
        units: int | Expr = shares
        for size in self.lead[:outer]:
            units = units * size
        with T.parallel(0, units) as index:
            *place, group = bind(*unravel(index, [*self.lead[:outer], shares]))
            self.keys = self.scratch(shape.size * self.round_up(self.columns))
            self.values = self.scratch(self.columns * self.value_vectors * lanes)
            self.queries = self.scratch(most * shape.size)
            self.scores = self.scratch(most * self.pitch)
            if not self.one_block:
                self.sums = self.scratch(most * self.value_vectors * lanes)
            self.pack(place)
            with _loops(self.lead[outer:]) as inner:
                (first,) = bind(group * share)
                one_share = isinstance(shares, int) and shares == 1
                for run in row_runs(self.rows if one_share else T.min(share, self.rows - first), most):
                    with loop(run.count) as number:
                        self.tile([*place, *inner], bind(first + number * run.size)[0], run.size)
                    (first,) = bind(first + run.count * run.size)

    def scratch(self, elements: int | Expr) -> Flat:
        """Memory of one unit of work."""
        return Flat(T.alloc_buffer((elements,), "float32", layout=None))

    def start(self, view: View, place: Sequence[int | Expr], rows: int | Expr) -> int | Expr:
        """Position of the first element of a matrix."""
        position: int | Expr = view.start
        for index, step in zip(place, steps(view, self.lead, rows), strict=False):
            position = position + index * step
        return position

    def pack(self, place: Sequence[int | Expr]) -> None:
        """Copy K to panels [size, width], and V to rows of whole vectors."""
        key, value, size, lanes = self.shape.key, self.shape.value, self.shape.size, self.lanes
        keys, values = bind(self.start(key, place, self.columns), self.start(value, place, self.columns))
        with loop(quotient(self.columns + lanes - 1, lanes)) as vector:
            panel, within = quotient(vector, self.schedule.vectors), vector % self.schedule.vectors
            last = self.columns - 1
            rows = [keys + T.min(vector * lanes + i, last) * key.row for i in range(lanes)]
            transpose_rows(self.k, rows, size, self.keys, panel * (size * self.width) + within * lanes, self.width)
        copy_rows(self.v, values, value.row, self.columns, self.shape.width, self.values, lanes)

    def tile(self, place: Sequence[int | Expr], first: int | Expr, count: int) -> None:
        """``count`` rows of the result, from ``first`` on."""
        shape, lanes = self.shape, self.lanes
        query, result, *masks = bind(
            self.start(shape.query, place, self.rows) + first * shape.query.row,
            self.start(shape.result, place, self.rows) + first * shape.result.row,
            *(self.start(mask, place, self.rows) + first * mask.row for mask in shape.masks),
        )
        copy_rows(self.q, query, shape.query.row, count, shape.size, self.queries, 1, lanes, shape.scale)
        columns = T.min(self.columns, first + count) if shape.causal else self.columns
        sums = local_array(count, "float32")

        def finished(row: int | Expr, value: Expr, width: int) -> Expr:
            scale = T.float32(1) / sums[row]
            if shape.hidden:
                scale = tirx.Select(sums[row] == T.float32(0), T.float32(0), scale)
            return value * (T.broadcast(scale, width) if width > 1 else scale)

        def store(row: int | Expr, part: Part, value: Expr) -> None:
            at = result + row * shape.result.row + part.vector * lanes + part.first
            self.result.store(at, finished(row, value, part.width), part.width)

        if self.one_block:
            self.score(first, masks, 0, columns, count)
            with loop(count) as row:
                top = largest(self.scores, row * self.pitch, columns, lanes, LOWEST)
                T.buffer_store(sums, self.weigh(row, top, columns), [row])
            self.multiply(count, 0, columns, store)
            return
        self.online(first, masks, columns, count, sums)
        with loop(count) as row:
            for vector in range(self.value_vectors):
                width = min(lanes, shape.width - vector * lanes)
                for at, part in power_of_two_parts(width):
                    value = self.sums.load((row * self.value_vectors + vector) * lanes + at, part)
                    store(row, Part(vector, at, part), value)

    def online(
        self, first: int | Expr, masks: Sequence[int | Expr], columns: int | Expr, count: int, sums: object
    ) -> None:
        """All blocks of columns; leaves the weighted sums of values in ``self.sums`` and of weights in ``sums``."""
        lanes, block = self.lanes, self.schedule.block
        tops, corrections = local_array(count, "float32"), local_array(count, "float32")
        with loop(count) as row:
            T.buffer_store(tops, T.float32(LOWEST), [row])
            T.buffer_store(sums, T.float32(0), [row])
        with loop(count * self.value_vectors) as vector:
            self.sums.store(vector * lanes, T.broadcast(T.float32(0), lanes), lanes)
        with loop(quotient(columns + block - 1, block)) as number:
            (start,) = bind(number * block)
            (existing,) = bind(T.min(block, columns - start))
            self.score(first, masks, start, existing, count)
            with loop(count) as row:
                top = largest(self.scores, row * self.pitch, existing, lanes, tops[row])
                let = Locals()
                correction = let(exp_below_zero(tops[row] - top, let))
                T.buffer_store(corrections, correction, [row])
                T.buffer_store(tops, top, [row])
                T.buffer_store(sums, sums[row] * correction + self.weigh(row, top, existing), [row])  # type: ignore[index]

            def store(row: int | Expr, part: Part, value: Expr) -> None:
                at = (row * self.value_vectors + part.vector) * lanes
                before = self.sums.load(at, lanes) * T.broadcast(corrections[row], lanes)
                self.sums.store(at, before + value, lanes)

            self.multiply(count, start, existing, store, whole=True)

    def score(
        self, first: int | Expr, masks: Sequence[int | Expr], start: int | Expr, columns: int | Expr, count: int
    ) -> None:
        """Scores of a tile of rows for ``columns`` columns from ``start`` on, minus infinity up to a whole vector."""
        lanes, size = self.lanes, self.shape.size

        def panel(number: int | Expr, vectors: int) -> None:
            (source,) = bind((start + number * self.width) * size)
            accumulators = RegisterTile(count, vectors, lanes)
            with T.serial(0, size) as k:
                accumulators.multiply_add(
                    range(count),
                    lambda row: self.queries.load(row * size + k),
                    lambda v: self.keys.load(source + k * self.width + v * lanes, lanes),
                )

            def store(row: int | Expr, part: Part, value: Expr) -> None:
                column = number * self.width + part.vector * lanes
                for mask, view, at in zip(self.masks, self.shape.masks, masks, strict=True):
                    value = value + mask.load(at + row * view.row + start + column, lanes)
                value = self.visible(value, column, columns, start + column, first + row)
                self.scores.store(row * self.pitch + column, value, lanes)

            accumulators.finish(Epilogue(), _no_operands, store)

        vectors = self.schedule.vectors
        if isinstance(columns, int):
            whole, rest = divmod(ceil_div(columns, lanes), vectors)
            with loop(whole) as number:
                panel(number, vectors)
            if rest:
                panel(whole, rest)
        else:
            with loop(quotient(columns + self.width - 1, self.width)) as number:
                panel(number, vectors)

    def visible(
        self, value: Expr, column: int | Expr, columns: int | Expr, position: int | Expr, row: int | Expr
    ) -> Expr:
        """Scores with minus infinity where there is no column, or where a causal row may not look."""
        lanes = self.lanes
        hidden = T.broadcast(T.float32(-math.inf), lanes)
        lane = T.ramp(T.int64(0), T.int64(1), lanes)

        def below(limit: int | Expr) -> Expr:
            limit = tirx.Cast("int64", limit) if not isinstance(limit, int) else T.int64(limit)
            return tirx.LT(lane, T.broadcast(limit, lanes))

        if not isinstance(columns, int) or columns % lanes:
            value = tirx.Select(below(columns - column), value, hidden)
        return tirx.Select(below(row + 1 - position), value, hidden) if self.shape.causal else value

    def weigh(self, row: int | Expr, top: Expr, columns: int | Expr) -> Expr:
        """Turn a row of scores into powers; their sum."""
        base, lanes = row * self.pitch, self.lanes

        def power(at: int | Expr) -> Expr:
            let = Locals()
            score = self.scores.load(base + at, lanes)
            value = let(exp_below_zero(score - T.broadcast(top, lanes), let))
            self.scores.store(base + at, value, lanes)
            return value

        return total(power, columns, lanes)

    def multiply(
        self,
        count: int,
        start: int | Expr,
        columns: int | Expr,
        store: Callable[[int | Expr, Part, Expr], None],
        whole: bool = False,
    ) -> None:
        """Weights times values ``start`` ...; the last vector in part, unless ``whole``."""
        lanes, pitch = self.lanes, self.value_vectors * self.lanes

        def tile(at: int, vectors: int) -> None:
            accumulators = RegisterTile(count, vectors, lanes)
            (source,) = bind(start * pitch + at * lanes)
            with T.serial(0, columns) as k:
                accumulators.multiply_add(
                    range(count),
                    lambda row: self.scores.load(row * self.pitch + k),
                    lambda v: self.values.load(source + k * pitch + v * lanes, lanes),
                )
            existing = self.shape.width - at * lanes
            accumulators.finish(
                Epilogue(),
                _no_operands,
                lambda row, part, value: store(row, Part(part.vector + at, part.first, part.width), value),
                existing if existing < vectors * lanes and not whole else None,
            )

        for at in range(0, self.value_vectors, self.schedule.vectors):
            tile(at, min(self.schedule.vectors, self.value_vectors - at))


def _no_operands(operand: int, row: int | Expr, part: Part) -> Expr:
    raise AssertionError("attention has no epilogue")
