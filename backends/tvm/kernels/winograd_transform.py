"""Products of a small constant matrix with vectors: code for the transforms of Winograd's convolution.

The code is generated from the matrix. Interpolation points come in pairs of opposite sign, so pairs of columns, or
pairs of rows, agree but for the signs of every other entry; their even and odd halves are computed once and then added
and subtracted, which halves the arithmetic (A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks",
CVPR 2016, arXiv 1509.09308, do so by hand).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from shave.backends.tvm.adapter import Expr, T
from shave.backends.tvm.kernels.base import Flat
from shave.backends.tvm.kernels.vector_math import Bindings, Locals, splat

Matrix = npt.NDArray[np.float64]


def product(matrix: Matrix, values: Sequence[Expr], let: Bindings) -> list[Expr]:
    """Each row of ``matrix`` times a column of vectors, as expressions; names go into ``let``.

    Args:
        matrix: [rows, columns]; no row is zero.
        values: One vector per column, names or constants.
        let: Names what is used twice.
    """
    matrix, values = _paired_columns(matrix, values, let)
    results: dict[int, Expr] = {}
    for row, entries in enumerate(matrix):
        if row in results:
            continue
        mirrored = _mirrored(matrix, row)
        if mirrored is None:
            results[row] = _sum(entries, values)
            continue
        even = let(_sum(np.where(entries == matrix[mirrored], entries, 0), values))
        odd = let(_sum(np.where(entries == matrix[mirrored], 0, entries), values))
        results[row], results[mirrored] = even + odd, even - odd
    return [results[row] for row in range(len(matrix))]


def _paired_columns(matrix: Matrix, values: Sequence[Expr], let: Bindings) -> tuple[Matrix, list[Expr]]:
    """Replace columns that agree but for signs by one for the sum of their vectors and one for the difference."""
    columns: list[Matrix] = []
    vectors: list[Expr] = []
    left = list(range(matrix.shape[1]))
    while left:
        column = left.pop(0)
        mirrored = _mirrored(matrix[:, left].T, matrix[:, column])
        if mirrored is None:
            columns.append(matrix[:, column])
            vectors.append(values[column])
            continue
        other = left.pop(mirrored)
        same = matrix[:, column] == matrix[:, other]
        columns += [np.where(same, matrix[:, column], 0), np.where(same, 0, matrix[:, column])]
        vectors += [let(values[column] + values[other]), let(values[column] - values[other])]
    return np.stack(columns, axis=1), vectors


def _mirrored(rows: Matrix, row: int | Matrix) -> int | None:
    """The first row after ``row`` (of all, where it is none of them) that differs from it in some signs, not all."""
    entries, first = (rows[row], row + 1) if isinstance(row, int) else (row, 0)
    for index in range(first, len(rows)):
        other = rows[index]
        if np.array_equal(abs(other), abs(entries)) and (other != entries).any() and (other != -entries).any():
            return index
    return None


def _sum(coefficients: Matrix, values: Sequence[Expr]) -> Expr:
    """Sum of multiples; LLVM contracts products and sums to one instruction."""
    # What is added as it is comes first: it needs no multiplication to start with.
    terms = sorted(((c, v) for c, v in zip(coefficients, values, strict=True) if c), key=lambda term: term[0] != 1)
    (first, total), *rest = terms
    if first != 1:
        total = splat(float(first), total) * total
    for coefficient, value in rest:
        if coefficient == 1:
            total = total + value
        elif coefficient == -1:
            total = total - value
        else:
            total = total + splat(float(coefficient), value) * value
    return total


def transform(
    matrix: Matrix,
    load: Callable[[int, Expr], Expr],
    store: Callable[[Expr, list[Expr]], None],
    scratch: Flat,
    lanes: int,
) -> None:
    """Emit ``matrix x X x matrix^T`` for a square X of vectors: first its columns, then the rows of what comes out.

    Args:
        matrix: [rows, columns].
        load: (row, column) to that element of X.
        store: Takes one row of the result, its number first.
        scratch: Holds rows x columns vectors in between.
        lanes: Of each vector.
    """
    rows, columns = matrix.shape
    with T.serial(0, columns) as column:
        let = Locals()
        values = [let(load(row, column)) for row in range(columns)]
        for row, value in enumerate(product(matrix, values, let)):
            scratch.store((row * columns + column) * lanes, value, lanes)
    with T.serial(0, rows) as row:
        let = Locals()
        values = [let(scratch.load((row * columns + column) * lanes, lanes)) for column in range(columns)]
        store(row, product(matrix, values, let))
