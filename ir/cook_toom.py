"""The matrices of Winograd's convolution, made from interpolation points by the method of Cook and Toom.

Correlation of ``m + r - 1`` samples ``d`` with ``r`` taps ``g`` into ``m`` outputs is

    y = AT ((G g) * (BT d)),

with as many products as samples. It is the transpose of multiplying two polynomials of ``m`` and ``r`` coefficients
through their values at ``m + r - 1`` points (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
arXiv 1509.09308; Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural
Networks", arXiv 1803.10986). In two dimensions each matrix is applied along both axes.

All is rational arithmetic; the results are rounded to float64 once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np
from numpy.typing import NDArray

TAPS = 3
"""Size of the kernel along one axis."""

_HALF, _ONE, _TWO = Fraction(1, 2), Fraction(1), Fraction(2)

POINTS: dict[int, tuple[Fraction, ...]] = {
    2: (Fraction(0), _ONE, -_ONE),
    4: (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
    6: (Fraction(0), _ONE, -_ONE, _TWO, -_TWO, _HALF, -_HALF),
}
"""Interpolation points of each tile size, besides infinity.

Zero and pairs of opposite sign, whose rows of BT share their even and odd halves; binary fractions, so that AT and BT
are exact in float32. Among such points with denominators up to 8 (tile 6: up to 4) and magnitudes from 1/4 to 4 these
have the smallest float32 error, within the noise of the measurement: for tile 4 half that of the usual 1, -1, 2, -2 and
two thirds of that of 1, -1, 1/2, -2, the choice of Barabasz et al. (root mean square over random tiles of 64 channels).
"""

Matrix = tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True, eq=False)
class Transforms:
    """The matrices for one tile size, float64: ``y = AT ((G g GT) * (BT d B)) A``, with a = tile + 2.

    Attributes:
        tile: Outputs along one axis of a tile.
        AT: [tile, a], takes products to outputs; exact in float32 too.
        G: [a, 3], takes weights to factors.
        BT: [a, a], takes a tile of the input to factors; exact in float32 too.
    """

    tile: int
    AT: NDArray[np.float64]
    G: NDArray[np.float64]
    BT: NDArray[np.float64]

    @property
    def size(self) -> int:
        """Inputs along one axis of a tile, a = tile + 2."""
        return self.tile + TAPS - 1


@cache
def transforms(tile: int) -> Transforms:
    """The matrices of F(tile x tile, 3x3) at the points of :data:`POINTS`. The arrays cannot be written to.

    Raises:
        ValueError: There are none for that tile size.
    """
    if tile not in POINTS:
        raise ValueError(f"there is no Winograd convolution with tile {tile}; tiles are {', '.join(map(str, POINTS))}")
    return Transforms(tile, *map(_to_float64, cook_toom(POINTS[tile], TAPS)))


def _to_float64(matrix: Matrix) -> NDArray[np.float64]:
    array = np.array([[float(value) for value in row] for row in matrix])
    array.setflags(write=False)
    return array


def cook_toom(points: Sequence[Fraction], taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """Exact AT [m, a], G [a, taps] and BT [a, a] for the points given and the one at infinity.

    ``a`` is one more than the number of points, and ``m = a - taps + 1``. Each row of BT holds the coefficients of
    the product of ``x - q`` over the other points ``q``; the denominators of Lagrange's formula all go into G, which
    meets the weights alone.

    Raises:
        ValueError: Two points are equal, or there are fewer than ``taps``.
    """
    if len(set(points)) != len(points):
        raise ValueError(f"the points {', '.join(map(str, points))} are not distinct")
    size = len(points) + 1
    outputs = size - taps + 1
    if outputs < 2:
        raise ValueError(f"{taps} taps need at least {taps} points besides infinity, not {len(points)}")
    transform_weight, transform_data = [], []
    for point in points:
        others = [other for other in points if other != point]
        scale = _value(_from_roots(others), point)
        transform_weight.append(tuple(point**power / scale for power in range(taps)))
        transform_data.append((*_from_roots(others), Fraction(0)))
    transform_weight.append((*[Fraction(0)] * (taps - 1), Fraction(1)))
    transform_data.append(_from_roots(points))
    transform_back = [(*[point**power for point in points], Fraction(power == outputs - 1)) for power in range(outputs)]
    return tuple(transform_back), tuple(transform_weight), tuple(transform_data)


def _from_roots(roots: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """Coefficients of the product of ``x - root``, lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [s - root * c for s, c in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return tuple(coefficients)


def _value(coefficients: Sequence[Fraction], x: Fraction) -> Fraction:
    return sum((c * x**power for power, c in enumerate(coefficients)), Fraction(0))
