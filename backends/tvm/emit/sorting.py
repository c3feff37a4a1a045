"""Sorting, and the largest elements of a row: a merge sort of (value, index) pairs, stable, one row per thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from shave.backends.tvm.adapter import IRBuilder, T, relax, te, tirx
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import OPAQUE, Emitter
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.kernels.base import root
from shave.backends.tvm.sizes import Size, product
from shave.ir.errors import UnsupportedError


def _sort_rows(rows: Size, columns: int, dtype: str, descending: bool) -> Any:
    """The function (x [rows, columns], values, indices int64): stable bottom-up merge sort, NaN counts as largest.

    Runs of doubling length are merged from one buffer into the other; the number of passes is known ahead.
    """
    passes = max(columns - 1, 0).bit_length()
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("sort")
        T.func_attr({"tirx.noalias": True})
        count = rows if isinstance(rows, int) else T.int64()
        x, values, indices = (
            T.match_buffer(T.arg(name, T.handle()), (count, columns), kind, layout=None)
            for name, kind in (("x", dtype), ("values", dtype), ("indices", "int64"))
        )
        with root(), T.parallel(0, count) as row:
            spare_values = T.alloc_buffer((columns,), dtype, layout=None)
            spare_indices = T.alloc_buffer((columns,), "int64", layout=None)
            with T.serial(0, columns) as i:
                T.buffer_store(values, x[row, i], [row, i])
                T.buffer_store(indices, tirx.Cast("int64", i), [row, i])
            for level in range(passes):
                _merge_pass(values, indices, spare_values, spare_indices, row, columns, 1 << level, descending)
    return builder.get()


def _merge_pass(
    values: Any, indices: Any, spare_values: Any, spare_indices: Any, row: Any, columns: int, run: int, descending: bool
) -> None:
    """Merge neighbouring sorted runs of length ``run`` of one row, by way of the spare buffers."""
    pairs = -(-columns // (2 * run))
    with T.serial(0, pairs) as pair:
        start = T.bind(pair * (2 * run))
        middle = T.bind(tirx.min(start + run, columns))
        end = T.bind(tirx.min(start + 2 * run, columns))
        cursors = T.alloc_buffer((2,), "int32", scope="local", layout=None)
        T.buffer_store(cursors, tirx.Cast("int32", start), [0])
        T.buffer_store(cursors, tirx.Cast("int32", middle), [1])
        with T.serial(0, end - start) as k:
            left, right = T.bind(cursors[0]), T.bind(cursors[1])
            a = T.bind(values[row, tirx.min(left, columns - 1)])
            b = T.bind(values[row, tirx.min(right, columns - 1)])
            with T.If(tirx.And(left < middle, tirx.Or(right >= end, tirx.Not(_before(b, a, descending))))):
                with T.Then():
                    T.buffer_store(spare_values, a, [start + k])
                    T.buffer_store(spare_indices, indices[row, left], [start + k])
                    T.buffer_store(cursors, left + 1, [0])
                with T.Else():
                    T.buffer_store(spare_values, b, [start + k])
                    T.buffer_store(spare_indices, indices[row, right], [start + k])
                    T.buffer_store(cursors, right + 1, [1])
    with T.serial(0, columns) as i:
        T.buffer_store(values, spare_values[i], [row, i])
        T.buffer_store(indices, spare_indices[i], [row, i])


def _before(a: Any, b: Any, descending: bool) -> Any:
    """Whether ``a`` must come before ``b``."""
    if "float" not in str(a.ty.dtype):
        return a > b if descending else a < b
    if descending:
        return tirx.Or(a > b, tirx.And(scalar.is_nan(a), tirx.Not(scalar.is_nan(b))))
    return tirx.Or(a < b, tirx.And(scalar.is_nan(b), tirx.Not(scalar.is_nan(a))))


def sorted_pair(emitter: Emitter, node: fx.Node, x: fx.Node, axis: int, descending: bool, kept: Any) -> list[Any]:
    """Sorted values and their indices along an axis, the first ``kept`` of them."""
    shape, dtype = emitter.result(x)
    if not shape:
        zero = emitter.te(node, lambda shape: te.compute(shape, lambda *_: tirx.const(0, "int64")), shape=())
        return [emitter.plain(x), zero]
    axis %= len(shape)
    columns = shape[axis]
    if not isinstance(columns, int) or dtype == "bool":
        raise UnsupportedError("sorting booleans or along a dynamic dimension")
    others = [size for d, size in enumerate(shape) if d != axis]
    rows = product(others)
    last = len(shape) - 1
    inward = emitter.reshape(_swapped(emitter, node, emitter.plain(x), axis, last), [rows, columns])
    function = _sort_rows(rows, columns, dtype, descending).without_attr("global_symbol")
    attributes = {"op_pattern": OPAQUE, "shave.scheduled": True}
    name = emitter.builder.add_func(function.with_attrs(attributes), "sort")
    types = [relax.TensorType([rows, columns], kind) for kind in (dtype, "int64")]
    pair = emitter.builder.emit(relax.call_tir(name, [inward], types))
    results = []
    for k in range(2):
        ordered = emitter.builder.emit(relax.TupleGetItem(pair, k))
        swapped = [*shape]
        swapped[axis], swapped[last] = swapped[last], swapped[axis]
        whole = _swapped(emitter, node, emitter.reshape(ordered, swapped), axis, last)
        wanted = [kept if d == axis else size for d, size in enumerate(shape)]
        results.append(_first(emitter, node, whole, wanted))
    return results


def _swapped(emitter: Emitter, node: fx.Node, x: Any, a: int, b: int) -> Any:
    if a == b:
        return x

    def compute(x: Any) -> Any:
        order = list(range(len(x.shape)))
        order[a], order[b] = order[b], order[a]
        return te.compute([x.shape[d] for d in order], lambda *i: x(*[i[d] for d in order]), name="swap")

    return emitter.te(node, compute, x)


def _first(emitter: Emitter, node: fx.Node, x: Any, shape: Sequence[Size]) -> Any:
    def compute(x: Any, shape: Sequence[Size]) -> Any:
        return te.compute(shape, lambda *i: x(*i), name="first")

    return emitter.te(node, compute, x, shape=list(shape))


@emits("aten.sort")
def _sort(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    x, axis = arguments["self"], arguments["dim"]
    kept = emitter.shape(x)[axis] if emitter.shape(x) else 1
    return sorted_pair(emitter, node, x, axis, bool(arguments["descending"]), kept)


@emits("aten.argsort")
def _argsort(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    x, axis = arguments["self"], arguments["dim"]
    kept = emitter.shape(x)[axis] if emitter.shape(x) else 1
    return sorted_pair(emitter, node, x, axis, bool(arguments["descending"]), kept)[1]


@emits("aten.topk")
def _topk(emitter: Emitter, node: fx.Node) -> Any:
    x, k, axis, largest, _ = emitter.arguments(node).values()
    return sorted_pair(emitter, node, x, axis, bool(largest), k)
