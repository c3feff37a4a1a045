"""Depthwise convolution of codes by the dot product of four: neighbours along a row in place of channels.

Four pixels of a block of 16 channels lie in one vector of 64 bytes. Two shuffles put the four codes of each channel
side by side, where one instruction multiplies them with four taps. What was shuffled serves all the output rows of a
tile that meet it. Images of two axes, without dilation, on targets whose vectors hold four pixels.

A window that reaches beyond the row is not loaded there: the vector starts at the nearest pixel from which all four
exist, and meets weights that are shifted by as much, with zeros for taps that it does not hold.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from shave.backends.packing import Packing
from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, IRBuilder, PrimFunc, T, tirx
from shave.backends.tvm.kernels import depthwise
from shave.backends.tvm.kernels.arithmetic import DotOfFour, arithmetic_of
from shave.backends.tvm.kernels.base import (
    Array,
    Flat,
    Run,
    bind,
    ceil_div,
    even_runs,
    extent,
    for_tile,
    loop,
    only_if,
    root,
    tensor,
    unravel,
)
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.geometry import ConvShape, PixelRun, phases, pixel_runs
from shave.backends.tvm.kernels.operands import BlockedOperands
from shave.backends.tvm.kernels.register_tile import Part, RegisterTile, cycles_per_tile
from shave.backends.tvm.kernels.zero_point import Corrections

PIXELS = 4
"""Of a vector, and of an instruction."""
MOST_SUMS = 24
_DWORDS = [group + 4 * pixel for group in range(4) for pixel in range(PIXELS)]
"""From four pixels of 16 channels to groups of four channels of four pixels."""
_BYTES = [16 * group + 4 * pixel + c for group in range(4) for c in range(4) for pixel in range(PIXELS)]
"""From these to the four pixels of each channel."""


@dataclass(frozen=True)
class DepthwiseDotSchedule:
    """Choices of a depthwise convolution by dot products.

    Attributes:
        pixels: Largest number of pixels of a tile.
        rows: Largest number of rows of a tile.
    """

    pixels: int
    rows: int


def applies(shape: ConvShape, target: Target) -> bool:
    """Whether this family computes the convolution."""
    return (
        shape.dtype == "uint8"
        and depthwise.applies(shape)
        and isinstance(arithmetic_of(shape.dtype, target), DotOfFour)
        and target.vector_bytes == PIXELS * target.lanes
        and len(shape.spatial) == 2
        and set(shape.dilation) == {1}
        and shape.spatial[-1] >= PIXELS
    )


def _cycles(shape: ConvShape, schedule: DepthwiseDotSchedule, target: Target) -> float:
    """Estimated cycles of one block of channels: shuffles on one unit, or all on two."""
    arithmetic = arithmetic_of(shape.dtype, target)
    quads = ceil_div(shape.kernel[1], PIXELS)
    total = 0.0
    for rows, pixels in itertools.product(
        even_runs(shape.out_spatial[0], schedule.rows), even_runs(shape.out_spatial[1], schedule.pixels)
    ):
        shuffles = 2 * quads * ((rows.size - 1) * shape.stride[0] + shape.kernel[0]) * pixels.size
        products = quads * rows.size * shape.kernel[0] * pixels.size
        busy = max(shuffles, (shuffles + products) / 2)
        total += int(rows.count) * int(pixels.count) * (busy + cycles_per_tile(pixels.size, rows.size, arithmetic))
    return total


def seconds(shape: ConvShape, schedule: DepthwiseDotSchedule, target: Target) -> float:
    """Estimated time of a call; an unknown batch counts as 1."""
    blocks = (shape.batch or 1) * ceil_div(shape.in_channels, target.lanes)
    tiles = blocks * sum(int(run.count) for run in even_runs(shape.out_spatial[0], schedule.rows))
    return _cycles(shape, schedule, target) * blocks * ceil_div(tiles, target.cores) / tiles / (target.gigahertz * 1e9)


def candidates(shape: ConvShape, target: Target) -> list[DepthwiseDotSchedule]:
    """The six best tiles by the analytic model, best first."""
    height, width = shape.out_spatial
    tiles = [
        DepthwiseDotSchedule(pixels, rows)
        for pixels, rows in itertools.product(range(1, min(width, 14) + 1), range(1, min(height, 6) + 1))
        if pixels * rows <= MOST_SUMS
    ]
    return sorted(tiles, key=lambda s: (_cycles(shape, s, target), s.rows))[:6]


def default(shape: ConvShape, target: Target) -> DepthwiseDotSchedule:
    """The best tile by the analytic model."""
    return candidates(shape, target)[0]


def packing(shape: ConvShape, target: Target) -> Packing:
    """Weights [C, 1, height, width] as the kernel reads them.

    Returns:
        To [blocks, height, quads of taps, 7 shifts from -3 on, lanes, 4]. Shifted by s, a vector holds taps from s
        fewer than the first of its quad on.
    """
    lanes, (height, width) = target.lanes, shape.kernel
    blocks, quads = ceil_div(shape.in_channels, lanes), ceil_div(width, PIXELS)
    steps = Packing().reshape(shape.in_channels, height, width).pad(blocks * lanes, height, quads * PIXELS)
    return steps.reshape(blocks, lanes, height, quads, PIXELS).shifts().transpose(0, 2, 3, 4, 1, 5)


def pack(weight: Array, shape: ConvShape, target: Target) -> Array:
    """Pack weights, int8; see :func:`packing`."""
    return packing(shape, target).apply(weight.astype(np.int8, copy=False))


def reference(x: Array, weight: Array, shape: ConvShape, epilogue: Epilogue, operands: Sequence[Array]) -> Array:
    """The convolution in NumPy float64 on plain tensors [N, C, height, width]; operands broadcast to the output."""
    return depthwise.reference(x, weight, shape, epilogue, operands)


def build(shape: ConvShape, schedule: DepthwiseDotSchedule, target: Target, epilogue: Epilogue) -> PrimFunc:
    """The kernel (x, packed weights, corrections, *operands, y); operands as :class:`BlockedOperands` has them."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("depthwise_dot")
        T.func_attr({"tirx.noalias": True})
        _Emitter(shape, schedule, target, epilogue).emit()
    return builder.get()


