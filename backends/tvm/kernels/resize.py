"""Float32 resizing of blocked tensors by separable interpolation: nearest, linear and cubic, any rank and scale.

Which input positions an output lies between, and with which weights, is computed ahead for every position along every
axis (:func:`pack`), in float32 as torch does it, so that a position next to a whole number falls to the same side.

Where a row of outputs depends on several rows of the input, these are combined to one first, in a scratch row that
stays in the level 1 cache, if that takes fewer loads than reading all of them for each output.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

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
    offset,
    quotient,
    root,
    tensor,
    unravel,
)
from shave.backends.tvm.kernels.epilogue import Epilogue

Mode = Literal["nearest", "nearest-exact", "linear", "cubic"]

CUBIC = -0.75
"""Keys' parameter, as torch has it."""
TAPS = {"nearest": 1, "nearest-exact": 1, "linear": 2, "cubic": 4}
CYCLES_PER_TAP = 2.0
"""Of one output: its position, its weight and its vector."""
TASK_BYTES = 1 << 18
"""Bytes of the output, about 10 us of work, for which waking a thread pays."""


@dataclass(frozen=True)
class ResizeShape:
    """A resizing of a blocked tensor [batch, channels, *spatial].

    Attributes:
        mode: The interpolation along each axis.
        batch: Images per call; None where only the call knows.
        channels: Of input and output.
        spatial: Extents of the input.
        out_spatial: Extents of the output.
        align_corners: The first and last positions of input and output coincide (linear and cubic).
        scales: Factor that the caller gave, per axis; None where the extents decide.
    """

    mode: Mode
    batch: Dimension
    channels: int
    spatial: tuple[int, ...]
    out_spatial: tuple[int, ...]
    align_corners: bool = False
    scales: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in TAPS:
            raise ValueError(f"unknown interpolation {self.mode!r}: choose one of {', '.join(TAPS)}")
        if not self.scales:
            object.__setattr__(self, "scales", (None,) * len(self.spatial))

    @property
    def taps(self) -> int:
        """Positions that an output lies between, along one axis."""
        return TAPS[self.mode]


@dataclass(frozen=True)
class ResizeSchedule:
    """Choices of a resizing.

    Attributes:
        combine: Whether rows of the input are combined to one ahead of the interpolation along the last axis.
        rows: Rows of outputs that one task takes.
    """

    combine: bool
    rows: int


def _loads(shape: ResizeShape, combine: bool) -> int:
    """Vectors moved for one row of outputs of one channel block."""
    rows, out = prod(shape.taps for _ in shape.spatial[:-1]), shape.out_spatial[-1]
    return shape.spatial[-1] * (rows + 1) + out * shape.taps if combine else out * rows * shape.taps


def seconds(shape: ResizeShape, schedule: ResizeSchedule, target: Target) -> float:
    """Estimated time of a call: loads, or maps that no level 2 cache holds; an unknown batch counts as 1."""
    blocks = (shape.batch or 1) * ceil_div(shape.channels, target.lanes)
    rows = blocks * prod(shape.out_spatial[:-1])
    cycles = _loads(shape, schedule.combine) + shape.out_spatial[-1] * shape.taps * CYCLES_PER_TAP
    busiest = min(rows, ceil_div(ceil_div(rows, schedule.rows), target.cores) * schedule.rows)
    maps = blocks * target.vector_bytes * (prod(shape.spatial) + prod(shape.out_spatial)) / target.cores
    arithmetic = busiest * cycles / (target.gigahertz * 1e9)
    return max(arithmetic, maps / (2 * target.memory_gbytes * 1e9) if maps > target.l2_bytes else 0.0)


def candidates(shape: ResizeShape, target: Target) -> list[ResizeSchedule]:
    """Rows combined ahead or not, the better by the number of loads first."""
    rows = (shape.batch or 1) * ceil_div(shape.channels, target.lanes) * prod(shape.out_spatial[:-1])
    least = ceil_div(TASK_BYTES, target.vector_bytes * shape.out_spatial[-1])
    share = min(rows, max(least, ceil_div(rows, 4 * target.cores)))
    ways = [False] if shape.taps == 1 or len(shape.spatial) == 1 else [False, True]
    return [ResizeSchedule(way, share) for way in sorted(ways, key=lambda way: _loads(shape, way))]


