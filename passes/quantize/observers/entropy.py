"""The range that keeps most information."""

from __future__ import annotations

import numpy as np

from shave.passes.quantize.affine import Scheme
from shave.passes.quantize.observers.histogram import Floats, HistogramObserver
from shave.passes.quantize.observers.search import least

LEVELS = 256
"""Finer schemes are judged at as many levels: more than that are hardly filled by a histogram."""


class Entropy(HistogramObserver):
    """The range of the smallest Kullback-Leibler divergence between the values and what they are rounded to.

    S. Migacz, "8-bit Inference with TensorRT", GTC 2017: values beyond the range count at its ends, and each integer
    spreads its count evenly over those bins that hold something.
    """

    name = "entropy"

    def _choose(
        self, centres: Floats, counts: Floats, whole: tuple[float, float], scheme: Scheme
    ) -> tuple[float, float]:
        # Zero is exact whatever the range, and rectifiers give so many that nothing else would count.
        counts = np.where(np.abs(centres) <= self._histogram.width / 2, 0.0, counts)
        if not counts.any():
            return whole
        share = counts / counts.sum()
        levels = min(scheme.steps + 1, LEVELS)

        def loss(low: float, high: float) -> float:
            if scheme.symmetric:
                high = max(-low, high)
                low = -high
            place = np.clip(np.floor((centres - low) / (high - low) * levels), 0, levels - 1).astype(np.int64)
            inside = (centres >= low) & (centres <= high)
            clipped = np.where(inside, share, 0.0)
            reference = clipped.copy()
            for end, beyond in ((0, centres < low), (-1, centres > high)):
                kept = np.flatnonzero(inside & (share > 0))
                if len(kept):
                    reference[kept[end]] += share[beyond].sum()
            total = np.bincount(place[inside], clipped[inside], levels)
            filled = np.bincount(place[inside & (share > 0)], minlength=levels)
            rounded = np.where(inside & (share > 0), total[place] / np.maximum(filled[place], 1), 0.0)
            if not rounded.sum():
                return float("inf")
            held = reference > 0
            ratio = reference[held] / np.maximum(rounded[held] / rounded.sum(), 1e-30)
            return float((reference[held] * np.log(ratio)).sum())

        return least(loss, whole)
