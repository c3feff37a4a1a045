"""Codes with a scale and a zero point that are found in the values while the program runs.

Where all of it is one region, scale and zero point go to kernels in a tensor of their own (:mod:`kernels.parameters`);
else each operator gives what torch's gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx

from shave.backends.tvm.adapter import te, tirx
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import Emitter, number
from shave.backends.tvm.emit.pointwise import emit_elements
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.kernels import bounds
from shave.backends.tvm.kernels.bounds import BoundsShape, Rule
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.parameters import RECIPROCAL, SCALE, ZERO
from shave.backends.tvm.layout import Value
from shave.backends.tvm.measured import MeasuredRegion
from shave.backends.tvm.quantized import CHOOSE, CHOOSE_ROWS, DEQUANTIZE_ROWS, QUANTIZE_ROWS, ROWS_LEAST
from shave.backends.tvm.sizes import Size, product
from shave.ir.errors import UnsupportedError
from shave.ir.ops import op_name

_CACHED = 1 << 12
"""Elements of a row that stays in a level 1 cache."""


@emits(CHOOSE, CHOOSE_ROWS)
def _choose(emitter: Emitter, node: fx.Node) -> Any:
    region = emitter.region(node)
    if isinstance(region, MeasuredRegion):
        return _codes(emitter, region)
    least = ROWS_LEAST if op_name(node) == CHOOSE_ROWS else emitter.arguments(node)["quant_min"]
    parameters = _parameters(emitter, node, least)

    def numbers(place: int, claimed: torch.Tensor, dtype: str) -> Any:
        def compute(found: Any) -> Any:
            return te.compute((found.shape[0],), lambda i: scalar.cast(found(i, place), dtype), name="number")

        made = emitter.te(node, compute, parameters)
        return emitter.reshape(made, emitter.sizes.shape(claimed.shape))

    scale, zero = node.meta["val"]
    return [numbers(SCALE, scale, "float64"), numbers(ZERO, zero, "int64")]


def _parameters(emitter: Emitter, node: fx.Node, offset: int) -> Any:
    """Scale and zero point of a call that finds them: the variable of a tensor as :mod:`kernels.parameters` has it.

    Args:
        emitter: Emits.
        node: The call.
        offset: What the zero point is more than that of codes from 0 on.
    """
    x = cast(fx.Node, node.args[0])
    if emitter.dtype(x) != "float32" or x.meta["val"].dtype == torch.bfloat16:
        raise UnsupportedError(f"bounds of {x.meta['val'].dtype}: the backend finds those of float32")
    if op_name(node) == CHOOSE_ROWS:
        rule = Rule(255, torch.finfo(torch.float32).eps, "nearer", offset)
        shape = emitter.shape(x)
        return _bounds(emitter, node, emitter.plain(x), product(shape[:-1]), shape[-1], rule)
    arguments = emitter.arguments(node)
    rule = Rule(arguments["quant_max"] - arguments["quant_min"], arguments["eps"], "low", offset)
    value = emitter.value(x)
    source = value.blocked if _is_full(emitter, value) else emitter.plain(x)
    lead: list[Size] = [int(s.value) if isinstance(s, tirx.IntImm) else s for s in source.ty.shape.values]
    columns: Size = 1
    while lead and (columns == 1 or _fits(lead[-1], columns)):
        columns = product([columns, lead.pop()])
    rows = product(lead)
    if isinstance(rows, int) and rows == 1:
        return _bounds(emitter, node, source, 1, columns, rule)
    ends = _bounds(emitter, node, source, rows, columns, None)
    return _bounds(emitter, node, ends, 1, product([rows, 2]), rule)


def _fits(size: Size, columns: Size) -> bool:
    """Whether rows of so many times ``columns`` elements stay in a level 1 cache."""
    return isinstance(size, int) and isinstance(columns, int) and size * columns <= _CACHED


def _is_full(emitter: Emitter, value: Value) -> bool:
    """Whether a value lies in blocks alone, and all their lanes hold channels."""
    return value.only_blocked and cast(int, value.shape[1]) % emitter.lanes == 0


def _bounds(emitter: Emitter, node: fx.Node, x: Any, rows: Size, columns: Size, rule: Rule | None) -> Any:
    """A call of the kernel on a variable, seen as [rows, columns]."""
    known = [size if isinstance(size, int) else None for size in (rows, columns)]
    shape = BoundsShape(known[0], known[1], rule)
    seen = emitter.reshape(x, (rows, columns))
    return emitter.call_kernel(bounds, shape, Epilogue(), [seen], (rows, shape.numbers), (node,))


def _codes(emitter: Emitter, region: MeasuredRegion) -> Any:
    made = region.made
    assert made is not None
    x, parameters = cast(fx.Node, made.node.args[0]), _parameters(emitter, made.choice, made.offset)
    emitter.parameters[made.node] = parameters
    low, high = (tirx.const(float(end), "float32") for end in (made.low, made.high))

    def code(element: Any, found: Any, row: Any) -> Any:
        steps = tirx.nearbyint(element * found(row, RECIPROCAL)) + found(row, ZERO)
        return scalar.cast(scalar.clamp(steps, low, high), "uint8")

    return _with_parameters(emitter, made.node, x, parameters, code)


def real_of_measured(emitter: Emitter, node: fx.Node) -> Any:
    """What a dequantize call gives of codes that a region made."""
    codes, dtype = cast(fx.Node, node.args[0]), emitter.dtype(node)

    def real(code: Any, found: Any, row: Any) -> Any:
        return scalar.cast((scalar.cast(code, "float32") - found(row, ZERO)) * found(row, SCALE), dtype)

    return _with_parameters(emitter, node, codes, emitter.parameters[codes], real)


def _with_parameters(
    emitter: Emitter, node: fx.Node, x: fx.Node, parameters: Any, value: Callable[[Any, Any, Any], Any]
) -> Any:
    """Emit ``value(element, parameters, its row of them)`` for each element."""
    if op_name(node) not in (QUANTIZE_ROWS, DEQUANTIZE_ROWS):
        return emit_elements(emitter, node, [x], [parameters], lambda loads, given: value(loads[x], given[0], 0))
    shape = emitter.shape(node)

    def compute(x: Any, found: Any, shape: Sequence[Size]) -> Any:
        return te.compute(shape, lambda i, j: value(x(i, j), found, i), name="converted")

    flat = (product(shape[:-1]), shape[-1])
    made = emitter.te(node, compute, emitter.reshape(emitter.plain(x), flat), parameters, shape=flat)
    return emitter.reshape(made, shape)


@emits(QUANTIZE_ROWS)
def _quantize_rows(emitter: Emitter, node: fx.Node) -> Any:
    x, scales, zeros, low, high = node.args[:5]
    dtype = emitter.dtype(node)
    ends = [number(end, "float64") for end in (low, high)]

    def value(loads: dict[fx.Node, Any], _: Any) -> Any:
        # In torch, scales of double precision make all of it that.
        element, scale, zero = (scalar.cast(loads[cast(fx.Node, each)], "float64") for each in (x, scales, zeros))
        steps = tirx.nearbyint(element * (tirx.const(1.0, "float64") / scale) + zero)
        return scalar.cast(scalar.clamp(steps, *ends), dtype)

    return emit_elements(emitter, node, cast("list[fx.Node]", [x, scales, zeros]), [], value)


@emits(DEQUANTIZE_ROWS)
def _dequantize_rows(emitter: Emitter, node: fx.Node) -> Any:
    codes, scales, zeros = (cast(fx.Node, each) for each in node.args[:3])
    if codes in emitter.parameters:
        return real_of_measured(emitter, node)
    dtype = emitter.dtype(node)

    def value(loads: dict[fx.Node, Any], _: Any) -> Any:
        element, scale, zero = (scalar.cast(loads[each], "float64") for each in (codes, scales, zeros))
        return scalar.cast((element - zero) * scale, dtype)

    return emit_elements(emitter, node, [codes, scales, zeros], [], value)


def times_zero(emitter: Emitter, node: fx.Node, ones: Any, codes: fx.Node) -> Any:
    """Corrections for a zero point of 1, for that of codes found while the program runs."""
    return _times(emitter, node, ones, emitter.parameters[codes], ZERO)


def times_scale(emitter: Emitter, node: fx.Node, scales: Any, codes: fx.Node) -> Any:
    """Scales of weights, times that of codes found while the program runs."""
    return _times(emitter, node, scales, emitter.parameters[codes], SCALE)


def _times(emitter: Emitter, node: fx.Node, values: Any, parameters: Any, place: int) -> Any:
    dtype = str(values.ty.dtype)

    def compute(values: Any, found: Any) -> Any:
        return te.compute(values.shape, lambda *i: values(*i) * scalar.cast(found(0, place), dtype), name="times")

    return emitter.te(node, compute, values, parameters)
