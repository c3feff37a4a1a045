"""Affine quantization: ``real = (integer - zero_point) * scale``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

SMALLEST_SCALE = 2.0**-100
"""Below this, a scale's reciprocal and its products with other scales would leave the range of float32."""


@dataclass(frozen=True)
class Scheme:
    """Integers that reals are mapped to.

    Attributes:
        low: Smallest integer.
        high: Largest integer.
        dtype: What holds them.
        symmetric: Whether the zero point is 0.
    """

    low: int
    high: int
    dtype: torch.dtype
    symmetric: bool

    @property
    def steps(self) -> int:
        """Steps from the smallest to the largest integer."""
        return self.high - self.low

    def fit(self, low: float, high: float) -> Affine:
        """Map a range of reals onto the integers.

        Zero is taken into the range and is exact: an integer stands for it. A range without extent, or one whose scale
        would underflow, gets the scale 1 if it is zero alone, else the smallest scale.

        Raises:
            ValueError: An end is not finite, or they are out of order.
        """
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(f"[{low}, {high}] is no range of values")
        low, high = min(low, 0.0), max(high, 0.0)
        if low == high == 0.0:
            return Affine(1.0, 0 if self.symmetric else self.low, self)
        if self.symmetric:
            scale = max(-low / -self.low if self.low else 0.0, high / self.high)
            return Affine(_as_float32(scale), 0, self)
        scale = _as_float32((high - low) / self.steps)
        zero_point = round(self.low - low / scale)
        return Affine(scale, min(max(zero_point, self.low), self.high), self)


@dataclass(frozen=True)
class Affine:
    """One scale and zero point.

    Attributes:
        scale: Reals per step; a float32 number, not below :data:`SMALLEST_SCALE`.
        zero_point: The integer of the real zero.
        scheme: The integers.
    """

    scale: float
    zero_point: int
    scheme: Scheme

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and largest real that an integer stands for."""
        return (self.scheme.low - self.zero_point) * self.scale, (self.scheme.high - self.zero_point) * self.scale

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """The reals that stand for ``x`` once it is quantized: nearest, ties to even, clipped to the range."""
        integers = torch.clamp(torch.round(x * (1.0 / self.scale)) + self.zero_point, self.scheme.low, self.scheme.high)
        return (integers - self.zero_point) * self.scale


UINT8 = Scheme(0, 255, torch.uint8, symmetric=False)
INT8 = Scheme(-127, 127, torch.int8, symmetric=True)
INT16 = Scheme(-32767, 32767, torch.int16, symmetric=True)
ACTIVATIONS = {"uint8": UINT8, "int8": INT8, "int16": INT16}
"""What activations may become, by name."""


def check_bits(bits: int, layer_bits: Mapping[str, int]) -> None:
    """Refuse bits of weights for which there is no scheme.

    Raises:
        ValueError: Names the option or the scope.
    """
    for where, number in {"bits": bits, **layer_bits}.items():
        if not 2 <= number <= 8:
            raise ValueError(f"{where} is {number}, but lies from 2 to 8")


def weight_scheme(bits: int) -> Scheme:
    """Symmetric integers of so many bits, held in int8: -127 to 127 for 8."""
    high = 2 ** (bits - 1) - 1
    return Scheme(-high, high, torch.int8, symmetric=True)


def _as_float32(scale: float) -> float:
    return float(torch.tensor(max(scale, SMALLEST_SCALE), dtype=torch.float32))
