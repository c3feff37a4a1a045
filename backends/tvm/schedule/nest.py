"""Write one stage as loops: vectors along one axis, accumulators in registers, tails that are vectors too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import tvm_ffi

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, tirx, tvm
from shave.backends.tvm.schedule.access import VectorAxis, best_axis, breakpoints, collapse, reduction
from shave.backends.tvm.schedule.stage import (
    Axis,
    Buffer,
    IntImm,
    Stage,
    Stmt,
    Store,
    Var,
    analyzer,
    constant,
    fold_conditions,
    is_branch,
    loads,
    rewrite_loads,
    substitute,
    work,
)
from shave.backends.tvm.schedule.transpose import Tile, tile, transposed

ACCUMULATORS = 4
"""Vectors in flight: enough independent sums to hide the latency of an addition, and to amortise the loop."""
HEAVY = 16
"""Operations on one element from which a single vector at a time keeps the ports busy (and registers scarce)."""
HOISTED = 4
"""Operations from which a value that is the same in all lanes is computed once, before the loop."""

Body = Callable[[Expr, int], Stmt]
"""Statements for the ``lanes`` elements of the vector axis that start at a position."""


def loop(extent: Expr, body: Callable[[Var], Stmt], kind: int = tirx.ForKind.SERIAL, name: str = "i") -> Stmt:
    """A loop from 0, or the body alone where there is one iteration."""
    if isinstance(extent, IntImm) and int(extent) == 1:
        return body(constant(0, extent))
    var = tirx.Var(name, extent.ty)
    return tirx.For(var, constant(0, extent), extent, kind, body(var))


def sequence(statements: Sequence[Stmt]) -> Stmt:
    """Statements one after another."""
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def fused(axes: Sequence[Axis], body: Callable[[Mapping[Var, Expr]], Stmt], kind: int) -> Stmt:
    """One loop over the iterations of several axes."""
    extent = axes[0].extent
    for axis in axes[1:]:
        extent = extent * axis.extent
    extent = tvm.sym.Analyzer().simplify(extent)

    def split(index: Expr) -> Stmt:
        values = {}
        for place, axis in enumerate(reversed(axes)):
            values[axis.var] = index if place == len(axes) - 1 else index % axis.extent
            index = index // axis.extent
        return body(values)

    return loop(extent, split, kind, name="row")


def nested(axes: Sequence[Axis], body: Callable[[Mapping[Var, Expr]], Stmt], parallel: int = 0) -> Stmt:
    """Loops over axes, outermost first; the first ``parallel`` of them are one loop that threads share."""
    if parallel:
        return fused(
            axes[:parallel],
            lambda outer: nested(axes[parallel:], lambda inner: body({**outer, **inner})),
            tirx.ForKind.PARALLEL,
        )
    if not axes:
        return body({})
    return loop(
        axes[0].extent,
        lambda var: nested(axes[1:], lambda inner: body({axes[0].var: var, **inner})),
        name=axes[0].var.name,
    )


def shared_by_threads(axes: Sequence[Axis], cores: int) -> int:
    """How many leading axes to fuse so that every thread gets several iterations; 0 if all of them are too few."""
    iterations = 1
    for count, axis in enumerate(axes, start=1):
        iterations *= 1024 if axis.size is None else axis.size
        if iterations >= 8 * cores:
            return count
    return len(axes) if iterations >= 2 * cores else 0


class Nest:
    """Writer of the loops of one stage.

    Args:
        stage: What to compute.
        fixed: Values of the axes that loops outside of this nest already run over.
        target: Gives the width of vectors and the number of cores.
        parallel: Whether threads share this nest.
    """

    def __init__(self, stage: Stage, fixed: Mapping[Var, Expr], target: Target, parallel: bool) -> None:
        outer = [a for a in stage.axes if a.var in fixed]
        stage = collapse(stage, outer)
        self._fixed = dict(fixed)
        self._stage = stage
        self._target = target
        self._parallel = parallel
        self._free = [a for a in stage.axes if a.var not in fixed]
        self._choice = best_axis(stage, self._free, target)
        self._tile = None
        if self._choice is not None and self._choice.strided:
            self._tile = tile(stage, self._choice, [a for a in self._free if not a.reduces])

    @property
    def rule(self) -> str:
        """What this nest became, in a word or two."""
        if self._choice is None:
            return "scalar"
        if self._tile is not None:
            return "transpose"
        return "reduce-lanes" if self._choice.axis.reduces else "reduce-vector" if self._stage.reducing else "map"

    def write(self) -> Stmt:
        """The loops."""
        spatial = [a for a in self._free if not a.reduces and not self._is_vector(a)]
        threads = shared_by_threads(spatial, self._target.cores) if self._parallel else 0
        chunks_share = self._parallel and not threads
        if self._choice is None:
            return nested(spatial, self._scalar, threads)
        if self._choice.axis.reduces:
            return nested(spatial, lambda at: self._reduce_in_lanes(at, self._choice), threads)
        if self._tile is not None:
            return self._tiled(self._tile, self._choice)
        kind = tirx.ForKind.PARALLEL if chunks_share else tirx.ForKind.SERIAL
        return nested(spatial, lambda at: self._along_vector(at, self._choice, kind), threads)

    def _is_vector(self, axis: Axis) -> bool:
        return self._choice is not None and axis.var.same_as(self._choice.axis.var)

    # -- the innermost statements ------------------------------------------------------------------------------------

    def _at(self, values: Mapping[Var, Expr], ranges: Sequence[Axis]) -> Stage:
        """The stage with its axes at ``values``; ``ranges`` bounds the variables in them, so conditions fold."""
        stage = self._stage.substitute({**self._fixed, **values})
        known = analyzer(ranges)
        return stage.map(lambda e: fold_conditions(e, known))

    def _bounded(self, axes: Sequence[Axis], at: Mapping[Var, Expr]) -> list[Axis]:
        """Axes with their extents where outer axes are at ``at`` (windows of uneven size)."""
        values = {**self._fixed, **at}
        return [replace(a, extent=substitute(a.extent, values)) for a in axes]

    def _assign(self, stage: Stage, target: Callable[[int, Store], Stmt]) -> Stmt:
        renamed: dict[Var, Expr] = {}
        statements = []
        for var, value in stage.binds:
            renamed[var] = tirx.Var(var.name, var.ty)
            statements.append(tirx.Bind(renamed[var], substitute(value, {k: v for k, v in renamed.items() if k is not var})))
        for place, store in enumerate(stage.stores):
            statements.append(target(place, replace(store, value=substitute(store.value, renamed))))
        return sequence(statements)

    def _lanes(self, lanes: int, body: Callable[[Expr], Stmt]) -> Stmt:
        kind = tirx.ForKind.VECTORIZED
        return loop(constant(lanes, self._free[0].extent), body, kind, name="lane")

    # -- segments of the vector axis ---------------------------------------------------------------------------------

    def _segments(self, choice: VectorAxis, unroll: int) -> Iterator[tuple[Expr, Expr, int]]:
        """(first element, number of vectors, lanes of each): full vectors, then what is left as narrower ones."""
        axis, native = choice.axis, choice.lanes
        wide = native * unroll
        size = axis.size
        if size is None:
            whole = axis.extent // constant(wide, axis.extent)
            yield constant(0, axis.extent), whole, wide
            yield whole * constant(wide, axis.extent), axis.extent % constant(wide, axis.extent), 1
            return
        bounds = [0, *(breakpoints(self._stage, axis) or []), size]
        for low, high in zip(bounds, bounds[1:], strict=False):
            for lanes in (wide, native):
                count = (high - low) // lanes
                if count:
                    yield constant(low, axis.extent), constant(count, axis.extent), lanes
                    low += count * lanes
            if high > low:
                yield constant(low, axis.extent), constant(1, axis.extent), high - low

    def _over_segments(self, choice: VectorAxis, unroll: int, body: Body, kind: int = tirx.ForKind.SERIAL) -> Stmt:
        statements = []
        for first, count, lanes in self._segments(choice, unroll):
            few = isinstance(count, IntImm) and int(count) < 2 * self._target.cores

            def vectors(chunk: Expr, first: Expr = first, lanes: int = lanes) -> Stmt:
                return body(first + chunk * constant(lanes, first), lanes)

            statements.append(loop(count, vectors, tirx.ForKind.SERIAL if few else kind, name="chunk"))
        return sequence(statements)

    def _ranges(self, position: Expr, lane: Expr, lanes: int) -> list[Axis]:
        found = []
        if isinstance(lane, tvm.ir.Var):
            found.append(Axis(lane, constant(lanes, lane), False))
        return found

    # -- the three forms ---------------------------------------------------------------------------------------------

    def _unroll(self) -> int:
        return 1 if work(*self._stage.values) >= HEAVY else ACCUMULATORS

    def _along_vector(self, at: Mapping[Var, Expr], choice: VectorAxis, kind: int) -> Stmt:
        body = self._reduce_vector if self._stage.reducing else self._map
        bound, self._stage = self._hoist(at, choice.axis) if not self._stage.reducing else ([], self._stage)
        loops = self._over_segments(
            choice, self._unroll(), lambda position, lanes: body({**at}, choice.axis.var, position, lanes), kind
        )
        return sequence([*bound, loops])

    def _hoist(self, at: Mapping[Var, Expr], axis: Axis) -> tuple[list[Stmt], Stage]:
        """Name what is the same in every lane and costs something (the 1/sqrt of a row) in front of the loop."""
        stage = self._stage
        written = {s.buffer for s in stage.stores}
        found: list[tuple[Expr, Expr]] = []

        def constant_along(node: Expr) -> bool:
            free = tvm.tirx.analysis.undefined_vars(node)
            inside = {axis.var, *(var for var, _ in stage.binds)}
            return not any(v in inside for v in free) and not any(n.source in written for n in loads(node))

        def visit(node: Any, mutator: Any) -> Any:
            if isinstance(node, tvm.ir.Call) and is_branch(node):
                return node
            if isinstance(node, (tirx.Let, tvm.ir.TensorLoad)):
                return node
            if isinstance(node, tvm.ir.Expr) and work(node) >= HOISTED and constant_along(node):
                name = tirx.Var("same", node.ty)
                found.append((name, substitute(node, {**self._fixed, **at})))
                return name
            return mutator.default_mutate(node)

        def change(value: Expr) -> Expr:
            return tvm_ffi.structural_mutate(value, [(tvm.ir.Expr, visit)])

        hoisted = replace(stage, stores=tuple(replace(s, value=change(s.value)) for s in stage.stores))
        return [tirx.Bind(name, value) for name, value in found], hoisted

    def _map(self, at: dict[Var, Expr], axis: Var, position: Expr, lanes: int) -> Stmt:
        def one(lane: Expr) -> Stmt:
            stage = self._at({**at, axis: position + lane}, self._ranges(position, lane, lanes))
            return self._assign(stage, lambda _, s: tirx.BufferStore(s.buffer, s.value, list(s.indices)))

        return self._lanes(lanes, one)

    def _tiled(self, square: Tile, choice: VectorAxis) -> Stmt:
        """Squares first, then the strips at the two edges that no square fills."""
        along, across, side = choice.axis, square.across, square.side
        height, width = across.size or 0, along.size or 0
        others = [a for a in self._free if a.var not in (along.var, across.var)]
        strips = Axis(tirx.Var("strip", across.extent.ty), constant(height // side, across.extent), False)
        outer = [*others, strips]

        def squares(at: Mapping[Var, Expr]) -> Stmt:
            top = at[strips.var] * constant(side, across.extent)
            place = {k: v for k, v in at.items() if k is not strips.var}
            return loop(
                constant(width // side, along.extent),
                lambda chunk: self._square(place, square, top, along, chunk * constant(side, along.extent)),
                name="chunk",
            )

        def edge(row: Axis, first: int, start: int, lanes: int) -> Stmt:
            def line(at: Mapping[Var, Expr]) -> Stmt:
                values = {k: v for k, v in at.items() if k is not row.var}
                values[across.var] = at[row.var] + constant(first, across.extent)
                return self._map(values, along.var, constant(start, along.extent), lanes)

            return nested([*others, row], line)

        def rows(count: int) -> Axis:
            return Axis(tirx.Var("line", across.extent.ty), constant(count, across.extent), False)

        full_height, full_width = height // side * side, width // side * side
        threads = shared_by_threads(outer, self._target.cores) if self._parallel else 0
        statements = [nested(outer, squares, threads)]
        if full_width < width:
            statements.append(edge(rows(height), 0, full_width, width - full_width))
        if full_height < height:
            statements += [
                edge(rows(height - full_height), full_height, start, side) for start in range(0, full_width, side)
            ]
        return sequence(statements)

    def _square(self, at: Mapping[Var, Expr], square: Tile, top: Expr, along: Axis, left: Expr) -> Stmt:
        side = square.side
        zero, one = constant(0, top), constant(1, top)
        statements: list[Stmt] = []
        columns: list[Buffer] = []
        for load in square.strided:
            dtype = str(load.source.ty.dtype)
            column = tirx.decl_buffer((side * side,), dtype, f"{load.source.name}_tile", scope="local")
            columns.append(column)
            rows = []
            for lane in range(side):
                values = {**self._fixed, **at, square.across.var: top, along.var: left + constant(lane, left)}
                first = substitute(load.indices[0], values)
                rows.append(tirx.BufferLoad(load.source, [tirx.Ramp(first, one, side)]))
            steps, names = transposed(rows)
            statements += [tirx.AllocBuffer(column), *steps]
            statements += [
                tirx.BufferStore(column, name, [tirx.Ramp(constant(place * side, zero), one, side)])
                for place, name in enumerate(names)
            ]

        def line(place: Expr) -> Stmt:
            def element(lane: Expr) -> Stmt:
                def change(n: Any) -> Expr:
                    for load, column in zip(square.strided, columns, strict=True):
                        if tvm_ffi.structural_equal(n, load):
                            return tirx.BufferLoad(column, [place * constant(side, place) + lane])
                    return n

                tiled = replace(
                    self._stage,
                    stores=tuple(replace(s, value=rewrite_loads(s.value, change)) for s in self._stage.stores),
                )
                values = {**self._fixed, **at, square.across.var: top + place, along.var: left + lane}
                store = tiled.substitute(values).stores[0]
                return tirx.BufferStore(store.buffer, store.value, list(store.indices))

            return self._lanes(side, element)

        heavy = work(*self._stage.values) >= HEAVY
        kind = tirx.ForKind.SERIAL if heavy else tirx.ForKind.UNROLLED
        return sequence([*statements, loop(constant(side, top), line, kind, name="line")])

    def _accumulators(self, lanes: int) -> list[Buffer]:
        return [
            tirx.decl_buffer((lanes,), str(s.buffer.ty.dtype), f"{s.buffer.name}_acc", scope="local")
            for s in self._stage.stores
        ]

    def _into(self, accumulators: Sequence[Buffer], lane: Expr, stage: Stage) -> Stage:
        """``stage`` with its own elements kept in accumulators."""
        place = {s.buffer: a for s, a in zip(stage.stores, accumulators, strict=True)}

        def change(expr: Expr) -> Expr:
            return rewrite_loads(expr, lambda n: tirx.BufferLoad(place[n.source], [lane]) if n.source in place else n)

        return replace(
            stage,
            stores=tuple(replace(s, value=change(s.value)) for s in stage.stores),
            binds=tuple((var, change(value)) for var, value in stage.binds),
        )

    def _reduce_vector(self, at: dict[Var, Expr], axis: Var, position: Expr, lanes: int) -> Stmt:
        """Every lane sums its own element; the sums stay in registers over all reducing axes."""
        accumulators = self._accumulators(lanes)

        def at_lane(lane: Expr, more: Mapping[Var, Expr]) -> Stage:
            return self._at({**at, axis: position + lane, **more}, self._ranges(position, lane, lanes))

        def start(lane: Expr) -> Stmt:
            inits = at_lane(lane, {}).inits
            return sequence([tirx.BufferStore(a, s.value, [lane]) for a, s in zip(accumulators, inits, strict=True)])

        def update(more: Mapping[Var, Expr]) -> Stmt:
            def one(lane: Expr) -> Stmt:
                stage = self._into(accumulators, lane, at_lane(lane, more))
                return self._assign(stage, lambda place, s: tirx.BufferStore(accumulators[place], s.value, [lane]))

            return self._lanes(lanes, one)

        def finish(lane: Expr) -> Stmt:
            stores = at_lane(lane, {}).stores
            return sequence(
                [
                    tirx.BufferStore(s.buffer, tirx.BufferLoad(a, [lane]), list(s.indices))
                    for a, s in zip(accumulators, stores, strict=True)
                ]
            )

        return sequence(
            [
                *(tirx.AllocBuffer(a) for a in accumulators),
                self._lanes(lanes, start),
                nested(self._bounded(self._stage.reducing, {**at, axis: position}), update),
                self._lanes(lanes, finish),
            ]
        )

    def _scalar(self, at: Mapping[Var, Expr]) -> Stmt:
        if not self._stage.reducing:
            stage = self._at(at, [])
            return self._assign(stage, lambda _, s: tirx.BufferStore(s.buffer, s.value, list(s.indices)))
        none = tirx.Var("none", "int64")
        return self._reduce_vector(dict(at), none, constant(0, self._stage.axes[0].extent), 1)

    def _reduce_in_lanes(self, at: Mapping[Var, Expr], choice: VectorAxis) -> Stmt:
        """Lanes share the elements to sum; they are added to each other at the end.

        Every width of vector has accumulators of its own: memory that is only ever accessed as one vector becomes
        registers, memory that is accessed in parts does not.
        """
        operators = [form[0] for form in (reduction(self._stage, s) for s in self._stage.stores) if form is not None]
        others = [a for a in self._stage.reducing if not self._is_vector(a)]
        here = self._at(at, [])
        segments = list(self._segments(choice, self._unroll()))
        by_width = {lanes: self._accumulators(lanes) for _, _, lanes in segments}
        starts = [
            identity(operator, init.value) for operator, init in zip(operators, here.inits, strict=True)
        ]

        def start(lanes: int) -> Stmt:
            return self._lanes(
                lanes,
                lambda lane: sequence(
                    [tirx.BufferStore(a, value, [lane]) for a, value in zip(by_width[lanes], starts, strict=True)]
                ),
            )

        def update(more: Mapping[Var, Expr]) -> Stmt:
            def vector(position: Expr, lanes: int) -> Stmt:
                def one(lane: Expr) -> Stmt:
                    values = {**at, **more, choice.axis.var: position + lane}
                    stage = self._at(values, self._ranges(position, lane, lanes))
                    stage = self._into(by_width[lanes], lane, stage)
                    return self._assign(stage, lambda i, s: tirx.BufferStore(by_width[lanes][i], s.value, [lane]))

                return self._lanes(lanes, one)

            return self._over_segments(choice, self._unroll(), vector)

        finish: list[Stmt] = []
        for place, (operator, store, init) in enumerate(zip(operators, here.stores, here.inits, strict=True)):
            total = init.value
            for lanes, accumulators in by_width.items():
                steps, value = combined(operator, accumulators[place], lanes)
                finish += steps
                total = operator(total, value)
            finish.append(tirx.BufferStore(store.buffer, total, list(store.indices)))
        return sequence(
            [
                *(tirx.AllocBuffer(a) for accumulators in by_width.values() for a in accumulators),
                *map(start, by_width),
                nested(self._bounded(others, at), update),
                *finish,
            ]
        )


def identity(operator: type, start: Expr) -> Expr:
    """What a lane starts from, so that combining lanes counts the start value of the reduction once."""
    neutral = {tirx.Add: 0, tirx.Mul: 1}.get(operator)
    return start if neutral is None else tirx.const(neutral, str(start.ty.dtype))


def combined(operator: type, accumulator: Buffer, lanes: int) -> tuple[list[Stmt], Expr]:
    """Statements and an expression that combine the lanes of an accumulator, halving the vector at each step."""
    steps: list[Stmt] = []

    def name(value: Expr) -> Expr:
        var = tirx.Var("half", value.ty)
        steps.append(tirx.Bind(var, value))
        return var

    def lane(vector: Expr, place: int) -> Expr:
        return tirx.Shuffle([vector], [tirx.IntImm("int32", place)])

    def part(vector: Expr, first: int, count: int) -> Expr:
        return tirx.Shuffle([vector], [tirx.IntImm("int32", first + i) for i in range(count)])

    zero, one = tirx.IntImm("int32", 0), tirx.IntImm("int32", 1)
    if lanes == 1:
        return steps, tirx.BufferLoad(accumulator, [zero])
    vector = name(tirx.BufferLoad(accumulator, [tirx.Ramp(zero, one, lanes)]))
    odd: list[Expr] = []
    while lanes > 1:
        if lanes % 2:
            odd.append(lane(vector, lanes - 1))
        lanes //= 2
        vector = name(operator(part(vector, 0, lanes), part(vector, lanes, lanes)))
    for value in odd:
        vector = operator(vector, value)
    return steps, vector
