"""Operators that move elements and compute nothing: views, slices, joins, repeats, padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from torch import fx

from shave.backends.tvm import layout
from shave.backends.tvm.adapter import te, tirx
from shave.backends.tvm.emit.emitter import OPAQUE, Emitter
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.layout import Value
from shave.backends.tvm.plan import JOIN, PART
from shave.backends.tvm.sizes import Size, is_static, product, same

Index = list[Any]


def gather(
    emitter: Emitter,
    node: fx.Node,
    x: fx.Node,
    source: Callable[..., Index],
    *sizes: Any,
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    """Emit a result whose element at an index is the element of ``x`` at ``source(index, *sizes)``."""

    def compute(x: Any, sizes: list[Any], shape: Sequence[Size]) -> Any:
        return te.compute(shape, lambda *index: x(*source(list(index), *sizes)), name="gather")

    return emitter.te(node, compute, emitter.plain(x), list(sizes), attributes=attributes, shape=emitter.shape(node))


def in_one_piece(shape: Sequence[Size], axis: int) -> bool:
    """Whether parts of a tensor along an axis follow each other in memory."""
    return is_static(shape) and all(size == 1 for size in shape[:axis])


def _part(shape: Sequence[Size], axis: int, start: Any) -> Mapping[str, Any] | None:
    """Attributes of a function that takes a tensor of that shape from ``start`` on: nothing moves, where possible."""
    if not in_one_piece(shape, axis) or not isinstance(start, int):
        return None
    return {PART: start * prod(map(int, shape[axis + 1 :])), "op_pattern": OPAQUE}


# Views


@emits(
    "aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten", "aten.squeeze",
    "aten.unsqueeze", "aten.view_as", "aten.reshape_as", "aten._reshape_alias", "aten._reshape_copy",
)  # fmt: skip
def _view(emitter: Emitter, node: fx.Node) -> Any:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    return emitter.reshape(emitter.plain(x), emitter.shape(node))


# Slices


def slice_axis(
    emitter: Emitter, node: fx.Node, x: fx.Node, axis: int, start: Any, shape: Sequence[Size], step: int = 1
) -> Any:
    """Emit ``x`` from ``start`` on along one axis, as far as ``shape`` goes."""

    def compute(x: Any, start: Any, shape: Sequence[Size]) -> Any:
        def element(*index: Any) -> Any:
            picked = list(index)
            picked[axis] = picked[axis] * step + start
            return x(*picked)

        return te.compute(shape, element, name="slice")

    whole = isinstance(start, int) and start == 0 and step == 1 and same(shape[axis], emitter.shape(x)[axis])
    if whole:
        return emitter.plain(x)
    attributes = _part(emitter.shape(x), axis, start) if step == 1 else None
    return emitter.te(node, compute, emitter.plain(x), start, attributes=attributes, shape=shape)


def slice_start(start: Any, size: Size) -> Any:
    """Python's rule for the start of a slice."""
    if start is None:
        return 0
    if isinstance(start, int) and isinstance(size, int):
        return min(start + size if start < 0 else start, size) if start >= -size else 0
    if isinstance(start, int):
        return start if start >= 0 else tirx.max(size + start, tirx.const(0, "int64"))
    return tirx.min(tirx.Select(start < 0, start + size, start), size)


