"""How far Winograd's method rounds from the exact convolution: a bound from the weights, and measurements.

Errors are relative to the largest magnitude of the output, as everywhere in shave.

**The bound.** Every output is a sum of products of roundings of exact values, so it differs from the exact one by at
most ``gamma(k)`` times the same sum with all signs taken away, where k is the number of roundings on the longest way
from an input or a weight to an output, ``gamma(k) = k u / (1 - k u)`` and u = 2**-24 (N. Higham, "Accuracy and
Stability of Numerical Algorithms", 2nd ed., section 3.1). For inputs of magnitudes up to D:

    |error| <= gamma(k) D max |AT| (sum over c of |G| |g_c| |GT| * |BT| 1 1T |B|) |A|
    k = 2 (3 + 1) + 2 nnz(BT) + C + 2 nnz(AT)

with nnz the most entries in a row, C the input channels, and G rounded to float32. That holds for any order of the
sums, fused or not, and for weights transformed ahead as well as in float32 on the way. It is divided by the largest
output that such inputs can give, D times the largest sum of |g| over an output channel. This is the form by components
of what Barabasz et al. (arXiv 1803.10986) give in norms. Like theirs it grows with C where real errors, which cancel,
grow with its square root.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from shave.ir.cook_toom import TAPS, transforms
from shave.ir.winograd import transform_weight, winograd_reference

MAX_OUTPUTS = 12
"""Outputs along an axis on which errors are measured: two tiles of the largest size."""
MAX_INPUTS = MAX_OUTPUTS + TAPS - 1
"""Inputs along an axis on which these depend."""
MAX_CHANNELS = 16
"""Output channels on which errors are measured, taken at even distances."""

_UNIT = 2.0**-24
"""Half the distance from 1 to the next float32."""


@dataclass(frozen=True)
class Sample:
    """What errors of a layer are measured on.

    Attributes:
        x: Float32 [1, C, height, width], padding included.
        weight: Float32 [some of the output channels, C, 3, 3].
        exact: The convolution of the two in float64.
        scale: Largest magnitude in it.
    """

    x: torch.Tensor
    weight: torch.Tensor
    exact: torch.Tensor
    scale: float


def sample(x: torch.Tensor, weight: torch.Tensor) -> Sample | None:
    """Cut a sample out of a padded input, from its middle; None if its output is zero or not finite.

    Args:
        x: [N, C, height, width]; of a batch the first image counts.
        weight: [O, C, 3, 3].
    """
    for axis in (2, 3):
        extent = min(x.shape[axis], MAX_INPUTS)
        x = x.narrow(axis, (x.shape[axis] - extent) // 2, extent)
    some = weight[:: max(1, weight.shape[0] // MAX_CHANNELS)][:MAX_CHANNELS]
    exact = functional.conv2d(x[:1].double(), some.double())
    scale = float(exact.abs().max())
    return Sample(x[:1].contiguous(), some, exact, scale) if 0 < scale < float("inf") else None


def direct_error(given: Sample) -> float:
    """Error of the direct convolution in float32."""
    return _error(functional.conv2d(given.x, given.weight), given)


def winograd_error(given: Sample, tile: int) -> float:
    """Error of Winograd's method in float32, infinite if it overflows."""
    transformed = transform_weight(given.weight, tile).float()
    return _error(winograd_reference(given.x, transformed, None, (0, 0), tile), given)


def _error(result: torch.Tensor, given: Sample) -> float:
    error = float((result - given.exact).abs().max()) / given.scale
    return error if error < float("inf") else float("inf")


def bound(weight: torch.Tensor, tile: int) -> float:
    """Largest error of a layer for any input, relative to the largest output that inputs as large can give.

    Args:
        weight: [O, C, 3, 3].
        tile: Outputs along one axis of a tile.
    """
    matrices = transforms(tile)
    at, g, bt = (torch.from_numpy(np.abs(matrix)) for matrix in (matrices.AT, matrices.G, matrices.BT))
    magnitudes = weight.detach().double().abs().sum(1)
    factors = g @ magnitudes @ g.T * torch.outer(bt.sum(1), bt.sum(1))
    amplified = float((at @ factors @ at.T).max())
    roundings = 2 * (TAPS + 1) + 2 * _row(matrices.BT) + weight.shape[1] + 2 * _row(matrices.AT)
    gamma = roundings * _UNIT / (1 - roundings * _UNIT)
    largest = float(magnitudes.sum((1, 2)).max())
    return gamma * amplified / largest if largest else 0.0


def _row(matrix: np.ndarray) -> int:
    return int(np.count_nonzero(matrix, axis=1).max())
