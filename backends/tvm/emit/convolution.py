"""Convolutions: float kernels of our own on blocked tensors; anything else as a tensor expression."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from shave.backends.tvm.adapter import te, tirx
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import Emitter
from shave.backends.tvm.emit.epilogues import emit_epilogue
from shave.backends.tvm.emit.measured import times_scale, times_zero
from shave.backends.tvm.emit.operands import Blocks
from shave.backends.tvm.emit.reduction import accumulator
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.kernels.families import family_of
from shave.backends.tvm.kernels.geometry import QUAD, ConvShape
from shave.backends.tvm.kernels.zero_point import corrections
from shave.backends.tvm.layout import Value, blocked_shape
from shave.backends.tvm.quantized import MeasuredCodes, Product, product_of
from shave.backends.tvm.sizes import Size, is_static
from shave.ir.ops import argument, op_name

OPERATORS = (
    "aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution",
    "aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d",
)  # fmt: skip
_WIDENED = ("float16", "bfloat16")


@dataclass(frozen=True)
class _Arguments:
    """A convolution's arguments in one form for all operators.

    ``gate`` [1, C, 1 ...] scales the channels of ``x``, where the graph multiplies the two.
    """

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    output_padding: tuple[int, ...]
    gate: fx.Node | None = None


def _read(node: fx.Node) -> _Arguments:
    schema = node.target._schema  # type: ignore[union-attr]
    given: dict[str, Any] = {}
    for position, parameter in enumerate(schema.arguments):
        value = node.args[position] if position < len(node.args) else parameter.default_value
        given[parameter.name] = node.kwargs.get(parameter.name, value)
    weight = given["weight"]
    kernel = weight.meta["val"].shape[2:]
    rank = len(kernel)

    def spread(value: Any) -> tuple[int, ...]:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        return tuple(values * rank if len(values) == 1 else values)

    dilation = spread(given["dilation"])
    padding = given["padding"]
    if padding == "same":
        # torch puts the odd one behind.
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = tuple((t // 2, t - t // 2) for t in totals)
    else:
        pads = tuple((p, p) for p in spread(0 if padding == "valid" else padding))
    return _Arguments(
        given["input"], weight, given["bias"], spread(given["stride"]), pads, dilation, given["groups"],
        bool(given.get("transposed", "transpose" in op_name(node))), spread(given.get("output_padding", 0)),
    )  # fmt: skip


def _with_pad(a: _Arguments, zero: int = 0) -> _Arguments:
    """The convolution with a constant pad ahead of it as padding of its own; kernels take uneven ones.

    The pad itself is emitted as ever and dropped if nothing else reads it.

    Args:
        a: The convolution.
        zero: What stands for 0 in its input.
    """
    pad = a.x
    if a.transposed or pad.op != "call_function" or op_name(pad) not in ("aten.pad", "aten.constant_pad_nd"):
        return a
    amounts, source = list(argument(pad, "pad")), argument(pad, "self")
    constant = op_name(pad) == "aten.constant_pad_nd" or argument(pad, "mode") == "constant"
    whole = all(isinstance(amount, int) and amount >= 0 for amount in amounts)
    if not constant or not whole or (argument(pad, "value") or 0) != zero or len(amounts) > 2 * len(a.stride):
        return a
    # The amounts come last axis first.
    amounts += [0] * (2 * len(a.stride) - len(amounts))
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))[::-1]
    sums = [(p[0] + q[0], p[1] + q[1]) for p, q in zip(a.padding, pairs, strict=True)]
    return replace(a, x=source, padding=tuple(sums))


def _with_gate(emitter: Emitter, a: _Arguments) -> _Arguments:
    """The convolution of ``x * gate`` for one image, where its weights are fewer than the elements of ``x``.

    So the gate of a squeeze and excitation scales the weights, and the map is not written once more. A product that the
    kernel of ``x`` computes already stays there.
    """
    product = a.x
    if (
        product in emitter.last_of
        or a.groups > 1
        or a.transposed
        or product.op != "call_function"
        or op_name(product) != "aten.mul"
    ):
        return a
    operands = [n for n in product.args if isinstance(n, fx.Node)]
    whole = product.meta["val"].shape
    fewer = a.weight.meta["val"].numel() < prod(whole) if whole[0] == 1 else False
    if len(operands) != 2 or len(product.users) > 1 or not fewer:
        return a
    for x, gate in (operands, operands[::-1]):
        shapes = [n.meta["val"].shape for n in (x, gate)]
        if shapes == [whole, (*whole[:2], *[1] * len(a.stride))] and x.meta["val"].dtype == gate.meta["val"].dtype:
            return replace(a, x=x, gate=gate)
    return a


def is_kernel(node: fx.Node) -> bool:
    """Whether a kernel of ours computes a convolution: constant weights, known extents but for the batch."""
    if op_name(node) not in OPERATORS:
        return False
    a = _read(node)
    value = a.x.meta["val"]
    weights = a.weight.op == "get_attr" or product_of(node) is not None
    constants = weights and (a.bias is None or a.bias.op == "get_attr")
    known = not any(isinstance(size, torch.SymInt) for size in value.shape[1:]) and value.dim() == len(a.stride) + 2
    return constants and known and value.dtype in (torch.float32, torch.float16, torch.bfloat16)


@emits(*OPERATORS)
def _convolution(emitter: Emitter, node: fx.Node) -> Any:
    if is_kernel(node):
        product = product_of(node)
        if product is not None:
            return _integers(emitter, node, _read(node), product)
        return _kernel(emitter, node, _with_gate(emitter, _with_pad(_read(node))))
    a = _read(node)
    inputs = [emitter.plain(n) for n in (a.x, a.weight, a.bias) if n is not None]
    shape = emitter.shape(node)
    if len(shape) == len(a.stride) + 2:
        return _expression(emitter, node, a, inputs, shape)
    # One image without a batch.
    inputs[0] = emitter.reshape(inputs[0], (1, *emitter.shape(a.x)))
    return emitter.reshape(_expression(emitter, node, a, inputs, (1, *shape)), shape)


def _kernel(emitter: Emitter, node: fx.Node, a: _Arguments) -> Value:
    target, lanes = emitter.target, emitter.lanes
    weight = a.weight.meta["val"]
    have, dtype = emitter.result(a.x)
    batch, channels, *spatial = have
    out_channels = int(weight.shape[1]) * a.groups if a.transposed else int(weight.shape[0])
    x = emitter.value(a.x)
    plain_input = x.blocked is None and cast(int, channels) < lanes
    shape = ConvShape(
        batch if isinstance(batch, int) else None, cast(int, channels), out_channels, tuple(cast("list[int]", spatial)),
        tuple(map(int, weight.shape[2:])), a.stride, a.padding, a.dilation, a.groups, a.transposed,
        a.output_padding if a.transposed else (), plain_input,
    )  # fmt: skip
    family: Any = family_of(shape, target)
    name = family.__name__.rpartition(".")[2]
    name += ".transposed" * a.transposed + ".plain" * plain_input
    source = emitter.plain(a.x) if plain_input else emitter.blocked(a.x)
    packed = emitter.packed(name, a.weight, family.packing(shape, target))
    inputs = [emitter.as_float32(node, source), packed if a.gate is None else _gated(emitter, node, packed, a.gate)]
    region = emitter.region(node)
    epilogue, operands = emit_epilogue(emitter, region, Blocks(emitter, out_channels), out_channels, a.bias)
    result = (batch, out_channels, *shape.out_spatial)
    made = emitter.call_kernel(
        family, shape, epilogue, [*inputs, *operands], blocked_shape(result, lanes), region.nodes
    )
    dtype = emitter.dtype(region.nodes[-1])
    return Value(result, dtype, blocked=emitter.from_float32(node, made, dtype) if region.codes is None else made)


def _integers(emitter: Emitter, node: fx.Node, a: _Arguments, product: Product) -> Value:
    """Codes times integer weights."""
    target, x, weights = emitter.target, product.x, product.weights
    a = replace(a, x=x.node)
    # What stands for 0 is a code that a pad of floats does not hold.
    a = a if isinstance(x, MeasuredCodes) else _with_pad(a, x.zero_point)
    weight = cast(torch.Tensor, emitter.constant(weights.node)).numpy()
    batch, channels, *spatial = emitter.shape(a.x)
    out_channels = weight.shape[0]
    quads = cast(int, channels) <= QUAD and a.groups == 1 and emitter.value(a.x).blocked is None
    shape = ConvShape(
        batch if isinstance(batch, int) else None, cast(int, channels), out_channels, tuple(cast("list[int]", spatial)),
        tuple(weight.shape[2:]), a.stride, a.padding, a.dilation, a.groups, plain_input=quads, dtype="uint8",
    )  # fmt: skip
    family: Any = family_of(shape, target)
    held = f"{weights.node.target}.integers{'.quads' * quads}"
    start = emitter.weights.add(f"{node.name}.corrections", corrections(weight, x.zero_point, shape, target))
    region = emitter.region(node)
    scale = np.broadcast_to(weights.scales * np.float32(x.scale), out_channels)
    epilogue, operands = emit_epilogue(emitter, region, Blocks(emitter, out_channels), out_channels, a.bias, scale)
    if isinstance(x, MeasuredCodes):
        start = times_zero(emitter, node, start, x.node)
        operands[0] = times_scale(emitter, node, operands[0], x.node)  # an epilogue of integers begins with it
    inputs = [
        _quads(emitter, node, a.x) if quads else emitter.blocked(a.x),
        emitter.integers(held, weight, family.pack(weight, shape, target), family.packing(shape, target)),
        start,
    ]
    result = (batch, out_channels, *shape.out_spatial)
    stored = blocked_shape(result, emitter.lanes)
    made = emitter.call_kernel(family, shape, epilogue, [*inputs, *operands], stored, region.nodes)
    return Value(result, epilogue.dtype, blocked=made)


def _quads(emitter: Emitter, node: fx.Node, codes: fx.Node) -> Any:
    """Up to four channels of codes as one int32 for each pixel, the first channel lowest."""
    channels = cast(int, emitter.shape(codes)[1])

    def compute(x: Any) -> Any:
        def element(n: Any, *place: Any) -> Any:
            parts = [scalar.cast(x(n, c, *place), "int32") << tirx.const(8 * c, "int32") for c in range(channels)]
            return functools.reduce(tirx.bitwise_or, parts)

        return te.compute((x.shape[0], *x.shape[2:]), element, name="quads")

    return emitter.te(node, compute, emitter.plain(codes))


def _gated(emitter: Emitter, node: fx.Node, packed: Any, gate: fx.Node) -> Any:
    """Packed weights [..., input blocks, *kernel, channels of a block, lanes], input channels times ``gate``."""
    lanes = emitter.lanes

    def compute(weight: Any, gate: Any) -> Any:
        def element(o: Any, i: Any, *rest: Any) -> Any:
            channel = i * weight.shape[-2] + rest[-2]
            ones = [0] * (len(gate.shape) - 3)
            return weight(o, i, *rest) * gate(0, channel // lanes, *ones, channel % lanes)

        return te.compute(weight.shape, element, name="gated")

    return emitter.te(node, compute, packed, emitter.as_float32(node, emitter.blocked(gate)))


def _expression(emitter: Emitter, node: fx.Node, a: _Arguments, inputs: list[Any], shape: Sequence[Size]) -> Any:
    """Any dtype, any extents, weights that are computed."""
    dtype = emitter.dtype(node)
    work = accumulator(dtype)

    def compute(x: Any, weight: Any, *bias: Any, shape: Sequence[Size]) -> Any:
        kernel, rank = weight.shape[2:], len(shape) - 2
        taps = [te.reduce_axis((0, k), name=f"k{d}") for d, k in enumerate(kernel)]
        inputs_of_group = x.shape[1] // a.groups
        outputs_of_group = shape[1] // a.groups
        c = te.reduce_axis((0, inputs_of_group), name="c")

        def element(n: Any, o: Any, *out: Any) -> Any:
            group = o // outputs_of_group
            channel = group * inputs_of_group + c
            position, hits = [], []
            for d in range(rank):
                if a.transposed:
                    reach = out[d] + a.padding[d][0] - taps[d] * a.dilation[d]
                    at = tirx.floordiv(reach, a.stride[d])
                    hits.append(scalar.equal(tirx.floormod(reach, a.stride[d]), 0))
                else:
                    at = out[d] * a.stride[d] - a.padding[d][0] + taps[d] * a.dilation[d]
                hits += [at >= 0, at < x.shape[2 + d]]
                position.append(at)
            value = tirx.if_then_else(tirx.all(*hits), scalar.cast(x(n, channel, *position), work), tirx.const(0, work))
            weights = weight(channel, o % outputs_of_group, *taps) if a.transposed else weight(o, c, *taps)
            return te.sum(value * scalar.cast(weights, work), axis=[c, *taps])

        total = te.compute(shape, element, name="conv")

        def finish(n: Any, o: Any, *out: Any) -> Any:
            value = total(n, o, *out)
            for b in bias:
                value = value + scalar.cast(b(o), work)
            return scalar.cast(value, dtype)

        return te.compute(shape, finish, name="result")

    assert is_static(emitter.shape(a.weight))
    return emitter.te(node, compute, *inputs, shape=shape)
