"""The loop nests of a PrimFunc as data: one ``Stage`` per block, and rewriting of the expressions inside.

TVM's legaliser writes a tensor expression as a perfect nest of serial loops around one block. Here such a nest is its
axes and the values it stores; everything that another module decides about it (what to inline, which axis to make a
vector, what shares a loop) is a question about these, and the loops are written anew at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import tvm_ffi

from shave.backends.tvm.adapter import Expr, tirx, tvm

Var = Any
Buffer = Any
Stmt = Any

TensorLoad = tvm.ir.TensorLoad
IntImm = tirx.IntImm
TRANSCENDENTAL = frozenset(
    f"tirx.{name}"
    for name in [
        "exp",
        "exp2",
        "exp10",
        "log",
        "log2",
        "log10",
        "log1p",
        "tanh",
        "sigmoid",
        "erf",
        "pow",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "asinh",
        "acosh",
        "atanh",
    ]
)


CHEAP = 3
"""Operations that cost less than a store and a load of the value."""


class Unsupported(Exception):
    """A statement is not a loop nest of the form that this package rewrites; the message says why."""


@dataclass(frozen=True)
class Axis:
    """One loop: its variable, its number of iterations (starting at 0), and whether iterations accumulate."""

    var: Var
    extent: Expr
    reduces: bool

    @property
    def size(self) -> int | None:
        """Number of iterations, ``None`` where it is only known at run time."""
        return int(self.extent) if isinstance(self.extent, IntImm) else None


@dataclass(frozen=True)
class Store:
    """``buffer[indices] = value``."""

    buffer: Buffer
    indices: tuple[Expr, ...]
    value: Expr


@dataclass(frozen=True)
class Stage:
    """One loop nest.

    Attributes:
        name: Name of the block it came from.
        axes: Loops, outermost first.
        stores: What every iteration stores.
        inits: For reductions, what is stored before the first iteration of the reducing axes.
        binds: Values named before the stores, in order.
    """

    name: str
    axes: tuple[Axis, ...]
    stores: tuple[Store, ...]
    inits: tuple[Store, ...] = ()
    binds: tuple[tuple[Var, Expr], ...] = ()

    @property
    def spatial(self) -> tuple[Axis, ...]:
        """Axes whose iterations are independent of each other."""
        return tuple(a for a in self.axes if not a.reduces)

    @property
    def reducing(self) -> tuple[Axis, ...]:
        """Axes whose iterations accumulate into the same elements."""
        return tuple(a for a in self.axes if a.reduces)

    @property
    def values(self) -> tuple[Expr, ...]:
        """Every expression that is evaluated in an iteration, indices of stores not included."""
        return tuple(value for _, value in self.binds) + tuple(s.value for s in self.stores)

    @property
    def reads(self) -> list[Any]:
        """Every load from a buffer, also those that only find out where to store."""
        return loads(*self.values, *(i for s in self.stores for i in s.indices))

    @property
    def iterations(self) -> int:
        """Number of iterations; an axis of unknown extent counts as 64."""
        return math.prod(64 if a.size is None else a.size for a in self.axes)

    def map(self, change: Callable[[Expr], Expr]) -> Stage:
        """The same stage with ``change`` applied to every expression in it."""

        def store(s: Store) -> Store:
            return Store(s.buffer, tuple(change(i) for i in s.indices), change(s.value))

        return replace(
            self,
            stores=tuple(store(s) for s in self.stores),
            inits=tuple(store(s) for s in self.inits),
            binds=tuple((var, change(value)) for var, value in self.binds),
        )

    def substitute(self, values: Mapping[Var, Expr]) -> Stage:
        """The same stage with variables replaced (axes stay as they are)."""
        return self.map(lambda e: substitute(e, values))


def constant(value: int, like: Expr) -> Expr:
    """An integer of the type of ``like``."""
    return IntImm(str(like.ty.dtype), value)


def substitute(expr: Expr, values: Mapping[Var, Expr]) -> Expr:
    """``expr`` with variables replaced."""
    if not values:
        return expr
    return tvm_ffi.structural_map(expr, [(tvm.ir.Var, lambda v: values.get(v, v))])


def rewrite_loads(expr: Expr, change: Callable[[Any], Expr]) -> Expr:
    """``expr`` with every load from a buffer replaced by ``change(load)``."""
    return tvm_ffi.structural_map(expr, [(TensorLoad, change)])


def loads(*exprs: Expr) -> list[Any]:
    """Every load from a buffer, loads inside indices included, in the order of evaluation."""
    found: list[Any] = []
    for expr in exprs:
        tvm_ffi.structural_walk(expr, [(TensorLoad, lambda n: found.append(n))])
    return found


def uses(expr: Expr, variables: Iterable[Var]) -> bool:
    """Whether any of ``variables`` occurs in ``expr``."""
    wanted = set(variables)
    found: list[Var] = []
    tvm_ffi.structural_walk(expr, [(tvm.ir.Var, lambda v: found.append(v) if v in wanted else None)])
    return bool(found)


def work(*exprs: Expr) -> int:
    """Rough number of arithmetic operations on data (indices and conditions on them are free)."""
    total = 0

    def visit(node: Any, visitor: Any) -> None:
        nonlocal total
        if isinstance(node, TensorLoad):
            return  # the indices of a load are not data
        if isinstance(node, tvm.ir.Call):
            name = getattr(node.op, "name", "")
            total += 20 if name in TRANSCENDENTAL else 1
        elif isinstance(node, (tirx.Div, tirx.Mod)):
            total += 4
        elif isinstance(node, tvm.ir.Expr) and not isinstance(node, (tvm.ir.Var, tirx.IntImm, tirx.FloatImm, tirx.Let)):
            total += 1
        visitor.default_visit(node)

    for expr in exprs:
        tvm_ffi.structural_visit(expr, [(tvm.ir.Expr, visit)])
    return total


def is_branch(node: Any) -> bool:
    """Whether a call evaluates only one of its sides (``T.if_then_else``)."""
    return getattr(node.op, "name", "") == "prim.if_then_else"


def _in_bounds(load: Any, known: Any) -> bool:
    return not loads(*load.indices) and all(
        known.can_prove(tirx.all(index >= 0, index < extent))
        for index, extent in zip(load.indices, load.source.shape, strict=True)
    )


def analyzer(axes: Iterable[Axis]) -> Any:
    """An analyzer that knows the range of every axis."""
    known = tvm.sym.Analyzer()
    for axis in axes:
        known.bind(axis.var, tvm.ir.Range(constant(0, axis.extent), axis.extent))
    return known


def fold_conditions(expr: Expr, known: Any) -> Expr:
    """``expr`` with conditions that are decided by the ranges of the axes folded away, and indices simplified."""
    comparisons = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)

    def compare(node: Any) -> Expr:
        if "int" not in str(node.a.ty.dtype) or loads(node):
            return node
        return known.simplify(node)

    def truth(node: Any) -> bool | None:
        return bool(int(node)) if isinstance(node, IntImm) else None

    def logical(node: Any) -> Expr:
        left, right = truth(node.a), truth(node.b)
        absorbing = isinstance(node, tirx.Or)
        if absorbing in (left, right):
            return IntImm("bool", int(absorbing))
        if left is not None:
            return node.b
        return node.a if right is not None else node

    def select(node: Any) -> Expr:
        decided = truth(node.condition)
        return node if decided is None else (node.true_value if decided else node.false_value)

    def call(node: Any) -> Expr:
        if not is_branch(node):
            return node
        condition, then, otherwise = node.args
        decided = truth(condition)
        if decided is not None:
            return then if decided else otherwise
        # Both sides may be evaluated: a select, which is one instruction for a whole vector.
        safe = all(_in_bounds(n, known) for n in loads(then, otherwise)) and work(then, otherwise) <= CHEAP
        return tirx.Select(condition, then, otherwise) if safe else node

    def load(node: Any) -> Expr:
        return tirx.BufferLoad(node.source, [known.simplify(i) if not loads(i) else i for i in node.indices])

    return tvm_ffi.structural_map(
        expr,
        [
            (comparisons, compare),
            ((tirx.And, tirx.Or), logical),
            (tirx.Select, select),
            (tvm.ir.Call, call),
            (TensorLoad, load),
        ],
    )


def read_stage(stmt: Stmt) -> Stage:
    """Read one loop nest.

    Raises:
        Unsupported: It is not a perfect nest of serial loops around one block of stores.
    """
    axes: list[Axis] = []
    values: dict[Var, Expr] = {}
    while True:
        while isinstance(stmt, tirx.For):
            if stmt.kind != tirx.ForKind.SERIAL or not (isinstance(stmt.min, IntImm) and int(stmt.min) == 0):
                raise Unsupported("a loop that is already scheduled")
            axes.append(Axis(stmt.loop_var, substitute(stmt.extent, values), False))
            stmt = stmt.body
        if not isinstance(stmt, tvm.s_tir.SBlockRealize):
            raise Unsupported(f"{type(stmt).__name__} where a block was expected")
        block = stmt.block
        if not (isinstance(stmt.predicate, IntImm) and int(stmt.predicate)):
            raise Unsupported(f"block {block.name_hint} runs under a condition")
        if block.alloc_buffers or block.match_buffers:
            raise Unsupported(f"block {block.name_hint} holds buffers of its own")
        for iterator, value in zip(block.iter_vars, stmt.iter_values, strict=True):
            if iterator.iter_type not in (0, 2):
                raise Unsupported(f"block {block.name_hint} has an axis that is neither spatial nor reducing")
            values[iterator.var] = substitute(value, values)
            if iterator.iter_type == 2:
                axes = [replace(a, reduces=a.reduces or uses(values[iterator.var], [a.var])) for a in axes]
        if not isinstance(block.body, (tirx.For, tvm.s_tir.SBlockRealize)):
            break
        stmt = block.body  # a block inside of a block: the extents of the inner loops depend on the outer axes
    binds, stores = _straight_line(block.body, block.name_hint)
    init_binds, inits = ([], []) if block.init is None else _straight_line(block.init, block.name_hint)
    if init_binds or (any(a.reduces for a in axes) and not inits):
        raise Unsupported(f"block {block.name_hint} reduces without a plain start value")
    stage = Stage(block.name_hint, tuple(axes), tuple(stores), tuple(inits), tuple(binds)).substitute(values)
    stage = simplify(stage)
    _check_races(stage)
    return stage


def _straight_line(stmt: Stmt, name: str) -> tuple[list[tuple[Var, Expr]], list[Store]]:
    binds: list[tuple[Var, Expr]] = []
    stores: list[Store] = []
    for s in stmt.seq if isinstance(stmt, tirx.SeqStmt) else [stmt]:
        if isinstance(s, tirx.Bind) and not stores:
            binds.append((s.var, s.value))
        elif isinstance(s, tirx.BufferStore):
            stores.append(Store(s.buffer, tuple(s.indices), s.value))
        else:
            raise Unsupported(f"block {name} holds a {type(s).__name__}")
    return binds, stores


def _start_from_inits(stage: Stage) -> Stage:
    """A reduction over a single element is a plain stage: what it adds to is what it starts from."""
    starts = {s.buffer: s.value for s in stage.inits}

    def change(expr: Expr) -> Expr:
        return rewrite_loads(expr, lambda n: starts.get(n.source, n))

    return replace(
        stage,
        stores=tuple(replace(s, value=change(s.value)) for s in stage.stores),
        binds=tuple((var, change(value)) for var, value in stage.binds),
        inits=(),
    )


def _check_races(stage: Stage) -> None:
    """Every spatial axis must own its elements: iterations may not meet in an element, nor read each other's."""
    for store in stage.stores:
        indices = [i for i in store.indices if not isinstance(i, IntImm)]
        owners = {axis.var for axis in stage.spatial}
        if not all(isinstance(i, tvm.ir.Var) for i in indices) or {*indices} != owners or len(indices) != len(owners):
            raise Unsupported(f"block {stage.name} does not store by its own axes")
        for load in loads(*stage.values):
            if load.source.same_as(store.buffer) and not _same(load.indices, store.indices):
                raise Unsupported(f"block {stage.name} reads what other iterations of it write")


def _same(a: Iterable[Expr], b: Iterable[Expr]) -> bool:
    return all(tvm_ffi.structural_equal(x, y) for x, y in zip(a, b, strict=True))


def simplify(stage: Stage) -> Stage:
    """Drop axes of one iteration, simplify indices, decide conditions that the extents decide."""
    units = {a.var: constant(0, a.extent) for a in stage.axes if a.size == 1}
    kept = tuple(a for a in stage.axes if a.size != 1)
    known = analyzer(kept)
    if stage.inits and not any(a.reduces for a in kept):
        stage = _start_from_inits(stage)

    def change(expr: Expr) -> Expr:
        expr = substitute(expr, units)
        return known.simplify(expr) if isinstance(expr, tvm.ir.Var) else fold_conditions(expr, known)

    kept = tuple(replace(a, extent=known.simplify(substitute(a.extent, units))) for a in kept)
    return replace(stage.map(change), axes=kept)
