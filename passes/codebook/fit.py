"""Tables and codes that make up for one another in the layer's output, by the second moments of what it reads.

The error of a layer's output is ``tr(D S D')`` for the error D of its weights [out, features] and the second moments S
of its input. Two steps take turns:

- *codes*: the columns are coded one after the other, and what a column errs by is made good in the columns that are
  still to come (E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ", ICLR 2023), those first whose input is large;
- *tables*: for given codes the error is quadratic in the entries. Its gradient is that of the weights summed over the
  elements of each entry, and conjugate gradients lead to the minimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from shave.passes.codebook.tables import Array, Tables

TURNS = 2
_BLOCK = 64
"""Columns whose corrections reach the columns behind in one product."""
_DAMPING = 0.01
"""Of the mean of the diagonal of S, as in the paper."""
_ITERATIONS = 64


@dataclass(frozen=True)
class Fitted:
    """Tables and codes, with what they err by.

    Attributes:
        tables: The tables.
        codes: uint8 [out, features].
        error: Energy of the error of the output.
    """

    tables: Tables
    codes: Array
    error: float


def energy(difference: Array, moments: Array | None) -> float:
    """``tr(D S D')``; without S the sum of squares."""
    weighted = difference if moments is None else difference @ moments
    return float((weighted * difference).sum())


def plain(matrix: Array, tables: Tables, moments: Array | None) -> Fitted:
    """Each value by itself takes its entry."""
    codes = tables.codes(matrix)
    return Fitted(tables, codes, energy(matrix - tables.decode(codes), moments))


def fit(matrix: Array, tables: Tables, moments: Array) -> Fitted:
    """Improve on :func:`plain` by both steps in turn.

    Args:
        matrix: The weights, [out, features].
        tables: To start from.
        moments: S, [features, features], positive definite.

    Returns:
        The best found; never worse than where it starts.
    """
    best = plain(matrix, tables, moments)
    order = np.argsort(-moments.diagonal(), kind="stable")
    feedback = _feedback(moments[np.ix_(order, order)])
    for _ in range(TURNS):
        codes = _codes(matrix, best.tables, order, feedback)
        values = _refit(matrix, best.tables, codes, moments)
        tables = Tables(values, best.tables.edges, best.tables.shape)
        found = Fitted(*_sorted(tables, codes), energy(matrix - tables.decode(codes), moments))
        if not found.error < best.error:
            break
        best = found
    return best


def _feedback(moments: Array) -> Array:
    """The upper Cholesky factor of the inverse of the damped moments."""
    damped = moments + np.eye(len(moments)) * (_DAMPING * moments.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(damped)))
    factor: Array = torch.linalg.cholesky(inverse, upper=True).numpy()
    return factor


def _codes(matrix: Array, tables: Tables, order: Array, feedback: Array) -> Array:
    """Code the columns in an order, each error made good in those behind."""
    left = matrix[:, order].copy()
    codes = np.empty(left.shape, np.uint8)
    for first in range(0, left.shape[1], _BLOCK):
        last = min(first + _BLOCK, left.shape[1])
        errors = np.empty((len(left), last - first))
        for column in range(first, last):
            value = left[:, column : column + 1]
            codes[:, column : column + 1] = tables.codes(value)
            error = (value - tables.decode(codes[:, column : column + 1])) / feedback[column, column]
            left[:, column:last] -= error * feedback[column, column:last]
            errors[:, column - first] = error[:, 0]
        left[:, last:] -= errors @ feedback[first:last, last:]
    result = np.empty_like(codes)
    result[:, order] = codes
    return result


def _refit(matrix: Array, tables: Tables, codes: Array, moments: Array) -> Array:
    """The entries that err least for given codes: conjugate gradients on each table's factors of its shape."""
    shape, entries = tables.shape, tables.values.shape[1]
    rows = len(tables.values)
    places = codes.astype(np.int64) + (np.arange(rows)[:, None] * entries if rows > 1 else 0)

    def summed(gradient: Array) -> Array:
        """Over the elements of each entry, then along the shape."""
        sums = np.bincount(places.reshape(-1), gradient.reshape(-1), minlength=rows * entries)
        return np.asarray(sums.reshape(rows, entries) @ shape.T)

    def spread(factors: Array) -> Array:
        return np.asarray((factors @ shape).reshape(-1)[places])

    weights = np.broadcast_to(moments.diagonal(), matrix.shape)
    sums = np.bincount(places.reshape(-1), weights.reshape(-1), minlength=rows * entries).reshape(rows, entries)
    scale = np.maximum(sums @ (shape**2).T, 1e-300)
    used = (sums > 0) @ (shape != 0).T
    factors = tables.values @ np.linalg.pinv(shape)
    residual = summed((matrix - spread(factors)) @ moments) * used
    direction = conditioned = residual / scale
    size = float((residual * conditioned).sum())
    goal = size * 1e-12
    for _ in range(min(_ITERATIONS, factors.size)):
        if not size > goal:
            break
        image = summed(spread(direction) @ moments) * used
        step = size / float((direction * image).sum())
        factors, residual = factors + step * direction, residual - step * image
        conditioned = residual / scale
        size, before = float((residual * conditioned).sum()), size
        direction = conditioned + size / before * direction
    return np.asarray(factors @ shape)


def _sorted(tables: Tables, codes: Array) -> tuple[Tables, Array]:
    """The same with entries in ascending order, and edges half-way between them where they are free."""
    if len(tables.shape) < tables.shape.shape[1]:
        return tables, codes
    order = np.argsort(tables.values, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable").astype(np.uint8)
    renumbered = rank[0][codes] if len(rank) == 1 else np.take_along_axis(rank, codes, axis=1)
    return tables.moved(tables.values), renumbered
