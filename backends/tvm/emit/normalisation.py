"""Normalisations: batch, layer, group, instance and RMS norm, softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from torch import fx

from shave.backends.tvm import layout
from shave.backends.tvm.adapter import te, tirx
from shave.backends.tvm.attention_regions import AttentionRegion
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.attention import fused
from shave.backends.tvm.emit.emitter import Emitter
from shave.backends.tvm.emit.reduction import accumulator, count, moments, reduce_over
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.kernels import normalise
from shave.backends.tvm.kernels import softmax as softmax_kernel
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.normalise import NormaliseShape
from shave.backends.tvm.kernels.softmax import SoftmaxShape
from shave.backends.tvm.layout import Value
from shave.backends.tvm.sizes import Size, product
from shave.ir.errors import UnsupportedError
from shave.ir.ops import op_name


@emits("aten.batch_norm", "aten._native_batch_norm_legit_no_training")
def _batch_norm(emitter: Emitter, node: fx.Node) -> Any:
    """With constant statistics: one multiply-add per element, in whichever layout the input has."""
    arguments = emitter.arguments(node)
    if arguments.get("training"):
        raise UnsupportedError("batch norm in training mode")
    x = arguments["input"]
    names = ("weight", "bias", "running_mean", "running_var")
    parameters = [arguments[name] for name in names]
    known = [emitter.constant(p) for p in parameters]
    if any(p is not None and k is None for p, k in zip(parameters, known, strict=True)):
        raise UnsupportedError("batch norm whose parameters are computed")
    weight, bias, mean, variance = (None if k is None else k.double().numpy() for k in known)
    assert mean is not None
    assert variance is not None
    scale = (1.0 if weight is None else weight) / np.sqrt(variance + arguments["eps"])
    shift = (0.0 if bias is None else bias) - mean * scale
    result = _scale_and_shift(emitter, node, x, scale, shift)
    if isinstance(node.meta["val"], (tuple, list)):
        empty = emitter.weights.add("empty", np.zeros(0, np.float32))
        return [result, *[empty] * (len(node.meta["val"]) - 1)]
    return result


def _scale_and_shift(emitter: Emitter, node: fx.Node, x: fx.Node, scale: Any, shift: Any) -> Value:
    shape, dtype = emitter.result(x)
    blocked = emitter.value(x).only_blocked
    lanes = emitter.lanes
    vectors = []
    for name, vector in (("scale", scale), ("shift", shift)):
        array = vector.astype(np.float32)
        if blocked:
            array = np.pad(array, (0, -len(array) % lanes)).reshape(-1, lanes)
        vectors.append(emitter.weights.add(f"{node.name}.{name}{'.blocked' if blocked else ''}", array))

    def compute(x: Any, scale: Any, shift: Any, shape: Sequence[Size]) -> Any:
        def element(*i: Any) -> Any:
            channel = (i[1], i[-1]) if blocked else (i[1],)
            value = scalar.cast(x(*i), "float32") * scale(*channel) + shift(*channel)
            return scalar.cast(value, dtype)

        return te.compute(shape, element, name="batch_norm")

    if blocked:
        inside = layout.blocked_shape(shape, lanes)
        return Value(shape, dtype, blocked=emitter.te(node, compute, emitter.blocked(x), *vectors, shape=inside))
    return Value(shape, dtype, plain=emitter.te(node, compute, emitter.plain(x), *vectors, shape=shape))


@emits("aten.layer_norm", "aten.native_layer_norm")
def _layer_norm(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    x, weight, bias = arguments["input"], arguments["weight"], arguments["bias"]
    rank, normalised = len(emitter.shape(x)), len(arguments["normalized_shape"])
    axes = list(range(rank - normalised, rank))
    epsilon, dtype = arguments["eps"], emitter.dtype(x)
    made = _rows_kernel(emitter, node, x, normalised, weight, bias, epsilon, centred=True)
    if made is not None:
        return _with_statistics(emitter, node, x, axes, epsilon, made)
    work = accumulator(dtype)
    affine = [p for p in (weight, bias) if p is not None]

    def compute(x: Any, *affine_: Any) -> Any:
        given = iter(affine_)
        gain = next(given) if weight is not None else None
        offset = next(given) if bias is not None else None
        mean, squares = moments(x, axes, work)
        inverse = _inverse_root(squares, count(x, axes, work), epsilon, work)

        def element(*i: Any) -> Any:
            at = [0 if d in axes else k for d, k in enumerate(i)]
            value = (scalar.cast(x(*i), work) - mean(*at)) * inverse(*at)
            if gain is not None:
                value = value * scalar.cast(gain(*[i[a] for a in axes]), work)
            if offset is not None:
                value = value + scalar.cast(offset(*[i[a] for a in axes]), work)
            return scalar.cast(value, dtype)

        return te.compute(x.shape, element, name="layer_norm")

    result = emitter.te(node, compute, emitter.plain(x), *map(emitter.plain, affine))
    return _with_statistics(emitter, node, x, axes, epsilon, result)


def _rows_kernel(
    emitter: Emitter, node: fx.Node, x: fx.Node, axes: int, weight: Any, bias: Any, epsilon: float, centred: bool
) -> Any:
    """One call of the kernel over the last ``axes`` axes of a float32 tensor; None where their extents are dynamic."""
    shape, dtype = emitter.result(x)
    columns = product(shape[len(shape) - axes :])
    if dtype != "float32" or not isinstance(columns, int) or not columns:
        return None
    affine = [emitter.reshape(emitter.plain(p), [columns]) for p in (weight, bias) if p is not None]
    present = {"weight": weight is not None, "bias": bias is not None}
    source = _channels_first(x) if axes == 1 else None
    nodes = emitter.region(node).nodes
    # Blocks are normalised where they lie: the result is channels-last without a transpose, or blocks again.
    stays = len(nodes) > 1
    if source is not None and (stays or emitter.value(source).blocked is not None):
        batch, positions = shape[0], product(shape[1:-1])
        problem = NormaliseShape(
            _known(batch), columns, epsilon, centred, **present, positions=_known(positions), blocked=stays
        )
        blocks = (batch, -(-columns // emitter.lanes), positions, emitter.lanes)
        seen = emitter.reshape(emitter.blocked(source), blocks)
        stored = blocks if stays else (batch, positions, columns)
        made = emitter.call_kernel(normalise, problem, Epilogue(), [seen, *affine], stored, nodes)
        if stays:
            result = emitter.shape(nodes[-1])
            return Value(result, dtype, blocked=emitter.reshape(made, layout.blocked_shape(result, emitter.lanes)))
    else:
        rows = product(shape[: len(shape) - axes])
        problem = NormaliseShape(_known(rows), columns, epsilon, centred, **present)
        seen = emitter.reshape(emitter.plain(x), [rows, columns])
        made = emitter.call_kernel(normalise, problem, Epilogue(), [seen, *affine], (rows, columns), (node,))
    return emitter.reshape(made, shape)


def _channels_first(node: fx.Node) -> fx.Node | None:
    """What a node brings from channels-first to channels-last."""
    if op_name(node) != "aten.permute":
        return None
    rank = len(node.meta["val"].shape)
    order = [d % rank for d in cast("list[int]", node.args[1])]
    return cast(fx.Node, node.args[0]) if rank >= 3 and order == [0, *range(2, rank), 1] else None


def _known(size: Size) -> int | None:
    return size if isinstance(size, int) else None


def _inverse_root(squares: Any, total: Any, epsilon: float, work: str) -> Any:
    """1 / sqrt(variance + epsilon)."""
    return te.compute(
        squares.shape,
        lambda *i: tirx.const(1, work) / tirx.sqrt(squares(*i) / total + tirx.const(epsilon, work)),
        name="inverse",
    )


def _with_statistics(emitter: Emitter, node: fx.Node, x: fx.Node, axes: list[int], epsilon: float, result: Any) -> Any:
    """``native_layer_norm`` returns mean and 1 / deviation too; they are emitted only where something reads them."""
    claimed = node.meta["val"]
    if not isinstance(claimed, (tuple, list)):
        return result
    if any(user.args[1] != 0 for user in node.users):
        raise UnsupportedError("the statistics of a normalisation as results")
    return [result, *[None] * (len(claimed) - 1)]


@emits("aten.rms_norm", "aten._fused_rms_norm")
def _rms_norm(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    x, weight, epsilon = arguments["input"], arguments["weight"], arguments["eps"]
    rank, normalised = len(emitter.shape(x)), len(arguments["normalized_shape"])
    axes = list(range(rank - normalised, rank))
    dtype = emitter.dtype(x)
    work = accumulator(dtype)
    if epsilon is None:
        epsilon = {"float64": 2.220446049250313e-16}.get(work, 1.1920928955078125e-07)
    made = _rows_kernel(emitter, node, x, normalised, weight, None, epsilon, centred=False)
    if made is not None:
        return _with_statistics(emitter, node, x, axes, epsilon, made)

    def compute(x: Any, *gain: Any) -> Any:
        def square(*i: Any) -> Any:
            value = scalar.cast(x(*i), work)
            return value * value

        inverse = _inverse_root(reduce_over(x, axes, te.sum, square, True), count(x, axes, work), epsilon, work)

        def element(*i: Any) -> Any:
            value = scalar.cast(x(*i), work) * inverse(*[0 if d in axes else k for d, k in enumerate(i)])
            for g in gain:
                value = value * scalar.cast(g(*[i[a] for a in axes]), work)
            return scalar.cast(value, dtype)

        return te.compute(x.shape, element, name="rms_norm")

    gain = [] if weight is None else [emitter.plain(weight)]
    result = emitter.te(node, compute, emitter.plain(x), *gain)
    return _with_statistics(emitter, node, x, axes, epsilon, result)


@emits("aten.group_norm", "aten.native_group_norm")
def _group_norm(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    groups = arguments.get("num_groups", arguments.get("group"))
    x = arguments["input"]
    result = _grouped(emitter, node, x, arguments["weight"], arguments["bias"], groups, arguments["eps"])
    return _with_statistics(emitter, node, x, [], arguments["eps"], result)


@emits("aten.instance_norm")
def _instance_norm(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    if not arguments["use_input_stats"]:
        raise UnsupportedError("instance norm with running statistics")
    x = arguments["input"]
    channels = emitter.shape(x)[1]
    return _grouped(emitter, node, x, arguments["weight"], arguments["bias"], channels, arguments["eps"])


def _grouped(emitter: Emitter, node: fx.Node, x: fx.Node, weight: Any, bias: Any, groups: Any, epsilon: float) -> Any:
    """Normalise over the channels of each group and all positions."""
    shape, dtype = emitter.result(x)
    work = accumulator(dtype)
    size = shape[1] // groups
    split = (shape[0], groups, size, *shape[2:])
    axes = list(range(2, len(split)))
    affine = [p for p in (weight, bias) if p is not None]
    columns, rows = product(split[2:]), product(split[:2])
    if dtype == "float32" and isinstance(columns, int) and columns:
        problem = NormaliseShape(
            _known(rows), columns, epsilon, True, weight is not None, bias is not None, 0, groups, size
        )
        inputs = [emitter.reshape(emitter.plain(x), [rows, columns]), *map(emitter.plain, affine)]
        made = emitter.call_kernel(normalise, problem, Epilogue(), inputs, (rows, columns), (node,))
        return emitter.reshape(made, shape)

    def compute(x: Any, *affine_: Any) -> Any:
        given = iter(affine_)
        gain = next(given) if weight is not None else None
        offset = next(given) if bias is not None else None
        mean, squares = moments(x, axes, work)
        inverse = _inverse_root(squares, count(x, axes, work), epsilon, work)

        def element(*i: Any) -> Any:
            at = [*i[:2], *[0] * (len(i) - 2)]
            channel = i[1] * size + i[2]
            value = (scalar.cast(x(*i), work) - mean(*at)) * inverse(*at)
            if gain is not None:
                value = value * scalar.cast(gain(channel), work)
            if offset is not None:
                value = value + scalar.cast(offset(channel), work)
            return scalar.cast(value, dtype)

        return te.compute(x.shape, element, name="group_norm")

    grouped = emitter.reshape(emitter.plain(x), split)
    return emitter.reshape(emitter.te(node, compute, grouped, *map(emitter.plain, affine)), shape)


def softmax(x: Any, axis: int, work: str, dtype: str, log: bool = False) -> Any:
    """Softmax (or its logarithm) of a te tensor along one axis, computed in ``work``, given in ``dtype``.

    A row of nothing but -infinity gives NaN, as in torch.
    """

    def at(i: Sequence[Any]) -> list[Any]:
        return [0 if d == axis else k for d, k in enumerate(i)]

    top = reduce_over(x, [axis], te.max, lambda *i: scalar.cast(x(*i), work), True, name="top")
    if log:
        total = reduce_over(x, [axis], te.sum, lambda *i: tirx.exp(scalar.cast(x(*i), work) - top(*at(i))), True)
        logs = te.compute(total.shape, lambda *i: tirx.log(total(*i)), name="log")
        return te.compute(
            x.shape,
            lambda *i: scalar.cast(scalar.cast(x(*i), work) - top(*at(i)) - logs(*at(i)), dtype),
            name="log_softmax",
        )
    powers = te.compute(x.shape, lambda *i: tirx.exp(scalar.cast(x(*i), work) - top(*at(i))), name="power")
    total = reduce_over(powers, [axis], te.sum, lambda *i: powers(*i), True, name="total")
    return te.compute(x.shape, lambda *i: scalar.cast(powers(*i) / total(*at(i)), dtype), name="softmax")


@emits("aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax")
def _softmax(emitter: Emitter, node: fx.Node) -> Any:
    region = emitter.region(node)
    if isinstance(region, AttentionRegion):
        return fused(emitter, region)
    arguments = emitter.arguments(node)
    x, axis = arguments["self"], arguments["dim"]
    dtype = emitter.dtype(node)
    rank = len(emitter.shape(x))
    log = "log_softmax" in str(node.target)
    work = accumulator(dtype)
    if rank == 0:
        value = 0 if log else 1
        return emitter.te(node, lambda x: te.compute((), lambda: tirx.const(value, dtype)), emitter.plain(x))
    shape = emitter.shape(x)
    columns = shape[-1]
    if axis % rank == rank - 1 and dtype == emitter.dtype(x) == "float32" and isinstance(columns, int) and columns:
        rows = product(shape[:-1])
        seen = emitter.reshape(emitter.plain(x), [rows, columns])
        problem = SoftmaxShape(_known(rows), columns, log)
        made = emitter.call_kernel(softmax_kernel, problem, Epilogue(), [seen], (rows, columns), (node,))
        return emitter.reshape(made, shape)
    return emitter.te(node, lambda x: softmax(x, axis % rank, work, dtype, log), emitter.plain(x))
