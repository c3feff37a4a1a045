"""Copies of run-time operands to the order in which a kernel reads them."""

from __future__ import annotations

from collections.abc import Sequence

from shave.backends.tvm.adapter import Expr, T, tirx
from shave.backends.tvm.kernels.base import Flat, bind, loop
from shave.backends.tvm.kernels.register_tile import power_of_two_parts


def copy_rows(
    source: Flat,
    start: int | Expr,
    step: int | Expr,
    count: int | Expr,
    width: int,
    target: Flat,
    multiple: int,
    lanes: int | None = None,
    scale: float = 1.0,
) -> None:
    """Copy rows of ``width`` elements, ``step`` apart, to rows that lie one after another.

    Args:
        source: Where they come from.
        start: Position of the first row.
        step: Elements from one row to the next.
        count: Number of rows.
        width: Elements of a row.
        target: Where they go.
        multiple: A row of the target has as many elements as the next multiple of this; the rest of it becomes 0.
        lanes: Elements of a vector; ``multiple`` by default.
        scale: Factor of every element.
    """
    lanes = multiple if lanes is None else lanes
    pitch = -(-width // multiple) * multiple

    def scaled(value: Expr, part: int) -> Expr:
        factor = T.float32(scale)
        return value if scale == 1 else value * (T.broadcast(factor, part) if part > 1 else factor)

    with loop(count) as row:
        read, write = bind(start + row * step, row * pitch)
        for first in range(0, width, lanes):
            if width - first < lanes <= pitch - first:
                # Left as it was, the memory may hold subnormals, which would slow every multiply-add down.
                target.store(write + first, T.broadcast(T.float32(0), lanes), lanes)
            for at, part in power_of_two_parts(min(lanes, width - first)):
                value = scaled(source.load(read + first + at, part), part)
                target.store(write + first + at, value, part)


def transpose_rows(
    source: Flat, starts: Sequence[int | Expr], length: int, target: Flat, place: int | Expr, pitch: int
) -> None:
    """Copy as many rows as a vector has lanes to the columns of a panel, a square at a time in registers.

    Args:
        source: Where they come from.
        starts: Position of each row.
        length: Elements of a row.
        target: Where they go: element k of row i to ``place + k * pitch + i``.
        place: Position of the first element in the target.
        pitch: Elements between two rows of the target.
    """
    lanes = len(starts)
    rows = bind(*starts)
    (write,) = bind(place)
    with loop(length // lanes) as block:
        square = [T.bind(source.load(start + block * lanes, lanes)) for start in rows]
        for k, column in enumerate(transposed(square)):
            target.store(write + (block * lanes + k) * pitch, column, lanes)
    for k in range(length // lanes * lanes, length):
        for i, start in enumerate(rows):
            target.store(write + k * pitch + i, source.load(start + k), 1)


def transposed(rows: Sequence[Expr]) -> list[Expr]:
    """Transpose n vectors of n lanes: log2(n) perfect shuffles of the rows with the rows n / 2 further."""
    n = len(rows)
    low = [lane for i in range(n // 2) for lane in (i, n + i)]
    high = [lane for i in range(n // 2, n) for lane in (i, n + i)]
    rows = list(rows)
    for _ in range(n.bit_length() - 1):
        rows = [
            T.bind(tirx.Shuffle([rows[i], rows[i + n // 2]], lanes)) for i in range(n // 2) for lanes in (low, high)
        ]
    return rows
