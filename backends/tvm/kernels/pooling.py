"""Max and average pooling of blocked tensors, to float32: any rank, window, stride, padding, dilation; also adaptive.

One tile holds ``pixels`` neighbours along the last axis of one channel block, as in depthwise convolutions: taps along
the last axis are unrolled, so that a loaded vector serves all the windows that it lies in. Where one window covers the
whole map, several partial results run side by side, or each step would wait for the one before.

Padding is never read: taps outside of the input are left out.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf, prod
from typing import Any, Literal

import numpy as np

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, IRBuilder, PrimFunc, T, tirx
from shave.backends.tvm.kernels.arithmetic import InputDtype
from shave.backends.tvm.kernels.base import (
    Array,
    Dimension,
    Flat,
    bind,
    ceil_div,
    even_runs,
    extent,
    loop,
    offset,
    quotient,
    root,
    tensor,
    unravel,
)
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.geometry import Phase, PixelRun, met_taps, pixel_runs
from shave.backends.tvm.kernels.register_tile import FMA_LATENCY, Part, RegisterTile, most_rows
from shave.backends.tvm.kernels.vector_math import as_float32, larger, local_array

UNROLLED_TAPS = 7
PARTIAL_RESULTS = 8
"""Of a window that covers the map: additions in flight on two units."""
CYCLES_PER_TILE = 10
MAX_STEPS = 3
"""Instructions of one step of a maximum that NaN wins: compare, take the larger, keep NaN."""


@dataclass(frozen=True)
class PoolShape:
    """A pooling of a blocked tensor [batch, channels, *spatial].

    Attributes:
        kind: What becomes of a window: its largest element, which NaN is, or the mean.
        batch: Images per call; None where only the call knows.
        channels: Of input and output.
        spatial: Extents of the input.
        out_spatial: Extents of the output.
        kernel: Extents of a window; none where it is adaptive.
        stride: Step between windows, per axis; that of the window by default.
        padding: Positions ahead of the input, per axis; 0 by default.
        dilation: Distance between elements of a window, per axis; 1 by default.
        adaptive: Window o covers the inputs from floor(o * in / out) up to ceil((o + 1) * in / out).
        count_padding: A mean divides by all of a window inside of the padded input, not of the input.
        divisor: What a mean divides by instead.
        dtype: Of the input; codes of 8 bits count as the numbers that they are.
    """

    kind: Literal["max", "mean"]
    batch: Dimension
    channels: int
    spatial: tuple[int, ...]
    out_spatial: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    adaptive: bool = False
    count_padding: bool = True
    divisor: int | None = None
    dtype: InputDtype = "float32"

    def __post_init__(self) -> None:
        rank = len(self.spatial)
        if not self.adaptive:
            filled = {"stride": self.kernel, "padding": (0,) * rank, "dilation": (1,) * rank}
            for name, value in filled.items():
                if not getattr(self, name):
                    object.__setattr__(self, name, value)
            for name in ("kernel", "stride", "padding", "dilation"):
                if len(getattr(self, name)) != rank:
                    raise ValueError(f"{name} has {len(getattr(self, name))} entries for {rank} spatial axes")
        if self.kind == "mean" and set(self.dilation) - {1}:
            raise ValueError("the windows of a mean have no dilation")

    @property
    def whole(self) -> bool:
        """Whether one window covers the map."""
        return self.kernel == self.spatial and set(self.out_spatial) == {1} and not any(self.padding)

    def phase(self, axis: int) -> Phase:
        """Where windows that are not adaptive lie along an axis."""
        return Phase(
            self.out_spatial[axis], 0, 1, self.spatial[axis], self.stride[axis], -self.padding[axis],
            self.kernel[axis], self.dilation[axis], 0, 1,
        )  # fmt: skip

    def positions(self, axis: int, q: int) -> range:
        """Input positions inside of window ``q`` along an axis."""
        size = self.spatial[axis]
        if self.adaptive:
            out = self.out_spatial[axis]
            return range(q * size // out, ceil_div((q + 1) * size, out))
        start, dilation = q * self.stride[axis] - self.padding[axis], self.dilation[axis]
        taps = [start + k * dilation for k in range(self.kernel[axis])]
        inside = [position for position in taps if 0 <= position < size]
        return range(inside[0], inside[-1] + 1, dilation) if inside else range(0)

    def counted(self, axis: int, q: int) -> int:
        """How many elements a mean counts in window ``q`` along an axis."""
        if self.adaptive or not self.count_padding:
            return len(self.positions(axis, q))
        start = q * self.stride[axis] - self.padding[axis]
        return min(self.kernel[axis], self.spatial[axis] + self.padding[axis] - start)


@dataclass(frozen=True)
class PoolSchedule:
    """Choices of a pooling.

    Attributes:
        pixels: Largest number of outputs of a tile.
    """

    pixels: int


def _cycles(shape: PoolShape, pixels: int) -> float:
    """Estimated cycles for one row of outputs of one channel block."""
    steps = 1 if shape.kind == "mean" else MAX_STEPS
    if shape.whole:
        return prod(shape.spatial) * max(1.0, steps / 2)
    if shape.adaptive:
        taps = prod(ceil_div(n, s) + 1 for n, s in zip(shape.spatial, shape.out_spatial, strict=True))
        return shape.out_spatial[-1] * (taps * FMA_LATENCY + CYCLES_PER_TILE)
    taps, stride = shape.kernel[-1], shape.stride[-1]
    total: float = 0
    for run in even_runs(shape.out_spatial[-1], pixels):
        loads = min(run.size * taps, (run.size - 1) * stride + (taps - 1) * shape.dilation[-1] + 1)
        arithmetic = max(run.size * taps * steps / 2, taps * FMA_LATENCY)
        total += int(run.count) * (prod(shape.kernel[:-1]) * max(loads / 2, arithmetic) + CYCLES_PER_TILE)
    return total


def seconds(shape: PoolShape, schedule: PoolSchedule, target: Target) -> float:
    """Estimated time of a call: arithmetic, or maps that no level 2 cache holds; an unknown batch counts as 1.

    Maps come and go at twice the rate of main memory, as for depthwise convolutions.
    """
    blocks = (shape.batch or 1) * ceil_div(shape.channels, target.lanes)
    rows = blocks if shape.whole else blocks * prod(shape.out_spatial[:-1])
    arithmetic = ceil_div(rows, target.cores) * _cycles(shape, schedule.pixels) / (target.gigahertz * 1e9)
    pixel = target.lanes * np.dtype(shape.dtype).itemsize
    maps = blocks * pixel * (prod(shape.spatial) + prod(shape.out_spatial)) / target.cores
    return max(arithmetic, maps / (2 * target.memory_gbytes * 1e9) if maps > target.l2_bytes else 0.0)


def candidates(shape: PoolShape, target: Target) -> list[PoolSchedule]:
    """Tile sizes that leave registers for the loaded vectors, best first; one where there is no choice."""
    if shape.whole:
        return [PoolSchedule(1)]
    if shape.adaptive:
        return [PoolSchedule(min(shape.out_spatial[-1], most_rows(target), target.vector_registers // 2))]
    taps = min(shape.kernel[-1], UNROLLED_TAPS)
    largest = max(1, min(most_rows(target), target.vector_registers - taps - 2))
    sizes = range(1, min(shape.out_spatial[-1], largest) + 1)
    best = sorted(sizes, key=lambda pixels: (_cycles(shape, pixels), pixels))
    return [PoolSchedule(pixels) for pixels in best[:6]]


def default(shape: PoolShape, target: Target) -> PoolSchedule:
    """The best tile by the analytic model."""
    return candidates(shape, target)[0]


def reference(x: Array, shape: PoolShape) -> Array:
    """The pooling in NumPy float64 on a plain tensor [N, C, *spatial], window by window."""
    y = np.full((*x.shape[:2], *shape.out_spatial), -inf)
    axes = tuple(range(2, 2 + len(shape.spatial)))
    for place in np.ndindex(shape.out_spatial):
        window, at = x.astype(np.float64), (Ellipsis, *place)
        for axis, q in enumerate(place):
            window = np.take(window, list(shape.positions(axis, q)), axis=2 + axis)
        if shape.kind == "max":
            y[at] = window.max(axis=axes, initial=-inf)
        else:
            counted = prod(shape.counted(axis, q) for axis, q in enumerate(place))
            y[at] = window.sum(axis=axes) / (shape.divisor or counted)
    return y


def build(shape: PoolShape, schedule: PoolSchedule, target: Target, epilogue: Epilogue) -> PrimFunc:
    """The kernel (x, y), both blocked."""
    assert not epilogue.steps, "poolings have no epilogue"
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("pooling")
        T.func_attr({"tirx.noalias": True})
        _Emitter(shape, schedule, target).emit()
    return builder.get()


class _Emitter:
    """Emits parameters and body of one kernel into the function being built."""

    def __init__(self, shape: PoolShape, schedule: PoolSchedule, target: Target) -> None:
        self.shape, self.schedule, self.lanes = shape, schedule, target.lanes
        batch, blocks = extent(shape.batch), ceil_div(shape.channels, target.lanes)
        self.images = batch * blocks
        self.x: Any = tensor("x", (batch, blocks, *shape.spatial, self.lanes), shape.dtype)
        self.y: Any = tensor("y", (batch, blocks, *shape.out_spatial, self.lanes))

    def emit(self) -> None:
        """Emit the body."""
        with root():
            self.x, self.y = Flat(self.x), Flat(self.y)
            space = [1] if self.shape.whole else self.shape.out_spatial[:-1]
            with T.parallel(0, self.images * prod(space)) as index:
                image, *position = bind(*unravel(index, [self.images, *space]))
                if self.shape.whole:
                    self._whole(image)
                elif self.shape.adaptive:
                    self._adaptive_row(image, position)
                else:
                    self._row(image, position)

    def _start(self) -> Expr:
        """What a window starts from, in every lane."""
        return T.broadcast(T.float32(0 if self.shape.kind == "mean" else -inf), self.lanes)

    def _load(self, at: int | Expr) -> Expr:
        """The channels of a block at one position."""
        return as_float32(self.x.load(at, self.lanes))

    def _combine(self, a: Expr, b: Expr) -> Expr:
        """One step of the pooling."""
        return a + b if self.shape.kind == "mean" else larger(a, b)

    def _whole(self, image: int | Expr) -> None:
        """The one window of a channel block, ``image`` of them ahead."""
        lanes, size = self.lanes, prod(self.shape.spatial)
        whole = T.ramp(0, 1, lanes)
        partial = [local_array(lanes, "float32") for _ in range(min(PARTIAL_RESULTS, size))]
        for array in partial:
            T.buffer_store(array, self._start(), [whole])
        (start,) = bind(image * (size * lanes))

        def add(which: int, at: int | Expr) -> None:
            value = self._combine(partial[which][whole], self._load(start + at * lanes))
            T.buffer_store(partial[which], value, [whole])

        steps = size // len(partial)
        with loop(steps) as step:
            for which in range(len(partial)):
                add(which, step * len(partial) + which)
        for which in range(size % len(partial)):
            add(which, steps * len(partial) + which)
        for distance in (4, 2, 1):
            for which in range(min(distance, len(partial) - distance)):
                value = self._combine(partial[which][whole], partial[which + distance][whole])
                T.buffer_store(partial[which], value, [whole])
        result = partial[0][whole]
        if self.shape.kind == "mean":
            result = result * T.broadcast(T.float32(1 / (self.shape.divisor or size)), lanes)
        self.y.store(image * lanes, result, lanes)

    def _adaptive_row(self, image: int | Expr, position: list[int | Expr]) -> None:
        """A row of windows of different extents, as many at a time as a tile holds."""
        shape, lanes = self.shape, self.lanes
        last, out = len(position), shape.out_spatial[-1]
        bounds: list[tuple[int | Expr, int | Expr]] = []
        for place, size, count in zip(position, shape.spatial[:-1], shape.out_spatial[:-1], strict=True):
            low, high = quotient(place * size, count), quotient((place + 1) * size + (count - 1), count)
            first, taps = bind(low, high - low)
            bounds.append((first, taps))
        scale: int | Expr = prod(taps for _, taps in bounds)
        (inverse,) = bind(T.float32(1) / tirx.Cast("float32", scale)) if position else [T.float32(1)]
        result = offset((*shape.out_spatial, lanes), image, *position, 0, 0)
        for start in range(0, out, self.schedule.pixels):
            windows = [shape.positions(last, q) for q in range(start, min(out, start + self.schedule.pixels))]
            tile = RegisterTile(len(windows), 1, lanes)
            if shape.kind == "max":
                tile.load(lambda row, part: self._start())
            with ExitStack() as loops:
                pixels = [first + loops.enter_context(loop(taps)) for first, taps in bounds]
                source = offset((*shape.spatial, lanes), image, *pixels, 0, 0)
                for row, window in enumerate(windows):
                    self._take(tile, row, window, source)
            if shape.kind == "mean":
                self._divide(tile, [len(window) for window in windows], inverse)
            self._store(tile, result + start * lanes)

    def _take(self, tile: RegisterTile, row: int, window: range, source: int | Expr) -> None:
        """Combine the positions of one window along the last axis."""

        def step(at: int | Expr) -> None:
            tile.combine(
                range(row, row + 1),
                lambda _, value: self._combine(value, self._load(source + at * self.lanes)),
            )

        if len(window) > UNROLLED_TAPS:
            with loop(len(window)) as tap:
                step(window.start + tap)
        else:
            for at in window:
                step(at)

    def _store(self, tile: RegisterTile, goal: int | Expr) -> None:
        """Write the results of a tile from ``goal`` on."""

        def store(row: int | Expr, part: Part, value: Expr) -> None:
            self.y.store(goal + row * self.lanes, value, part.width)

        tile.finish(Epilogue(), lambda operand, row, part: T.float32(0), store)

    def _row(self, image: int | Expr, position: list[int | Expr]) -> None:
        """A row of outputs along the last axis, tile by tile."""
        shape, lanes = self.shape, self.lanes
        inner = shape.phase(len(position))
        scale = self._outer_scale(position)
        for run in pixel_runs(inner, self.schedule.pixels):
            with loop(run.tiles.count) as t:
                first = run.first + t * run.tiles.size
                tile = RegisterTile(run.tiles.size, 1, lanes)
                if shape.kind == "max":
                    tile.load(lambda row, part: self._start())
                self._reduce(tile, run, image, [*position, first])
                if shape.kind == "mean":
                    fixed = shape.divisor is not None
                    places = range(run.first, run.first + run.tiles.size)
                    self._divide(tile, [1 if fixed else shape.counted(len(position), q) for q in places], scale)
                self._store(tile, offset((*shape.out_spatial, lanes), image, *position, first, 0))

    def _reduce(self, tile: RegisterTile, run: PixelRun, image: int | Expr, position: list[int | Expr]) -> None:
        """Combine the windows of one tile, whose first output is at ``position``."""
        shape, lanes = self.shape, self.lanes
        *outer, inner = (shape.phase(axis) for axis in range(len(position)))
        with ExitStack() as loops:
            pixels: list[int | Expr] = []
            for axis, q in zip(outer, position[:-1], strict=True):
                base = q * axis.stride + axis.offset
                low, count = bind(*met_taps(axis, base))
                tap = low + loops.enter_context(loop(count))
                pixels.append(base + tap * axis.tap_input)
            base = position[-1] * inner.stride + inner.offset
            source = offset((*shape.spatial, lanes), image, *pixels, base, 0)

            def tap_of(rows: range, tap: int | Expr) -> None:
                def step(row: int | Expr, value: Expr) -> Expr:
                    at = source + (tap * inner.tap_input + row * inner.stride) * lanes
                    return self._combine(value, self._load(at))

                tile.combine(rows, step)

            for met in run.taps:
                if inner.taps > UNROLLED_TAPS:
                    with loop(met.count) as t:
                        tap_of(met.rows, met.first + t)
                else:
                    for tap in range(met.first, met.first + met.count):
                        tap_of(met.rows, tap)

    def _outer_scale(self, position: list[int | Expr]) -> float | Expr:
        """One over the elements that a mean counts along all axes but the last."""
        shape = self.shape
        if shape.kind == "max" or shape.divisor is not None:
            return 1 / (shape.divisor or 1)
        known, counted = 1, None
        for axis, q in enumerate(position):
            sizes = {shape.counted(axis, at) for at in range(shape.out_spatial[axis])}
            if len(sizes) == 1:
                known *= sizes.pop()
                continue
            start = q * shape.stride[axis] - shape.padding[axis]
            end = shape.spatial[axis] + shape.padding[axis] * shape.count_padding
            size = T.min(start + shape.kernel[axis], end) - (start if shape.count_padding else T.max(0, start))
            counted = size if counted is None else counted * size
        if counted is None:
            return 1 / known
        return bind(T.float32(1 / known) / tirx.Cast("float32", counted))[0]

    def _divide(self, tile: RegisterTile, sizes: list[int], scale: float | Expr) -> None:
        """Divide each sum of a tile by what the mean counts along the last axis, and multiply it by ``scale``."""
        row = 0
        for size, group in itertools.groupby(sizes):
            rows = range(row, row + len(list(group)))
            factor = T.float32(scale / size) if isinstance(scale, float) else scale * T.float32(1 / size)

            def divided(_: int | Expr, total: Expr, factor: Expr = factor) -> Expr:
                return total * T.broadcast(factor, self.lanes)

            tile.combine(rows, divided)
            row = rows.stop
