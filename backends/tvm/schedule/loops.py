"""Loops as expressions of Python: one loop, several nested, several fused into one that threads share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from shave.backends.tvm.adapter import Expr, tirx, tvm
from shave.backends.tvm.schedule.stage import Axis, Buffer, IntImm, Stmt, Var, constant


def loop(extent: Expr, body: Callable[[Var], Stmt], kind: int = tirx.ForKind.SERIAL, name: str = "i") -> Stmt:
    """A loop from 0, or the body alone where there is one iteration."""
    if isinstance(extent, IntImm) and int(extent) == 1:
        return body(constant(0, extent))
    var = tirx.Var(name, extent.ty)
    return tirx.For(var, constant(0, extent), extent, kind, body(var))


def sequence(statements: Sequence[Stmt]) -> Stmt:
    """Statements one after another."""
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def lane_range(lane: Expr, lanes: int) -> list[Axis]:
    """The lane as an axis, for the analyzer; nothing where the one lane is a constant."""
    return [Axis(lane, constant(lanes, lane), False)] if isinstance(lane, tvm.ir.Var) else []


def iterations(axes: Sequence[Axis]) -> Expr:
    """Number of iterations of several axes together."""
    extent = axes[0].extent
    for axis in axes[1:]:
        extent = extent * axis.extent
    return tvm.sym.Analyzer().simplify(extent)


def split(axes: Sequence[Axis], index: Expr) -> dict[Var, Expr]:
    """Where each of several axes is in iteration ``index`` of them together."""
    values = {}
    for place, axis in enumerate(reversed(axes)):
        values[axis.var] = index if place == len(axes) - 1 else index % axis.extent
        index = index // axis.extent
    return values


def fused(axes: Sequence[Axis], body: Callable[[Mapping[Var, Expr]], Stmt], kind: int) -> Stmt:
    """One loop over the iterations of several axes."""
    return loop(iterations(axes), lambda index: body(split(axes, index)), kind, name="row")


def in_tasks(
    axes: Sequence[Axis], tasks: int, buffers: Sequence[Stmt], body: Callable[[Mapping[Var, Expr]], Stmt]
) -> Stmt:
    """One loop over the iterations of several axes that threads share in stretches; each has its own ``buffers``."""
    extent = iterations(axes)
    each = extent // constant(tasks, extent) + constant(1, extent)

    def task(number: Expr) -> Stmt:
        first = number * each
        count = tirx.Max(tirx.Min(each, extent - first), constant(0, extent))
        return sequence([*buffers, loop(count, lambda i: body(split(axes, first + i)), name="row")])

    return loop(constant(tasks, extent), task, tirx.ForKind.PARALLEL, name="task")


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