def default(shape: ResizeShape, target: Target) -> ResizeSchedule:
    """The way with fewer loads."""
    return candidates(shape, target)[0]


def taps(shape: ResizeShape, axis: int) -> tuple[Array, Array]:
    """Input positions and weights of each output along an axis, both [out, taps].

    Formulas: torch's aten/src/ATen/native/UpSample.h, in float32 throughout.
    """
    have, want, scale = shape.spatial[axis], shape.out_spatial[axis], shape.scales[axis]
    place = np.arange(want, dtype=np.float32)
    one, half = np.float32(1), np.float32(0.5)
    if shape.align_corners:
        ratio = np.float32(have - 1) / np.float32(want - 1) if want > 1 else np.float32(0)
        source = place * ratio
    else:
        ratio = np.float32(have) / np.float32(want) if scale is None else np.float32(1 / scale)
        source = (place + half) * ratio - half
    if shape.taps == 1:
        nearest = np.floor((place + half if shape.mode == "nearest-exact" else place) * ratio)
        return np.minimum(nearest.astype(np.int64), have - 1)[:, None], np.ones((want, 1), np.float32)
    if shape.mode == "linear":
        source = np.maximum(source, np.float32(0))
        low = np.minimum(source.astype(np.int64), have - 1)
        fraction = np.clip(source - low.astype(np.float32), 0, 1)
        return np.stack([low, np.minimum(low + 1, have - 1)], axis=1), np.stack([one - fraction, fraction], axis=1)
    low = np.floor(source).astype(np.int64)
    t = source - low.astype(np.float32)
    positions = np.clip(low[:, None] + np.arange(-1, 3), 0, have - 1)
    two = np.float32(2)
    return positions, np.stack([_outer(t + one), _inner(t), _inner(one - t), _outer(two - t)], axis=1)


def _inner(x: Array) -> Array:
    """The cubic convolution kernel for |x| <= 1."""
    a = np.float32(CUBIC)
    return np.asarray(((a + 2) * x - (a + 3)) * x * x + 1, np.float32)


def _outer(x: Array) -> Array:
    """The same for 1 < |x| < 2."""
    a = np.float32(CUBIC)
    return np.asarray(((a * x - 5 * a) * x + 8 * a) * x - 4 * a, np.float32)


def pack(shape: ResizeShape) -> Array:
    """The table that the kernel reads: of each axis positions, then weights, [out, taps] each, one after the other.

    Positions are whole float32 numbers, exact below 2^24, since kernels take float32 tensors.

    Raises:
        ValueError: An extent is beyond that.
    """
    if max(shape.spatial) >= 1 << 24:
        raise ValueError(f"an extent of {max(shape.spatial)} is too large to be resized")
    parts = [part.astype(np.float32).reshape(-1) for axis in range(len(shape.spatial)) for part in taps(shape, axis)]
    return np.concatenate(parts)


def reference(x: Array, shape: ResizeShape) -> Array:
    """The resizing in NumPy float64 on a plain tensor [N, C, *spatial], one axis after the other."""
    y = x.astype(np.float64)
    for axis in range(len(shape.spatial)):
        positions, weights = taps(shape, axis)
        gathered = np.take(y, positions, axis=2 + axis)
        spread = weights.reshape(*weights.shape, *(1,) * (len(shape.spatial) - 1 - axis))
        y = (gathered * spread).sum(axis=3 + axis)
    return y


def build(shape: ResizeShape, schedule: ResizeSchedule, target: Target, epilogue: Epilogue) -> PrimFunc:
    """The kernel (x, table, y): x and y are blocked, the table is what :func:`pack` gives."""
    assert not epilogue.steps, "a resizing has no epilogue"
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("resize")
        T.func_attr({"tirx.noalias": True})
        _Emitter(shape, schedule, target).emit()
    return builder.get()


