"""Observers of activations: each sees batch after batch, remembers little, and tells which range to keep."""

from __future__ import annotations

from shave.passes.quantize.observers.entropy import Entropy
from shave.passes.quantize.observers.min_max import MinMax
from shave.passes.quantize.observers.moving_average import MovingAverage
from shave.passes.quantize.observers.mse import MeanSquaredError
from shave.passes.quantize.observers.observer import Observer
from shave.passes.quantize.observers.percentile import Percentile

OBSERVERS: dict[str, type[Observer]] = {
    kind.name: kind for kind in (MinMax, MovingAverage, Entropy, MeanSquaredError, Percentile)
}
"""Every observer by its name."""
