"""Operators that sum up, or compare, many elements into one.

float16 and bfloat16 are summed up in float32, as torch does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import fx

from shave.backends.tvm.adapter import te, tirx, topi
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import Emitter, stored_dtype
from shave.backends.tvm.emit.quantization import real
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.emit.scalar import const
from shave.backends.tvm.kernels import pooling
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.pooling import PoolShape
from shave.backends.tvm.layout import Value, blocked_shape
from shave.backends.tvm.quantized import dequantized
from shave.backends.tvm.sizes import is_static, product
from shave.ir.errors import UnsupportedError

Reducer = Callable[..., Any]


def accumulator(dtype: str) -> str:
    """The dtype to compute sums of a dtype in."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def axes_of(dims: Any, rank: int) -> list[int]:
    """Normalise torch's ``dim`` argument: None and an empty list are all axes."""
    if dims is None or dims == []:
        return list(range(rank))
    return sorted(d % max(rank, 1) for d in (dims if isinstance(dims, list) else [dims]) if rank)


def reduce_over(
    x: Any, axes: Sequence[int], reducer: Reducer, element: Callable[..., Any], keep: bool = False, name: str = "reduce"
) -> Any:
    """A reduction as a te tensor.

    Args:
        x: A te tensor that gives the extents.
        axes: Axes that vanish (or shrink to 1 if ``keep``).
        reducer: ``te.sum``, ``te.max`` ...
        element: (index into x) to the expression that is reduced.
        keep: Whether the reduced axes stay with extent 1.
        name: Name of the stage.
    """
    reduced = [te.reduce_axis((0, x.shape[axis]), name=f"r{axis}") for axis in axes]
    kept = [x.shape[d] for d in range(len(x.shape)) if d not in axes]
    shape = [1 if d in axes else x.shape[d] for d in range(len(x.shape))] if keep else kept

    def whole(index: Sequence[Any]) -> list[Any]:
        outer = [i for d, i in enumerate(index) if d not in axes] if keep else list(index)
        full, rest, inner = [], iter(outer), iter(reduced)
        full += [next(inner) if d in axes else next(rest) for d in range(len(x.shape))]
        return full

    if not axes:
        return te.compute(shape, lambda *i: element(*i), name=name)
    return te.compute(shape, lambda *i: reducer(element(*whole(i)), axis=reduced), name=name)


def count(x: Any, axes: Sequence[int], dtype: str) -> Any:
    """Number of elements that a reduction folds into one, as an expression."""
    total = product([x.shape[axis] for axis in axes])
    return tirx.const(total, dtype) if isinstance(total, int) else tirx.Cast(dtype, total)


def _finish(emitter: Emitter, node: fx.Node, reduced: Any, finish: Callable[[Any], Any] | None = None) -> Any:
    """Convert each element of a reduced te tensor to the result's dtype, after ``finish``."""
    dtype = emitter.dtype(node)
    if finish is None and str(reduced.dtype) == dtype:
        return reduced

    def element(*i: Any) -> Any:
        value = reduced(*i)
        return scalar.cast(value if finish is None else finish(value), dtype)

    return te.compute(reduced.shape, element, name="finish")


def _arguments(emitter: Emitter, node: fx.Node) -> tuple[fx.Node, list[int], bool]:
    arguments = emitter.arguments(node)
    x = arguments["self"]
    return x, axes_of(arguments.get("dim"), len(emitter.shape(x))), bool(arguments.get("keepdim", False))


def _emit(emitter: Emitter, node: fx.Node, x: fx.Node, build: Callable[[Any], Any]) -> Any:
    variable = emitter.te(node, build, emitter.plain(x))
    return variable if len(emitter.shape(node)) == variable.ty.ndim else emitter.reshape(variable, emitter.shape(node))


# Sums


@emits("aten.sum", "aten.nansum")
def _sum(emitter: Emitter, node: fx.Node) -> Any:
    x, axes, keep = _arguments(emitter, node)
    work = accumulator(emitter.dtype(node))
    skip_nan = "nansum" in str(node.target)

    def build(x: Any) -> Any:
        def element(*i: Any) -> Any:
            value = scalar.cast(x(*i), work)
            return tirx.Select(scalar.is_nan(value), const(0, value), value) if skip_nan else value

        return _finish(emitter, node, reduce_over(x, axes, te.sum, element, keep))

    return _emit(emitter, node, x, build)


