"""Operators that read or write at places given by tensors.

A negative index counts from the end, as in torch. Where torch raises for an index out of range, the nearest valid one
is taken: compiled code never reads or writes outside of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from shave.backends.tvm.adapter import te, tirx, topi
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import Emitter
from shave.backends.tvm.emit.movement import slice_start
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.sizes import Size, product
from shave.ir.errors import UnsupportedError


def safe(index: Any, size: Any) -> Any:
    """Wrap a negative index and keep any index within [0, size)."""
    index = scalar.cast(index, "int64")
    wrapped = tirx.Select(index < 0, index + size, index)
    return tirx.max(tirx.min(wrapped, size - tirx.const(1, "int64")), tirx.const(0, "int64"))


@emits("aten.embedding")
def _embedding(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    table, rows = arguments["weight"], arguments["indices"]

    def compute(table: Any, rows: Any, shape: Sequence[Size]) -> Any:
        return te.compute(shape, lambda *i: table(safe(rows(*i[:-1]), table.shape[0]), i[-1]), name="embedding")

    return emitter.te(node, compute, emitter.plain(table), emitter.plain(rows), shape=emitter.shape(node))


@emits("aten.index_select")
def _index_select(emitter: Emitter, node: fx.Node) -> Any:
    x, axis, index = emitter.arguments(node).values()
    axis %= max(len(emitter.shape(x)), 1)
    rank_0 = not emitter.shape(index)

    def compute(x: Any, index: Any, shape: Sequence[Size]) -> Any:
        def element(*i: Any) -> Any:
            where = index() if rank_0 else index(i[axis])
            return x(*i[:axis], safe(where, x.shape[axis]), *i[axis + 1 :])

        return te.compute(shape, element, name="index_select")

    return emitter.te(node, compute, emitter.plain(x), emitter.plain(index), shape=emitter.shape(node))


@emits("aten.gather")
def _gather(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    x, axis, index = arguments["self"], arguments["dim"], arguments["index"]
    if not emitter.shape(x):
        return emitter.plain(x)
    axis %= len(emitter.shape(x))

    def compute(x: Any, index: Any, shape: Sequence[Size]) -> Any:
        return te.compute(shape, lambda *i: x(*i[:axis], safe(index(*i), x.shape[axis]), *i[axis + 1 :]), name="gather")

    return emitter.te(node, compute, emitter.plain(x), emitter.plain(index), shape=emitter.shape(node))


@emits("aten.index", "aten._unsafe_index")
def _index(emitter: Emitter, node: fx.Node) -> Any:
    x, indices = emitter.arguments(node).values()
    picks = _Picks(emitter, x, indices)

    def compute(x: Any, *tensors: Any, shape: Sequence[Size]) -> Any:
        return te.compute(shape, lambda *i: x(*picks.source(i, tensors, x.shape)), name="index")

    return emitter.te(node, compute, emitter.plain(x), *picks.variables, shape=emitter.shape(node))


class _Picks:
    """Advanced indexing: some axes of a tensor are indexed by (broadcast) integer tensors.

    The axes of the index tensors stand where the indexed axes stood if those are adjacent, and in front otherwise.
    """

    def __init__(self, emitter: Emitter, x: fx.Node, indices: Sequence[Any]) -> None:
        self.rank = len(emitter.shape(x))
        self.axes = [axis for axis, index in enumerate(indices) if index is not None]
        nodes = [index for index in indices if index is not None]
        if any(str(emitter.dtype(n)) == "bool" for n in nodes):
            raise UnsupportedError("an index of booleans gives a size that depends on data")
        self.variables = [emitter.plain(n) for n in nodes]
        self.shapes = [emitter.shape(n) for n in nodes]
        self.index_rank = max((len(s) for s in self.shapes), default=0)
        adjacent = self.axes == list(range(self.axes[0], self.axes[0] + len(self.axes))) if self.axes else True
        self.position = self.axes[0] if self.axes and adjacent else 0

    def result_shape(self, sizes: Sequence[Size]) -> list[Size]:
        """Extents of what the indices pick from a tensor of the given extents."""
        picked: list[Size] = [1] * self.index_rank
        for have in self.shapes:
            for k, size in enumerate(reversed(have), 1):
                if not (isinstance(size, int) and size == 1):
                    picked[-k] = size
        kept = [size for axis, size in enumerate(sizes) if axis not in self.axes]
        return [*kept[: self.position], *picked, *kept[self.position :]]

    def source(self, index: Sequence[Any], tensors: Sequence[Any], sizes: Sequence[Any]) -> list[Any]:
        """Where in the tensor the element of the result at ``index`` comes from."""
        inner = index[self.position : self.position + self.index_rank]
        outer = iter([*index[: self.position], *index[self.position + self.index_rank :]])
        picked: list[Any] = []
        for axis in range(self.rank):
            if axis not in self.axes:
                picked.append(next(outer))
                continue
            k = self.axes.index(axis)
            have = self.shapes[k]
            last = inner[len(inner) - len(have) :]
            place = [0 if isinstance(s, int) and s == 1 else i for s, i in zip(have, last, strict=True)]
            picked.append(safe(tensors[k](*place), sizes[axis]))
        return picked


# Writes


@emits("aten.scatter", "aten.scatter_add", "aten.scatter_reduce")
def _scatter(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    x, axis, index = arguments["self"], arguments["dim"], arguments["index"]
    source = arguments.get("src", arguments.get("value"))
    kind = arguments.get("reduce") or ("add" if "scatter_add" in str(node.target) else "set")
    if arguments.get("include_self") is False or kind == "mean":
        raise UnsupportedError("scatter_reduce with include_self=False or mean")
    axis %= max(len(emitter.shape(x)), 1)

    def place(i: Sequence[Any], tensors: Sequence[Any], sizes: Sequence[Size]) -> list[Any]:
        return [*i[:axis], safe(tensors[0](*i), sizes[axis]), *i[axis + 1 :]]

    return _apply(emitter, node, x, emitter.shape(index), [emitter.plain(index)], place, source, kind)


@emits("aten.index_put", "aten._unsafe_index_put")
def _index_put(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    x, indices = arguments["self"], arguments["indices"]
    if any(index is not None and emitter.dtype(index) == "bool" for index in indices):
        return _masked_put(emitter, node, arguments)
    picks = _Picks(emitter, x, indices)
    kind = "add" if arguments["accumulate"] else "set"
    count = picks.result_shape(emitter.shape(x))
    return _apply(emitter, node, x, count, picks.variables, picks.source, arguments["values"], kind)


@emits("aten.index_add", "aten.index_copy")
def _index_add(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    x, axis, index, source = (arguments[n] for n in ("self", "dim", "index", "source"))
    if arguments.get("alpha", 1) != 1:
        raise UnsupportedError("index_add with alpha")
    axis %= max(len(emitter.shape(x)), 1)
    kind = "add" if "index_add" in str(node.target) else "set"

    def place(i: Sequence[Any], tensors: Sequence[Any], sizes: Sequence[Size]) -> list[Any]:
        return [*i[:axis], safe(tensors[0](i[axis]), sizes[axis]), *i[axis + 1 :]]

    return _apply(emitter, node, x, emitter.shape(source), [emitter.plain(index)], place, source, kind)


_REDUCTIONS = {
    "set": "update", "add": "add", "sum": "add", "multiply": "mul", "prod": "mul", "amin": "min", "amax": "max",
}  # fmt: skip


def _apply(
    emitter: Emitter,
    node: fx.Node,
    x: fx.Node,
    shape: Sequence[Size],
    tensors: Sequence[Any],
    place: Callable[..., list[Any]],
    source: Any,
    kind: str,
) -> Any:
    """Copy ``x``, then apply updates of the given shape one after the other, in their order, as torch does.

    Args:
        emitter: Where to emit.
        node: The operator.
        x: What is updated.
        shape: Extents of the updates.
        tensors: Relax variables of the index tensors.
        place: (index of an update, index tensors, extents of x) to the index into x.
        source: The updates, a node that is broadcast or has at least these extents, or one number.
        kind: A key of the table above.
    """
    sizes, dtype = emitter.result(node)
    total = product(shape)

    def places(*inputs: Any, shape: Sequence[Size], sizes: Sequence[Size]) -> Any:
        def element(*i: Any) -> Any:
            linear: Any = tirx.const(0, "int64")
            for position, size in zip(place(i, inputs, sizes), sizes, strict=True):
                linear = linear * size + position
            return linear

        return te.compute(shape, element, name="places")

    def updates(*inputs: Any, shape: Sequence[Size]) -> Any:
        def element(*i: Any) -> Any:
            if not inputs:
                return tirx.const(source, dtype)
            have = emitter.shape(source)
            last = i[len(i) - len(have) :]
            return inputs[0](*[0 if isinstance(s, int) and s == 1 else k for s, k in zip(have, last, strict=True)])

        return te.compute(shape, element, name="updates")

    def write(x: Any, where: Any, new: Any) -> Any:
        return topi.scatter_elements(x, where, new, axis=0, reduction=_REDUCTIONS[kind])

    where = emitter.te(node, places, *tensors, shape=shape, sizes=sizes)
    new = emitter.te(node, updates, *([emitter.plain(source)] if isinstance(source, fx.Node) else []), shape=shape)
    if dtype == "bool":
        raise UnsupportedError("updates of a tensor of booleans")
    flat = emitter.reshape(emitter.plain(x), [product(sizes)])
    written = emitter.te(node, write, flat, emitter.reshape(where, [total]), emitter.reshape(new, [total]))
    return emitter.reshape(written, sizes)


def _masked_put(emitter: Emitter, node: fx.Node, arguments: dict[str, Any]) -> Any:
    """x[mask] = one value: a selection."""
    x, indices, value = arguments["self"], arguments["indices"], arguments["values"]
    if len(indices) != 1 or any(size != 1 for size in emitter.shape(value)):
        raise UnsupportedError("an assignment of several values through a mask depends on data")
    rank = len(emitter.shape(indices[0]))
    add = bool(arguments["accumulate"])

    def compute(x: Any, mask: Any, value: Any, shape: Sequence[Size]) -> Any:
        def element(*i: Any) -> Any:
            new = value(*[0] * len(value.shape))
            return tirx.Select(mask(*i[:rank]), x(*i) + new if add else new, x(*i))

        return te.compute(shape, element, name="masked_put")

    inputs = [emitter.plain(n) for n in (x, indices[0], value)]
    return emitter.te(node, compute, *inputs, shape=emitter.shape(node))


@emits("aten.slice_scatter")
def _slice_scatter(emitter: Emitter, node: fx.Node) -> Any:
    x, source, axis, start, _, step = emitter.arguments(node).values()
    shape = emitter.shape(node)
    axis %= len(shape)
    begin = slice_start(start, shape[axis])
    count = emitter.shape(source)[axis]

    def compute(x: Any, source: Any, begin: Any, count: Any, shape: Sequence[Size]) -> Any:
        def element(*i: Any) -> Any:
            offset = i[axis] - begin
            place = offset if step == 1 else tirx.floordiv(offset, step)
            hit = tirx.all(
                offset >= 0, place < count, *([] if step == 1 else [scalar.equal(tirx.floormod(offset, step), 0)])
            )
            return tirx.if_then_else(hit, source(*i[:axis], place, *i[axis + 1 :]), x(*i))

        return te.compute(shape, element, name="slice_scatter")

    return emitter.te(node, compute, emitter.plain(x), emitter.plain(source), begin, count, shape=shape)


@emits("aten.select_scatter")
def _select_scatter(emitter: Emitter, node: fx.Node) -> Any:
    x, source, axis, position = emitter.arguments(node).values()
    shape = emitter.shape(node)
    axis %= len(shape)
    if isinstance(position, int) and position < 0:
        position = shape[axis] + position

    def compute(x: Any, source: Any, position: Any, shape: Sequence[Size]) -> Any:
        def element(*i: Any) -> Any:
            return tirx.if_then_else(scalar.equal(i[axis], position), source(*i[:axis], *i[axis + 1 :]), x(*i))

        return te.compute(shape, element, name="select_scatter")

    return emitter.te(node, compute, emitter.plain(x), emitter.plain(source), position, shape=shape)
