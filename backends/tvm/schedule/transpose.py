"""Square tiles for stages that read along one axis and write along another: both sides move whole vectors.

A tile of L x L elements is loaded as L vectors along the axis that the load walks, transposed in registers by
log2(L) rounds of two-input shuffles, and stored as L vectors along the axis that the store walks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm_ffi

from shave.backends.tvm.adapter import Expr, tirx
from shave.backends.tvm.schedule.access import VectorAxis, conditions_on, stride
from shave.backends.tvm.schedule.loops import loop, nested, sequence
from shave.backends.tvm.schedule.nest import Map
from shave.backends.tvm.schedule.stage import (
    Axis,
    Buffer,
    Stage,
    Stmt,
    Var,
    analyzer,
    constant,
    loads,
    rewrite_loads,
    substitute,
)

LARGEST_TILE = 16


@dataclass(frozen=True)
class Tile:
    """Where and how to tile: ``across`` is the axis that the strided loads walk, ``side`` the number of its lanes."""

    across: Axis
    side: int
    strided: tuple[Any, ...]


def tile(stage: Stage, choice: VectorAxis, free: Sequence[Axis]) -> Tile | None:
    """The tile that makes every load of the stage contiguous, ``None`` where there is none."""
    along = choice.axis
    known = analyzer(stage.axes)
    if stage.reducing or stage.binds or len(stage.stores) != 1 or along.size is None or conditions_on(stage, along):
        return None
    if stride(stage.stores[0].indices[0], along, choice.lanes, known) != 1:
        return None
    strided: list[Any] = []
    for load in loads(*stage.values):
        seen = any(tvm_ffi.structural_equal(load, other) for other in strided)
        if not seen and stride(load.indices[0], along, choice.lanes, known) not in (0, 1):
            strided.append(load)
    if not strided or len(strided) > 2:
        return None
    for across in free:
        if across.var.same_as(along.var) or across.size is None or conditions_on(stage, across):
            continue
        side = 1 << (min(choice.lanes, LARGEST_TILE, across.size, along.size).bit_length() - 1)
        if side >= 4 and all(
            stride(load.indices[0], across, side, known) == 1 and stride(load.indices[0], along, 1, known) is not None
            for load in strided
        ):
            return Tile(across, side, tuple(strided))
    return None


def transposed(rows: Sequence[Expr]) -> tuple[list[Stmt], list[Expr]]:
    """Statements that name the columns of a square of vectors, and the names."""
    side = len(rows)
    steps: list[Stmt] = []

    def name(value: Expr) -> Expr:
        var = tirx.Var("row", value.ty)
        steps.append(tirx.Bind(var, value))
        return var

    def shuffle(a: Expr, b: Expr, places: Sequence[int]) -> Expr:
        return name(tirx.Shuffle([a, b], [tirx.IntImm("int32", p) for p in places]))

    current = [name(row) for row in rows]
    distance = side // 2
    while distance:
        # Swap the off-diagonal blocks of every square of 2 x distance.
        low = [k if not k & distance else side + k - distance for k in range(side)]
        high = [k + distance if not k & distance else side + k for k in range(side)]
        for j in range(side):
            if not j & distance:
                a, b = current[j], current[j + distance]
                current[j], current[j + distance] = shuffle(a, b, low), shuffle(a, b, high)
        distance //= 2
    return steps, current


class Transpose(Map):
    """Squares first, then the strips at the two edges that no square fills."""

    rule = "transpose"

    def __init__(self, square: Tile, *nest: Any) -> None:
        super().__init__(*nest)
        self.square = square

    def write(self) -> Stmt:
        """Loops over squares, then over the edges."""
        along, across, side = self.choice.axis, self.square.across, self.square.side
        height, width = across.size or 0, along.size or 0
        others = [a for a in self.free if a.var not in (along.var, across.var)]
        strips = Axis(tirx.Var("strip", across.extent.ty), constant(height // side, across.extent), False)
        outer = [*others, strips]

        def squares(at: Mapping[Var, Expr]) -> Stmt:
            top = at[strips.var] * constant(side, across.extent)
            place = {k: v for k, v in at.items() if k is not strips.var}
            return loop(
                constant(width // side, along.extent),
                lambda chunk: self._square(place, top, along, chunk * constant(side, along.extent)),
                name="chunk",
            )

        def edge(row: Axis, first: int, start: int, lanes: int) -> Stmt:
            def line(at: Mapping[Var, Expr]) -> Stmt:
                values = {k: v for k, v in at.items() if k is not row.var}
                values[across.var] = at[row.var] + constant(first, across.extent)
                return self.vector(values, constant(start, along.extent), lanes)

            return nested([*others, row], line)

        def rows(count: int) -> Axis:
            return Axis(tirx.Var("line", across.extent.ty), constant(count, across.extent), False)

        full_height, full_width = height // side * side, width // side * side
        statements = [nested(outer, squares, self.threads(outer))]
        if full_width < width:
            statements.append(edge(rows(height), 0, full_width, width - full_width))
        if full_height < height:
            statements += [
                edge(rows(height - full_height), full_height, start, side) for start in range(0, full_width, side)
            ]
        return sequence(statements)

    def _square(self, at: Mapping[Var, Expr], top: Expr, along: Axis, left: Expr) -> Stmt:
        square, side = self.square, self.square.side
        zero, one = constant(0, top), constant(1, top)
        statements: list[Stmt] = []
        columns: list[list[Buffer]] = []
        for load in square.strided:
            dtype = str(load.source.ty.dtype)
            rows = []
            for lane in range(side):
                values = {**self.fixed, **at, square.across.var: top, along.var: left + constant(lane, left)}
                first = substitute(load.indices[0], values)
                rows.append(tirx.BufferLoad(load.source, [tirx.Ramp(first, one, side)]))
            steps, names = transposed(rows)
            # One array for each column: small enough for the stack, so that LLVM keeps it in a register.
            columns.append([tirx.decl_buffer((side,), dtype, "column") for _ in names])
            statements += [*map(tirx.AllocBuffer, columns[-1]), *steps]
            statements += [
                tirx.BufferStore(column, name, [tirx.Ramp(zero, one, side)])
                for column, name in zip(columns[-1], names, strict=True)
            ]
        return sequence([*statements, *(self._line(at, columns, top, left, place) for place in range(side))])

    def _line(
        self, at: Mapping[Var, Expr], columns: Sequence[Sequence[Buffer]], top: Expr, left: Expr, place: int
    ) -> Stmt:
        """One vector along the axis that the store walks."""

        def element(lane: Expr) -> Stmt:
            def change(n: Any) -> Expr:
                for load, column in zip(self.square.strided, columns, strict=True):
                    if tvm_ffi.structural_equal(n, load):
                        return tirx.BufferLoad(column[place], [lane])
                return n

            tiled = replace(
                self.stage,
                stores=tuple(replace(s, value=rewrite_loads(s.value, change)) for s in self.stage.stores),
            )
            across = top + constant(place, top)
            values = {**self.fixed, **at, self.square.across.var: across, self.choice.axis.var: left + lane}
            return self.assign(
                tiled.substitute(values), lambda _, s: tirx.BufferStore(s.buffer, s.value, list(s.indices))
            )

        return self.lanes(self.square.side, element)
