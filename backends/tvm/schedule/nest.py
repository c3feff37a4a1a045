"""Write one stage as loops: vectors along one axis, threads along the outer ones, tails that are vectors too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import tvm_ffi

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, tirx, tvm
from shave.backends.tvm.schedule.access import VectorAxis, breakpoints
from shave.backends.tvm.schedule.loops import lane_range, loop, nested, sequence, shared_by_threads
from shave.backends.tvm.schedule.stage import (
    Axis,
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
    substitute,
    work,
)

UNROLL = 4
"""Vectors in flight: enough independent sums to hide the latency of an addition, and to amortise the loop."""
HEAVY = 16
"""Operations on one element from which a single vector at a time keeps the ports busy (and registers scarce)."""
HOISTED = 4
"""Operations from which a value that is the same in all lanes is computed once, before the loop."""

Body = Callable[[Expr, int], Stmt]
"""Statements for the ``lanes`` elements of the vector axis that start at a position."""


class Nest:
    """Writer of the loops of one stage; a subclass for each form.

    Args:
        stage: What to compute, on one-dimensional buffers.
        fixed: Values of the axes that loops outside of this nest already run over.
        choice: The axis that becomes vectors.
        target: Gives the width of vectors and the number of cores.
        parallel: Whether threads share this nest.
    """

    rule: ClassVar[str]

    def __init__(
        self, stage: Stage, fixed: Mapping[Var, Expr], choice: VectorAxis, target: Target, parallel: bool
    ) -> None:
        self.stage = stage
        self.fixed = dict(fixed)
        self.choice = choice
        self.target = target
        self.parallel = parallel
        self.free = [a for a in stage.axes if a.var not in fixed]
        self._chunk: list[Axis] = []  # the loop over vectors that is being written, for the ranges it gives

    def write(self) -> Stmt:
        """The loops."""
        raise NotImplementedError

    @property
    def spatial(self) -> list[Axis]:
        """Axes that are left for ordinary loops around the vectors."""
        return [a for a in self.free if not a.reduces and not self.is_vector(a)]

    def is_vector(self, axis: Axis) -> bool:
        """Whether ``axis`` is the one that becomes vectors."""
        return bool(axis.var.same_as(self.choice.axis.var))

    def threads(self, axes: Sequence[Axis]) -> int:
        """How many leading ones of ``axes`` threads share."""
        return shared_by_threads(axes, self.target.cores) if self.parallel else 0

    def at(self, values: Mapping[Var, Expr], ranges: Sequence[Axis]) -> Stage:
        """The stage with its axes at ``values``; ``ranges`` bounds the variables in them, so conditions fold."""
        stage = self.stage.substitute({**self.fixed, **values})
        known = analyzer([*ranges, *self._chunk])
        return stage.map(lambda e: fold_conditions(e, known))

    def bounded(self, axes: Sequence[Axis], at: Mapping[Var, Expr]) -> list[Axis]:
        """Axes with their extents where outer axes are at ``at`` (windows of uneven size)."""
        values = {**self.fixed, **at}
        return [replace(a, extent=substitute(a.extent, values)) for a in axes]

    def assign(self, stage: Stage, store_to: Callable[[int, Store], Stmt]) -> Stmt:
        """The stores of one iteration, ``store_to(place, store)`` for each, after the values they share."""
        renamed: dict[Var, Expr] = {}
        statements = []
        for var, value in stage.binds:
            renamed[var] = tirx.Var(var.name, var.ty)
            statements.append(
                tirx.Bind(renamed[var], substitute(value, {k: v for k, v in renamed.items() if k is not var}))
            )
        for place, store in enumerate(stage.stores):
            rounded, value = name_rounded(substitute(store.value, renamed))
            statements += [*rounded, store_to(place, replace(store, value=value))]
        return sequence(statements)

    def lanes(self, lanes: int, body: Callable[[Expr], Stmt]) -> Stmt:
        """One vector: ``body`` for every lane."""
        return loop(constant(lanes, self.choice.axis.extent), body, tirx.ForKind.VECTORIZED, name="lane")

    @property
    def unroll(self) -> int:
        """Vectors to handle at a time."""
        return 1 if work(*self.stage.values) >= HEAVY else UNROLL

    def segments(self) -> Iterator[tuple[Expr, Expr, int]]:
        """(first element, number of vectors, lanes of each): full vectors, then what is left as narrower ones."""
        axis, native = self.choice.axis, self.choice.lanes
        wide = native * self.unroll
        size = axis.size
        if size is None:
            whole = axis.extent // constant(wide, axis.extent)
            yield constant(0, axis.extent), whole, wide
            yield whole * constant(wide, axis.extent), axis.extent % constant(wide, axis.extent), 1
            return
        bounds = [0, *(breakpoints(self.stage, axis) or []), size]
        for low, high in pairwise(bounds):
            for lanes in (wide, native):
                count = (high - low) // lanes
                if count:
                    yield constant(low, axis.extent), constant(count, axis.extent), lanes
                    low += count * lanes
            if high > low:
                yield constant(low, axis.extent), constant(1, axis.extent), high - low

    def over_segments(self, body: Body, kind: int = tirx.ForKind.SERIAL) -> Stmt:
        """Loops over the vector axis."""
        statements = []
        for first, count, lanes in self.segments():
            few = isinstance(count, IntImm) and int(count) < 2 * self.target.cores

            def vectors(chunk: Expr, first: Expr = first, count: Expr = count, lanes: int = lanes) -> Stmt:
                self._chunk = [Axis(chunk, count, False)] if isinstance(chunk, tvm.ir.Var) else []
                return body(first + chunk * constant(lanes, first), lanes)

            statements.append(loop(count, vectors, tirx.ForKind.SERIAL if few else kind, name="chunk"))
        return sequence(statements)


class Map(Nest):
    """A stage without reduction: every iteration stores its own elements."""

    rule = "map"

    def write(self) -> Stmt:
        """Loops over rows, and vectors inside of each."""
        same, self.stage = hoist(self.stage, self.choice.axis) if self.choice.lanes > 1 else ([], self.stage)
        threads = self.threads(self.spatial)
        kind = tirx.ForKind.PARALLEL if self.parallel and not threads else tirx.ForKind.SERIAL

        def row(at: Mapping[Var, Expr]) -> Stmt:
            values = {**self.fixed, **at}
            bound = [tirx.Bind(name, substitute(value, values)) for name, value in same]
            loops = self.over_segments(lambda position, lanes: self.vector(at, position, lanes), kind)
            return sequence([*bound, loops])

        return nested(self.spatial, row, threads)

    def vector(self, at: Mapping[Var, Expr], position: Expr, lanes: int) -> Stmt:
        """One vector of elements."""

        def one(lane: Expr) -> Stmt:
            stage = self.at({**at, self.choice.axis.var: position + lane}, lane_range(lane, lanes))
            return self.assign(stage, lambda _, s: tirx.BufferStore(s.buffer, s.value, list(s.indices)))

        return self.lanes(lanes, one)


def name_rounded(value: Expr) -> tuple[list[Stmt], Expr]:
    """Name what is rounded to bfloat16: TVM writes the operand of that cast several times, names in it included."""
    binds: list[Stmt] = []

    def visit(node: Any, mutator: Any) -> Any:
        if isinstance(node, tirx.Let) or (isinstance(node, tvm.ir.Call) and is_branch(node)):
            return node  # a name must not leave the place where its parts are defined
        node = mutator.default_mutate(node)
        if isinstance(node, tirx.Cast) and str(node.ty.dtype) == "bfloat16" and work(node.value):
            name = tirx.Var("rounded", node.value.ty)
            binds.append(tirx.Bind(name, node.value))
            return tirx.Cast("bfloat16", name)
        return node

    return binds, tvm_ffi.structural_mutate(value, [(tvm.ir.Expr, visit)])


def hoist(stage: Stage, axis: Axis) -> tuple[list[tuple[Var, Expr]], Stage]:
    """Name what is the same along ``axis`` and costs something (the 1/sqrt of a row), to compute it before the loop."""
    found: list[tuple[Var, Expr]] = []
    written = {s.buffer for s in stage.stores}
    inside = {axis.var, *(var for var, _ in stage.binds)}

    def invariant(node: Expr) -> bool:
        free = tvm.tirx.analysis.undefined_vars(node)
        return not any(v in inside for v in free) and not any(n.source in written for n in loads(node))

    def visit(node: Any, mutator: Any) -> Any:
        if isinstance(node, (tirx.Let, tvm.ir.TensorLoad)) or (isinstance(node, tvm.ir.Call) and is_branch(node)):
            return node  # what a branch guards may not be evaluated without it
        if work(node) >= HOISTED and invariant(node):
            name = tirx.Var("same", node.ty)
            found.append((name, node))
            return name
        return mutator.default_mutate(node)

    def change(value: Expr) -> Expr:
        return tvm_ffi.structural_mutate(value, [(tvm.ir.Expr, visit)])

    return found, replace(stage, stores=tuple(replace(s, value=change(s.value)) for s in stage.stores))
