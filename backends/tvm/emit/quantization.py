"""quantize and dequantize: round half to even, add the zero point, saturate.

Where factor and zero point are numbers, they are a small weight all the same: so the layers of a network share code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from torch import fx

from shave.backends.tvm.adapter import te, tirx
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import Emitter, number
from shave.backends.tvm.emit.measured import real_of_measured
from shave.backends.tvm.emit.pointwise import emit_elements
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.quantized import Codes
from shave.backends.tvm.sizes import Size

_D = "quantized_decomposed"


def _parameters(emitter: Emitter, node: fx.Node) -> tuple[list[Any], list[Any]]:
    """(scale, zero point) as numbers or nodes, and the Relax variables of those that are nodes."""
    arguments = emitter.arguments(node)
    scale = arguments.get("scale", arguments.get("scales"))
    zero = arguments.get("zero_point", arguments.get("zero_points"))
    pair = [scale, zero]
    return pair, [emitter.plain(p) for p in pair if isinstance(p, fx.Node)]


def _reader(emitter: Emitter, pair: Sequence[Any], axis: int | None) -> Any:
    """A function (tensors, index) to the scale (float32) and the zero point (int32) of an element."""

    def read(tensors: Sequence[Any], index: Sequence[Any]) -> list[Any]:
        given = iter(tensors)
        found = []
        for parameter, dtype in zip(pair, ("float32", "int32"), strict=True):
            if parameter is None:
                found.append(tirx.const(0, dtype))
            elif not isinstance(parameter, fx.Node):
                found.append(number(parameter, dtype))
            else:
                tensor = next(given)
                rank = len(emitter.shape(parameter))
                place = [index[axis]] if axis is not None and rank == 1 else [0] * rank
                found.append(scalar.cast(tensor(*place), dtype))
        return found

    return read


def _axis(emitter: Emitter, node: fx.Node) -> int | None:
    axis = emitter.arguments(node).get("axis")
    return None if axis is None else int(axis) % len(emitter.shape(node))


@emits(f"{_D}.quantize_per_tensor", f"{_D}.quantize_per_channel")
def _quantize(emitter: Emitter, node: fx.Node) -> Any:
    arguments, dtype = emitter.arguments(node), emitter.dtype(node)
    low, high = arguments["quant_min"], arguments["quant_max"]

    def value(x: Any, inverse: Any, zero: Any) -> Any:
        # torch multiplies by the reciprocal and adds the zero point before it saturates.
        steps = tirx.nearbyint(scalar.cast(x, "float32") * inverse)
        shifted = steps + tirx.Cast("float32", zero)
        kept = scalar.clamp(shifted, tirx.const(float(low), "float32"), tirx.const(float(high), "float32"))
        return scalar.cast(kept, dtype)

    return _converted(emitter, node, value, lambda scale: 1 / scale)


@emits(f"{_D}.dequantize_per_tensor", f"{_D}.dequantize_per_channel")
def _dequantize(emitter: Emitter, node: fx.Node) -> Any:
    dtype = emitter.dtype(node)
    if cast(fx.Node, node.args[0]) in emitter.parameters:
        return real_of_measured(emitter, node)

    def value(x: Any, scale: Any, zero: Any) -> Any:
        return scalar.cast(tirx.Cast("float32", scalar.cast(x, "int32") - zero) * scale, dtype)

    return _converted(emitter, node, value, lambda scale: scale)


def real(emitter: Emitter, node: fx.Node, numbers: Any, codes: Codes) -> Any:
    """What float32 numbers stand for, which are means of codes, in the layout in which they lie."""

    def compute(x: Any, conversion: Any) -> Any:
        scale, zero = _loaded(conversion)
        return te.compute(x.shape, lambda *i: (x(*i) - tirx.Cast("float32", zero)) * scale, name="real")

    return emitter.te(node, compute, numbers, _conversion(emitter, np.float32(codes.scale), codes.zero_point))


def _converted(
    emitter: Emitter, node: fx.Node, value: Callable[[Any, Any, Any], Any], factor: Callable[[Any], Any]
) -> Any:
    """Emit ``value(element, factor(its scale), its zero point)`` for each element, in the layout of the input.

    Parameters of their own for each channel take the plain layout.
    """
    x = emitter.arguments(node)["input"]
    pair, variables = _parameters(emitter, node)
    if not variables:
        scale, zero = pair
        conversion = _conversion(emitter, factor(np.float32(scale)), zero or 0)
        return emit_elements(emitter, node, [x], [conversion], lambda loads, given: value(loads[x], *_loaded(given[0])))
    read = _reader(emitter, pair, _axis(emitter, node))

    def compute(x: Any, *tensors: Any, shape: Sequence[Size]) -> Any:
        def element(*index: Any) -> Any:
            scale, zero = read(tensors, index)
            return value(x(*index), factor(scale), zero)

        return te.compute(shape, element, name="converted")

    return emitter.te(node, compute, emitter.plain(x), *variables, shape=emitter.shape(node))


def _conversion(emitter: Emitter, factor: np.float32, zero: int) -> Any:
    """The variable of a factor and a zero point: int32 [2], the first as its bits; equal ones are one tensor."""
    numbers = np.array([np.float32(factor).view(np.int32), zero], np.int32)
    return emitter.weights.add(f"conversion({float(factor)!r}, {zero})", numbers)


def _loaded(conversion: Any) -> tuple[Any, Any]:
    """The factor (float32) and the zero point (int32)."""
    return tirx.reinterpret("float32", conversion(0)), conversion(1)