@emits("aten.slice", "aten.narrow", "aten.slice_copy")
def _slice(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    x, axis = arguments["self"], arguments["dim"]
    size = emitter.shape(x)
    axis %= len(size)
    return slice_axis(
        emitter,
        node,
        x,
        axis,
        slice_start(arguments["start"], size[axis]),
        emitter.shape(node),
        arguments.get("step", 1),
    )


@emits("aten.select", "aten.select_copy")
def _select(emitter: Emitter, node: fx.Node) -> Any:
    x, axis, position = emitter.arguments(node).values()
    size = emitter.shape(x)
    axis %= len(size)
    if isinstance(position, int) and position < 0:
        position = size[axis] + position
    return gather(
        emitter, node, x, lambda index, p: [*index[:axis], p, *index[axis:]], position,
        attributes=_part(size, axis, position),
    )  # fmt: skip


@emits(
    "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unsafe_split", "aten.tensor_split", "aten.unsafe_chunk"
)
def _split(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    x, axis = arguments["self"], arguments["dim"]
    axis %= len(emitter.shape(x))
    parts = []
    start: Any = 0
    for claimed in node.meta["val"]:
        shape = emitter.sizes.shape(claimed.shape)
        parts.append(
            _channels_of_blocked(emitter, x, axis, start, shape) or slice_axis(emitter, node, x, axis, start, shape)
        )
        start = start + shape[axis]
    return parts


def _channels_of_blocked(emitter: Emitter, x: fx.Node, axis: int, start: Any, shape: Sequence[Size]) -> Value | None:
    """Some channels of a blocked value, blocked as well, where they are whole blocks."""
    value, lanes = emitter.value(x), emitter.lanes
    if axis != 1 or not value.only_blocked or not isinstance(start, int) or start % lanes:
        return None
    first = start // lanes

    def compute(x: Any, shape: Sequence[Size]) -> Any:
        return te.compute(shape, lambda n, c, *rest: x(n, c + first, *rest), name="split")

    attributes = _part(layout.blocked_shape(value.shape, lanes), 1, first)
    part = emitter.te(x, compute, value.blocked, attributes=attributes, shape=layout.blocked_shape(shape, lanes))
    return Value(tuple(shape), value.dtype, blocked=part)


@emits("aten.unbind")
def _unbind(emitter: Emitter, node: fx.Node) -> Any:
    x, axis = emitter.arguments(node).values()
    axis %= len(emitter.shape(x))

    def one(position: int, shape: Sequence[Size]) -> Any:
        def compute(x: Any, shape: Sequence[Size]) -> Any:
            return te.compute(shape, lambda *index: x(*index[:axis], position, *index[axis:]), name="unbind")

        attributes = _part(emitter.shape(x), axis, position)
        return emitter.te(node, compute, emitter.plain(x), attributes=attributes, shape=shape)

    return [one(i, emitter.sizes.shape(claimed.shape)) for i, claimed in enumerate(node.meta["val"])]


@emits("aten.diagonal")
def _diagonal(emitter: Emitter, node: fx.Node) -> Any:
    x, offset, a, b = emitter.arguments(node).values()
    rank = len(emitter.shape(x))
    a, b = a % rank, b % rank

    def source(index: Index) -> Index:
        *rest, along = index
        picked: Index = [None] * rank
        picked[a], picked[b] = along + max(-offset, 0), along + max(offset, 0)
        remaining = iter(rest)
        return [next(remaining) if p is None else p for p in picked]

    return gather(emitter, node, x, source)


@emits("aten.unfold")
def _unfold(emitter: Emitter, node: fx.Node) -> Any:
    x, axis, _, step = emitter.arguments(node).values()
    axis %= len(emitter.shape(x))

    def source(index: Index) -> Index:
        *rest, inside = index
        rest[axis] = rest[axis] * step + inside
        return rest

    return gather(emitter, node, x, source)


# Joins


@emits("aten.cat", "aten.concat", "aten.concatenate")
def _cat(emitter: Emitter, node: fx.Node) -> Any:
    pieces, axis = emitter.arguments(node).values()
    shape, dtype = emitter.result(node)
    axis %= len(shape)
    # An empty tensor of rank 1 may be joined to anything.
    pieces = [p for p in pieces if not (len(emitter.shape(p)) == 1 and emitter.shape(p)[0] == 0)]
    if _joins_blocks(emitter, pieces, axis):
        extents = [emitter.shape(p)[1] // emitter.lanes for p in pieces]
        inside = layout.blocked_shape(shape, emitter.lanes)
        joined = _join(emitter, node, [emitter.blocked(p) for p in pieces], extents, 1, inside)
        return Value(shape, dtype, blocked=joined)
    plain = [emitter.plain(p) for p in pieces]
    return _join(emitter, node, plain, [emitter.shape(p)[axis] for p in pieces], axis, shape)


def _joins_blocks(emitter: Emitter, pieces: Sequence[fx.Node], axis: int) -> bool:
    if axis != 1 or not all(layout.can_block(emitter.shape(p)) for p in pieces):
        return False
    whole = all(emitter.shape(p)[1] % emitter.lanes == 0 for p in pieces)
    return whole and any(emitter.value(p).only_blocked for p in pieces)


def _join(
    emitter: Emitter, node: fx.Node, pieces: Sequence[Any], extents: Sequence[Size], axis: int, shape: Sequence[Size]
) -> Any:
    dtype = emitter.dtype(node)

    def compute(*tensors: Any, extents: Sequence[Size], shape: Sequence[Size]) -> Any:
        def element(*index: Any) -> Any:
            starts = [0]
            for extent in extents:
                starts.append(starts[-1] + extent)

            def piece(k: int) -> Any:
                inside = [i - starts[k] if d == axis else i for d, i in enumerate(index)]
                value = tensors[k](*inside)
                return value if str(tensors[k].dtype) == dtype else tirx.Cast(dtype, value)

            result = piece(len(tensors) - 1)
            for k in reversed(range(len(tensors) - 1)):
                result = tirx.if_then_else(index[axis] < starts[k + 1], piece(k), result)
            return result

        return te.compute(shape, element, name="join")

    movable = in_one_piece(shape, axis) and all(str(piece.ty.dtype) == dtype for piece in pieces)
    attributes = {JOIN: True, "op_pattern": OPAQUE} if movable else None
    return emitter.te(node, compute, *pieces, attributes=attributes, extents=list(extents), shape=shape)


@emits("aten.stack")
def _stack(emitter: Emitter, node: fx.Node) -> Any:
    pieces, axis = emitter.arguments(node).values()
    shape = emitter.shape(node)
    axis %= len(shape)
    unit = (*shape[:axis], 1, *shape[axis + 1 :])
    return _join(
        emitter, node, [emitter.reshape(emitter.plain(p), unit) for p in pieces], [1] * len(pieces), axis, shape
    )


# Repeats


@emits("aten.expand", "aten.expand_as", "aten.broadcast_to", "aten.expand_copy")
def _expand(emitter: Emitter, node: fx.Node) -> Any:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    have, shape = emitter.shape(x), emitter.shape(node)
    if len(have) == len(shape) and all(map(same, have, shape)):
        return emitter.plain(x)

    def source(index: Index) -> Index:
        last = index[len(index) - len(have) :]
        return [0 if isinstance(size, int) and size == 1 else i for size, i in zip(have, last, strict=True)]

    return gather(emitter, node, x, source)


@emits("aten.repeat", "aten.tile")
def _repeat(emitter: Emitter, node: fx.Node) -> Any:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    have = emitter.shape(x)
    return gather(
        emitter, node, x, lambda i, *sizes: [a % s for a, s in zip(i[len(i) - len(sizes) :], sizes, strict=True)], *have
    )


@emits("aten.repeat_interleave.self_int")
def _repeat_interleave(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    x, repeats, axis = arguments["self"], arguments["repeats"], arguments["dim"]
    shape = emitter.shape(node)
    if axis is None:
        flat = emitter.reshape(emitter.plain(x), [product(emitter.shape(x))])

        def compute(x: Any, repeats: Any, shape: Sequence[Size]) -> Any:
            return te.compute(shape, lambda i: x(i // repeats), name="repeat")

        return emitter.te(node, compute, flat, repeats, shape=shape)
    axis %= len(shape)
    return gather(emitter, node, x, lambda i, r: [a // r if d == axis else a for d, a in enumerate(i)], repeats)


# Padding


@emits("aten.pad")
def _pad(emitter: Emitter, node: fx.Node) -> Any:
    x, amounts, mode, value = emitter.arguments(node).values()
    return _pad_as(emitter, node, x, amounts, mode, value or 0)


@emits("aten.constant_pad_nd")
def _pad_constant(emitter: Emitter, node: fx.Node) -> Any:
    x, amounts, value = emitter.arguments(node).values()
    return _pad_as(emitter, node, x, amounts, "constant", value)


@emits(
    "aten.reflection_pad1d", "aten.reflection_pad2d", "aten.reflection_pad3d", "aten.replication_pad1d",
    "aten.replication_pad2d", "aten.replication_pad3d",
)  # fmt: skip
def _pad_edge(emitter: Emitter, node: fx.Node) -> Any:
    x, amounts = emitter.arguments(node).values()
    return _pad_as(emitter, node, x, amounts, "reflect" if "reflection" in str(node.target) else "replicate", 0)


def _pad_as(emitter: Emitter, node: fx.Node, x: fx.Node, amounts: Sequence[Any], mode: str, value: Any) -> Any:
    have, (shape, dtype) = emitter.shape(x), emitter.result(node)
    rank = len(shape)
    before = [0] * rank
    for k in range(len(amounts) // 2):
        before[rank - 1 - k] = amounts[2 * k]
    padded = [d for d in range(rank) if not (same(have[d], shape[d]) and isinstance(before[d], int) and before[d] == 0)]
    blocked = emitter.value(x).only_blocked and all(d >= 2 for d in padded)

    def compute(x: Any, before: Sequence[Any], have: Sequence[Size], shape: Sequence[Size]) -> Any:
        def element(*index: Any) -> Any:
            # The lane of a blocked tensor follows the axes that are padded.
            inside = [*(index[d] - before[d] for d in range(rank)), *index[rank:]]
            if mode == "constant":
                bounds = [tirx.And(inside[d] >= 0, inside[d] < have[d]) for d in padded]
                within = tirx.all(*bounds) if bounds else tirx.const(True, "bool")
                return tirx.if_then_else(within, x(*inside), tirx.const(value, dtype))
            for d in padded:
                inside[d] = _edge(inside[d], have[d], mode)
            return x(*inside)

        return te.compute(shape, element, name="pad")

    if blocked:
        inside = layout.blocked_shape(shape, emitter.lanes)
        return Value(shape, dtype, blocked=emitter.te(node, compute, emitter.blocked(x), before, have, shape=inside))
    return emitter.te(node, compute, emitter.plain(x), before, have, shape=shape)


def _edge(position: Any, size: Any, mode: str) -> Any:
    """Where to read for a position that may lie outside of [0, size)."""
    if mode == "circular":
        return tirx.floormod(position, size)
    if mode == "reflect":
        position = tirx.max(position, 0 - position)
        return tirx.min(position, 2 * (size - 1) - position)
    return tirx.min(tirx.max(position, tirx.const(0, "int64")), size - 1)


@emits("aten.tril", "aten.triu")
def _triangle(emitter: Emitter, node: fx.Node) -> Any:
    x, diagonal = emitter.arguments(node).values()
    shape, dtype = emitter.result(node)
    lower = "tril" in str(node.target)

    def compute(x: Any, shape: Sequence[Size]) -> Any:
        def element(*index: Any) -> Any:
            row, column = index[-2:]
            kept = column - row <= diagonal if lower else column - row >= diagonal
            return tirx.Select(kept, x(*index), tirx.const(0, dtype))

        return te.compute(shape, element, name="triangle")

    return emitter.te(node, compute, emitter.plain(x), shape=shape)
