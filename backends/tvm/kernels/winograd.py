"""Winograd's convolution F(m x m, 3x3), float32, stride 1, blocked input to blocked output; m is 2, 4 or 6.

A tile of m x m outputs depends on a x a inputs, a = m + 2. Both are transformed so that the convolution of tiles
becomes a * a products of matrices, one for each element of the transformed tiles: [tiles, in] x [in, out]. A block of
tiles goes through three phases, its data in the level 2 cache:

1. *gather*: tiles of the image to factors V, [element, row tile, input block, rows, lanes];
2. *multiply*: V and the transformed weights U to products, for ``vectors`` blocks of output channels at a time;
3. *scatter*: the products of these channels to tiles of the output, through the epilogue. A tile holds whole windows
   of a 2x2 pooling, which may end the epilogue: the large map ahead of it is then never written.

The weights come untransformed, as 3x3, and are transformed on the way: a * a / 9 times the bytes would have to be
read from memory, which takes longer than the arithmetic does.

Method: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016 (arXiv 1509.09308); fused
phases: Z. Jia, A. Zlateski, F. Durand, K. Li, "Optimizing N-Dimensional, Winograd-Based Convolution for Manycore CPUs",
PPoPP 2018.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from math import prod

import numpy as np
import torch

from shave.backends.packing import Packing
from shave.backends.target import Target
from shave.backends.tvm.adapter import IRBuilder, PrimFunc, T
from shave.backends.tvm.kernels import conv
from shave.backends.tvm.kernels.base import Array, busiest_share, ceil_div, even_runs
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.register_tile import cycles_per_step, cycles_per_tile, fits, most_rows
from shave.backends.tvm.kernels.winograd_phases import Phases
from shave.backends.tvm.kernels.winograd_shape import TAPS, WinogradSchedule, WinogradShape
from shave.ir.winograd import restore_weight, transform_weight

MAX_VECTORS = 6
GATHER_CYCLES = 7.5
"""Cycles per vector of factors: load from the level 2 cache, transform, store there."""
SCATTER_CYCLES = 5.5
"""Cycles per vector of products: the same, and the epilogue."""
EXPAND_CYCLES = 4.5
"""Cycles per vector of transformed weights."""
FAR_LOADS = 4
"""Slow loads that a vector of weights costs a register tile for which it comes from level 2, beside one."""
CACHE_SPEED = 2.5
"""How many times as fast as main memory the level 3 cache is read, while arithmetic goes on."""
EXCHANGE_SPEED = 1.5
"""How many times as fast as main memory a core reads what lies in another core's level 2 cache."""
EXPOSED = 0.25
"""Share of streaming weights from there that does not hide behind the products."""
SPILL = 3
"""Passes over factors and products that outgrow the level 2 cache: written, which reads first, and read, in strides."""


@dataclass(frozen=True)
class _Work:
    """What a call has to do, in all.

    Attributes:
        cycles: Arithmetic, and moving what is in the level 2 cache.
        cached: Bytes between the levels 2 and 3.
        memory: Bytes from and to main memory.
        streamed: Bytes of transformed weights that come from level 3 in order, while the products are computed.
    """

    cycles: float
    cached: float
    memory: float
    streamed: float = 0


def _transforms(shape: WinogradShape, schedule: WinogradSchedule, target: Target) -> _Work:
    """The image to factors and products to the image; weights to their transform."""
    elements = (shape.tile + TAPS - 1) ** 2
    tiles, in_blocks, out_blocks, blocks = _extents(shape, schedule, target)
    images = elements * tiles * (GATHER_CYCLES * in_blocks + SCATTER_CYCLES * out_blocks)
    # What is written is read first.
    pixels = [in_blocks * prod(shape.spatial), 2 * out_blocks * prod(shape.out_spatial)]
    moved = target.vector_bytes * (shape.batch or 1) * sum(pixels)
    weights = elements * shape.in_channels * out_blocks
    expanded = 2 * weights * target.vector_bytes
    read = TAPS * TAPS * shape.in_channels * out_blocks * target.vector_bytes
    if schedule.order == "channels":
        return _Work(images + EXPAND_CYCLES * weights * blocks, moved + read * (blocks - 1), read)
    # Larger ones are read before they are written, and written back to make room.
    fits_cache = expanded <= 2 * target.l2_bytes
    return _Work(images + EXPAND_CYCLES * weights, moved, read + 1.5 * expanded * (not fits_cache))


