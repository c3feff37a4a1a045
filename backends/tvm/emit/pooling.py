"""Pooling: a kernel of our own on blocked floats; integers, dynamic extents and indices as tensor expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal, cast

from torch import fx

from shave.backends.tvm import layout
from shave.backends.tvm.adapter import te, tirx
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import Emitter
from shave.backends.tvm.emit.quantization import real
from shave.backends.tvm.emit.reduction import accumulator, mean_of_blocked
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.kernels import pooling
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.pooling import PoolShape
from shave.backends.tvm.layout import Value
from shave.backends.tvm.quantized import dequantized
from shave.backends.tvm.sizes import Size, is_static
from shave.ir.errors import UnsupportedError


@dataclass(frozen=True)
class _Window:
    """A sliding window over the last axes."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def source(self, out: Sequence[Any], inside: Sequence[Any]) -> list[Any]:
        """Input position of an element of the window of an output; may lie in the padding."""
        return [
            o * s - p + k * d
            for o, k, s, p, d in zip(out, inside, self.stride, self.padding, self.dilation, strict=True)
        ]


def _spread(value: Any, rank: int) -> tuple[int, ...]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(values * rank if len(values) == 1 else values)


def _pooled(emitter: Emitter, node: fx.Node, x: fx.Node, spatial: int, build: Callable[..., Any]) -> Value:
    """Emit a pooling of the last ``spatial`` axes of ``x``.

    ``build(load, axes, outside, shape)`` gives the te tensor: ``load(lead, position)`` reads the input at leading
    indices and spatial position, and ``split(index)`` cuts an output index into lead and position.
    """
    have = emitter.shape(x)
    claimed = node.meta["val"]
    claimed = claimed[0] if isinstance(claimed, (tuple, list)) else claimed
    shape, dtype = emitter.sizes.shape(claimed.shape), emitter.dtype(x)
    blocked = emitter.value(x).only_blocked and len(have) == spatial + 2
    lead = len(have) - spatial

    def compute(x: Any, shape: Sequence[Size]) -> Any:
        extents = x.shape[lead : lead + spatial]

        def load(index: Sequence[Any], position: Sequence[Any]) -> Any:
            return x(*index[:lead], *position, *index[lead + spatial :])

        def split(index: Sequence[Any]) -> Sequence[Any]:
            return index[lead : lead + spatial]

        return build(load, split, extents, shape)

    if blocked:
        inside = layout.blocked_shape(shape, emitter.lanes)
        return Value(shape, dtype, blocked=emitter.te(node, compute, emitter.blocked(x), shape=inside))
    return Value(shape, dtype, plain=emitter.te(node, compute, emitter.plain(x), shape=shape))


def _kernel(
    emitter: Emitter, node: fx.Node, x: fx.Node, kind: Literal["max", "mean"], spatial: int, **options: Any
) -> Value | None:
    """Emit a pooling of the last ``spatial`` axes of ``x`` as a kernel; None where it has to be an expression.

    ``options`` are fields of :class:`PoolShape`.
    """
    claimed = node.meta["val"]
    claimed = claimed[0] if isinstance(claimed, (tuple, list)) else claimed
    have, shape = emitter.shape(x), emitter.sizes.shape(claimed.shape)
    dtype, value = emitter.dtype(x), emitter.value(x)
    known = len(have) == spatial + 2 and is_static(have[1:])
    if not known or dtype not in ("float32", "float16"):
        return None
    batch, channels, *extents = have
    # Few channels in the plain layout would leave most lanes empty.
    if value.blocked is None and cast(int, channels) < emitter.lanes:
        return None
    out = tuple(cast("list[int]", shape[2:]))
    # The mean of codes stands for the mean of what they stand for, unless zeros of the padding are among it.
    zeros = any(options.get("padding", ())) and options.get("count_padding", True)
    codes = dequantized(x) if kind == "mean" and not zeros and options.get("divisor") is None else None
    pool = PoolShape(
        kind, batch if isinstance(batch, int) else None, cast(int, channels), tuple(cast("list[int]", extents)), out,
        dtype="float32" if codes is None else "uint8", **options,
    )  # fmt: skip
    stored = layout.blocked_shape(shape, emitter.lanes)
    source = emitter.as_float32(node, emitter.blocked(x)) if codes is None else emitter.blocked(codes.node)
    made = emitter.call_kernel(pooling, pool, Epilogue(), [source], stored, (node,))
    made = emitter.from_float32(node, made, dtype) if codes is None else real(emitter, node, made, codes)
    return Value(shape, dtype, blocked=made)


def _lowest(dtype: str) -> Any:
    """What every element is at least as large as."""
    return tirx.const(-math.inf, dtype) if "float" in dtype else tirx.min_value(dtype)


