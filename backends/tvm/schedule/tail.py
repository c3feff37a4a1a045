"""The default schedule: every PrimFunc that is not a kernel of ours gets parallel loops over vectors.

A PrimFunc from TVM's legaliser is a row of serial, scalar loop nests. Here it becomes, in this order:

1. stages as data (``stage``), with elementwise ones inlined into their readers (``inline``);
2. groups of stages that share their outer loops (softmax and layer norm: all stages of a row, then the next row), with
   what they hand to each other shrunk to one row, which stays in the nearest cache;
3. for each stage a vector axis (``access``) and loops (``nest``), the outermost of them shared by threads if the work
   is worth waking them;
4. exp, erf and their like as polynomials in vector registers (``intrinsics``).

Loop nests of any other form (scatter, sort, scans that TVM wrote as statements) stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm_ffi

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, PrimFunc, tirx, tvm
from shave.backends.tvm.schedule.access import VectorAxis, best_axis, duration, flatten
from shave.backends.tvm.schedule.forms import nest
from shave.backends.tvm.schedule.guards import pad_windows
from shave.backends.tvm.schedule.inline import inline
from shave.backends.tvm.schedule.intrinsics import expand_intrinsics
from shave.backends.tvm.schedule.loops import in_tasks, nested, sequence, shared_by_threads
from shave.backends.tvm.schedule.stage import (
    Axis,
    Buffer,
    IntImm,
    Stage,
    Stmt,
    Store,
    Unsupported,
    Var,
    read_stage,
    rewrite_loads,
)

SCHEDULED = "shave.scheduled"
RULE = "shave.rule"
PARALLEL_NANOSECONDS = 12_000
"""Duration on one thread from which waking the others (2 us for one of them, more for more) saves time."""
TASKS_PER_CORE = 8
"""Stretches of rows that share a buffer: more of them even out what the threads get, fewer allocate less often."""


def schedule_tail(mod: tvm.IRModule, target: Target) -> tvm.IRModule:
    """Schedule every PrimFunc that has no schedule yet.

    Args:
        mod: PrimFuncs as ``LegalizeOps``, ``FuseOps`` and ``FuseTIR`` leave them; other functions are kept.
        target: The machine to run on.

    Returns:
        The module with those PrimFuncs replaced; each carries the attribute ``shave.scheduled``.
    """
    updated = tvm.IRModule(dict(mod.functions.items()), attrs=mod.attrs)
    for name, function in mod.functions.items():
        if isinstance(function, PrimFunc) and SCHEDULED not in (function.attrs or {}):
            updated[name] = schedule_function(function, target)
    return updated


def explain_tail(mod: tvm.IRModule) -> dict[str, str]:
    """Which rule each PrimFunc got: its nests in order, ``parallel`` in front where threads share them.

    ``opaque`` marks statements that were kept as TVM wrote them, ``kernel`` functions scheduled elsewhere.
    """
    return {
        name.name_hint: str(function.attrs[RULE]) if RULE in (function.attrs or {}) else "kernel"
        for name, function in mod.functions.items()
        if isinstance(function, PrimFunc)
    }


def schedule_function(function: PrimFunc, target: Target) -> PrimFunc:
    """Schedule one PrimFunc; if that fails, at least share its outermost loops, and say why in its rule."""
    try:
        body, rule = _rewrite(function, target)
        function = function.with_body(body)
    except Exception as reason:  # a compiler must not fail where it could only have made code faster
        function, rule = _outermost_parallel(function)
        rule = f"{rule}: {reason}"
    return _named_once(expand_intrinsics(function)).with_attrs({SCHEDULED: True, RULE: rule})


def _named_once(function: PrimFunc) -> PrimFunc:
    """Rename what several copies of an expression (one for each segment of a loop) name alike.

    TVM's simplifier takes a name for the first value that it met under it.
    """
    return tirx.transform.ConvertSSA()(tvm.IRModule({"main": function}))["main"]


def _rewrite(function: PrimFunc, target: Target) -> tuple[Stmt, str]:
    root = function.body
    if not isinstance(root, tvm.s_tir.SBlockRealize) or root.block.iter_vars:
        raise Unsupported("no root block")
    body = root.block.body
    intermediate = set(root.block.alloc_buffers)
    stages = [read_stage(s) for s in (body.seq if isinstance(body, tirx.SeqStmt) else [body])]
    stages, copies = pad_windows(inline(stages, intermediate))
    intermediate.update(copies)
    groups = group(stages, target)
    statements: list[Stmt] = []
    rules: list[str] = []
    flat: dict[Buffer, Buffer] = {}
    for g in groups:
        own = {s.buffer for stage in g.stages for s in stage.stores} & intermediate
        read_elsewhere = {load.source for other in groups if other is not g for s in other.stages for load in s.reads}
        private = own - read_elsewhere
        statement, names = _write_group(g, private if g.depth else set(), flat, target)
        statements.append(statement)
        rules += [f"parallel {name}" if _is_parallel(statement) else name for name in names]
    declared = [
        tirx.AllocBuffer(view) if buffer in intermediate else tirx.DeclBuffer(view, data=buffer.data)
        for buffer, view in flat.items()
        if not view.same_as(buffer) or buffer in intermediate
    ]
    block = tvm.s_tir.SBlock([], [], [], "root", sequence([*declared, *statements]))
    return tvm.s_tir.SBlockRealize([], True, block), ", ".join(rules)


@dataclass(frozen=True)
class Group:
    """Stages that run one after the other inside of ``depth`` common outer loops (0: a stage alone)."""

    stages: tuple[Stage, ...]
    depth: int


def group(stages: Sequence[Stage], target: Target) -> list[Group]:
    """Share outer loops between neighbours, as far as every vector axis stays inside and threads stay busy."""
    groups: list[Group] = []
    choices = {id(s): best_axis(s, s.axes, target) for s in stages}
    for stage in stages:
        if groups:
            joined = (*groups[-1].stages, stage)
            times = [duration(s, choices[id(s)]) for s in joined]
            # A light stage may do without its vector axis if that lets the heavy ones share a loop with it.
            inner = [
                _outside(s, choices[id(s)]) for s, time in zip(joined, times, strict=True) if 4 * time >= max(times)
            ]
            depth = min(common_depth(joined), *inner)
            rows = math.prod(a.size or 1024 for a in joined[0].spatial[:depth])
            if depth and (sum(times) < PARALLEL_NANOSECONDS or rows >= 2 * target.cores):
                groups[-1] = Group(joined, depth)
                continue
        groups.append(Group((stage,), 0))
    return groups


def _outside(stage: Stage, choice: VectorAxis | None) -> int:
    """Number of leading spatial axes outside of the vector axis."""
    if choice is None or choice.axis.reduces:
        return len(stage.spatial)
    return next(i for i, a in enumerate(stage.spatial) if a.var.same_as(choice.axis.var))


def common_depth(stages: Sequence[Stage]) -> int:
    """Number of leading spatial axes in which stages may run together.

    In such an axis all have the same extent, and each element that one stage hands to another is written and read in
    the same iteration.
    """
    depth = min(len(s.spatial) for s in stages)
    for place in range(depth):
        extent = stages[0].spatial[place].extent
        if not all(tvm_ffi.structural_equal(s.spatial[place].extent, extent) for s in stages):
            return place
        for writer in stages:
            for store in writer.stores:
                position = _dimension(store, writer.spatial[place])
                for reader in stages:
                    axis = reader.spatial[place].var
                    touched = [load.indices for load in reader.reads if load.source.same_as(store.buffer)]
                    touched += [s.indices for s in reader.stores if s.buffer.same_as(store.buffer)]
                    if any(not axis.same_as(indices[position]) for indices in touched):
                        return place
    return depth


def _dimension(store: Store, axis: Axis) -> int:
    return next(i for i, index in enumerate(store.indices) if axis.var.same_as(index))


def _write_group(g: Group, private: set[Buffer], flat: dict[Buffer, Buffer], target: Target) -> tuple[Stmt, list[str]]:
    time = sum(duration(s, best_axis(s, s.axes, target)) for s in g.stages)
    parallel = target.cores > 1 and time >= PARALLEL_NANOSECONDS
    stages, buffers = _shrink(g, private)
    own = {b: _flat_view(b) for b in buffers}
    for stage in stages:
        for buffer in [s.buffer for s in stage.stores] + [load.source for load in stage.reads]:
            if buffer not in own and buffer not in flat:
                flat[buffer] = _flat_view(buffer)
    stages = [flatten(stage, {**flat, **own}) for stage in stages]
    if not g.depth:
        alone = nest(stages[0], {}, target, parallel)
        return alone.write(), [alone.rule]
    axes = g.stages[0].spatial[: g.depth]
    rules: list[str] = []

    def row(at: Mapping[Var, Expr]) -> Stmt:
        statements = []
        for stage in stages:
            fixed = {a.var: at[shared.var] for a, shared in zip(stage.spatial, axes, strict=False)}
            inner = nest(stage, fixed, target, False)
            rules.append(inner.rule)
            statements.append(inner.write())
        return sequence(statements)

    buffers = [tirx.AllocBuffer(b) for b in own.values()]
    threads = shared_by_threads(axes, target.cores) if parallel else 0
    if not threads:
        return sequence([*buffers, nested(axes, row)]), rules

    def rest(outer: Mapping[Var, Expr]) -> Stmt:
        return nested(axes[threads:], lambda inner: row({**outer, **inner}))

    return in_tasks(axes[:threads], TASKS_PER_CORE * target.cores, buffers, rest), rules


def _flat_view(buffer: Buffer) -> Buffer:
    """A one-dimensional buffer of the same elements."""
    if len(buffer.shape) == 1 and not list(buffer.strides):
        return buffer
    strides = list(buffer.strides)
    size: Expr = IntImm("int64", 1)
    for extent in buffer.shape:
        size = size * extent
    if strides and buffer.shape:
        size = strides[0] * buffer.shape[0]
    size = tvm.sym.Analyzer().simplify(size)
    return tirx.decl_buffer((size,), str(buffer.ty.dtype), f"{buffer.name}_flat")


def _shrink(g: Group, private: set[Buffer]) -> tuple[list[Stage], list[Buffer]]:
    """Drop the common axes from buffers that only this group uses: one row is all that lives at a time."""
    kept: dict[Buffer, list[int]] = {}
    small: dict[Buffer, Buffer] = {}
    for stage in g.stages:
        for store in stage.stores:
            old = store.buffer
            if old not in private or old in small:
                continue
            dropped = {_dimension(store, axis) for axis in stage.spatial[: g.depth]}
            kept[old] = [i for i in range(len(store.indices)) if i not in dropped]
            shape = [old.shape[i] for i in kept[old]] or [IntImm("int64", 1)]
            small[old] = tirx.decl_buffer(shape, str(old.ty.dtype), old.name)

    def indices(buffer: Buffer, old: Sequence[Expr]) -> list[Expr]:
        return [old[i] for i in kept[buffer]] or [IntImm("int64", 0)]

    def load(n: Any) -> Expr:
        return tirx.BufferLoad(small[n.source], indices(n.source, n.indices)) if n.source in small else n

    def shrunk(s: Store) -> Store:
        value = rewrite_loads(s.value, load)
        if s.buffer not in small:
            return Store(s.buffer, s.indices, value)
        return Store(small[s.buffer], tuple(indices(s.buffer, s.indices)), value)

    stages = [
        replace(
            s,
            stores=tuple(map(shrunk, s.stores)),
            inits=tuple(map(shrunk, s.inits)),
            binds=tuple((var, rewrite_loads(value, load)) for var, value in s.binds),
        )
        for s in g.stages
    ]
    return stages, list(small.values())


def _is_parallel(stmt: Stmt) -> bool:
    found: list[Any] = []
    tvm_ffi.structural_walk(stmt, [(tirx.For, lambda n: found.append(n) if n.kind == tirx.ForKind.PARALLEL else None)])
    return bool(found)


def _outermost_parallel(function: PrimFunc) -> tuple[PrimFunc, str]:
    """Share the outermost loop of every block where TVM proves that its iterations are independent."""
    if _is_parallel(function.body):
        return function, "parallel opaque"
    schedule = tvm.s_tir.Schedule(tvm.IRModule({"main": function}))
    parallel = False
    for block in schedule.get_child_blocks(schedule.get_sblock("root")) if _has_blocks(function) else []:
        loops = schedule.get_loops(block)
        outermost = next((loop for loop in loops if not _is_one(schedule.get(loop).extent)), None)
        if outermost is None:
            continue
        try:
            schedule.parallel(outermost)
            parallel = True
        except tvm.s_tir.ScheduleError:
            continue
    return schedule.mod["main"], "parallel opaque" if parallel else "opaque"


def _is_one(extent: Expr) -> bool:
    return isinstance(extent, IntImm) and int(extent) == 1


def _has_blocks(function: PrimFunc) -> bool:
    root = function.body
    return isinstance(root, tvm.s_tir.SBlockRealize) and root.block.name_hint == "root"
