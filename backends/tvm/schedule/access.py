"""How a stage walks memory: the stride of every access along every axis, and which axis makes the best vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import tvm_ffi

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, tirx, tvm
from shave.backends.tvm.schedule.stage import (
    Axis,
    Buffer,
    IntImm,
    Stage,
    Store,
    Var,
    analyzer,
    constant,
    fold_conditions,
    is_branch,
    loads,
    rewrite_loads,
    substitute,
    uses,
    work,
)

FEW_WRAPS = 2
"""Steps of a quotient that are worth a loop of their own on either side."""
LONGEST_WRAP = 1 << 14
"""Axes up to this length are searched for wrap-arounds."""
COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)
REDUCERS = (tirx.Add, tirx.Mul, tirx.Max, tirx.Min)


def offset(buffer: Buffer, indices: Sequence[Expr]) -> Expr:
    """Position of an element in its buffer, counted in elements."""
    strides = list(buffer.strides)
    if not strides:
        step = constant(1, indices[0]) if indices else IntImm("int64", 1)
        for extent in reversed(list(buffer.shape)):
            strides.insert(0, step)
            step = step * extent
    total: Expr = constant(0, indices[0]) if indices else IntImm("int64", 0)
    for index, stride in zip(indices, strides, strict=True):
        total = total + index * stride
    return total


def flatten(stage: Stage, flat: Mapping[Buffer, Buffer]) -> Stage:
    """The stage on one-dimensional buffers.

    Joined axes would leave quotients and remainders in the indices of each dimension; in the position they cancel, as
    long as nothing simplifies the dimensions one by one before.
    """
    known = analyzer(stage.axes)

    def place(buffer: Buffer, indices: Sequence[Expr]) -> Expr:
        return known.simplify(offset(buffer, indices))

    def load(n: Any) -> Expr:
        return tirx.BufferLoad(flat[n.source], [place(n.source, n.indices)])

    def store(s: Store) -> Store:
        indices = [rewrite_loads(i, load) for i in s.indices]
        return Store(flat[s.buffer], (place(s.buffer, indices),), rewrite_loads(s.value, load))

    return replace(
        stage,
        stores=tuple(map(store, stage.stores)),
        inits=tuple(map(store, stage.inits)),
        binds=tuple((var, rewrite_loads(value, load)) for var, value in stage.binds),
    )


def linear_stride(position: Expr, axis: Axis, known: Any) -> int | None:
    """Distance in elements between neighbours along ``axis``; ``None`` where it is not the same everywhere."""
    if not uses(position, [axis.var]):
        return 0
    if _by_data(position, axis):
        return None
    step = known.simplify(substitute(position, {axis.var: axis.var + constant(1, axis.extent)}) - position)
    return int(step) if isinstance(step, IntImm) else None


def _by_data(position: Expr, axis: Axis) -> bool:
    """Whether data decides where neighbours along ``axis`` lie; data of an outer loop is as good as a constant."""
    return any(uses(load, [axis.var]) for load in loads(position))


def stride(position: Expr, axis: Axis, lanes: int, known: Any) -> int | None:
    """The same inside of a vector of ``lanes`` that starts at a multiple of ``lanes``.

    Where a reshape divides on the way, neighbours are at a constant distance as long as no vector straddles a multiple.
    """
    everywhere = linear_stride(position, axis, known)
    if everywhere is not None or _by_data(position, axis):
        return everywhere
    chunk, lane = tirx.Var("chunk", axis.extent.ty), tirx.Var("lane", axis.extent.ty)
    local = analyzer(
        [Axis(lane, constant(lanes, axis.extent), False), Axis(chunk, constant(1 << 20, axis.extent), False)]
    )
    start = chunk * constant(lanes, axis.extent)
    moved = local.simplify(substitute(position, {axis.var: start + lane}) - substitute(position, {axis.var: start}))
    step = local.simplify(substitute(moved, {lane: constant(1, axis.extent)}))
    return int(step) if isinstance(step, IntImm) and local.can_prove_equal(moved, lane * step) else None


def element_bytes(stage: Stage) -> int:
    """Size of the widest value that the stage touches, bytes."""
    widest = 1
    buffers = [s.buffer for s in stage.stores] + [load.source for load in loads(*stage.values)]
    for buffer in buffers:
        widest = max(widest, (int(buffer.ty.dtype.dtype.bits) + 7) // 8)
    return widest


def conditions_on(stage: Stage, axis: Axis) -> list[tuple[Expr, bool]]:
    """Comparisons of integers that involve ``axis``, and whether each decides a branch.

    A branch (``if_then_else``) guards loads that must not happen, so lanes that disagree have to go one by one; a
    select evaluates both sides.
    """
    found: list[tuple[Expr, bool]] = []

    def collect(branches: bool) -> Callable[[Any], None]:
        def visit(node: Any) -> None:
            if "int" in str(node.a.ty.dtype) and uses(node, [axis.var]):
                found.append((node, branches))

        return visit

    def branch(node: Any) -> None:
        if is_branch(node):
            tvm_ffi.structural_walk(node.args[0], [(COMPARISONS, collect(True))])

    for value in stage.values:
        tvm_ffi.structural_walk(value, [(tvm.ir.Call, branch), (COMPARISONS, collect(False))])
    return found


def breakpoints(stage: Stage, axis: Axis) -> list[int] | None:
    """Places along ``axis`` where a condition or a wrap-around changes; ``None`` where a branch depends on more.

    Between two of them a pad, a slice, a roll or a concatenation is a plain copy.
    """
    places: set[int] = set(_wraps(stage, axis))
    for condition, branches in conditions_on(stage, axis):
        changes = _changes(condition, stage, axis)
        if changes is None and branches:
            return None
        places.update(changes or ())
    return sorted(places) if len(places) <= 16 else None


def _wraps(stage: Stage, axis: Axis) -> list[int]:
    """Places where a quotient along ``axis`` alone steps, if it does so only a few times."""
    found: list[int] = []
    known = tvm.sym.Analyzer()
    others = [a.var for a in stage.axes if a.var is not axis.var]

    def visit(node: Any) -> None:
        if (
            axis.size is None
            or axis.size > LONGEST_WRAP
            or not uses(node.a, [axis.var])
            or uses(node.a, others)
            or loads(node.a)
        ):
            return
        start = known.simplify(substitute(node.a, {axis.var: constant(0, axis.extent)}))
        step = linear_stride(node.a, axis, known)
        if step is None or not isinstance(start, IntImm) or not isinstance(node.b, IntImm):
            return
        quotients = [(int(start) + step * place) // int(node.b) for place in range(axis.size)]
        steps = [place for place in range(1, axis.size) if quotients[place] != quotients[place - 1]]
        if len(steps) <= FEW_WRAPS:
            found.extend(steps)

    for value in stage.values:
        tvm_ffi.structural_walk(value, [((tirx.FloorDiv, tirx.FloorMod), visit)])
    return found


def _changes(condition: Expr, stage: Stage, axis: Axis) -> list[int] | None:
    size = axis.size
    if size is None or uses(condition, [a.var for a in stage.axes if a.var is not axis.var]) or loads(condition):
        return None
    known = tvm.sym.Analyzer()
    distance = condition.a - condition.b
    at_zero = known.simplify(substitute(distance, {axis.var: constant(0, axis.extent)}))
    step = known.simplify(substitute(distance, {axis.var: axis.var + constant(1, axis.extent)}) - distance)
    if not (isinstance(at_zero, IntImm) and isinstance(step, IntImm)) or int(step) == 0:
        return None
    root = math.floor(-int(at_zero) / int(step))
    truths = {}
    for place in range(root - 1, root + 3):
        truth = known.simplify(substitute(condition, {axis.var: constant(place, axis.extent)}))
        if not isinstance(truth, IntImm):
            return None
        truths[place] = bool(int(truth))
    return [p for p in range(root, root + 3) if truths[p] != truths[p - 1] and 0 < p < size]


def reduction(stage: Stage, store: Store) -> tuple[type, Expr] | None:
    """(operator, operand) where the stage computes ``element = operator(element, operand)``, else ``None``.

    Only such stages may reduce in several lanes at once and combine them in the end.
    """
    value = store.value
    for var, bound in reversed(stage.binds):
        value = substitute(value, {var: bound})
    if not isinstance(value, REDUCERS):
        return None

    def own(expr: Expr) -> bool:
        return isinstance(expr, tvm.ir.TensorLoad) and expr.source.same_as(store.buffer)

    operand = value.b if own(value.a) else value.a if own(value.b) else None
    if operand is None:
        return None
    written = {s.buffer for s in stage.stores}
    return None if any(load.source in written for load in loads(operand)) else (type(value), operand)


@dataclass(frozen=True)
class VectorAxis:
    """The choice of ``best_axis``: which axis, how many lanes, at what cost for one element, in loads of a vector."""

    axis: Axis
    lanes: int
    cost: float
    strided: bool


def best_axis(stage: Stage, axes: Sequence[Axis], target: Target) -> VectorAxis | None:
    """The axis of ``axes`` along which the stage is cheapest as vectors; ``None`` where scalars are no dearer."""
    native = max(1, target.vector_bytes // element_bytes(stage))
    arithmetic = max(1, work(*stage.values)) / 4
    combinable = all(reduction(stage, s) is not None for s in stage.stores)
    scalar = arithmetic + len(loads(*stage.values)) + len(stage.stores)
    best = None
    for axis in axes:
        if (axis.reduces and not combinable) or any(uses(a.extent, [axis.var]) for a in stage.axes):
            continue
        if uses(axis.extent, [a.var for a in stage.axes]):
            continue
        size = axis.size if axis.size is not None else 4 * native
        lanes = min(native, size)
        if lanes < 2:
            continue
        places = breakpoints(stage, axis)
        strides = _strides(stage, axis, places or [], native)
        # Scattering a vector is dearer than gathering one.
        gather = [0.75] * (len(strides) - len(stage.stores)) + [1.0] * len(stage.stores)
        memory = sum(1.0 if s in (0, 1) else dear * lanes for s, dear in zip(strides, gather, strict=True))
        per_vector = arithmetic + memory
        if places is None:
            per_vector = scalar * lanes * 1.1
        chunks = math.ceil(size / native)
        cost = per_vector * chunks / size
        if axis.reduces:
            # Combining the lanes at the end costs about as many steps as the vector has halvings.
            cost += 4 * math.log2(lanes) / math.prod(a.size or 64 for a in stage.reducing)
        strided = any(s not in (0, 1) for s in strides)
        if cost < scalar and (best is None or cost < best.cost * 0.99):
            best = VectorAxis(axis, native, cost, strided)
    return best


def _distinct(found: Sequence[Any]) -> list[Any]:
    """Loads without repetitions: what an expression reads twice (``x < 0 ? 0 : x``), it loads once."""
    kept: list[Any] = []
    for load in found:
        if not any(tvm_ffi.structural_equal(load, other) for other in kept):
            kept.append(load)
    return kept


def _strides(stage: Stage, axis: Axis, places: Sequence[int], lanes: int) -> list[int | None]:
    """Stride of each load and then each store along ``axis``, in the longest stretch between breakpoints."""
    known = analyzer(stage.axes)
    if places and axis.size is not None:
        low, high = max(pairwise([0, *places, axis.size]), key=lambda ends: ends[1] - ends[0])
        known = analyzer([a for a in stage.axes if a is not axis])
        known.bind(axis.var, tvm.ir.Range(constant(low, axis.extent), constant(high, axis.extent)))
        stage = stage.map(lambda e: fold_conditions(e, known))
    accesses = [(load.source, load.indices) for load in _distinct(loads(*stage.values))]
    accesses += [(s.buffer, s.indices) for s in stage.stores]
    return [stride(offset(buffer, indices), axis, lanes, known) for buffer, indices in accesses]


def duration(stage: Stage, choice: VectorAxis | None) -> float:
    """Rough duration of a stage on one thread, nanoseconds: half of one for every vector or scalar that is moved."""
    cost = work(*stage.values) / 4 + len(stage.reads) + 1 if choice is None else choice.cost
    return 0.5 * cost * stage.iterations


def collapse(stage: Stage, fixed: Sequence[Axis]) -> Stage:
    """Join neighbouring axes that every access walks as one, so that vectors run across rows and tails come once.

    Args:
        stage: The loop nest.
        fixed: Axes that must stay as they are (loops shared with other stages).
    """
    known = analyzer(stage.axes)
    positions = [offset(load.source, load.indices) for load in loads(*stage.values)]
    positions += [offset(s.buffer, s.indices) for s in stage.stores]
    pinned = {a.var for a in fixed} | {a.var for a in stage.axes if any(uses(b.extent, [a.var]) for b in stage.axes)}
    pinned |= {a.var for a in stage.axes if _is_data(stage, a) or conditions_on(stage, a)}
    kept = list(stage.axes)
    place = len(kept) - 1
    while place > 0:
        outer, inner = kept[place - 1], kept[place]
        if outer.reduces == inner.reduces and not {outer.var, inner.var} & pinned:
            plain = [(linear_stride(p, outer, known), linear_stride(p, inner, known)) for p in positions]
            size = inner.size
            if size is not None and all(o is not None and i is not None and o == i * size for o, i in plain):
                joined = Axis(
                    tirx.Var(f"{outer.var.name}_{inner.var.name}", outer.extent.ty),
                    known.simplify(outer.extent * inner.extent),
                    inner.reduces,
                )
                values = {outer.var: joined.var // inner.extent, inner.var: joined.var % inner.extent}
                kept[place - 1 : place + 1] = [joined]
                known = analyzer(kept)
                stage = replace(stage.map(partial(_join, values, known)), axes=tuple(kept))
                positions = [known.simplify(substitute(p, values)) for p in positions]
        place -= 1
    return stage


def _join(values: Mapping[Var, Expr], known: Any, expr: Expr) -> Expr:
    expr = substitute(expr, values)
    if str(expr.ty.dtype).startswith("int"):
        return known.simplify(expr)
    return rewrite_loads(expr, lambda n: tirx.BufferLoad(n.source, [known.simplify(i) for i in n.indices]))


def _is_data(stage: Stage, axis: Axis) -> bool:
    """Whether the number of the iteration is itself a value (an arange, a position), or an index into an index."""
    found: list[Var] = []

    def visit(node: Any, visitor: Any) -> None:
        if isinstance(node, tvm.ir.TensorLoad):
            return
        if isinstance(node, tvm.ir.Var) and node.same_as(axis.var):
            found.append(node)
        visitor.default_visit(node)

    for value in stage.values:
        tvm_ffi.structural_visit(value, [(tvm.ir.Expr, visit)])
    return bool(found)
