"""The range of the smallest squared error."""

from __future__ import annotations

import numpy as np

from shave.passes.quantize.affine import Scheme
from shave.passes.quantize.observers.histogram import Floats, HistogramObserver
from shave.passes.quantize.observers.search import least


class MeanSquaredError(HistogramObserver):
    """The range whose integers are nearest to the values, by the squared distance: rounding against clipping."""

    name = "mse"

    def _choose(
        self, centres: Floats, counts: Floats, whole: tuple[float, float], scheme: Scheme
    ) -> tuple[float, float]:
        width = self._histogram.width

        def loss(low: float, high: float) -> float:
            affine = scheme.fit(low, high)
            first, last = affine.range
            # Within the range, values are spread over a step as long as bins are narrower than steps.
            outside = centres - np.clip(centres, first, last)
            step = max(affine.scale, width)
            inside = np.where(outside == 0, step**2 / 12, 0.0)
            zeros = np.abs(centres) <= width / 2  # zero is exact, and rectifiers give many
            return float((counts * np.where(zeros, 0.0, outside**2 + inside)).sum())

        return least(loss, whole)