@emits("aten.mean")
def _mean(emitter: Emitter, node: fx.Node) -> Any:
    x, axes, keep = _arguments(emitter, node)
    if axes == list(range(2, len(emitter.shape(x)))) and emitter.value(x).only_blocked:
        return mean_of_blocked(emitter, node, x)
    work = accumulator(emitter.dtype(node))

    def build(x: Any) -> Any:
        total = reduce_over(x, axes, te.sum, lambda *i: scalar.cast(x(*i), work), keep)
        return _finish(emitter, node, total, lambda value: value / count(x, axes, work))

    return _emit(emitter, node, x, build)


def mean_of_blocked(emitter: Emitter, node: fx.Node, x: fx.Node) -> Any:
    """The mean over all spatial axes of a blocked value; blocked [N, C / B, 1 ..., B] itself."""
    have, dtype = emitter.shape(x), emitter.dtype(x)
    rank = len(have)
    unit = (*have[:2], *[1] * (rank - 2))
    stored = blocked_shape(unit, emitter.lanes)

    def compute(x: Any) -> Any:
        axes = list(range(2, rank))
        total = reduce_over(x, axes, te.sum, lambda *i: x(*i), keep=True)
        return te.compute(total.shape, lambda *i: total(*i) / count(x, axes, dtype), name="mean")

    if dtype == "float32" and is_static(have[1:]):
        batch, channels, *spatial = cast("list[int]", have)
        window, codes = tuple(spatial), dequantized(x)
        pool = PoolShape(
            "mean", batch if isinstance(batch, int) else None, channels, window, (1,) * len(window), window,
            dtype="float32" if codes is None else "uint8",
        )  # fmt: skip
        source = emitter.blocked(x if codes is None else codes.node)
        made = emitter.call_kernel(pooling, pool, Epilogue(), [source], stored, (node,))
        made = made if codes is None else real(emitter, node, made, codes)
    else:
        made = emitter.te(node, compute, emitter.blocked(x))
    mean = Value(unit, dtype, blocked=made)
    shape = emitter.shape(node)
    return mean if len(shape) == rank else emitter.reshape(emitter.plain(mean), shape)


@emits("aten.prod")
def _prod(emitter: Emitter, node: fx.Node) -> Any:
    x, axes, keep = _arguments(emitter, node)
    work = accumulator(emitter.dtype(node))
    reducer = te.comm_reducer(lambda a, b: a * b, lambda dtype: tirx.const(1, dtype), name="prod")

    def build(x: Any) -> Any:
        return _finish(emitter, node, reduce_over(x, axes, reducer, lambda *i: scalar.cast(x(*i), work), keep))

    return _emit(emitter, node, x, build)


@emits("aten.var", "aten.std", "aten.var_mean", "aten.std_mean")
def _variance(emitter: Emitter, node: fx.Node) -> Any:
    x, axes, _ = _arguments(emitter, node)
    arguments = emitter.arguments(node)
    correction = arguments.get("correction", 1)
    if "unbiased" in arguments:
        correction = 1 if arguments["unbiased"] else 0
    correction = 1 if correction is None else correction
    claimed = node.meta["val"]
    first = claimed[0] if isinstance(claimed, (tuple, list)) else claimed
    dtype = stored_dtype(first.dtype)
    shape = emitter.sizes.shape(first.shape)
    work = accumulator(dtype)
    root = "std" in str(node.target)

    def mean_of(x: Any) -> Any:
        mean, _ = moments(x, axes, work)
        return te.compute(mean.shape, lambda *i: scalar.cast(mean(*i), dtype), name="mean")

    def spread_of(x: Any) -> Any:
        _, squares = moments(x, axes, work)

        def element(*i: Any) -> Any:
            freedom = count(x, axes, work) - tirx.const(correction, work)
            value = squares(*i) / scalar.maximum(freedom, tirx.const(0, work))
            return scalar.cast(tirx.sqrt(value) if root else value, dtype)

        return te.compute(squares.shape, element, name="variance")

    spread = emitter.reshape(emitter.te(node, spread_of, emitter.plain(x)), shape)
    if not isinstance(claimed, (tuple, list)):
        return spread
    return [spread, emitter.reshape(emitter.te(node, mean_of, emitter.plain(x)), shape)]


