"""Clustering of numbers: Lloyd's algorithm on sorted values, exact, in time that grows with the clusters alone.

On a line the clusters of sorted values are ranges, so that sums over them are differences of running sums: a step of
Lloyd's algorithm (S. Lloyd, "Least squares quantization in PCM", IEEE TIT 28(2), 1982) takes one binary search for each
cluster, however many millions of values there are. The starts are those of S. Han, H. Mao, W. Dally, "Deep Compression"
(ICLR 2016, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

STEPS = 300
"""Lloyd's algorithm mostly rests long before."""

Draw = Callable[[int, int], Array]
"""``draw(count, below)``: different whole numbers from 0 to ``below - 1``, at random."""


@dataclass(frozen=True)
class Line:
    """Sorted values with running sums.

    Attributes:
        values: float64 [n], ascending.
        masses: Sums of the weights of all values ahead, [n + 1].
        moments: The same of weight times value.
        squares: The same of weight times squared value.
    """

    values: Array
    masses: Array
    moments: Array
    squares: Array

    @staticmethod
    def of(values: Array, weights: Array | None = None) -> Line:
        """Sort values, each of which counts as much as its weight (one by default)."""
        flat = np.asarray(values, np.float64).reshape(-1)
        if weights is None:
            flat, mass = np.sort(flat), np.ones(flat.size)
        else:
            order = np.argsort(flat, kind="stable")
            flat, mass = flat[order], np.asarray(weights, np.float64).reshape(-1)[order]
        return Line(flat, *(np.concatenate([[0.0], np.cumsum(each)]) for each in (mass, mass * flat, mass * flat**2)))

    def distinct(self, limit: int) -> Array | None:
        """The different values, ascending; None if they are more than ``limit``."""
        new = np.concatenate([[True], self.values[1:] != self.values[:-1]])
        return self.values[new] if int(np.count_nonzero(new)) <= limit else None


def density(line: Line, clusters: int, draw: Draw) -> Array:
    """Start where equal shares of the mass have their middles."""
    shares = (np.arange(clusters) + 0.5) / clusters * line.masses[-1]
    return np.asarray(line.values[np.minimum(np.searchsorted(line.masses[1:], shares), line.values.size - 1)])


def forgy(line: Line, clusters: int, draw: Draw) -> Array:
    """Start at values drawn at random."""
    return np.asarray(line.values[np.sort(draw(clusters, line.values.size))])


def linear(line: Line, clusters: int, draw: Draw) -> Array:
    """Start at equal distances from the smallest to the largest."""
    return np.linspace(line.values[0], line.values[-1], clusters)


STARTS: dict[str, Callable[[Line, int, Draw], Array]] = {"density": density, "forgy": forgy, "linear": linear}


def kmeans(line: Line, start: Array, steps: int = STEPS) -> Array:
    """Move centres to the means of the values that are nearest to them until none moves.

    A centre that no value is nearest to goes to the cluster that errs most, and splits it.

    Args:
        line: The values; more different ones than centres.
        start: Centres, ascending.
        steps: After as many it ends in any case.

    Returns:
        The centres, float64, ascending.
    """
    centres = np.array(start, np.float64)
    before = None
    for _ in range(steps):
        ends = _ends(line, centres)
        if before is not None and np.array_equal(ends, before):
            break
        before = ends
        masses, moments = np.diff(line.masses[ends]), np.diff(line.moments[ends])
        filled = masses > 0
        centres[filled] = moments[filled] / masses[filled]
        if not filled.all():
            centres[~filled] = _splits(line, ends, masses, moments, int(np.count_nonzero(~filled)))
            centres.sort()
    return centres


def equal_masses(line: Line, clusters: int) -> Array:
    """The means of as many ranges of equal mass; of ranges within one value there is one centre."""
    shares = np.arange(1, clusters) / clusters * line.masses[-1]
    ends = np.concatenate([[0], np.searchsorted(line.masses[1:], shares) + 1, [line.values.size]])
    ends = np.unique(np.minimum(ends, line.values.size))
    return np.unique(np.diff(line.moments[ends]) / np.diff(line.masses[ends]))


def middles(centres: Array) -> Array:
    """Where one centre of ascending ones ceases to be the nearest: [..., clusters - 1]."""
    return (centres[..., 1:] + centres[..., :-1]) / 2


def _ends(line: Line, centres: Array) -> Array:
    """Where the ranges of values that each centre is nearest to begin and end, [clusters + 1]."""
    return np.concatenate([[0], np.searchsorted(line.values, middles(centres), side="right"), [line.values.size]])


def _splits(line: Line, ends: Array, masses: Array, moments: Array, count: int) -> Array:
    """The largest values of the clusters that err most."""
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.diff(line.squares[ends]) - np.where(masses > 0, moments**2 / masses, 0)
    worst = np.argsort(-errors, kind="stable")[:count]
    return np.asarray(line.values[np.maximum(ends[worst + 1] - 1, 0)])
