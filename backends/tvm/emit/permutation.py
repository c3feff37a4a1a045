"""Operators that put elements in another order: transposes, shuffles, flips and rolls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from shave.backends.tvm import layout
from shave.backends.tvm.adapter import te, tirx
from shave.backends.tvm.emit.emitter import Emitter
from shave.backends.tvm.emit.movement import Index, gather
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.layout import Value
from shave.backends.tvm.regions import feeds_blocks
from shave.backends.tvm.sizes import Size, product


def _permute(emitter: Emitter, node: fx.Node, x: fx.Node, order: Sequence[int]) -> Any:
    """Result axis d is axis order[d] of ``x``; where only axes of size 1 change places, it is a view."""
    shape = emitter.shape(x)
    moved = [axis for axis in order if not (isinstance(shape[axis], int) and shape[axis] == 1)]
    if moved == sorted(moved):
        return emitter.reshape(emitter.plain(x), emitter.shape(node))

    if list(order) == [0, len(order) - 1, *range(1, len(order) - 1)] and feeds_blocks(node):
        return _blocks_of_channels_last(emitter, node, x)

    def source(index: Index) -> Index:
        picked: Index = [None] * len(order)
        for axis, i in zip(order, index, strict=True):
            picked[axis] = i
        return picked

    return gather(emitter, node, x, source)


def _blocks_of_channels_last(emitter: Emitter, node: fx.Node, x: fx.Node) -> Any:
    """A channels-last value as a blocked channels-first one: vectors of channels stay vectors."""
    (shape, dtype), lanes = emitter.result(node), emitter.lanes
    if not layout.can_block(shape):
        return gather(emitter, node, x, lambda i: [i[0], *i[2:], i[1]])
    channels = shape[1]

    def compute(x: Any, shape: Sequence[Size]) -> Any:
        def element(n: Any, c: Any, *rest: Any) -> Any:
            channel = c * lanes + rest[-1]
            value = x(n, *rest[:-1], channel)
            if channels % lanes == 0:
                return value
            return tirx.if_then_else(channel < channels, value, tirx.const(0, x.dtype))

        return te.compute(shape, element, name="block")

    inside = layout.blocked_shape(shape, lanes)
    return Value(shape, dtype, blocked=emitter.te(node, compute, emitter.plain(x), shape=inside))


@emits("aten.permute")
def _permute_axes(emitter: Emitter, node: fx.Node) -> Any:
    x, dims = emitter.arguments(node).values()
    return _permute(emitter, node, x, [d % len(dims) for d in dims])


@emits("aten.transpose", "aten.swapaxes", "aten.t", "aten.numpy_T", "aten.mT")
def _transpose(emitter: Emitter, node: fx.Node) -> Any:
    x, *dims = emitter.arguments(node).values()
    rank = len(emitter.shape(node))
    order = list(range(rank))
    if dims:
        a, b = dims[0] % rank, dims[1] % rank
    elif rank < 2:
        a = b = 0
    else:
        a, b = rank - 2, rank - 1
    order[a], order[b] = order[b], order[a]
    return _permute(emitter, node, x, order[::-1] if "numpy_T" in str(node.target) else order)


@emits("aten.movedim")
def _movedim(emitter: Emitter, node: fx.Node) -> Any:
    x, source, destination = emitter.arguments(node).values()
    rank = len(emitter.shape(node))
    sources = [d % rank for d in (source if isinstance(source, list) else [source])]
    targets = [d % rank for d in (destination if isinstance(destination, list) else [destination])]
    order: list[Any] = [None] * rank
    for s, t in zip(sources, targets, strict=True):
        order[t] = s
    rest = iter(axis for axis in range(rank) if axis not in sources)
    return _permute(emitter, node, x, [next(rest) if axis is None else axis for axis in order])


@emits("aten.channel_shuffle", "aten.native_channel_shuffle")
def _channel_shuffle(emitter: Emitter, node: fx.Node) -> Any:
    x, groups = emitter.arguments(node).values()
    channels = emitter.shape(node)[1]
    return gather(emitter, node, x, lambda i: [i[0], i[1] % groups * (channels // groups) + i[1] // groups, *i[2:]])


@emits("aten.pixel_shuffle")
def _pixel_shuffle(emitter: Emitter, node: fx.Node) -> Any:
    x, factor = emitter.arguments(node).values()

    def source(index: Index) -> Index:
        *batch, c, h, w = index
        return [*batch, (c * factor + h % factor) * factor + w % factor, h // factor, w // factor]

    return gather(emitter, node, x, source)


@emits("aten.pixel_unshuffle")
def _pixel_unshuffle(emitter: Emitter, node: fx.Node) -> Any:
    x, factor = emitter.arguments(node).values()

    def source(index: Index) -> Index:
        *batch, c, h, w = index
        return [*batch, c // (factor * factor), h * factor + c // factor % factor, w * factor + c % factor]

    return gather(emitter, node, x, source)


@emits("aten.flip")
def _flip(emitter: Emitter, node: fx.Node) -> Any:
    x, dims = emitter.arguments(node).values()
    shape = emitter.shape(node)
    axes = [d % len(shape) for d in dims]

    def source(index: Index, *ends: Size) -> Index:
        return [ends[d] - 1 - i if d in axes else i for d, i in enumerate(index)]

    return gather(emitter, node, x, source, *shape)


@emits("aten.roll")
def _roll(emitter: Emitter, node: fx.Node) -> Any:
    x, shifts, dims = emitter.arguments(node).values()
    shape = emitter.shape(node)
    if not dims:
        flat = product(shape)
        shift = shifts[0]

        def linear(x: Any, total: Size, shape: Sequence[Size]) -> Any:
            return te.compute(shape, lambda i: x(_wrapped(i - shift, total)), name="roll")

        rolled = emitter.te(node, linear, emitter.reshape(emitter.plain(x), [flat]), flat, shape=[flat])
        return emitter.reshape(rolled, shape)
    amounts = {d % len(shape): s for d, s in zip(dims, shifts, strict=True)}

    def source(index: Index, *ends: Size) -> Index:
        return [_wrapped(i - amounts[d], ends[d]) if d in amounts else i for d, i in enumerate(index)]

    return gather(emitter, node, x, source, *shape)


def _wrapped(index: Any, size: Size) -> Any:
    return tirx.floormod(index, size)