_largest = te.comm_reducer(scalar.maximum, _lowest, name="largest")
"""A maximum that NaN wins, as in torch."""


def _inside(position: Sequence[Any], extents: Sequence[Any]) -> Any:
    return tirx.all(*[tirx.And(p >= 0, p < e) for p, e in zip(position, extents, strict=True)])


def _window(emitter: Emitter, node: fx.Node, spatial: int) -> _Window:
    arguments = emitter.arguments(node)
    kernel = _spread(arguments["kernel_size"], spatial)
    return _Window(
        kernel,
        _spread(arguments.get("stride") or kernel, spatial),
        _spread(arguments.get("padding", 0), spatial),
        _spread(arguments.get("dilation", 1), spatial),
    )


def _rank(node: fx.Node) -> int:
    """Number of spatial axes, from the name of the operator."""
    return next(d for d in (1, 2, 3) if f"{d}d" in str(node.target))


@emits(
    "aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d", "aten.max_pool2d_with_indices",
    "aten.max_pool3d_with_indices", "aten.max_pool1d_with_indices",
)  # fmt: skip
def _max_pool(emitter: Emitter, node: fx.Node) -> Any:
    x, spatial = node.args[0], _rank(node)
    assert isinstance(x, fx.Node)
    window, dtype = _window(emitter, node, spatial), emitter.dtype(x)
    claimed = node.meta["val"]
    placed = isinstance(claimed, (tuple, list))
    if not placed or all(user.args[1] == 0 for user in node.users):
        made = _kernel(emitter, node, x, "max", spatial, **asdict(window))
        if made is not None:
            return [made, None] if placed else made
    padded = any(window.padding) or bool(emitter.arguments(node).get("ceil_mode"))

    def build(load: Any, split: Any, extents: Any, shape: Any) -> Any:
        axes = [te.reduce_axis((0, k), name=f"k{d}") for d, k in enumerate(window.kernel)]

        def element(*index: Any) -> Any:
            position = window.source(split(index), axes)
            value = load(index, position)
            if padded:
                value = tirx.if_then_else(_inside(position, extents), value, _lowest(dtype))
            return _largest(value, axis=axes)

        return te.compute(shape, element, name="max_pool")

    pooled = _pooled(emitter, node, x, spatial, build)
    if not placed:
        return pooled
    if all(user.args[1] == 0 for user in node.users):
        return [pooled, None]
    return [pooled, _max_places(emitter, node, x, spatial, window)]


def _max_places(emitter: Emitter, node: fx.Node, x: fx.Node, spatial: int, window: _Window) -> Any:
    """Flat input position of each maximum: the first one wins, among NaN the last one, as in torch."""
    dtype = emitter.dtype(x)
    lead = len(emitter.shape(x)) - spatial
    shape = emitter.sizes.shape(node.meta["val"][1].shape)

    def compute(x: Any, shape: Sequence[Size]) -> Any:
        extents = x.shape[lead:]

        def value_at(index: Sequence[Any], inside: Sequence[Any]) -> Any:
            position = window.source(index[lead:], inside)
            value = x(*index[:lead], *position)
            return tirx.if_then_else(_inside(position, extents), value, _lowest(dtype)), position

        axes = [te.reduce_axis((0, k), name=f"k{d}") for d, k in enumerate(window.kernel)]
        best = te.compute(shape, lambda *i: _largest(value_at(i, axes)[0], axis=axes), name="best")
        again = [te.reduce_axis((0, k), name=f"p{d}") for d, k in enumerate(window.kernel)]

        def place(*index: Any) -> Any:
            value, position = value_at(index, again)
            linear: Any = tirx.const(0, "int64")
            for p, extent in zip(position, extents, strict=True):
                linear = linear * extent + p
            hit = tirx.And(scalar.equal(value, best(*index)), _inside(position, extents))
            found = tirx.Select(hit, linear, tirx.max_value("int64"))
            if scalar.is_float(value):
                # Below 0, so that NaN comes first and the last of several ahead of the others.
                found = tirx.Select(scalar.is_nan(value), -1 - linear, found)
            return te.min(found, axis=again)

        places = te.compute(shape, place, name="place")
        return te.compute(shape, lambda *i: tirx.Select(places(*i) < 0, -1 - places(*i), places(*i)), name="index")

    return emitter.te(node, compute, emitter.plain(x), shape=shape)


