"""The range of a typical batch."""

from __future__ import annotations

import torch

from shave.passes.quantize.affine import Scheme
from shave.passes.quantize.observers.observer import Observer


class MovingAverage(Observer):
    """Exponential moving averages of the smallest and largest value of each batch.

    The first batches weigh as in a plain mean, so that the start has no say beyond its share.

    Args:
        momentum: Weight of a batch once there are many.
    """

    name = "moving-average"

    def __init__(self, momentum: float = 0.01) -> None:
        self._momentum = momentum
        self._batches = 0
        self._low = self._high = 0.0

    def _take(self, values: torch.Tensor, low: float, high: float) -> None:
        self._batches += 1
        weight = max(self._momentum, 1 / self._batches)
        self._low += weight * (low - self._low)
        self._high += weight * (high - self._high)

    def range(self, scheme: Scheme) -> tuple[float, float]:
        """See the base class."""
        return self._low, self._high
