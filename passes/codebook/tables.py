"""The schemes: from the values of a weight to a table, and to the number of the entry that each value takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shave.passes.codebook.kmeans import STARTS, Draw, Line, equal_masses, kmeans, middles

Array = npt.NDArray[Any]
Scheme = Literal["kmeans", "quantile", "binary", "ternary"]

TERNARY_THRESHOLD = 0.7
"""Of the mean magnitude; smaller values become zero (F. Li, B. Zhang, B. Liu, "Ternary Weight Networks", 2016)."""

_SHAPES: dict[str, Array] = {"binary": np.array([[-1.0, 1.0]]), "ternary": np.array([[-1.0, 0.0, 1.0]])}
"""Tables that are multiples of one another."""


@dataclass(frozen=True)
class Tables:
    """One table, or one for each channel.

    Attributes:
        values: float64 [tables, entries], ascending.
        edges: A value takes entry k if it lies above edge k - 1 and not above edge k, [tables, entries - 1].
        shape: What a table is a combination of, [rows, entries]: the identity if all of its entries are free.
    """

    values: Array
    edges: Array
    shape: Array

    @property
    def bits(self) -> int:
        """What an entry's number takes; one at least."""
        return max(1, int(self.values.shape[1] - 1).bit_length())

    def codes(self, matrix: Array) -> Array:
        """Numbers of entries, uint8 [channels, n] for the values [channels, n]."""
        if len(self.values) == 1:
            return np.searchsorted(self.edges[0], matrix).astype(np.uint8)
        rows = [np.searchsorted(edges, row) for edges, row in zip(self.edges, matrix, strict=True)]
        return np.stack(rows).astype(np.uint8)

    def decode(self, codes: Array) -> Array:
        """Values, float64, for numbers of entries [channels, n]."""
        return self.values[0][codes] if len(self.values) == 1 else np.take_along_axis(self.values, codes, axis=1)

    def moved(self, values: Array) -> Tables:
        """Other values; where they are free, edges follow so that each value takes the nearest."""
        if len(self.shape) < self.shape.shape[1]:
            return Tables(values, self.edges, self.shape)
        ordered = np.sort(values, axis=1)
        return Tables(ordered, middles(ordered), self.shape)


def make(
    matrix: Array, importance: Array | None, scheme: Scheme, bits: int, start: str, draw: Draw, *, per_channel: bool
) -> Tables:
    """Make tables for values [channels, n].

    Args:
        matrix: The values, finite.
        importance: What errors of the n columns weigh; None for all the same.
        scheme: How.
        bits: At most ``2 ** bits`` entries for k-means and quantiles; a table of all the different values if they are
            no more.
        start: Where k-means starts.
        draw: Where it starts at random.
        per_channel: Whether each channel has a table of its own.
    """
    rows = matrix if per_channel else matrix.reshape(1, -1)
    if importance is None:
        weights = None
    else:
        weights = np.maximum(importance, importance.max() * 1e-6)
        weights = weights if per_channel else np.broadcast_to(weights, matrix.shape).reshape(-1)
    if scheme in ("binary", "ternary"):
        scaled = [_scaled(row, scheme) for row in rows]
        return Tables(np.stack([each for each, _ in scaled]), np.stack([each for _, each in scaled]), _SHAPES[scheme])
    lines = [Line.of(row, weights) for row in rows]
    values = _filled([_free(line, scheme, 1 << bits, start, draw) for line in lines])
    return Tables(values, middles(values), np.eye(values.shape[1]))


def _scaled(row: Array, scheme: str) -> tuple[Array, Array]:
    magnitudes = np.abs(row)
    mean = float(magnitudes.mean())
    if scheme == "binary":
        return mean * _SHAPES[scheme][0], np.zeros(1)
    threshold = TERNARY_THRESHOLD * mean
    large = magnitudes > threshold
    scale = float(magnitudes[large].mean()) if large.any() else 0.0
    return scale * _SHAPES[scheme][0], np.array([-threshold, threshold])


def _free(line: Line, scheme: str, entries: int, start: str, draw: Draw) -> Array:
    distinct = line.distinct(entries)
    if distinct is not None:
        return distinct
    if scheme == "quantile":
        return equal_masses(line, entries)
    return kmeans(line, STARTS[start](line, entries, draw))


def _filled(tables: list[Array]) -> Array:
    """Tables as rows of one array; shorter ones repeat their last entry, which no value then takes twice."""
    longest = max(map(len, tables))
    return np.stack([np.concatenate([table, np.repeat(table[-1:], longest - len(table))]) for table in tables])