def moments(x: Any, axes: Sequence[int], work: str) -> tuple[Any, Any]:
    """Mean, and sum of squared distances from it, over some axes (kept with extent 1)."""
    total = reduce_over(x, axes, te.sum, lambda *i: scalar.cast(x(*i), work), keep=True, name="total")
    mean = te.compute(total.shape, lambda *i: total(*i) / count(x, axes, work), name="mean")

    def square(*i: Any) -> Any:
        at = [0 if d in axes else k for d, k in enumerate(i)]
        distance = scalar.cast(x(*i), work) - mean(*at)
        return distance * distance

    return mean, reduce_over(x, axes, te.sum, square, keep=True, name="squares")


@emits("aten.linalg_vector_norm", "aten.norm")
def _norm(emitter: Emitter, node: fx.Node) -> Any:
    x, axes, keep = _arguments(emitter, node)
    arguments = emitter.arguments(node)
    order = arguments.get("ord", arguments.get("p"))
    order = 2.0 if order is None else float(order)
    work = accumulator(emitter.dtype(node))

    def build(x: Any) -> Any:
        def size(*i: Any) -> Any:
            return tirx.abs(scalar.cast(x(*i), work))

        if order == math.inf:
            return _finish(emitter, node, reduce_over(x, axes, te.max, size, keep))
        if order == -math.inf:
            return _finish(emitter, node, reduce_over(x, axes, te.min, size, keep))
        if order == 0:
            nonzero = lambda *i: scalar.cast(scalar.differ(size(*i), tirx.const(0, work)), work)  # noqa: E731
            return _finish(emitter, node, reduce_over(x, axes, te.sum, nonzero, keep))
        total = reduce_over(x, axes, te.sum, lambda *i: scalar.power(size(*i), tirx.const(order, work)), keep)
        root = tirx.const(1 / order, work)
        return _finish(emitter, node, total, lambda v: tirx.sqrt(v) if order == 2 else scalar.power(v, root))

    return _emit(emitter, node, x, build)


# Comparisons. A NaN among the elements is the result, as in torch: the reducer keeps it.


def _extreme(x: Any, axes: Sequence[int], keep: bool, largest: bool) -> Any:
    dtype = str(x.dtype)
    if dtype == "bool":
        widened = reduce_over(
            x, axes, te.max if largest else te.min, lambda *i: tirx.Cast("int8", x(*i)), keep, name="extreme"
        )
        return te.compute(widened.shape, lambda *i: scalar.cast(widened(*i), "bool"), name="truth")
    return reduce_over(x, axes, te.max if largest else te.min, lambda *i: x(*i), keep, name="extreme")


def _with_nan(x: Any, axes: Sequence[int], keep: bool, extreme: Any) -> Any:
    """NaN where any reduced element is NaN, ``extreme`` elsewhere."""
    if "float" not in str(x.dtype):
        return extreme

    # The sum of x - x is NaN exactly where an element is NaN or infinite; infinities are masked.
    def trace(*i: Any) -> Any:
        value = x(*i)
        return tirx.Select(scalar.is_nan(value), tirx.const(1, "int32"), tirx.const(0, "int32"))

    found = reduce_over(x, axes, te.max, trace, keep, name="nan")
    nan = tirx.const(math.nan, str(x.dtype))
    return te.compute(
        extreme.shape, lambda *i: tirx.Select(scalar.cast(found(*i), "bool"), nan, extreme(*i)), name="with_nan"
    )


@emits("aten.amax", "aten.amin", "aten.max.default", "aten.min.default", "aten.max", "aten.min")
def _amax(emitter: Emitter, node: fx.Node) -> Any:
    x, axes, keep = _arguments(emitter, node)
    largest = "max" in str(node.target)
    if isinstance(node.meta["val"], (tuple, list)):
        return _extreme_with_index(emitter, node, x, axes[0] if axes else 0, keep, largest)
    return _emit(emitter, node, x, lambda x: _with_nan(x, axes, keep, _extreme(x, axes, keep, largest)))


def _extreme_with_index(emitter: Emitter, node: fx.Node, x: fx.Node, axis: int, keep: bool, largest: bool) -> Any:
    claimed = node.meta["val"]
    shape = emitter.sizes.shape(claimed[0].shape)
    if not emitter.shape(x):
        zero = emitter.te(node, lambda shape: te.compute(shape, lambda *_: tirx.const(0, "int64")), shape=shape)
        return [emitter.plain(x), zero]
    value = emitter.te(node, lambda x: _with_nan(x, [axis], keep, _extreme(x, [axis], keep, largest)), emitter.plain(x))
    index = emitter.te(node, lambda x: first_extreme(x, axis, keep, largest), emitter.plain(x))
    return [emitter.reshape(value, shape), emitter.reshape(index, shape)]


