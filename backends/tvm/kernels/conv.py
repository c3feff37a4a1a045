"""Direct float32 convolution from blocked or plain input to blocked output, any rank, grouped, dilated, transposed.

One register tile (:mod:`register_tile`) holds ``pixels`` neighbours along the last axis times ``vectors`` blocks of
output channels. The reduction runs over blocks of input channels, taps, and channels inside the block; the weights
lie in that order. See :mod:`geometry` for padding and for transposed convolutions.

Method: E. Georganas et al., "Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures", SC 2018
(arXiv 1808.05567). Layout: Y. Liu et al., "Optimizing CNN Model Inference on CPUs" (NeoCPU), ATC 2019.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import numpy as np

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, IRBuilder, PrimFunc, T
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
    root,
    tensor,
    unravel,
)
from shave.backends.tvm.kernels.epilogue import Bias, Epilogue
from shave.backends.tvm.kernels.geometry import (
    ConvShape,
    Phase,
    PixelRun,
    merge_axes,
    merged_groups,
    met_taps,
    phases,
    pixel_runs,
)
from shave.backends.tvm.kernels.prefetch import Prefetch, overlapped
from shave.backends.tvm.kernels.register_tile import (
    LONG_REDUCTION,
    Part,
    RegisterTile,
    cycles_per_step,
    cycles_per_tile,
    fits,
)

MAX_PIXELS = 28
MAX_VECTORS = 8
FAR_LOADS = 8
"""Loads from level 2 that cost as much as one of a line of a large image (fitted to measurements)."""


@dataclass(frozen=True)
class ConvSchedule:
    """Choices of a direct convolution.

    Attributes:
        pixels: Largest number of pixels of a tile.
        vectors: Largest number of output channel blocks of a tile.
        outer: What the outermost loop walks: ``channels`` keeps the weights of a tile in cache while the image
            streams by, ``space`` keeps a few rows of the image while all weights stream by.
        merge: Rows laid end to end before tiles are cut (pointwise convolutions only, else 1).
        prefetch: Whether tiles ask for the weights of the next panel; see :mod:`prefetch`.
    """

    pixels: int
    vectors: int
    outer: Literal["channels", "space"] = "channels"
    merge: int = 1
    prefetch: bool = True


@dataclass(frozen=True)
class _Blocks:
    """Channels in blocks, per merged group."""

    groups: int
    inputs: tuple[Run, ...]
    input_blocks: int
    output_blocks: int


def _blocks(shape: ConvShape, lanes: int) -> _Blocks:
    groups = shape.groups // merged_groups(shape, lanes)
    inputs, outputs = shape.in_channels // groups, shape.out_channels // groups
    # A plain input is a blocked one with blocks of one channel.
    width = 1 if shape.plain_input else lanes
    runs = (Run(inputs // width, width), Run(1, inputs % width))
    present = tuple(run for run in runs if run.count and run.size)
    return _Blocks(groups, present, ceil_div(inputs, width), ceil_div(outputs, lanes))


def input_shape(shape: ConvShape, target: Target) -> tuple[int | None, ...]:
    """Shape of the first parameter."""
    if shape.plain_input:
        return (shape.batch, shape.in_channels, *shape.spatial)
    return (shape.batch, ceil_div(shape.in_channels, target.lanes), *shape.spatial, target.lanes)


def output_shape(shape: ConvShape, target: Target) -> tuple[int | None, ...]:
    """Shape of the last parameter, always blocked."""
    return (shape.batch, ceil_div(shape.out_channels, target.lanes), *shape.out_spatial, target.lanes)


def _cycles(shape: ConvShape, schedule: ConvSchedule, target: Target) -> float:
    """Estimated cycles of the busiest core for the arithmetic of one call."""
    blocks = _blocks(shape, target.lanes)
    inputs = shape.in_channels // blocks.groups
    channels = even_runs(blocks.output_blocks, schedule.vectors)
    weights = schedule.vectors * target.vector_bytes * prod(shape.kernel) * inputs
    image = 4 * shape.in_channels * prod(shape.spatial)
    far = FAR_LOADS if image > target.l2_bytes // 4 and not shape.plain_input else 0
    total: float = 0
    units = 0
    for phase in phases(_merged(shape, schedule)):
        outer, tiles = _work(phase, schedule.pixels)
        rows = prod(axis.extent for axis in phase[:-1])
        units += rows * sum(int(run.count) for run in channels)
        for run, tile in itertools.product(channels, tiles):
            # A plain input gives one channel per row of the image: short loops. Weights may only fit level 2. Each line
            # of a large image comes from level 2 or farther, once for all taps and vectors.
            slow: float = tile.tiles.size * shape.plain_input + run.size * (weights > target.l1_bytes // 2)
            slow += tile.tiles.size * far / (target.lanes * prod(shape.kernel))
            steps = sum(met.count * cycles_per_step(len(met.rows), run.size, slow) for met in tile.taps)
            one = outer * inputs * steps + rows * cycles_per_tile(tile.tiles.size, run.size)
            total += int(run.count) * int(tile.tiles.count) * one
    units *= blocks.groups * (shape.batch or 1)
    return total * blocks.groups * (shape.batch or 1) * ceil_div(units, target.cores) / units


@functools.lru_cache(maxsize=1024)
def _work(phase: tuple[Phase, ...], pixels: int) -> tuple[int, list[PixelRun]]:
    """Of one block of channels: taps met along all axes but the last, and the tiles along the last."""
    *outer, inner = phase
    return prod(axis.met_taps for axis in outer), pixel_runs(inner, pixels)


def seconds(shape: ConvShape, schedule: ConvSchedule, target: Target) -> float:
    """Estimated time of a call, weights read from main memory; a batch known only at run time counts as 1."""
    arithmetic = _cycles(shape, schedule, target) / (target.gigahertz * 1e9)
    blocks = _blocks(shape, target.lanes)
    width = target.lanes if not shape.plain_input else 1
    block = 4 * target.lanes * blocks.input_blocks * width * prod(shape.kernel)
    memory = block * blocks.groups * blocks.output_blocks / target.cores / (target.memory_gbytes * 1e9)
    return overlapped(arithmetic, memory, schedule.vectors * block, target)


def _merged(shape: ConvShape, schedule: ConvSchedule) -> ConvShape:
    return shape if schedule.merge == 1 else replace(shape, spatial=merge_axes(shape.spatial, schedule.merge))


def candidates(shape: ConvShape, target: Target) -> list[ConvSchedule]:
    """The dozen best tiles by the analytic model, each with both loop orders, some without prefetch; best first."""
    merges = [1]
    if shape.pointwise and len(shape.spatial) > 1:
        merges = [m for m in range(1, shape.spatial[-2] + 1) if shape.spatial[-2] % m == 0]
    order = _outer(shape, target)
    tiles = [
        ConvSchedule(pixels, vectors, order, merge)
        for merge in merges
        for pixels, vectors in itertools.product(range(1, MAX_PIXELS + 1), range(1, MAX_VECTORS + 1))
        if fits(pixels, vectors, target)
    ]
    best = sorted(tiles, key=lambda s: (seconds(shape, s, target), s.merge, -s.pixels))[:12]
    other: Literal["channels", "space"] = "space" if order == "channels" else "channels"
    found = best + [replace(s, outer=other) for s in best]
    return found if shape.plain_input else found + [replace(s, prefetch=False) for s in best[:4]]


def default(shape: ConvShape, target: Target) -> ConvSchedule:
    """The best tile by the analytic model."""
    return candidates(shape, target)[0]


def _outer(shape: ConvShape, target: Target) -> Literal["channels", "space"]:
    blocks = _blocks(shape, target.lanes)
    block = target.lanes * 4
    weights = block * blocks.groups * blocks.output_blocks * prod(shape.kernel) * shape.in_channels // blocks.groups
    image = 4 * shape.in_channels * prod(shape.spatial)
    half = target.l2_bytes // 2
    return "space" if weights <= half < image else "channels"


def pack(weight: Array, shape: ConvShape, target: Target) -> Array:
    """Weights as the kernel reads them; the same for all schedules.

    Args:
        weight: ``shape.weight_shape``, float32.
        shape: The convolution.
        target: Gives the number of lanes.

    Returns:
        [output blocks, input blocks of a group, *kernel, channels of an input block, lanes], zeros where a block has no
        channel or two channels belong to different groups of a merged group.
    """
    lanes = target.lanes
    blocks = _blocks(shape, lanes)
    merged = shape.groups // blocks.groups
    if shape.transposed:
        # [in, out / groups, ...] to [out, in / groups, ...]
        grouped = weight.reshape(shape.groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    else:
        grouped = weight.reshape(shape.groups, -1, *weight.shape[1:])
    _, outputs, inputs, *kernel = grouped.shape
    width = 1 if shape.plain_input else lanes
    dense = np.zeros(
        (blocks.groups, blocks.output_blocks * lanes, blocks.input_blocks * width, *kernel), dtype=np.float32
    )
    for group in range(shape.groups):
        at = group % merged
        rows, columns = slice(at * outputs, (at + 1) * outputs), slice(at * inputs, (at + 1) * inputs)
        dense[group // merged, rows, columns] = grouped[group]
    split = dense.reshape(blocks.groups * blocks.output_blocks, lanes, blocks.input_blocks, width, *kernel)
    return np.ascontiguousarray(np.moveaxis(split, (1, 3), (-1, -2)))


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
    """What a tile asks for while it computes: how, and from which element on."""

    prefetch: Prefetch
    first: int | Expr


def build(shape: ConvShape, schedule: ConvSchedule, target: Target, epilogue: Epilogue) -> PrimFunc:
    """The kernel (x, packed weights, *operands, y). Bias is [output blocks, lanes], residual is blocked like y."""
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
        self.blocks = _blocks(shape, target.lanes)
        self.batch = extent(shape.batch)
        self.shape = _merged(shape, schedule)
        total_blocks = self.blocks.groups * self.blocks.output_blocks
        width = 1 if shape.plain_input else self.lanes
        outputs = (self.batch, *output_shape(shape, target)[1:])
        self.x = tensor("x", (self.batch, *input_shape(shape, target)[1:]))
        self.weight = tensor("weight", (total_blocks, self.blocks.input_blocks, *shape.kernel, width, self.lanes))
        self.operands = [
            tensor("bias", (total_blocks, self.lanes)) if isinstance(step, Bias) else tensor("residual", outputs)
            for step in epilogue.operands
        ]
        self.y = tensor("y", outputs)
        # The sizes that offsets are computed with: rows may be merged, and a plain input has blocks of one channel.
        self.x_sizes = (self.blocks.groups * self.blocks.input_blocks, *self.shape.spatial, width)
        self.y_sizes = (total_blocks, *self.shape.out_spatial, self.lanes)

    def emit(self) -> None:
        with root():
            self.x, self.weight, self.y = Flat(self.x), Flat(self.weight), Flat(self.y)
            self.operands = [Flat(operand) for operand in self.operands]
            for phase in phases(self.shape):
                self._phase(phase)

    def _phase(self, phase: tuple[Phase, ...]) -> None:
        *outer, inner = phase
        channels = even_runs(self.blocks.output_blocks, self.schedule.vectors)
        channel_tiles = sum(int(run.count) for run in channels)
        space = [axis.extent for axis in outer]
        features = [self.blocks.groups, channel_tiles]
        channels_first = self.schedule.outer == "channels"
        extents = [self.batch, *features, *space] if channels_first else [self.batch, *space, *features]
        with T.parallel(0, self.batch * prod(space) * prod(features)) as index:
            n, *rest = bind(*unravel(index, extents))
            split = len(features) if channels_first else len(space)
            (group, tile), position = (rest[:split], rest[split:]) if channels_first else (rest[split:], rest[:split])

            def row(first: int | Expr, blocks: Run) -> None:
                runs = pixel_runs(inner, self.schedule.pixels)
                asking, visit = self._prefetch(outer, position, runs, blocks.size)
                following = group * self.blocks.output_blocks + first + blocks.size
                for run in runs:
                    with loop(run.tiles.count) as t:
                        pixel = run.first + t * run.tiles.size
                        ahead = None
                        if asking is not None:
                            ahead = _Ahead(asking, asking.first(following * self._block_elements, visit + t))
                        self._tile(phase, run, n, group, first, blocks.size, [*position, pixel], ahead)
                    visit = visit + int(run.tiles.count)

            for_tile(tile, channels, row)

    def _prefetch(
        self, outer: Sequence[Phase], position: Sequence[int | Expr], runs: Sequence[PixelRun], vectors: int
    ) -> tuple[Prefetch | None, int | Expr]:
        """How the tiles of a panel of weights ask for the next one, and the number of the first tile of a row."""
        if not self.schedule.prefetch or self.shape.plain_input:
            return None, 0
        tiles = sum(int(run.tiles.count) for run in runs)
        number: int | Expr = 0
        for q, axis in zip(position, outer, strict=True):
            number = number * axis.extent + q
        rows = prod(axis.extent for axis in outer) if self.schedule.outer == "channels" else 1
        chunks = self.blocks.input_blocks * prod(self.shape.kernel)
        return Prefetch.of(vectors * self._block_elements, chunks, rows * tiles), number * tiles

    @property
    def _block_elements(self) -> int:
        """Weights of one block of output channels."""
        return self.blocks.input_blocks * prod(self.shape.kernel) * self.x_sizes[-1] * self.lanes

    def _tile(
        self,
        phase: tuple[Phase, ...],
        run: PixelRun,
        n: int | Expr,
        group: int | Expr,
        first: int | Expr,
        vectors: int,
        position: list[int | Expr],
        ahead: _Ahead | None,
    ) -> None:
        """One register tile: ``position`` is its first output, along each axis in units of the phase."""
        lanes = self.lanes
        tile = RegisterTile(run.tiles.size, vectors, lanes)
        (block,) = bind(group * self.blocks.output_blocks + first)
        place = [axis.first_output + q * axis.output_step for axis, q in zip(phase, position, strict=True)]
        result = offset(self.y_sizes, n, block, *place, 0)
        vector_step = prod(self.shape.out_spatial) * lanes
        row_step = phase[-1].output_step * lanes

        def at(row: int | Expr, part: Part) -> int | Expr:
            return result + (part.vector * vector_step + row * row_step + part.first)

        steps = self.blocks.input_blocks * self.lanes * prod(axis.taps for axis in phase)
        if steps >= LONG_REDUCTION:
            tile.prefetch(lambda row, v: self.y.prefetch(at(row, Part(v, 0, lanes)), 1))
        if all(axis.taps for axis in phase):
            first_input = group * self.blocks.input_blocks
            done = 0
            for inputs in self.blocks.inputs:
                self._reduce(tile, phase, run, n, block, position, first_input, done, inputs, ahead)
                done += int(inputs.count)

        def load(operand: int, row: int | Expr, part: Part) -> Expr:
            if isinstance(self.epilogue.operands[operand], Bias):
                return self.operands[operand].load((block + part.vector) * lanes + part.first, part.width)
            return self.operands[operand].load(at(row, part), part.width)

        def store(row: int | Expr, part: Part, value: Expr) -> None:
            self.y.store(at(row, part), value, part.width)

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
        done: int,
        inputs: Run,
        ahead: _Ahead | None,
    ) -> None:
        """Add the products of ``inputs.count`` input blocks after ``done``, of which ``inputs.size`` channels exist."""
        *outer, inner = phase
        width = self.x_sizes[-1]
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
                    (weight,) = bind(block * self._block_elements + chunk * (width * self.lanes))
                    pixel = base + tap * inner.tap_input
                    source = offset(self.x_sizes, n, first_input + b, *pixels, pixel, 0)
                    if ahead is not None:
                        ahead.prefetch.ask(self.weight, ahead.first, chunk)
                    with loop(inputs.size) as c:
                        self._step(tile, met.rows, source + c, inner.stride * width, weight + c * self.lanes)

    def _step(
        self,
        tile: RegisterTile,
        rows: range,
        source: int | Expr,
        row_step: int,
        weight: int | Expr,
    ) -> None:
        """One step of the reduction: one input channel, one tap."""
        tile.multiply_add(
            rows,
            lambda row: self.x.load(source + row * row_step),
            lambda v: self.weight.load(weight + v * self._block_elements, self.lanes),
        )
