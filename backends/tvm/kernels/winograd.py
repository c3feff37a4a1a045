"""Winograd's convolution F(m x m, 3x3), float32, stride 1, blocked input to blocked output; m is 2, 4 or 6.

A tile of m x m outputs depends on a x a inputs, a = m + 2. Both are transformed so that the convolution of tiles
becomes a * a products of matrices, one for each element of the transformed tiles: [tiles, in] x [in, out]. A block of
tiles goes through three phases, its data in the level 2 cache:

1. *gather*: tiles of the image to factors V, [element, row tile, input block, rows, lanes];
2. *multiply*: V and the transformed weights U to products, for ``vectors`` blocks of output channels at a time;
3. *scatter*: the products of these channels to tiles of the output, through the epilogue.

The weights come untransformed, as 3x3, and are transformed on the way: a * a / 9 times the bytes would have to be
read from memory, which takes longer than the arithmetic does.

Method: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016 (arXiv 1509.09308); fused
phases: Z. Jia, A. Zlateski, F. Durand, K. Li, "Optimizing N-Dimensional, Winograd-Based Convolution for Manycore CPUs",
PPoPP 2018.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from shave.backends.target import Target
from shave.backends.tvm.adapter import IRBuilder, PrimFunc, T
from shave.backends.tvm.kernels import conv
from shave.backends.tvm.kernels.base import Array, ceil_div, even_runs
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.register_tile import cycles_per_step, cycles_per_tile, fits
from shave.backends.tvm.kernels.winograd_phases import Phases
from shave.backends.tvm.kernels.winograd_shape import TAPS, WinogradSchedule, WinogradShape
from shave.ir.winograd import restore_weight, transform_weight

GATHER_CYCLES = 7.0
"""Cycles per vector of a transformed tile of the image: transform, store to the level 2 cache."""
SCATTER_CYCLES = 5.0
"""Cycles per vector of products: load from the level 2 cache, transform, epilogue."""
EXPAND_CYCLES = 4.2
"""Cycles per vector of transformed weights."""


def _cycles(shape: WinogradShape, schedule: WinogradSchedule, target: Target) -> float:
    """Estimated cycles of the busiest core for one call."""
    elements = (shape.tile + TAPS - 1) ** 2
    in_blocks, out_blocks = ceil_div(shape.in_channels, target.lanes), ceil_div(shape.out_channels, target.lanes)
    tiles = (shape.batch or 1) * shape.grid[0] * shape.grid[1]
    groups = even_runs(out_blocks, schedule.vectors)
    count = sum(int(run.count) for run in groups)
    blocks = ceil_div(tiles, schedule.rows * schedule.block)
    slices = ceil_div(in_blocks, schedule.depth)
    register_tiles = ceil_div(tiles, schedule.rows)
    gather = GATHER_CYCLES * elements * tiles * in_blocks
    scatter = SCATTER_CYCLES * elements * tiles * out_blocks
    expand = EXPAND_CYCLES * elements * shape.in_channels * out_blocks
    multiply = sum(
        int(run.count)
        * (
            shape.in_channels * cycles_per_step(schedule.rows, run.size)
            + slices * cycles_per_tile(schedule.rows, run.size) * (1 + (slices > 1))
        )
        for run in groups
    )
    multiply *= elements * register_tiles
    if schedule.split == "tiles":
        shared = ceil_div(blocks, target.cores) / blocks
        work = (gather + scatter + multiply) * shared
    else:
        work = gather / target.cores + (scatter + multiply) * ceil_div(count, target.cores) / count
    if schedule.expand == "once":
        return work + expand / target.cores
    return work + expand * blocks * (shared if schedule.split == "tiles" else 1 / target.cores)


def seconds(shape: WinogradShape, schedule: WinogradSchedule, target: Target) -> float:
    """Estimated time of a call, weights read from main memory; a batch known only at run time counts as 1."""
    weights = 4 * TAPS * TAPS * shape.in_channels * ceil_div(shape.out_channels, target.lanes) * target.lanes
    memory = weights / target.cores / (target.memory_gbytes * 1e9)
    return _cycles(shape, schedule, target) / (target.gigahertz * 1e9) + memory


def candidates(shape: WinogradShape, target: Target) -> list[WinogradSchedule]:
    """The dozen best by the analytic model, best first."""
    elements = (shape.tile + TAPS - 1) ** 2
    in_blocks, out_blocks = ceil_div(shape.in_channels, target.lanes), ceil_div(shape.out_channels, target.lanes)
    tiles = (shape.batch or 1) * shape.grid[0] * shape.grid[1]
    found = []
    for rows, vectors in itertools.product(range(1, min(tiles, 15) + 1), range(1, min(out_blocks, 6) + 1)):
        if not fits(rows, vectors, target):
            continue
        factor = elements * in_blocks * target.vector_bytes
        largest = ceil_div(tiles, rows)
        block = max(1, min(largest, target.l2_bytes // 2 // (factor * rows)))
        weight = elements * target.lanes * vectors * target.vector_bytes
        depth = max(1, min(in_blocks, target.l2_bytes // 4 // weight))
        found.append(WinogradSchedule(rows, vectors, block, depth, "tiles", "once"))
        found.append(WinogradSchedule(rows, vectors, largest, depth, "channels", "block"))
    return sorted(found, key=lambda s: seconds(shape, s, target))[:12]


def default(shape: WinogradShape, target: Target) -> WinogradSchedule:
    """The best by the analytic model."""
    return candidates(shape, target)[0]


def pack(weight: Array, shape: WinogradShape, target: Target) -> Array:
    """Weights as the kernel reads them; the same for all schedules and tile sizes.

    Args:
        weight: Transformed weights [a * a, out, in], as ``shave::winograd_conv2d`` takes them.
        shape: The convolution.
        target: Gives the number of lanes.

    Returns:
        3x3 weights, [output blocks, in, 9, lanes], zeros beyond the last channel.

    Raises:
        ValueError: The weight is no transform of a 3x3 weight.
    """
    lanes = target.lanes
    transformed = torch.from_numpy(np.ascontiguousarray(weight))
    restored = restore_weight(transformed, shape.tile)
    error = float((transform_weight(restored, shape.tile) - transformed).abs().max())
    if error > 1e-5 * float(transformed.abs().max()):
        raise ValueError(f"the weight {list(weight.shape)} is no transform of a 3x3 weight for tile {shape.tile}")
    plain = restored.numpy()
    blocks = ceil_div(shape.out_channels, lanes)
    padded = np.zeros((blocks * lanes, shape.in_channels, TAPS * TAPS), np.float32)
    padded[: shape.out_channels] = plain.reshape(shape.out_channels, shape.in_channels, -1)
    return np.ascontiguousarray(padded.reshape(blocks, lanes, shape.in_channels, -1).transpose(0, 2, 3, 1))


def reference(x: Array, weight: Array, shape: WinogradShape, epilogue: Epilogue, operands: Sequence[Array]) -> Array:
    """The convolution in NumPy float64, directly, on plain tensors [N, C, H, W] with transformed weights."""
    plain = restore_weight(torch.from_numpy(weight), shape.tile).numpy()
    return conv.reference(x, plain, shape.direct, epilogue, operands)


def build(shape: WinogradShape, schedule: WinogradSchedule, target: Target, epilogue: Epilogue) -> PrimFunc:
    """The kernel (x, packed weights, *operands, y). Bias is [output blocks, lanes], residual is blocked like y."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("winograd")
        T.func_attr({"tirx.noalias": True})
        Phases(shape, schedule, target, epilogue).emit()
    return builder.get()