def first_extreme(x: Any, axis: int, keep: bool, largest: bool) -> Any:
    """Index of the first largest (or smallest) element along an axis: two plain reductions, which vectorise."""
    best = _extreme(x, [axis], True, largest)
    size = x.shape[axis]
    end = tirx.Cast("int32", size)

    def candidate(*i: Any) -> Any:
        value, found = x(*i), best(*[0 if d == axis else k for d, k in enumerate(i)])
        if str(x.dtype) == "bool":
            value, found = tirx.Cast("int8", value), tirx.Cast("int8", found)
        hit = (
            scalar.equal(value, found)
            if "float" not in str(x.dtype)
            else tirx.Or(scalar.equal(value, found), scalar.is_nan(value))
        )
        return tirx.Select(hit, tirx.Cast("int32", i[axis]), end)

    place = reduce_over(x, [axis], te.min, candidate, keep, name="place")
    return te.compute(place.shape, lambda *i: tirx.Cast("int64", place(*i)), name="index")


@emits("aten.argmax", "aten.argmin")
def _argmax(emitter: Emitter, node: fx.Node) -> Any:
    x, axis, keep = emitter.arguments(node).values()
    largest = "argmax" in str(node.target)
    variable, rank = emitter.plain(x), len(emitter.shape(x))
    if axis is None or rank == 0:
        variable, axis, rank = emitter.reshape(variable, [product(emitter.shape(x))]), 0, 1
    index = emitter.te(node, lambda x: first_extreme(x, axis % rank, keep, largest), variable)
    return emitter.reshape(index, emitter.shape(node))


@emits("aten.any", "aten.all")
def _any(emitter: Emitter, node: fx.Node) -> Any:
    x, axes, keep = _arguments(emitter, node)
    reducer = te.max if "any" in str(node.target) else te.min

    def build(x: Any) -> Any:
        def truth(*i: Any) -> Any:
            return tirx.Cast("int8", scalar.cast(x(*i), "bool"))

        return _finish(emitter, node, reduce_over(x, axes, reducer, truth, keep))

    return _emit(emitter, node, x, build)


@emits("aten.count_nonzero")
def _count_nonzero(emitter: Emitter, node: fx.Node) -> Any:
    x, axes, keep = _arguments(emitter, node)

    def build(x: Any) -> Any:
        return reduce_over(x, axes, te.sum, lambda *i: tirx.Cast("int64", scalar.cast(x(*i), "bool")), keep)

    return _emit(emitter, node, x, build)


@emits("aten.logsumexp")
def _logsumexp(emitter: Emitter, node: fx.Node) -> Any:
    x, axes, _ = _arguments(emitter, node)
    work = accumulator(emitter.dtype(node))

    def build(x: Any) -> Any:
        top = reduce_over(x, axes, te.max, lambda *i: scalar.cast(x(*i), work), True, name="top")

        def finite(*i: Any) -> Any:
            value = top(*[0 if d in axes else k for d, k in enumerate(i)])
            return tirx.Select(scalar.equal(tirx.abs(value), tirx.const(math.inf, work)), tirx.const(0, work), value)

        total = reduce_over(x, axes, te.sum, lambda *i: tirx.exp(scalar.cast(x(*i), work) - finite(*i)), True)
        return _finish(
            emitter, node, te.compute(total.shape, lambda *i: tirx.log(total(*i)) + finite(*i), name="logsumexp")
        )

    return _emit(emitter, node, x, build)


# Scans


@emits("aten.cumsum", "aten.cumprod")
def _scan(emitter: Emitter, node: fx.Node) -> Any:
    x, axis, _ = emitter.arguments(node).values()
    shape, dtype = emitter.result(node)
    if not shape:
        return emitter.te(node, lambda x: te.compute((), lambda: scalar.cast(x(), dtype)), emitter.plain(x))
    if dtype in ("float16", "bfloat16"):
        raise UnsupportedError(f"cumulative operators in {dtype}")
    scan = topi.cumsum if "cumsum" in str(node.target) else topi.cumprod
    wide = emitter.te(
        node, lambda x: te.compute(x.shape, lambda *i: scalar.cast(x(*i), dtype), name="convert"), emitter.plain(x)
    )
    return emitter.te(node, lambda x: scan(x, axis=axis % len(shape), dtype=dtype), wide)
