"""Schedules of direct convolutions: what there is to choose, and an analytic model of what it costs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import numpy as np

from shave.backends.target import Target
from shave.backends.tvm.kernels.arithmetic import arithmetic_of
from shave.backends.tvm.kernels.base import Run, busiest_share, ceil_div, even_runs
from shave.backends.tvm.kernels.geometry import (
    ConvShape,
    Phase,
    PixelRun,
    merge_axes,
    merged_groups,
    phases,
    pixel_runs,
)
from shave.backends.tvm.kernels.prefetch import overlapped
from shave.backends.tvm.kernels.register_tile import CYCLES_PER_TILE, cycles_per_step, cycles_per_tile, fits

MAX_PIXELS = 28
MAX_VECTORS = 8
FAR_LOADS = 8
"""Loads from level 2 that cost as much as one of a line of a large image (fitted to measurements)."""


MOST_UNEVEN = 1.05
"""Rows that cores take as bands of equal height, over those that there are."""

Outer = Literal["channels", "space", "bands"]


@dataclass(frozen=True)
class ConvSchedule:
    """Choices of a direct convolution.

    Attributes:
        pixels: Largest number of pixels of a tile.
        vectors: Largest number of output channel blocks of a tile.
        outer: What the outermost loop walks: ``channels`` keeps the weights of a tile in cache while the image
            streams by, ``space`` keeps a few rows of the image while all weights stream by. ``bands`` gives each core
            a band of rows, in which it does as ``channels``: what a core reads it mostly wrote itself, if all kernels
            around do so, and it reads all weights.
        merge: Rows laid end to end before tiles are cut (pointwise convolutions only, else 1).
        prefetch: Whether tiles ask for the weights of the next panel; see :mod:`prefetch`.
        depth: Blocks of input channels of a pass, all in one by default. A panel of weights stays in cache for one
            pass over the image; y holds the sums in between. Needs ``outer="channels"`` and whole blocks.
    """

    pixels: int
    vectors: int
    outer: Outer = "channels"
    merge: int = 1
    prefetch: bool = True
    depth: int | None = None


@dataclass(frozen=True)
class Blocks:
    """Channels in blocks, per merged group."""

    groups: int
    inputs: tuple[Run, ...]
    input_blocks: int
    output_blocks: int


def blocks_of(shape: ConvShape, lanes: int) -> Blocks:
    """The channels of a convolution in blocks of ``lanes``."""
    groups = shape.groups // merged_groups(shape, lanes)
    inputs, outputs = shape.in_channels // groups, shape.out_channels // groups
    width = shape.input_width(lanes)  # a plain input is a blocked one with small blocks
    runs = (Run(inputs // width, width), Run(1, inputs % width))
    present = tuple(run for run in runs if run.count and run.size)
    return Blocks(groups, present, ceil_div(inputs, width), ceil_div(outputs, lanes))


def _steps(blocks: Blocks, depth: int) -> int:
    """Steps of the reduction over the channels of a group, ``depth`` of which are multiplied at once."""
    return sum(int(run.count) * ceil_div(run.size, depth) for run in blocks.inputs)


def _panel_bytes(shape: ConvShape, target: Target) -> int:
    """Bytes of the packed weights of one block of output channels with one block of input channels."""
    arithmetic = arithmetic_of(shape.dtype, target)
    width = shape.input_width(target.lanes)
    return target.lanes * width * prod(shape.kernel) * np.dtype(arithmetic.weights).itemsize


def _image_bytes(shape: ConvShape) -> int:
    return np.dtype(shape.dtype).itemsize * shape.in_channels * prod(shape.spatial)


def _cycles(shape: ConvShape, schedule: ConvSchedule, target: Target) -> float:
    """Estimated cycles of the busiest core for the arithmetic of one call."""
    blocks = blocks_of(shape, target.lanes)
    arithmetic = arithmetic_of(shape.dtype, target)
    inputs = _steps(blocks, arithmetic.depth)
    channels = even_runs(blocks.output_blocks, schedule.vectors)
    depth = schedule.depth or blocks.input_blocks
    passes = ceil_div(blocks.input_blocks, depth)
    weights = schedule.vectors * depth * _panel_bytes(shape, target)
    image = _image_bytes(shape)
    far = FAR_LOADS if image > target.l2_bytes // 4 and not shape.plain_input else 0
    total = 0.0
    for phase in phases(merged(shape, schedule)):
        outer, tiles = _work(phase, schedule.pixels)
        rows = prod(axis.extent for axis in phase[:-1])
        runs: list[tuple[int, float]] = []
        for run in channels:
            panel = 0.0
            for tile in tiles:
                # A plain input gives one channel per row of the image: short loops. Weights may only fit level 2. Each
                # line of a large image comes from level 2 or farther, once for all taps and vectors.
                slow: float = tile.tiles.size * shape.plain_input + run.size * (weights > target.l1_bytes // 2)
                slow += tile.tiles.size * far / (target.lanes * prod(shape.kernel))
                steps = sum(met.count * cycles_per_step(len(met.rows), run.size, slow, arithmetic) for met in tile.taps)
                once = cycles_per_tile(tile.tiles.size, run.size, arithmetic) + (passes - 1) * CYCLES_PER_TILE
                panel += int(tile.tiles.count) * (outer * inputs * steps + rows * once)
            runs.append((int(run.count), panel))
        repeats = blocks.groups * (shape.batch or 1)
        if schedule.outer == "bands":
            bands = target.cores * ceil_div(phase[0].extent, target.cores) / phase[0].extent
            total += bands * repeats * sum(count * panel for count, panel in runs) / target.cores
            continue
        if passes == 1:  # else the passes over a panel are the work of one thread
            channels_first = schedule.outer == "channels"
            runs = [(count * rows if channels_first else count, panel / rows) for count, panel in runs]
            repeats *= 1 if channels_first else rows
        total += busiest_share(runs, repeats, target.cores)
    return total


@functools.lru_cache(maxsize=1024)
def _work(phase: tuple[Phase, ...], pixels: int) -> tuple[int, list[PixelRun]]:
    """Of one block of channels: taps met along all axes but the last, and the tiles along the last."""
    *outer, inner = phase
    return prod(axis.met_taps for axis in outer), pixel_runs(inner, pixels)


def seconds(shape: ConvShape, schedule: ConvSchedule, target: Target) -> float:
    """Estimated time of a call, weights read from main memory; a batch known only at run time counts as 1."""
    arithmetic = _cycles(shape, schedule, target) / (target.gigahertz * 1e9)
    blocks = blocks_of(shape, target.lanes)
    block = blocks.input_blocks * _panel_bytes(shape, target)
    readers = 1 if schedule.outer == "bands" else target.cores
    memory = block * blocks.groups * blocks.output_blocks / readers / (target.memory_gbytes * 1e9)
    panel = schedule.vectors * block * (schedule.depth or blocks.input_blocks) // blocks.input_blocks
    return overlapped(arithmetic, memory, panel, target)


def merged(shape: ConvShape, schedule: ConvSchedule) -> ConvShape:
    """The convolution with the rows of the image laid end to end that the schedule merges."""
    return shape if schedule.merge == 1 else replace(shape, spatial=merge_axes(shape.spatial, schedule.merge))


def candidates(shape: ConvShape, target: Target) -> list[ConvSchedule]:
    """The dozen best tiles by the analytic model, each with both loop orders, some without prefetch; best first."""
    merges = [1]
    if shape.pointwise and len(shape.spatial) > 1:
        merges = [m for m in range(1, shape.spatial[-2] + 1) if shape.spatial[-2] % m == 0]
    order = _outer(shape, target)
    if order == "bands":
        merges = [m for m in merges if shape.spatial[-2] // m % target.cores == 0 or m == 1]
    tiles = [
        ConvSchedule(pixels, vectors, order, merge)
        for merge in merges
        for pixels, vectors in itertools.product(range(1, MAX_PIXELS + 1), range(1, MAX_VECTORS + 1))
        if fits(pixels, vectors, target, arithmetic_of(shape.dtype, target))
    ]
    if shape.plain_input:
        # LLVM loads neighbours of a plain row together and spreads them from registers, which it then needs beside
        # those of the sums and of the weights of a step.
        tiles = [s for s in tiles if (s.pixels + 1) * s.vectors <= target.vector_registers * 13 // 16]
    if order == "channels":
        cut = [replace(s, depth=_depth(shape, s.vectors, target)) for s in tiles]
        tiles += [s for s in cut if s.depth]
    best = sorted(tiles, key=lambda s: (seconds(shape, s, target), s.merge, -s.pixels))[:12]
    other: Outer = "space" if order == "channels" else "channels"
    found = list(dict.fromkeys(best + [replace(s, outer=other, depth=None) for s in best]))
    return found if shape.plain_input else found + [replace(s, prefetch=False) for s in best[:4]]


def default(shape: ConvShape, target: Target) -> ConvSchedule:
    """The best tile by the analytic model."""
    return candidates(shape, target)[0]


def _depth(shape: ConvShape, vectors: int, target: Target) -> int | None:
    """Blocks of input channels of a pass: their weights for a tile fit half of the level 1 cache.

    None where all do, where the last block is not whole, where the sums would not stay in the level 2 cache, and for
    integers, whose sums have no place in the output.
    """
    blocks = blocks_of(shape, target.lanes)
    if shape.plain_input or shape.dtype != "float32" or any(run.size != target.lanes for run in blocks.inputs):
        return None
    block = vectors * target.lanes * target.vector_bytes * prod(shape.kernel)
    passes = ceil_div(blocks.input_blocks, max(1, target.l1_bytes // 2 // block))
    sums = vectors * target.vector_bytes * prod(shape.out_spatial)
    return ceil_div(blocks.input_blocks, passes) if passes > 1 and sums <= target.l2_bytes // 4 else None


def _outer(shape: ConvShape, target: Target) -> Outer:
    blocks = blocks_of(shape, target.lanes)
    weights = blocks.groups * blocks.output_blocks * blocks.input_blocks * _panel_bytes(shape, target)
    image = _image_bytes(shape)
    half = target.l2_bytes // 2
    if weights < image and banded(phases(shape), target):
        return "bands"
    return "space" if weights <= half < image else "channels"


def banded(phases: Sequence[tuple[Phase, ...]], target: Target) -> bool:
    """Whether each core can take a band of several rows, all of about equal height."""
    return target.cores > 1 and all(
        len(axes) > 1
        and axes[0].extent >= 4 * target.cores
        and ceil_div(axes[0].extent, target.cores) * target.cores <= MOST_UNEVEN * axes[0].extent
        for axes in phases
    )
