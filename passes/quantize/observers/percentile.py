"""The range of nearly all values."""

from __future__ import annotations

import numpy as np

from shave.passes.quantize.affine import Scheme
from shave.passes.quantize.observers.histogram import Floats, HistogramObserver


class Percentile(HistogramObserver):
    """Leaves out the outermost values at either end.

    Args:
        percent: Of the values, how many lie below the upper end, and as many above the lower.
    """

    name = "percentile"

    def __init__(self, percent: float = 99.999) -> None:
        super().__init__()
        self._percent = percent

    def _choose(
        self, centres: Floats, counts: Floats, whole: tuple[float, float], scheme: Scheme
    ) -> tuple[float, float]:
        below = np.cumsum(counts) / counts.sum()
        share = self._percent / 100
        low = centres[np.searchsorted(below, 1 - share, side="right")] if share < 1 else whole[0]
        high = centres[min(int(np.searchsorted(below, share)), len(centres) - 1)] if share < 1 else whole[1]
        return float(max(whole[0], min(low, 0.0))), float(min(whole[1], max(high, 0.0)))
