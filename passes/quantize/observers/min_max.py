"""The whole range."""

from __future__ import annotations

import torch

from shave.passes.quantize.affine import Scheme
from shave.passes.quantize.observers.observer import Observer


class MinMax(Observer):
    """From the smallest to the largest value seen: nothing is clipped."""

    name = "minmax"

    def __init__(self) -> None:
        self._low, self._high = float("inf"), -float("inf")

    def _take(self, values: torch.Tensor, low: float, high: float) -> None:
        self._low, self._high = min(self._low, low), max(self._high, high)

    def range(self, scheme: Scheme) -> tuple[float, float]:
        """See the base class."""
        return (self._low, self._high) if self._low <= self._high else (0.0, 0.0)
