"""Square tiles for stages that read along one axis and write along another: both sides move whole vectors.

A tile of L x L elements is loaded as L vectors along the axis that the load walks, transposed in registers by
log2(L) rounds of two-input shuffles, and stored as L vectors along the axis that the store walks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi

from shave.backends.tvm.adapter import Expr, tirx
from shave.backends.tvm.schedule.access import VectorAxis, conditions_on, stride
from shave.backends.tvm.schedule.stage import Axis, Stage, Stmt, analyzer, loads

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
        if stride(load.indices[0], along, choice.lanes, known) not in (0, 1):
            if not any(tvm_ffi.structural_equal(load, other) for other in strided):
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
