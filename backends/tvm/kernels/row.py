"""One row of elements at a time: reductions in vectors, and the exponential that a softmax needs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, T, tirx
from shave.backends.tvm.kernels.base import Flat, bind, ceil_div, loop, quotient
from shave.backends.tvm.kernels.register_tile import power_of_two_parts
from shave.backends.tvm.kernels.vector_math import Bindings, lanes, local_array, polynomial, splat

LOWEST = float(np.finfo(np.float32).min)
"""Start of a maximum: finite, so that minus infinity less the maximum stays minus infinity in a row of nothing else."""

UNROLLED = 4
"""Vectors per step of a loop over a row: enough to hide the latency of an addition."""


def exp_below_zero(x: Expr, let: Bindings) -> Expr:
    """e^x for x <= 0 within 2 units in the last place; 0 below -87.3, where the exact value is subnormal; NaN for NaN.

    Shorter than the general exponential: adding 1.5 * 2^23 + 127 rounds the exponent to an integer and leaves its bits
    at the end of the sum's, from where one shift makes them a power of two.
    """
    magic = splat(12582912.0 + 127.0, x)
    shifted = let(x * splat(1.44269504, x) + magic)
    n = let(shifted - magic)
    r = let(x - n * splat(0.693145752, x) - n * splat(1.42860677e-6, x))
    coefficients = (1.38144742e-3, 8.36878270e-3, 4.16683927e-2, 1.66665196e-1, 4.99999940e-1, 1.0, 1.0)
    twenty_three = T.broadcast(T.int32(23), lanes(x)) if lanes(x) > 1 else T.int32(23)
    integer = f"int32x{lanes(x)}" if lanes(x) > 1 else "int32"
    bits = tirx.reinterpret(integer, shifted) << twenty_three
    power = polynomial(r, coefficients) * tirx.reinterpret(_float(x), bits)
    return tirx.Select(x < splat(-87.3, x), splat(0.0, x), power)


def _float(like: Expr) -> str:
    return f"float32x{lanes(like)}" if lanes(like) > 1 else "float32"


def over_vectors(columns: int | Expr, width: int, body: Callable[[int | Expr, int], None]) -> None:
    """``body(position, which)`` for every vector of a row, up to a whole vector; neighbours get different ``which``."""
    if isinstance(columns, int):
        vectors = ceil_div(columns, width)
        if vectors <= 2 * UNROLLED:
            for vector in range(vectors):
                body(vector * width, vector % UNROLLED)
            return
    else:
        (vectors,) = bind(quotient(columns + width - 1, width))
    steps = quotient(vectors, UNROLLED)
    with loop(steps) as step:
        for which in range(UNROLLED):
            body((step * UNROLLED + which) * width, which)
    done = steps * UNROLLED
    if isinstance(vectors, int):
        for vector in range(done, vectors):
            body(vector * width, vector - done)
    else:
        with loop(vectors - done) as vector:
            body((done + vector) * width, 0)


def largest(row: Flat, base: int | Expr, columns: int | Expr, width: int, start: float | Expr) -> Expr:
    """Largest of ``start`` and the elements of a row whose last vector is whole; as a bound name."""
    value = T.float32(start) if isinstance(start, float) else start
    return _reduced(columns, width, value, tirx.Max, lambda at: row.load(base + at, width))


def smallest(row: Flat, base: int | Expr, columns: int | Expr, width: int, start: float) -> Expr:
    """Smallest of ``start`` and the elements of a row whose last vector is whole; as a bound name."""
    return _reduced(columns, width, T.float32(start), tirx.Min, lambda at: row.load(base + at, width))


def total(element: Callable[[int | Expr], Expr], columns: int | Expr, width: int) -> Expr:
    """Sum of the vectors ``element(position)`` of a row, up to a whole vector; as a bound name."""
    return _reduced(columns, width, T.float32(0), lambda a, b: a + b, element)


def _reduced(
    columns: int | Expr,
    width: int,
    start: Expr,
    combine: Callable[[Expr, Expr], Expr],
    element: Callable[[int | Expr], Expr],
) -> Expr:
    if isinstance(columns, int) and columns == 0:
        return start
    count = UNROLLED if not isinstance(columns, int) else min(UNROLLED, ceil_div(columns, width))
    whole = T.ramp(0, 1, width)
    partial = [local_array(width, "float32") for _ in range(count)]
    for array in partial:
        T.buffer_store(array, T.broadcast(start, width), [whole])

    def add(at: int | Expr, which: int) -> None:
        T.buffer_store(partial[which], combine(partial[which][whole], element(at)), [whole])

    over_vectors(columns, width, add)
    vectors = [array[whole] for array in partial]
    while len(vectors) > 1:
        vectors = [
            combine(vectors[i], vectors[i + 1]) if i + 1 < len(vectors) else vectors[i]
            for i in range(0, len(vectors), 2)
        ]
    return across(vectors[0], combine)


def over_row(columns: int, width: int, body: Callable[[int | Expr, int], None]) -> None:
    """``body(position, lanes)`` for all of a row: whole vectors, then ever smaller ones."""
    whole = columns // width * width
    if whole:
        over_vectors(whole, width, lambda at, _: body(at, width))
    for first, part in power_of_two_parts(columns - whole):
        body(whole + first, part)


def total_of_row(element: Callable[[int | Expr, int], Expr], columns: int, width: int) -> Expr:
    """Sum of ``element(position, lanes)`` over all of a row; as a bound name."""
    whole = columns // width * width
    result = total(lambda at: element(at, width), whole, width) if whole else T.float32(0)
    for first, part in power_of_two_parts(columns - whole):
        value = element(whole + first, part)
        result = result + (across(value, lambda a, b: a + b) if part > 1 else value)
    return T.bind(result)


def repeated(value: Expr, width: int) -> Expr:
    """A scalar in every lane."""
    return T.broadcast(value, width) if width > 1 else value


def task_shares(rows: int, columns: int, task_elements: int, target: Target) -> list[int]:
    """Rows for each task, so that tasks have enough elements to wake a thread for; the most even shares first."""
    least = ceil_div(task_elements, columns)
    return list(dict.fromkeys(max(least, ceil_div(rows, target.cores * tasks)) for tasks in (1, 2, 4)))


def in_tasks(rows: int | Expr, share: int, body: Callable[[int | Expr], None]) -> None:
    """``body(row)`` for every row, ``share`` of them a task; threads take the tasks if there is more than one."""
    tasks = quotient(rows + share - 1, share)
    if isinstance(tasks, int) and tasks == 1:
        with T.serial(0, rows) as row:
            body(bind(row)[0])
        return
    with T.parallel(0, tasks) as task:
        (first,) = bind(task * share)
        with T.serial(0, T.min(share, rows - first)) as row:
            body(bind(first + row)[0])


def across(vector: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combine the lanes of a vector, halving it at each step; as a bound name."""
    width = lanes(vector)
    vector = T.bind(vector)
    while width > 1:
        width //= 2
        low, high = (tirx.Shuffle([vector], [first + i for i in range(width)]) for first in (0, width))
        vector = T.bind(combine(low, high))
    return bind(vector)[0]