@emits("aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d")
def _avg_pool(emitter: Emitter, node: fx.Node) -> Any:
    x, spatial = node.args[0], _rank(node)
    assert isinstance(x, fx.Node)
    arguments = emitter.arguments(node)
    window, dtype = _window(emitter, node, spatial), emitter.dtype(x)
    work = accumulator(dtype)
    divisor, with_padding = arguments.get("divisor_override"), arguments["count_include_pad"]
    made = _kernel(emitter, node, x, "mean", spatial, **asdict(window), count_padding=with_padding, divisor=divisor)
    if made is not None:
        return made
    padded = any(window.padding) or bool(arguments.get("ceil_mode"))

    def covered(position: Any, extent: Any, axis: int) -> Any:
        """Elements of one axis of the window that count, for the output at ``position``."""
        pad = window.padding[axis] if with_padding else 0
        start = position * window.stride[axis] - window.padding[axis]
        end = tirx.min(start + window.kernel[axis], extent + pad)
        return end - tirx.max(start, tirx.const(-pad, "int64"))

    def build(load: Any, split: Any, extents: Any, shape: Any) -> Any:
        axes = [te.reduce_axis((0, k), name=f"k{d}") for d, k in enumerate(window.kernel)]

        def element(*index: Any) -> Any:
            position = window.source(split(index), axes)
            value = scalar.cast(load(index, position), work)
            if padded:
                value = tirx.if_then_else(_inside(position, extents), value, tirx.const(0, work))
            return te.sum(value, axis=axes)

        def mean(*index: Any) -> Any:
            if divisor is not None or not padded:
                return scalar.cast(total(*index) / tirx.const(divisor or prod(window.kernel), work), dtype)
            size: Any = 1
            for axis, position in enumerate(split(index)):
                size = size * covered(position, extents[axis], axis)
            return scalar.cast(total(*index) / tirx.Cast(work, size), dtype)

        total = te.compute(shape, element, name="total")
        return te.compute(shape, mean, name="avg_pool")

    return _pooled(emitter, node, x, spatial, build)


@emits(
    "aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d", "aten.adaptive_avg_pool3d", "aten._adaptive_avg_pool2d",
    "aten._adaptive_avg_pool3d", "aten.adaptive_max_pool1d", "aten.adaptive_max_pool2d", "aten.adaptive_max_pool3d",
)  # fmt: skip
def _adaptive_pool(emitter: Emitter, node: fx.Node) -> Any:
    """Output o covers the inputs from floor(o * in / out) up to ceil((o + 1) * in / out)."""
    x, spatial = node.args[0], _rank(node)
    assert isinstance(x, fx.Node)
    claimed = node.meta["val"]
    largest = isinstance(claimed, (tuple, list))
    if largest and any(user.args[1] != 0 for user in node.users):
        raise UnsupportedError("the indices of an adaptive max pooling")
    sizes = emitter.sizes.shape((claimed[0] if largest else claimed).shape)[-spatial:]
    extents = emitter.shape(x)[-spatial:]
    if not largest and all(s == 1 for s in sizes) and emitter.value(x).only_blocked:
        return mean_of_blocked(emitter, node, x)
    if not all(isinstance(s, int) for s in (*sizes, *extents)):
        raise UnsupportedError("adaptive pooling over a dynamic extent")
    dtype = emitter.dtype(x)
    work = dtype if largest else accumulator(dtype)
    reach = [max(-(-(o + 1) * n // s) - o * n // s for o in range(s)) for n, s in zip(extents, sizes, strict=True)]
    even = all(n % s == 0 for n, s in zip(extents, sizes, strict=True))
    windows = {"kernel": tuple(reach)} if even else {"adaptive": True}
    made = _kernel(emitter, node, x, "max" if largest else "mean", spatial, **windows)
    if made is not None:
        return [made, None] if largest else made

    def bounds(position: Any, axis: int) -> tuple[Any, Any]:
        n, s = extents[axis], sizes[axis]
        return position * n // s, ((position + 1) * n + (s - 1)) // s

    def build(load: Any, split: Any, _: Any, shape: Any) -> Any:
        axes = [te.reduce_axis((0, r), name=f"k{d}") for d, r in enumerate(reach)]

        def element(*index: Any) -> Any:
            limits = [bounds(p, axis) for axis, p in enumerate(split(index))]
            position = [low + k for (low, _), k in zip(limits, axes, strict=True)]
            value = scalar.cast(load(index, position), work)
            if not even:
                within = tirx.all(*[p < high for (_, high), p in zip(limits, position, strict=True)])
                value = tirx.if_then_else(within, value, _lowest(dtype) if largest else tirx.const(0, work))
            return _largest(value, axis=axes) if largest else te.sum(value, axis=axes)

        def mean(*index: Any) -> Any:
            size: Any = tirx.const(1, "int64")
            for axis, p in enumerate(split(index)):
                low, high = bounds(p, axis)
                size = size * (high - low)
            return scalar.cast(total(*index) / tirx.Cast(work, size), dtype)

        total = te.compute(shape, element, name="pooled")
        return total if largest else te.compute(shape, mean, name="adaptive_pool")

    pooled = _pooled(emitter, node, x, spatial, build)
    return [pooled, None] if largest else pooled
