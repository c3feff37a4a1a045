"""Reductions over windows that reach over the edge: a padded copy instead of a test for every element.

``sum(if_then_else(inside, x[i + k - 1], 0) * w[k])`` tests every lane on its own, which no vector can. With a copy of
``x`` that has the padding written out, every window reads plain memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tvm_ffi

from shave.backends.tvm.adapter import Expr, tirx, tvm
from shave.backends.tvm.schedule.access import breakpoints
from shave.backends.tvm.schedule.stage import (
    Axis,
    Buffer,
    IntImm,
    Stage,
    Store,
    analyzer,
    constant,
    is_branch,
    loads,
    simplify,
)

LARGEST_COPY = 2
"""Size of the padded copy relative to the original, up to which it is worth its memory."""


def pad_windows(stages: Sequence[Stage]) -> tuple[list[Stage], list[Buffer]]:
    """Put a stage that writes a padded copy in front of each reduction whose windows are guarded.

    Returns:
        The stages, and the buffers of the copies.
    """
    result: list[Stage] = []
    buffers: list[Buffer] = []
    for stage in stages:
        if stage.reducing and stage.spatial and breakpoints(stage, stage.spatial[-1]) is None:
            stage, copies = _without_guards(stage)
            result += copies
            buffers += [c.stores[0].buffer for c in copies]
        result.append(stage)
    return result, buffers


def _without_guards(stage: Stage) -> tuple[Stage, list[Stage]]:
    copies: list[Stage] = []

    def unguard(node: Any) -> Expr:
        found = _padded(node, stage) if is_branch(node) else None
        if found is None:
            return node
        copies.append(found[0])
        return found[1]

    return stage.map(lambda e: tvm_ffi.structural_map(e, [(tvm.ir.Call, unguard)])), copies


def _padded(branch: Any, stage: Stage) -> tuple[Stage, Expr] | None:
    """The stage that writes the padded copy and the load that replaces ``branch``; ``None`` if it is no such guard."""
    condition, inside, outside = branch.args
    reads = loads(inside)
    if not isinstance(inside, tvm.ir.TensorLoad) or len(reads) != 1 or not isinstance(outside, (tirx.FloatImm, IntImm)):
        return None
    source, indices = inside.source, list(inside.indices)
    extents = list(source.shape)
    if not all(isinstance(e, IntImm) for e in extents) or any(a.size is None for a in stage.axes):
        return None
    known = analyzer(stage.axes)
    bounds = [known.const_int_bound(i) for i in indices]
    lows, highs = [b.min_value for b in bounds], [b.max_value for b in bounds]
    sizes = [high - low + 1 for low, high in zip(lows, highs, strict=True)]
    if math.prod(sizes) > LARGEST_COPY * math.prod(map(int, extents)):
        return None
    within = tirx.all(*(tirx.all(i >= 0, i < e) for i, e in zip(indices, extents, strict=True)))
    with known.constraint_scope(within):
        if not known.can_prove(condition):
            return None  # it tests more than whether the index is inside
    axes = [Axis(tirx.Var("place", i.ty), constant(size, i), False) for i, size in zip(indices, sizes, strict=True)]
    places = [axis.var + constant(low, axis.extent) for axis, low in zip(axes, lows, strict=True)]
    tests = [
        test
        for place, low, high, extent in zip(places, lows, highs, extents, strict=True)
        for test in (
            *([place >= constant(0, place)] if low < 0 else []),
            *([place < constant(int(extent), place)] if high >= int(extent) else []),
        )
    ]
    value = tirx.BufferLoad(source, places)
    if tests:
        value = tirx.if_then_else(tirx.all(*tests), value, outside)
    buffer = tirx.decl_buffer([a.extent for a in axes], str(source.ty.dtype), f"{source.name}_padded")
    copy = Stage(f"{stage.name}_pad", tuple(axes), (Store(buffer, tuple(a.var for a in axes), value),))
    moved = [known.simplify(i - constant(low, i)) for i, low in zip(indices, lows, strict=True)]
    return simplify(copy), tirx.BufferLoad(buffer, moved)
