"""How much a convolution computes: what decides between methods where no cost oracle does."""

from __future__ import annotations

from math import prod

import numpy as np

from shave.ir.cook_toom import TAPS, transforms
from shave.passes.problems import Conv2d, Convolution, WinogradConv2d

TRANSFORM_COST = 2
"""Multiply-adds of the products in whose time one multiply-add of a transform is done: transforms read and write memory
for each few of them, products work on registers."""


def operations(problem: Convolution) -> float:
    """Multiply-adds of one image; those of transforms count :data:`TRANSFORM_COST` times. An oracle of convolutions."""
    return _direct(problem) if isinstance(problem, Conv2d) else _winograd(problem)


def _direct(problem: Conv2d) -> float:
    size = [
        (extent + 2 * p - d * (k - 1) - 1) // s + 1
        for extent, k, s, p, d in zip(
            (problem.height, problem.width),
            problem.kernel,
            problem.stride,
            problem.padding,
            problem.dilation,
            strict=True,
        )
    ]
    return prod(size) * problem.out_channels * problem.in_channels // problem.groups * prod(problem.kernel)


def _winograd(problem: WinogradConv2d) -> float:
    """Products of all tiles, and both transforms: along one axis for each line of a tile, then along the other."""
    matrices = transforms(problem.tile)
    height, width = (
        extent + 2 * p - TAPS + 1 for extent, p in zip((problem.height, problem.width), problem.padding, strict=True)
    )
    tiles = -(-height // problem.tile) * -(-width // problem.tile)
    products = matrices.size**2 * problem.in_channels * problem.out_channels
    ahead = 2 * matrices.size * np.count_nonzero(matrices.BT) * problem.in_channels
    back = (matrices.size + problem.tile) * np.count_nonzero(matrices.AT) * problem.out_channels
    return float(tiles * (products + TRANSFORM_COST * (ahead + back)))