def _products(shape: WinogradShape, schedule: WinogradSchedule, target: Target) -> _Work:
    elements = (shape.tile + TAPS - 1) ** 2
    tiles, in_blocks, out_blocks, blocks = _extents(shape, schedule, target)
    groups = even_runs(out_blocks, schedule.vectors)
    depth = schedule.depth if schedule.order == "channels" else in_blocks
    slices = ceil_div(in_blocks, depth)
    # Register tiles of a block share the weights of an element, if level 1 holds them.
    panel = depth * target.lanes * schedule.vectors * target.vector_bytes
    far = 1 + FAR_LOADS / (schedule.block if panel <= target.l1_bytes // 2 else 1)
    cycles = sum(
        int(run.count)
        * (
            shape.in_channels * cycles_per_step(schedule.rows, run.size, far * run.size)
            # Sums over slices are loaded and stored again.
            + slices * cycles_per_tile(schedule.rows, run.size) * (1 + (slices > 1))
        )
        for run in groups
    )
    factors = elements * in_blocks * schedule.rows * schedule.block * target.vector_bytes
    weights = elements * shape.in_channels * out_blocks * target.vector_bytes
    cycles *= elements * ceil_div(tiles, schedule.rows)
    if schedule.order == "channels":
        # Written, which reads first, then read for each group.
        passes = 2 + sum(int(run.count) for run in groups)
        spilled = passes * factors * blocks * (factors > target.l2_bytes // 2)
        # Much of what outgrows a core's part of level 3 comes from memory.
        cached = spilled * (1.5 if factors > 4 * target.l2_bytes else 1)
        # The products of a group too are written, which reads first, and read.
        products = sum(int(run.count) * _outgrown(factors * run.size / in_blocks, 3 / 4, target) for run in groups)
        cached += SPILL * blocks * products
        # Each core reads what the others gathered.
        return _Work(cycles, cached + (target.cores - 1) * factors * blocks * CACHE_SPEED / EXCHANGE_SPEED, 0)
    held = factors + factors * out_blocks / in_blocks
    streams = weights + held > target.l2_bytes
    # Weights that stream through take their part of the cache.
    outgrown = _outgrown(held, 1 / 2 if streams else 3 / 4, target)
    return _Work(cycles, SPILL * blocks * outgrown, 0, blocks * weights * streams)


def _outgrown(held: float, share: float, target: Target) -> float:
    """All of the bytes that a block holds, if they are more than a share of the level 2 cache; else 0."""
    return held * (held > share * target.l2_bytes)


def _extents(shape: WinogradShape, schedule: WinogradSchedule, target: Target) -> tuple[int, int, int, int]:
    """Tiles of the batch, blocks of input and output channels, blocks of tiles."""
    tiles = (shape.batch or 1) * prod(shape.grid)
    in_blocks, out_blocks = ceil_div(shape.in_channels, target.lanes), ceil_div(shape.out_channels, target.lanes)
    return tiles, in_blocks, out_blocks, ceil_div(tiles, schedule.rows * schedule.block)


def seconds(shape: WinogradShape, schedule: WinogradSchedule, target: Target) -> float:
    """Estimated time of a call, weights read from main memory; a batch known only at run time counts as 1."""
    tiles, _, out_blocks, blocks = _extents(shape, schedule, target)
    parts = [_transforms(shape, schedule, target), _products(shape, schedule, target)]
    cycles, cached, memory, streamed = (float(sum(values)) for values in zip(*map(astuple, parts), strict=True))
    if schedule.order == "elements":  # the last block may hold a few tiles only
        imbalance = min(tiles, ceil_div(blocks, target.cores) * schedule.rows * schedule.block) * target.cores / tiles
    else:
        runs = [(int(run.count), float(run.size)) for run in even_runs(out_blocks, schedule.vectors)]
        imbalance = busiest_share(runs, 1, target.cores) * target.cores / out_blocks
    bandwidth = target.memory_gbytes * 1e9
    clock = target.gigahertz * 1e9
    streaming, products = streamed / (CACHE_SPEED * bandwidth), parts[1].cycles / clock
    exposed = max(streaming - products, 0.0) + EXPOSED * min(streaming, products)
    return (
        imbalance * cycles / clock + exposed + cached / (CACHE_SPEED * bandwidth) + memory / bandwidth
    ) / target.cores


def candidates(shape: WinogradShape, target: Target) -> list[WinogradSchedule]:
    """The dozen best by the analytic model, best first."""
    elements = (shape.tile + TAPS - 1) ** 2
    in_blocks, out_blocks = ceil_div(shape.in_channels, target.lanes), ceil_div(shape.out_channels, target.lanes)
    tiles = (shape.batch or 1) * prod(shape.grid)
    most = min(tiles, most_rows(target))
    found = []
    for rows, vectors in itertools.product(range(1, most + 1), range(1, min(out_blocks, MAX_VECTORS) + 1)):
        if not fits(rows, vectors, target):
            continue
        largest = ceil_div(tiles, rows)
        sizes = [min(largest, size) for size in (1, 2, 4, 8)]
        found += [WinogradSchedule(rows, vectors, block, "elements", in_blocks) for block in sizes]
        most_deep = target.l2_bytes // 4 // (elements * target.lanes * vectors * target.vector_bytes)
        # Slices of equal depth: uneven ones have loops of a length that LLVM does not know.
        depth = max(d for d in range(1, in_blocks + 1) if in_blocks % d == 0 and (d == 1 or d <= most_deep))
        sizes = [ceil_div(largest, blocks) for blocks in (1, 2, 3)]
        found += [WinogradSchedule(rows, vectors, block, "channels", depth) for block in sizes]
    return sorted(dict.fromkeys(found), key=lambda s: seconds(shape, s, target))[:12]


def default(shape: WinogradShape, target: Target) -> WinogradSchedule:
    """The best by the analytic model."""
    return candidates(shape, target)[0]


def packing(shape: WinogradShape, target: Target) -> Packing:
    """3x3 weights [out, in, 3, 3] as the kernel reads them: to [output blocks, in, 9, lanes], zeros beyond the last."""
    lanes, taps = target.lanes, TAPS * TAPS
    blocks = ceil_div(shape.out_channels, lanes)
    steps = Packing().reshape(shape.out_channels, shape.in_channels, taps)
    steps = steps.pad(blocks * lanes, shape.in_channels, taps)
    return steps.reshape(blocks, lanes, shape.in_channels, taps).transpose(0, 2, 3, 1)


def pack(weight: Array, shape: WinogradShape, target: Target) -> Array:
    """Weights as the kernel reads them; the same for all schedules and tile sizes.

    Args:
        weight: Transformed weights [a * a, out, in], as ``shave::winograd_conv2d`` takes them.
        shape: The convolution.
        target: Gives the number of lanes.

    Returns:
        3x3 weights as :func:`packing` has them.

    Raises:
        ValueError: The weight is no transform of a 3x3 weight.
    """
    transformed = torch.from_numpy(np.ascontiguousarray(weight))
    restored = restore_weight(transformed, shape.tile)
    error = float((transform_weight(restored, shape.tile) - transformed).abs().max())
    if error > 1e-5 * float(transformed.abs().max()):
        raise ValueError(f"the weight {list(weight.shape)} is no transform of a 3x3 weight for tile {shape.tile}")
    return packing(shape, target).apply(restored.float().numpy())


def reference(x: Array, weight: Array, shape: WinogradShape, epilogue: Epilogue, operands: Sequence[Array]) -> Array:
    """The convolution in NumPy float64, directly, on plain tensors [N, C, H, W] with transformed weights."""
    plain = restore_weight(torch.from_numpy(weight), shape.tile).numpy()
    result = conv.reference(x, plain, shape.direct, epilogue, operands)
    if not shape.pooled:
        return result
    height, width = shape.stored_spatial
    windows = result[:, :, : 2 * height, : 2 * width].reshape(*result.shape[:2], height, 2, width, 2)
    pooled: Array = windows.max(axis=(3, 5))
    return pooled


def build(shape: WinogradShape, schedule: WinogradSchedule, target: Target, epilogue: Epilogue) -> PrimFunc:
    """The kernel (x, packed weights, *operands, y); operands as ``operands.BlockedOperands`` has them."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("winograd")
        T.func_attr({"tirx.noalias": True})
        Phases(shape, schedule, target, epilogue).emit()
    return builder.get()
