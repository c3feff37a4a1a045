"""Inlining: put the value of an elementwise stage where it is read, so that it is never written to memory.

A stage is inlined into its readers when this saves its pass over memory without repeating work that matters:

* its value is a load, a cast, a pad, or other arithmetic that is cheaper than the store and the load it replaces; or
* nothing but one place in one stage reads it, element for element.

What remains are reductions, values that cost something and are read again and again (the exponentials of a softmax),
and outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tvm_ffi

from shave.backends.tvm.adapter import Expr, tirx, tvm
from shave.backends.tvm.schedule.stage import (
    CHEAP,
    Buffer,
    IntImm,
    Stage,
    analyzer,
    fold_conditions,
    is_branch,
    loads,
    rewrite_loads,
    substitute,
    uses,
    work,
)

LARGEST_VALUE = 400
"""Operations a value may grow to: beyond this, compile time and register pressure cost more than memory does."""


def inline(stages: Sequence[Stage], intermediate: set[Buffer]) -> list[Stage]:
    """Inline what is worth inlining; the order of the remaining stages is kept.

    Args:
        stages: Loop nests in the order in which they run.
        intermediate: Buffers that live only inside of the function.
    """
    remaining = list(stages)
    for producer in stages:
        buffer = producer.stores[0].buffer
        if not _injective(producer) or buffer not in intermediate:
            continue
        readers = [s for s in remaining if any(load.source.same_as(buffer) for load in s.reads)]
        if readers and all(r is not producer and _worth(producer, r, len(readers)) for r in readers):
            remaining = [_into(s, producer) if s in readers else s for s in remaining if s is not producer]
            # Later producers may have changed: take them from the new list.
            return inline(remaining, intermediate)
    return remaining


def _injective(stage: Stage) -> bool:
    return not stage.reducing and len(stage.stores) == 1 and not stage.binds


def _worth(producer: Stage, reader: Stage, readers: int) -> bool:
    store = producer.stores[0]
    if any(load.source.same_as(store.buffer) and loads(*load.indices) for load in reader.reads):
        # Read through an index that is itself data: the value would have to be computed for any index.
        return not work(store.value)
    sites = [load for load in reader.reads if load.source.same_as(store.buffer)]
    cost = work(store.value)
    if cost + work(*reader.values) > LARGEST_VALUE:
        return False
    padded = _guarded(store.value)
    if padded and reader.reducing:
        # Where windows overlap along the vector, conditions differ from lane to lane: a padded copy is better. Where
        # the vector runs over another axis they are one scalar branch a window.
        return _conditions_free_of(producer, reader, sites)
    if cost <= CHEAP or (padded and cost <= 3 * CHEAP):
        return True
    repeats = reader.iterations > 2 * producer.iterations
    same_site = all(tvm_ffi.structural_equal(list(s.indices), list(sites[0].indices)) for s in sites)
    return readers == 1 and same_site and not repeats


def _guarded(value: Expr) -> bool:
    found: list[Any] = []
    tvm_ffi.structural_walk(
        value,
        [(tvm.ir.Call, lambda n: found.append(n) if is_branch(n) else None)],
    )
    return bool(found)


def _conditions_free_of(producer: Stage, reader: Stage, sites: Sequence[Any]) -> bool:
    """Whether the innermost axis of the reader's output takes no part in the conditions of the producer."""
    store = producer.stores[0]
    last = reader.spatial[-1].var if reader.spatial else None
    conditions: list[Expr] = []
    tvm_ffi.structural_walk(
        store.value, [((tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ), lambda n: conditions.append(n))]
    )
    by_index = dict(zip(store.indices, range(len(store.indices)), strict=True))
    if last is None:
        return False
    for axis in producer.axes:
        if any(uses(c, [axis.var]) for c in conditions):
            position = by_index[axis.var]
            if any(uses(site.indices[position], [last]) for site in sites):
                return False
    return True


def _into(reader: Stage, producer: Stage) -> Stage:
    """``reader`` with the loads from the producer's buffer replaced by the producer's value."""
    store = producer.stores[0]
    known = analyzer(reader.axes)

    def value_at(indices: Sequence[Expr]) -> Expr:
        places = zip(store.indices, indices, strict=True)
        return substitute(store.value, {var: index for var, index in places if not isinstance(var, IntImm)})

    def change(expr: Expr) -> Expr:
        sites = [load for load in loads(expr) if load.source.same_as(store.buffer)]
        if not sites:
            return expr
        shared = len(sites) > 1 and work(store.value) > 1 and not _guarded(expr)
        if shared and all(tvm_ffi.structural_equal(list(s.indices), list(sites[0].indices)) for s in sites):
            name = tirx.Var(producer.name.lower(), store.value.ty)
            body = rewrite_loads(expr, lambda n: name if n.source.same_as(store.buffer) else n)
            return tirx.Let(name, fold_conditions(value_at(sites[0].indices), known), body)
        replaced = rewrite_loads(expr, lambda n: value_at(n.indices) if n.source.same_as(store.buffer) else n)
        return fold_conditions(replaced, known)

    return replace(
        reader,
        stores=tuple(replace(s, value=change(s.value)) for s in reader.stores),
        binds=tuple((var, change(value)) for var, value in reader.binds),
    )
