"""Histograms whose bins widen with what they see; the base of observers that clip."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import numpy.typing as npt
import torch

from shave.passes.quantize.affine import Scheme
from shave.passes.quantize.observers.observer import Observer

BINS = 4096
"""Most bins of one histogram: 16 for each step of 8 bits at least, 8 where half of the range is all that is used."""

Floats = npt.NDArray[np.float64]


class Histogram:
    """Counts of values in bins of one width, a power of two, with bounds at its multiples.

    Bins double in width, pair by pair, when the range needs more than :data:`BINS` of them. So the counts depend on
    the values alone, not on their order or batches.

    Attributes:
        low: Smallest value seen.
        high: Largest value seen.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self._exponent = -1074
        self._first = 0
        self._counts = np.zeros(0, np.int64)

    @property
    def width(self) -> float:
        """Of each bin."""
        return math.ldexp(1.0, self._exponent)

    def add(self, values: torch.Tensor, low: float, high: float) -> None:
        """Count finite values, whose extremes are given."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen()
        first, last = math.floor(self.low / self.width), math.floor(self.high / self.width)
        counts = np.zeros(last - first + 1, np.int64)
        counts[self._first - first : self._first - first + len(self._counts)] = self._counts
        exact = values if self._exponent > -120 else values.double()  # a power of two loses nothing within the range
        index = torch.floor(exact * (1.0 / self.width)).long() - first
        counts += torch.bincount(index, minlength=len(counts)).numpy()
        self._first, self._counts = first, counts

    def bins(self) -> tuple[Floats, Floats]:
        """Centres and counts of the bins that hold something."""
        held = np.flatnonzero(self._counts)
        centres = (self._first + held + 0.5) * self.width
        return np.clip(centres, self.low, self.high), self._counts[held].astype(np.float64)

    def _widen(self) -> None:
        largest = max(abs(self.low), abs(self.high))
        needed = max((self.high - self.low) / BINS, largest * 2.0**-48)  # the bins' numbers must stay exact integers
        exponent = max(self._exponent, math.frexp(needed)[1], -1000)
        while math.floor(self.high * 2.0**-exponent) - math.floor(self.low * 2.0**-exponent) >= BINS:
            exponent += 1
        for _ in range(self._exponent, exponent):
            if not len(self._counts):
                break
            if self._first % 2:
                self._first -= 1
                self._counts = np.concatenate([[0], self._counts])
            if len(self._counts) % 2:
                self._counts = np.concatenate([self._counts, [0]])
            self._first //= 2
            self._counts = self._counts.reshape(-1, 2).sum(1)
        self._exponent = exponent


class HistogramObserver(Observer):
    """Decides by the distribution of all values seen."""

    def __init__(self) -> None:
        self._histogram = Histogram()

    def _take(self, values: torch.Tensor, low: float, high: float) -> None:
        self._histogram.add(values, low, high)

    def range(self, scheme: Scheme) -> tuple[float, float]:
        """See the base class."""
        low, high = self._histogram.low, self._histogram.high
        if not low <= high:
            return 0.0, 0.0
        if low == high:
            return low, high
        centres, counts = self._histogram.bins()
        return self._choose(centres, counts, (min(low, 0.0), max(high, 0.0)), scheme)

    @abstractmethod
    def _choose(
        self, centres: Floats, counts: Floats, whole: tuple[float, float], scheme: Scheme
    ) -> tuple[float, float]:
        """Pick a range within the ``whole`` one, which holds zero."""
