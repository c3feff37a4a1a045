"""Stages that reduce: sums, maxima and products whose partial results stay in vector registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from shave.backends.tvm.adapter import Expr, tirx
from shave.backends.tvm.schedule.access import linear_stride, reduction, stride
from shave.backends.tvm.schedule.loops import combined, identity, lane_range, loop, nested, sequence
from shave.backends.tvm.schedule.nest import Nest
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
    uses,
)


class Reduce(Nest):
    """What both forms share: accumulators in place of the elements that a stage reduces into."""

    def accumulators(self, lanes: int) -> list[Buffer]:
        """A vector of partial results for every store."""
        return [tirx.decl_buffer((lanes,), str(s.buffer.ty.dtype), f"{s.buffer.name}_acc") for s in self.stage.stores]

    def into(self, accumulators: Sequence[Buffer], lane: Expr, stage: Stage) -> Stage:
        """``stage`` with its own elements kept in accumulators."""
        place = {s.buffer: a for s, a in zip(stage.stores, accumulators, strict=True)}

        def change(expr: Expr) -> Expr:
            return rewrite_loads(expr, lambda n: tirx.BufferLoad(place[n.source], [lane]) if n.source in place else n)

        return replace(
            stage,
            stores=tuple(replace(s, value=change(s.value)) for s in stage.stores),
            binds=tuple((var, change(value)) for var, value in stage.binds),
        )


class ReduceVector(Reduce):
    """The vector runs over results: every lane accumulates an element of its own."""

    rule = "reduce-vector"

    def write(self) -> Stmt:
        """Loops over results, with those over what is summed inside."""
        rows = self._row_axis()
        spatial = [a for a in self.spatial if a is not rows]
        threads = self.threads(spatial)
        kind = tirx.ForKind.PARALLEL if self.parallel and not threads else tirx.ForKind.SERIAL

        def body(at: Mapping[Var, Expr]) -> Stmt:
            return self.over_segments(lambda position, lanes: self._rows(at, rows, position, lanes), kind)

        return nested(spatial, body, threads)

    def _row_axis(self) -> Axis | None:
        """An axis along which a vector that was loaded serves several accumulators (the rows of a matrix product)."""
        known = analyzer(self.stage.axes)
        for axis in reversed(self.free):
            if axis.reduces or self.is_vector(axis) or axis.size is None or axis.size < 2:
                continue
            if any(uses(a.extent, [axis.var]) for a in self.stage.axes):
                continue
            walks = [
                (
                    linear_stride(n.indices[0], axis, known),
                    stride(n.indices[0], self.choice.axis, self.choice.lanes, known),
                )
                for n in loads(*self.stage.values)
            ]
            if any(along == 1 and across == 0 for across, along in walks):
                return axis
        return None

    def _rows(self, at: Mapping[Var, Expr], rows: Axis | None, position: Expr, lanes: int) -> Stmt:
        """Several rows at once where they share what is loaded, as many as there are registers for."""
        if rows is None or rows.size is None:
            return self.accumulate([at], position, lanes)
        vectors = -(-lanes // self.choice.lanes)
        together = max(1, min(rows.size, self.target.vector_registers * 3 // 4 // vectors))

        def several(first: Expr, count: int) -> Stmt:
            places = [{**at, rows.var: first + constant(i, first)} for i in range(count)]
            return self.accumulate(places, position, lanes)

        whole, rest = divmod(rows.size, together)
        statements = []
        if whole:
            step = constant(together, rows.extent)
            statements.append(
                loop(constant(whole, rows.extent), lambda block: several(block * step, together), name=rows.var.name)
            )
        if rest:
            statements.append(several(constant(whole * together, rows.extent), rest))
        return sequence(statements)

    def accumulate(self, rows: Sequence[Mapping[Var, Expr]], position: Expr, lanes: int) -> Stmt:
        """Every lane sums its own element; the sums stay in registers over all reducing axes."""
        axis = self.choice.axis.var
        accumulators = [self.accumulators(lanes) for _ in rows]

        def at_lane(row: int, lane: Expr, more: Mapping[Var, Expr]) -> Stage:
            return self.at({**rows[row], axis: position + lane, **more}, lane_range(lane, lanes))

        def start(row: int, lane: Expr) -> Stmt:
            inits = at_lane(row, lane, {}).inits
            pairs = zip(accumulators[row], inits, strict=True)
            return sequence([tirx.BufferStore(a, s.value, [lane]) for a, s in pairs])

        def step(row: int, lane: Expr, more: Mapping[Var, Expr]) -> Stmt:
            own = accumulators[row]
            stage = self.into(own, lane, at_lane(row, lane, more))
            return self.assign(stage, lambda place, s: tirx.BufferStore(own[place], s.value, [lane]))

        def finish(row: int, lane: Expr) -> Stmt:
            pairs = zip(accumulators[row], at_lane(row, lane, {}).stores, strict=True)
            return sequence([tirx.BufferStore(s.buffer, tirx.BufferLoad(a, [lane]), list(s.indices)) for a, s in pairs])

        def each(body: Callable[..., Stmt], *more: Mapping[Var, Expr]) -> Stmt:
            def of(row: int) -> Stmt:
                return self.lanes(lanes, lambda lane: body(row, lane, *more))

            return sequence([of(row) for row in range(len(rows))])

        reducing = self.bounded(self.stage.reducing, {**rows[0], axis: position})
        return sequence(
            [
                *(tirx.AllocBuffer(a) for own in accumulators for a in own),
                each(start),
                nested(reducing, lambda more: each(step, more)),
                each(finish),
            ]
        )


class ReduceLanes(Reduce):
    """The vector runs over what is summed: lanes are added to each other at the end.

    Every width of vector has accumulators of its own: memory that is only ever accessed as one vector becomes
    registers, memory that is accessed in parts does not.
    """

    rule = "reduce-lanes"

    def write(self) -> Stmt:
        """Loops over results; each is summed by the lanes of one vector."""
        return nested(self.spatial, self._element, self.threads(self.spatial))

    def _element(self, at: Mapping[Var, Expr]) -> Stmt:
        operators = [form[0] for form in (reduction(self.stage, s) for s in self.stage.stores) if form is not None]
        others = [a for a in self.stage.reducing if not self.is_vector(a)]
        here = self.at(at, [])
        segments = list(self.segments())
        by_width = {lanes: self.accumulators(lanes) for _, _, lanes in segments}
        starts = [identity(operator, init.value) for operator, init in zip(operators, here.inits, strict=True)]

        def start(lanes: int) -> Stmt:
            return self.lanes(
                lanes,
                lambda lane: sequence(
                    [tirx.BufferStore(a, value, [lane]) for a, value in zip(by_width[lanes], starts, strict=True)]
                ),
            )

        def update(more: Mapping[Var, Expr]) -> Stmt:
            def vector(position: Expr, lanes: int) -> Stmt:
                def one(lane: Expr) -> Stmt:
                    values = {**at, **more, self.choice.axis.var: position + lane}
                    stage = self.at(values, lane_range(lane, lanes))
                    stage = self.into(by_width[lanes], lane, stage)
                    return self.assign(stage, lambda i, s: tirx.BufferStore(by_width[lanes][i], s.value, [lane]))

                return self.lanes(lanes, one)

            return self.over_segments(vector)

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
                nested(self.bounded(others, at), update),
                *finish,
            ]
        )
