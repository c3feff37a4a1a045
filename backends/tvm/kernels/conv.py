"""Direct convolution from blocked or plain input to blocked output, any rank, grouped, dilated, transposed.

One register tile (:mod:`register_tile`) holds ``pixels`` neighbours along the last axis times ``vectors`` blocks of
output channels. The reduction runs over blocks of input channels, taps, and channels inside the block; the weights
lie in that order. Where the weights of a tile outgrow the level 1 cache, all tiles of the image pass a few blocks of
input channels before the next ones are taken; y holds the sums in between. See :mod:`geometry` for padding and for
transposed convolutions.

Inputs are float32, or uint8 with int8 weights, which four channels at a time are added up in 32 bits
(:mod:`arithmetic`); float32 again in the epilogue. The sums of integers start from a value that makes up for the zero
point of the input, see :mod:`zero_point`.

Method: E. Georganas et al., "Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures", SC 2018
(arXiv 1808.05567). Layout: Y. Liu et al., "Optimizing CNN Model Inference on CPUs" (NeoCPU), ATC 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from shave.backends.packing import Packing
from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, IRBuilder, PrimFunc, T
from shave.backends.tvm.kernels.arithmetic import arithmetic_of
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
    offset,
    only_if,
    root,
    tensor,
    unravel,
    unrolled,
)
from shave.backends.tvm.kernels.conv_schedule import ConvSchedule, blocks_of, candidates, default, merged, seconds
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.geometry import (
    ConvShape,
    Phase,
    PixelRun,
    met_taps,
    phases,
    pixel_runs,
)
from shave.backends.tvm.kernels.narrowing import narrows
from shave.backends.tvm.kernels.operands import BlockedOperands
from shave.backends.tvm.kernels.prefetch import LINE_BYTES, Prefetch
from shave.backends.tvm.kernels.register_tile import (
    LONG_REDUCTION,
    Part,
    RegisterTile,
)
from shave.backends.tvm.kernels.zero_point import Corrections

__all__ = [
    "ConvSchedule", "ConvShape", "build", "candidates", "default", "input_shape", "output_shape", "pack",
    "reference", "seconds",
]  # fmt: skip


def input_shape(shape: ConvShape, target: Target) -> tuple[int | None, ...]:
    """Shape of the first parameter."""
    if shape.plain_input and shape.dtype == "uint8":
        return (shape.batch, *shape.spatial)
    if shape.plain_input:
        return (shape.batch, shape.in_channels, *shape.spatial)
    return (shape.batch, ceil_div(shape.in_channels, target.lanes), *shape.spatial, target.lanes)


def output_shape(shape: ConvShape, target: Target) -> tuple[int | None, ...]:
    """Shape of the last parameter, always blocked."""
    return (shape.batch, ceil_div(shape.out_channels, target.lanes), *shape.out_spatial, target.lanes)


def packing(shape: ConvShape, target: Target) -> Packing:
    """Weights as the kernel reads them, from ``shape.weight_shape``; the same for all schedules.

    Args:
        shape: The convolution.
        target: Gives the number of lanes.

    Returns:
        To [output blocks, input blocks of a group, *kernel, channels of an input block, lanes], zeros where a block has
        no channel or two channels belong to different groups of a merged group. Channels of a step of integers lie side
        by side, so that the last axes are [steps, lanes, channels of a step].
    """
    lanes, kernel, groups = target.lanes, shape.kernel, shape.groups
    blocks = blocks_of(shape, lanes)
    outputs, inputs, merged = shape.out_channels // groups, shape.in_channels // groups, groups // blocks.groups
    width = shape.input_width(lanes)
    taps = range(5, 5 + len(kernel))
    steps = Packing()
    if shape.transposed:
        # [in, out / groups, ...] to [out, in / groups, ...]
        steps = steps.reshape(groups, inputs, outputs, *kernel).transpose(0, 2, 1, *range(3, 3 + len(kernel)))
    if merged > 1:
        steps = steps.reshape(blocks.groups, merged, outputs, inputs, *kernel).diagonal()
    steps = (
        steps.reshape(blocks.groups, merged * outputs, merged * inputs, *kernel)
        .pad(blocks.groups, blocks.output_blocks * lanes, blocks.input_blocks * width, *kernel)
        .reshape(blocks.groups, blocks.output_blocks, lanes, blocks.input_blocks, width, *kernel)
        .transpose(0, 1, 3, *taps, 4, 2)
        .reshape(blocks.groups * blocks.output_blocks, blocks.input_blocks, *kernel, width, lanes)
    )
    return steps.then(arithmetic_of(shape.dtype, target).packing(steps.shape(shape.weight_shape)))


def pack(weight: Array, shape: ConvShape, target: Target) -> Array:
    """Pack weights, ``shape.weight_shape``, float32 or int8; see :func:`packing`."""
    return packing(shape, target).apply(weight.astype(arithmetic_of(shape.dtype, target).weights, copy=False))


def reference(x: Array, weight: Array, shape: ConvShape, epilogue: Epilogue, operands: Sequence[Array]) -> Array:
    """The convolution in NumPy float64 on plain tensors [N, C, *spatial]; operands broadcast to the output."""
    grouped_x = x.astype(np.float64).reshape(len(x), shape.groups, -1, *shape.spatial)
    grouped_w = weight.astype(np.float64).reshape(shape.groups, -1, *weight.shape[1:])
    result = (_transposed if shape.transposed else _correlated)(grouped_x, grouped_w, shape)
    return epilogue.reference(result.reshape(len(x), shape.out_channels, *shape.out_spatial), operands)


def _correlated(x: Array, weight: Array, shape: ConvShape) -> Array:
    """[N, groups, in, *spatial] with [groups, out, in, *kernel]."""
    padded = np.pad(x, ((0, 0),) * 3 + shape.padding)
    result = np.zeros(())
    for tap in np.ndindex(shape.kernel):
        window, taps = _strided(tap, shape, shape.out_spatial), (Ellipsis, *tap)
        result = result + np.einsum("ngi...,goi->ngo...", padded[window], weight[taps])
    return result


def _transposed(x: Array, weight: Array, shape: ConvShape) -> Array:
    """[N, groups, in, *spatial] with [groups, in, out, *kernel]: each input is added to the outputs it reaches."""
    before = [low for low, _ in shape.padding]
    extents = [
        max((size - 1) * stride + dilation * (kernel - 1) + 1, low + out)
        for size, stride, dilation, kernel, low, out in zip(
            shape.spatial, shape.stride, shape.dilation, shape.kernel, before, shape.out_spatial, strict=True
        )
    ]
    full = np.zeros((len(x), shape.groups, weight.shape[2], *extents))
    for tap in np.ndindex(shape.kernel):
        window, taps = _strided(tap, shape, shape.spatial), (Ellipsis, *tap)
        full[window] += np.einsum("ngi...,gio->ngo...", x, weight[taps])
    crop: tuple[Any, ...] = (
        Ellipsis,
        *(slice(low, low + out) for low, out in zip(before, shape.out_spatial, strict=True)),
    )
    return np.asarray(full[crop])


def _strided(tap: Sequence[int], shape: ConvShape, counts: Sequence[int]) -> tuple[Any, ...]:
    """The positions that one tap meets: ``counts`` of them per axis."""
    slices = [
        slice(t * dilation, t * dilation + (count - 1) * stride + 1, stride)
        for t, dilation, stride, count in zip(tap, shape.dilation, shape.stride, counts, strict=True)
    ]
    return (Ellipsis, *slices)


@dataclass(frozen=True)
class _Ahead:
    """What a tile asks for while it computes: how, from which element on, and the first chunk that it computes with."""

    prefetch: Prefetch
    first: int | Expr
    chunk: int | Expr


def build(shape: ConvShape, schedule: ConvSchedule, target: Target, epilogue: Epilogue) -> PrimFunc:
    """The kernel (x, packed weights, *operands, y); operands as :class:`BlockedOperands` has them.

    Integers take :func:`zero_point.corrections` ahead of the operands.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("conv")
        T.func_attr({"tirx.noalias": True})
        _Emitter(shape, schedule, target, epilogue).emit()
    return builder.get()