class _Emitter:
    """Emits parameters and body of one kernel into the function being built."""

    def __init__(self, shape: ResizeShape, schedule: ResizeSchedule, target: Target) -> None:
        self.shape, self.schedule, self.lanes = shape, schedule, target.lanes
        batch, blocks = extent(shape.batch), ceil_div(shape.channels, target.lanes)
        self.images = batch * blocks
        self.x: Any = tensor("x", (batch, blocks, *shape.spatial, self.lanes))
        self.table: Any = tensor("table", (2 * shape.taps * sum(shape.out_spatial),))
        self.y: Any = tensor("y", (batch, blocks, *shape.out_spatial, self.lanes))

    def emit(self) -> None:
        """Emit the body."""
        space, share = self.shape.out_spatial[:-1], self.schedule.rows
        with root():
            self.x, self.table, self.y = Flat(self.x), Flat(self.table), Flat(self.y)
            rows = self.images * prod(space)
            with T.parallel(0, quotient(rows + (share - 1), share)) as task:
                scratch = None
                if self.schedule.combine:
                    elements = self.shape.spatial[-1] * self.lanes
                    scratch = Flat(T.alloc_buffer((elements,), "float32", layout=None))
                (first,) = bind(task * share)
                with T.serial(0, T.min(share, rows - first)) as number:
                    (row,) = bind(first + number)
                    image, *position = bind(*unravel(row, [self.images, *space]))
                    self._row(row, image, position, scratch)

    def _row(self, row: int | Expr, image: int | Expr, position: list[int | Expr], scratch: Flat | None) -> None:
        """Row number ``row`` of the outputs, at ``position`` along all axes but the last."""
        shape, lanes = self.shape, self.lanes
        sources, weights = self._sources(image, position)
        (goal,) = bind(row * (shape.out_spatial[-1] * lanes))
        if scratch is not None:
            with loop(shape.spatial[-1]) as column:
                total = _weighted([self.x.load(source + column * lanes, lanes) for source in sources], weights, lanes)
                scratch.store(column * lanes, total, lanes)
            sources, weights, data = [0], [None], scratch
        else:
            data = self.x
        with loop(shape.out_spatial[-1]) as place:
            columns, factors = self._taps(len(position), place)
            values = [
                _weighted([data.load(source + column * lanes, lanes) for column in columns], factors, lanes)
                for source in sources
            ]
            self.y.store(goal + place * lanes, _weighted(values, weights, lanes), lanes)

    def _sources(self, image: int | Expr, position: list[int | Expr]) -> tuple[list[Any], list[Any]]:
        """Where the rows of the input begin that a row of outputs depends on, and their weights."""
        along = [self._taps(axis, place) for axis, place in enumerate(position)]
        sources: list[Any] = []
        weights: list[Any] = []
        for chosen in itertools.product(*[zip(*axis, strict=True) for axis in along]):
            place = [at for at, _ in chosen]
            sources.append(offset((*self.shape.spatial, self.lanes), image, *place, 0, 0))
            factors = [weight for _, weight in chosen if weight is not None]
            weights.append(bind(prod(factors[1:], start=factors[0]))[0] if factors else None)
        return sources, weights

    def _taps(self, axis: int, place: int | Expr) -> tuple[list[Any], list[Any]]:
        """Positions and weights of an output along an axis; the weights of a copy are None."""
        count, out = self.shape.taps, self.shape.out_spatial
        (first,) = bind(2 * count * sum(out[:axis]) + place * count)
        columns = bind(*(tirx.Cast("int32", self.table.load(first + tap)) for tap in range(count)))
        if count == 1:
            return columns, [None]
        return columns, bind(*(self.table.load(first + (count * out[axis] + tap)) for tap in range(count)))


def _weighted(values: list[Expr], weights: list[Any], lanes: int) -> Expr:
    """The sum of vectors times scalars."""
    total: Any = None
    for value, weight in zip(values, weights, strict=True):
        term = value if weight is None else value * T.broadcast(weight, lanes)
        total = term if total is None else total + term
    return total