class _Emitter:
    """Emits parameters and body of one kernel into the function being built."""

    def __init__(self, shape: ConvShape, schedule: DepthwiseDotSchedule, target: Target, epilogue: Epilogue) -> None:
        self.shape, self.schedule, self.epilogue, self.lanes = shape, schedule, epilogue, target.lanes
        arithmetic = arithmetic_of(shape.dtype, target)
        assert isinstance(arithmetic, DotOfFour)
        self.arithmetic = arithmetic
        self.blocks, self.batch = ceil_div(shape.in_channels, target.lanes), extent(shape.batch)
        self.quads = ceil_div(shape.kernel[1], PIXELS)
        (self.phase,) = phases(shape)
        outputs = (self.batch, self.blocks, *shape.out_spatial, self.lanes)
        packed = (self.blocks, shape.kernel[0], self.quads, 2 * PIXELS - 1, self.lanes, PIXELS)
        x = tensor("x", (self.batch, self.blocks, *shape.spatial, self.lanes), shape.dtype)
        weight = tensor("weight", packed, "int8")
        self.corrections = Corrections(shape, target)
        self.operands = BlockedOperands(epilogue, outputs)
        self.parameters = (x, weight, tensor("y", outputs, epilogue.dtype))

    def emit(self) -> None:
        """Emit the body."""
        with root():
            self.x, self.weight, self.y = map(Flat, self.parameters)
            self.operands.flatten()
            self.corrections.flatten()
            runs = even_runs(self.shape.out_spatial[0], self.schedule.rows)
            extents = [self.batch, self.blocks, sum(int(run.count) for run in runs)]
            # Windows of whole quads, so that tiles differ where a vector would reach beyond the row.
            columns = pixel_runs(replace(self.phase[1], taps=self.quads * PIXELS), self.schedule.pixels)
            with T.parallel(0, extents[0] * (extents[1] * extents[2])) as index:
                number, block, row_tile = bind(*unravel(index, extents))

                def rows(first: int | Expr, run: Run) -> None:
                    for column in columns:
                        with loop(column.tiles.count) as t:
                            self._tile(number, block, first, run.size, column, column.first + t * column.tiles.size)

                for_tile(row_tile, runs, rows)

    def _tile(
        self, number: int | Expr, block: int | Expr, first: int | Expr, rows: int, run: PixelRun, column: int | Expr
    ) -> None:
        """Outputs from (first, column) on, of one block of channels of image ``number``."""
        shape, lanes = self.shape, self.lanes
        tile = RegisterTile(run.tiles.size, rows, lanes, self.arithmetic)
        starts = [self.corrections.starts(self.phase, run, block, [first + j]) for j in range(rows)]
        tile.load(lambda pixel, part: starts[part.vector](pixel, 0))
        (image,) = bind(number * self.blocks + block)
        vertical, horizontal = self.phase
        top, left = bind(first * vertical.stride + vertical.offset, column * horizontal.stride + horizontal.offset)
        for r in range((rows - 1) * vertical.stride + vertical.taps):
            outputs = [
                (j, r - j * vertical.stride) for j in range(rows) if 0 <= r - j * vertical.stride < vertical.taps
            ]
            inside: Expr | bool = True
            if vertical.padded:
                inside = tirx.all(top + r >= 0, top + r < shape.spatial[0])
            with only_if(inside):
                (source,) = bind(((image * shape.spatial[0] + top + r) * shape.spatial[1] + left) * lanes)
                for pixel, quad in itertools.product(range(run.tiles.size), range(self.quads)):
                    self._multiply(tile, run, block, source, outputs, pixel, quad)
        (result,) = bind(((image * shape.out_spatial[0] + first) * shape.out_spatial[1] + column) * lanes)

        def at(pixel: int | Expr, part: Part) -> int | Expr:
            return result + ((part.vector * shape.out_spatial[1] + pixel) * lanes + part.first)

        def load(operand: int, pixel: int | Expr, part: Part) -> Expr:
            return self.operands.load(operand, number, block, at(pixel, part), part.first, part.width)

        def store(pixel: int | Expr, part: Part, value: Expr) -> None:
            self.y.store(at(pixel, part), value, part.width)

        tile.finish(self.epilogue, load, store, packing="rows")

    def _multiply(
        self,
        tile: RegisterTile,
        run: PixelRun,
        block: int | Expr,
        source: int | Expr,
        outputs: Sequence[tuple[int, int]],
        pixel: int,
        quad: int,
    ) -> None:
        """Add four taps of one input row to the sums of an output pixel, in each output row with its row of weights."""
        horizontal, width = self.phase[1], self.shape.spatial[1]
        # The tiles of a run are alike in which taps they meet, so the first one tells how far to shift.
        wanted = (run.first + pixel) * horizontal.stride + horizontal.offset + quad * PIXELS
        taps = min(PIXELS, horizontal.taps - quad * PIXELS)
        if wanted + taps <= 0 or wanted >= width:
            return
        shift = wanted - min(max(wanted, 0), width - PIXELS)
        place = source + (pixel * horizontal.stride + quad * PIXELS - shift) * self.lanes
        vector = tirx.reinterpret(f"int32x{self.lanes}", self.x.load(place, PIXELS * self.lanes))
        groups = tirx.reinterpret(f"uint8x{PIXELS * self.lanes}", tirx.Shuffle([vector], _DWORDS))
        codes = T.bind(tirx.Shuffle([groups], _BYTES))
        size = PIXELS * self.lanes
        for j, tap in outputs:
            number = ((block * self.shape.kernel[0] + tap) * self.quads + quad) * (2 * PIXELS - 1) + shift + PIXELS - 1
            weight = self.weight.load(number * size, size)
            tile.change(pixel, j, functools.partial(self.arithmetic.dot, x=codes, weight=weight))
