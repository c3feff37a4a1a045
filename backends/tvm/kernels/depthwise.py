"""Depthwise convolution (one filter per channel) on blocked tensors, any rank, stride and dilation.

One tile holds ``pixels`` neighbours along the last axis of one channel block. There is no reduction over channels, so
each multiply-add reads a vector of the image: taps along the last axis are unrolled, which lets a loaded vector serve
all the taps and pixels that meet it. The kernel is bound by loads, on large images by memory.

Codes (uint8) and int8 weights are multiplied as float32, whose sums of so few products are exact: each loaded vector is
widened once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod

import numpy as np

from shave.backends.packing import Packing
from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, IRBuilder, PrimFunc, T
from shave.backends.tvm.kernels import conv
from shave.backends.tvm.kernels.base import (
    Array,
    Flat,
    bind,
    ceil_div,
    even_runs,
    extent,
    loop,
    offset,
    only_if,
    root,
    tensor,
    unravel,
)
from shave.backends.tvm.kernels.conv_schedule import banded
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.geometry import ConvShape, Phase, PixelRun, met_taps, phases, pixel_runs
from shave.backends.tvm.kernels.narrowing import narrows
from shave.backends.tvm.kernels.operands import BlockedOperands
from shave.backends.tvm.kernels.register_tile import FMA_LATENCY, Part, RegisterTile, most_rows
from shave.backends.tvm.kernels.vector_math import as_float32
from shave.backends.tvm.kernels.zero_point import Corrections

UNROLLED_TAPS = 7


@dataclass(frozen=True)
class DepthwiseSchedule:
    """Choices of a depthwise convolution.

    Attributes:
        pixels: Largest number of pixels of a tile.
    """

    pixels: int


def applies(shape: ConvShape) -> bool:
    """Whether this family computes the convolution: one input and one output channel per group."""
    return shape.groups == shape.in_channels == shape.out_channels and not shape.transposed and not shape.plain_input


def _cycles_per_row(shape: ConvShape, pixels: int) -> float:
    """Estimated cycles for one row of outputs of one channel block."""
    taps = shape.kernel[-1]
    # Each tile loads its weights and the pixels that it shares with its neighbours once more.
    return prod(shape.kernel[:-1]) * sum(
        int(run.count) * (max(run.size * taps / 2, taps * FMA_LATENCY / 2) + taps + run.size)
        for run in even_runs(shape.out_spatial[-1], pixels)
    )


def seconds(shape: ConvShape, schedule: DepthwiseSchedule, target: Target) -> float:
    """Estimated time of a call: arithmetic, or maps that no level 2 cache holds; an unknown batch counts as 1.

    Maps come and go at twice the rate of main memory, as the level 3 cache gave them where this was measured.
    """
    blocks = (shape.batch or 1) * ceil_div(shape.in_channels, target.lanes)
    rows = blocks * prod(shape.out_spatial[:-1])
    arithmetic = ceil_div(rows, target.cores) * _cycles_per_row(shape, schedule.pixels) / (target.gigahertz * 1e9)
    maps = (
        blocks
        * target.lanes
        * np.dtype(shape.dtype).itemsize
        * (prod(shape.spatial) + prod(shape.out_spatial))
        / target.cores
    )
    return max(arithmetic, maps / (2 * target.memory_gbytes * 1e9) if maps > target.l2_bytes else 0.0)


def _bands(shape: ConvShape, target: Target) -> int:
    """Bands of rows, one per core, where the pointwise convolutions around are likely to work in bands; else 1."""
    pixels = prod(shape.out_spatial)
    return target.cores if pixels > shape.out_channels and banded(phases(shape), target) else 1


def candidates(shape: ConvShape, target: Target) -> list[DepthwiseSchedule]:
    """Tile sizes that leave registers for one row of taps and the loaded vectors, best first."""
    taps = min(shape.kernel[-1], UNROLLED_TAPS)
    largest = max(1, min(most_rows(target), target.vector_registers - taps - 2))
    sizes = range(1, min(shape.out_spatial[-1], largest) + 1)
    best = sorted(sizes, key=lambda pixels: (_cycles_per_row(shape, pixels), pixels))
    return [DepthwiseSchedule(pixels) for pixels in best[:6]]


def default(shape: ConvShape, target: Target) -> DepthwiseSchedule:
    """The best tile by the analytic model."""
    return candidates(shape, target)[0]


def packing(shape: ConvShape, target: Target) -> Packing:
    """Weights [C, 1, *kernel] as the kernel reads them: to [ceil(C / lanes), *kernel, lanes]."""
    lanes, taps = target.lanes, prod(shape.kernel)
    blocks = ceil_div(shape.out_channels, lanes)
    steps = Packing().reshape(shape.out_channels, taps).pad(blocks * lanes, taps)
    return steps.reshape(blocks, lanes, taps).transpose(0, 2, 1).reshape(blocks, *shape.kernel, lanes)


def pack(weight: Array, shape: ConvShape, target: Target) -> Array:
    """Pack weights, [C, 1, *kernel], to float32; see :func:`packing`."""
    return packing(shape, target).apply(weight.astype(np.float32, copy=False))


def reference(x: Array, weight: Array, shape: ConvShape, epilogue: Epilogue, operands: Sequence[Array]) -> Array:
    """The convolution in NumPy float64 on plain tensors [N, C, *spatial]; operands broadcast to the output."""
    return conv.reference(x, weight, shape, epilogue, operands)


def build(shape: ConvShape, schedule: DepthwiseSchedule, target: Target, epilogue: Epilogue) -> PrimFunc:
    """The kernel (x, packed weights, *operands, y); operands as :class:`BlockedOperands` has them.

    Integers take :func:`zero_point.corrections` ahead of the operands.
    """
    lanes = target.lanes
    blocks = ceil_div(shape.in_channels, lanes)
    (phase,) = phases(shape)
    *outer, inner = phase
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("depthwise")
        T.func_attr({"tirx.noalias": True})
        batch = extent(shape.batch)
        outputs = (batch, blocks, *shape.out_spatial, lanes)
        parameters = [
            tensor("x", (batch, blocks, *shape.spatial, lanes), shape.dtype),
            tensor("weight", (blocks, *shape.kernel, lanes)),
        ]
        corrections = Corrections(shape, target) if shape.dtype == "uint8" else None
        operands = BlockedOperands(epilogue, outputs)
        parameters.append(tensor("y", outputs, epilogue.dtype))
        with root():
            x, weight, y = [Flat(parameter) for parameter in parameters]
            operands.flatten()
            if corrections is not None:
                corrections.flatten()
            rows, *rest = [axis.extent for axis in outer] or [1]
            bands = _bands(shape, target)
            height = ceil_div(rows, bands)
            extents = [batch, bands, blocks, height, *rest]
            with T.parallel(0, batch * prod(extents[1:])) as index:
                number, band, channel_block, row, *inside = bind(*unravel(index, extents))
                position = [*bind(band * height + row), *inside] if outer else []
                (image,) = bind(number * blocks + channel_block)
                with only_if(bands * height == rows or position[0] < rows):
                    for run in pixel_runs(inner, schedule.pixels):
                        with loop(run.tiles.count) as t:
                            first = run.first + t * run.tiles.size
                            tile = RegisterTile(run.tiles.size, 1, lanes)
                            if corrections is not None:
                                corrections.load_into(tile, phase, run, channel_block, [*position, first])
                            _reduce(tile, x, weight, shape, phase, run, image, channel_block, [*position, first])
                            result = offset((*shape.out_spatial, lanes), image, *position, first, 0)

                            def load(operand: int, row: int | Expr, part: Part, result: int | Expr = result) -> Expr:
                                at = result + (row * lanes + part.first)
                                return operands.load(operand, number, channel_block, at, part.first, part.width)

                            def store(row: int | Expr, part: Part, value: Expr, result: int | Expr = result) -> None:
                                y.store(result + (row * lanes + part.first), value, part.width)

                            tile.finish(epilogue, load, store, packing="rows" if narrows(target) else None)
    return builder.get()


def _reduce(
    tile: RegisterTile,
    x: Flat,
    weight: Flat,
    shape: ConvShape,
    phase: tuple[Phase, ...],
    run: PixelRun,
    image: int | Expr,
    block: int | Expr,
    position: list[int | Expr],
) -> None:
    """Add all taps of one tile of channel block ``block``; ``image`` counts blocks over the whole batch."""
    *outer, inner = phase
    lanes = tile.lanes
    with ExitStack() as loops:
        taps: list[int | Expr] = []
        pixels: list[int | Expr] = []
        for axis, q in zip(outer, position[:-1], strict=True):
            base = q * axis.stride + axis.offset
            low, count = bind(*met_taps(axis, base))
            tap = low + loops.enter_context(loop(count))
            taps.append(tap)
            pixels.append(base + tap * axis.tap_input)
        base = position[-1] * inner.stride + inner.offset
        source = offset((*shape.spatial, lanes), image, *pixels, base, 0)
        weights = offset((*shape.kernel, lanes), block, *taps, 0, 0)
        for met in run.taps:
            steps = range(met.first, met.first + met.count)
            if inner.taps > UNROLLED_TAPS:
                with loop(met.count) as t:
                    _tap(tile, x, weight, inner, met.rows, source, weights, met.first + t)
            else:
                for tap in steps:
                    _tap(tile, x, weight, inner, met.rows, source, weights, tap)


def _tap(
    tile: RegisterTile,
    x: Flat,
    weight: Flat,
    inner: Phase,
    rows: range,
    source: int | Expr,
    weights: int | Expr,
    tap: int | Expr,
) -> None:
    """Add one tap of the last axis to the pixels that it meets."""
    lanes = tile.lanes
    tile.multiply_add_vectors(
        rows,
        lambda row: as_float32(x.load(source + (tap * inner.tap_input + row * inner.stride) * lanes, lanes)),
        weight.load(weights + tap * lanes, lanes),
    )