class _Emitter:
    """Emits parameters and body of one kernel into the function being built."""

    def __init__(self, shape: ConvShape, schedule: ConvSchedule, target: Target, epilogue: Epilogue) -> None:
        self.schedule = schedule
        self.epilogue = epilogue
        self.lanes = target.lanes
        self.cores = target.cores
        self.packs = narrows(target)
        self.blocks = blocks_of(shape, target.lanes)
        self.batch = extent(shape.batch)
        self.shape = merged(shape, schedule)
        self.depth = schedule.depth or self.blocks.input_blocks
        self.arithmetic = arithmetic_of(shape.dtype, target)
        total_blocks = self.blocks.groups * self.blocks.output_blocks
        width = shape.input_width(self.lanes)
        quads = shape.plain_input and shape.dtype == "uint8"
        outputs = (self.batch, *output_shape(shape, target)[1:])
        self.x = tensor("x", (self.batch, *input_shape(shape, target)[1:]), "int32" if quads else shape.dtype)
        step: tuple[int, ...] = (width, self.lanes)
        if self.arithmetic.depth > 1:
            step = (width // self.arithmetic.depth, self.lanes, self.arithmetic.depth)
        self.weight = tensor(
            "weight", (total_blocks, self.blocks.input_blocks, *shape.kernel, *step), self.arithmetic.weights
        )
        self.corrections = Corrections(shape, target) if shape.dtype == "uint8" else None
        self.operands = BlockedOperands(epilogue, outputs)
        self.y = tensor("y", outputs, epilogue.dtype)
        # The sizes that offsets are computed with: rows may be merged, a plain input has blocks of one channel, and a
        # quad is one element.
        pixel = 1 if quads else width
        self.x_sizes = (self.blocks.groups * self.blocks.input_blocks, *self.shape.spatial, pixel)
        self.width, self.together = width, 1 if quads else self.arithmetic.depth
        self.y_sizes = (total_blocks, *self.shape.out_spatial, self.lanes)

    def emit(self) -> None:
        with root():
            self.x, self.weight, self.y = Flat(self.x), Flat(self.weight), Flat(self.y)
            self.operands.flatten()
            if self.corrections is not None:
                self.corrections.flatten()
            for phase in phases(self.shape):
                self._phase(phase)

    def _phase(self, phase: tuple[Phase, ...]) -> None:
        channels = even_runs(self.blocks.output_blocks, self.schedule.vectors)
        space = [axis.extent for axis in phase[:-1]]
        features = [self.blocks.groups, sum(int(run.count) for run in channels)]
        passes = ceil_div(self.blocks.input_blocks, self.depth)
        if passes > 1:
            with T.parallel(0, self.batch * prod(features)) as index:
                n, group, tile = bind(*unravel(index, [self.batch, *features]))

                def panel(first: int | Expr, blocks: Run) -> None:
                    with T.serial(0, passes) as number, ExitStack() as loops:
                        position = [loops.enter_context(loop(size)) for size in space]
                        self._row(phase, n, group, first, blocks.size, position, number)

                for_tile(tile, channels, panel)
            return
        if self.schedule.outer == "space":
            with T.parallel(0, self.batch * prod(space) * prod(features)) as index:
                n, *rest = bind(*unravel(index, [self.batch, *space, *features]))
                position, (group, tile) = rest[: len(space)], rest[len(space) :]
                for_tile(tile, channels, lambda first, run: self._row(phase, n, group, first, run.size, position, 0))
            return
        rows, *rest = space or [1]
        bands = self.cores if self.schedule.outer == "bands" else 1
        height = ceil_div(rows, bands)
        extents = [self.batch, bands, *features, height, *rest]
        with T.parallel(0, self.batch * prod(extents[1:])) as index:
            n, band, group, tile, row, *inner = bind(*unravel(index, extents))
            position = [*bind(band * height + row), *inner] if space else []
            with only_if(bands * height == rows or position[0] < rows):
                for_tile(tile, channels, lambda first, run: self._row(phase, n, group, first, run.size, position, 0))

    def _row(
        self,
        phase: tuple[Phase, ...],
        n: int | Expr,
        group: int | Expr,
        first: int | Expr,
        vectors: int,
        position: list[int | Expr],
        number: int | Expr,
    ) -> None:
        """Pass ``number`` over the tiles along the last axis, of ``vectors`` blocks of channels from ``first`` on."""
        *outer, inner = phase
        runs = pixel_runs(inner, self.schedule.pixels)
        asking, visit = self._prefetch(outer, position, runs, vectors)
        (block,) = bind(group * self.blocks.output_blocks + first)
        following = (block + vectors) * self._block_elements
        chunk = number * (self.depth * prod(self.shape.kernel))
        if not isinstance(number, int):
            begin = block * self._block_elements + (number + 1) * (self.depth * self._chunk_elements)
            following = T.Select((number + 1) * self.depth < self.blocks.input_blocks, begin, following)
        for run in runs:
            with loop(run.tiles.count) as t:
                pixel = run.first + t * run.tiles.size
                ahead = None if asking is None else _Ahead(asking, asking.first(following, visit + t), chunk)
                self._tile(phase, run, n, group, block, vectors, [*position, pixel], number, ahead)
            visit = visit + int(run.tiles.count)

    def _prefetch(
        self, outer: Sequence[Phase], position: Sequence[int | Expr], runs: Sequence[PixelRun], vectors: int
    ) -> tuple[Prefetch | None, int | Expr]:
        """How the tiles of a panel of weights ask for the next one, and the number of the first tile of a row."""
        # A band reads fewer weights than pixels.
        if not self.schedule.prefetch or self.shape.plain_input or self.schedule.outer == "bands":
            return None, 0
        tiles = sum(int(run.tiles.count) for run in runs)
        number: int | Expr = 0
        for q, axis in zip(position, outer, strict=True):
            number = number * axis.extent + q
        rows = prod(axis.extent for axis in outer) if self.schedule.outer == "channels" else 1
        chunks = self.depth * prod(self.shape.kernel)
        whole = self.depth == self.blocks.input_blocks
        pieces = [0] if whole else [v * self._block_elements for v in range(vectors)]
        elements = self.depth * self._chunk_elements * (vectors if whole else 1)
        line = LINE_BYTES // np.dtype(self.arithmetic.weights).itemsize
        return Prefetch.of(elements, chunks, rows * tiles, tuple(pieces), line), number * tiles

    @property
    def _chunk_elements(self) -> int:
        """Weights of one block of output channels and one of input channels."""
        return prod(self.shape.kernel) * self.width * self.lanes

    @property
    def _block_elements(self) -> int:
        """Weights of one block of output channels."""
        return self.blocks.input_blocks * self._chunk_elements

    def _tile(
        self,
        phase: tuple[Phase, ...],
        run: PixelRun,
        n: int | Expr,
        group: int | Expr,
        block: int | Expr,
        vectors: int,
        position: list[int | Expr],
        number: int | Expr,
        ahead: _Ahead | None,
    ) -> None:
        """One register tile in one pass: ``position`` is its first output, along each axis in units of the phase."""
        lanes = self.lanes
        tile = RegisterTile(run.tiles.size, vectors, lanes, self.arithmetic)
        place = [axis.first_output + q * axis.output_step for axis, q in zip(phase, position, strict=True)]
        result = offset(self.y_sizes, n, block, *place, 0)
        vector_step = prod(self.shape.out_spatial) * lanes
        row_step = phase[-1].output_step * lanes

        def at(row: int | Expr, part: Part) -> int | Expr:
            return result + (part.vector * vector_step + row * row_step + part.first)

        steps = self.blocks.input_blocks * self.lanes * prod(axis.taps for axis in phase)
        if steps >= LONG_REDUCTION:
            with only_if(number == 0 if isinstance(number, int) else number < 1):
                tile.prefetch(lambda row, v: self.y.prefetch(at(row, Part(v, 0, lanes)), 1))
        if self.corrections is not None:
            self.corrections.load_into(tile, phase, run, block, position)
        whole = self.depth == self.blocks.input_blocks
        if not whole:
            with only_if(number > 0):
                tile.load(lambda row, part: self.y.load(at(row, part), part.width))
        if all(axis.taps for axis in phase):
            first_input = group * self.blocks.input_blocks
            (done,) = bind(number * self.depth)
            left = self.blocks.input_blocks - done
            for inputs in self.blocks.inputs:
                here = inputs if whole else Run(T.min(self.depth, left), inputs.size)
                self._reduce(tile, phase, run, n, block, position, first_input, done, here, ahead)
                done = done + inputs.count

        def load(operand: int, row: int | Expr, part: Part) -> Expr:
            return self.operands.load(operand, n, block + part.vector, at(row, part), part.first, part.width)

        def store(row: int | Expr, part: Part, value: Expr) -> None:
            self.y.store(at(row, part), value, part.width)

        if whole:
            tile.finish(
                self.epilogue, load, store, packing="rows" if self.packs and phase[-1].output_step == 1 else None
            )
        else:
            with T.If((number + 1) * self.depth < self.blocks.input_blocks):
                with T.Then():
                    tile.finish(Epilogue(), load, store)
                with T.Else():
                    tile.finish(self.epilogue, load, store)

    def _reduce(
        self,
        tile: RegisterTile,
        phase: tuple[Phase, ...],
        run: PixelRun,
        n: int | Expr,
        block: int | Expr,
        position: list[int | Expr],
        first_input: int | Expr,
        done: int | Expr,
        inputs: Run,
        ahead: _Ahead | None,
    ) -> None:
        """Add the products of ``inputs.count`` input blocks after ``done``, of which ``inputs.size`` channels exist."""
        *outer, inner = phase
        pixel_elements = self.x_sizes[-1]
        with ExitStack() as loops:
            b = done + loops.enter_context(loop(inputs.count))
            taps: list[int | Expr] = []
            pixels: list[int | Expr] = []
            for axis, q in zip(outer, position[:-1], strict=True):
                base = q * axis.stride + axis.offset
                low, count = bind(*met_taps(axis, base))
                tap = low + loops.enter_context(loop(count))
                taps.append(axis.first_tap + tap * axis.tap_step)
                pixels.append(base + tap * axis.tap_input)
            base = position[-1] * inner.stride + inner.offset
            for met in run.taps:
                with loop(met.count) as t:
                    tap = met.first + t
                    chunk = offset(self.shape.kernel, b, *taps, inner.first_tap + tap * inner.tap_step)
                    (weight,) = bind(block * self._block_elements + chunk * (self.width * self.lanes))
                    pixel = base + tap * inner.tap_input
                    source = offset(self.x_sizes, n, first_input + b, *pixels, pixel, 0)
                    if ahead is not None:
                        ahead.prefetch.ask(self.weight, ahead.first, chunk - ahead.chunk)
                    depth = self.arithmetic.depth
                    steps = ceil_div(inputs.size, depth)
                    # A block has few steps of integers: a loop would cost as much as they do if each is short.
                    short = depth > 1 and self.arithmetic.instructions == 1
                    with unrolled(0, steps) if short else loop(steps) as step:
                        c = step * depth
                        self._step(tile, met.rows, source + c, inner.stride * pixel_elements, weight + c * self.lanes)

    def _step(
        self,
        tile: RegisterTile,
        rows: range,
        source: int | Expr,
        row_step: int,
        weight: int | Expr,
    ) -> None:
        """One step of the reduction: one input channel, or as many as are multiplied at once, and one tap."""
        depth = self.arithmetic.depth
        tile.multiply_add(
            rows,
            lambda row: self.x.load(source + row * row_step, self.together),
            lambda v: self.weight.load(weight + v * self._block_elements, self.lanes * depth),
        )
