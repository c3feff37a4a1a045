"""quantize and dequantize: round half to even, add the zero point, saturate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from shave.backends.tvm.adapter import te, tirx
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import Emitter, number
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

    def value(x: Any, scale: Any, zero: Any) -> Any:
        # torch multiplies by the reciprocal and adds the zero point before it saturates.
        steps = tirx.nearbyint(scalar.cast(x, "float32") * (tirx.const(1, "float32") / scale))
        shifted = steps + tirx.Cast("float32", zero)
        kept = scalar.clamp(shifted, tirx.const(float(low), "float32"), tirx.const(float(high), "float32"))
        return scalar.cast(kept, dtype)

    return _converted(emitter, node, value)


@emits(f"{_D}.dequantize_per_tensor", f"{_D}.dequantize_per_channel")
def _dequantize(emitter: Emitter, node: fx.Node) -> Any:
    dtype = emitter.dtype(node)

    def value(x: Any, scale: Any, zero: Any) -> Any:
        return scalar.cast(tirx.Cast("float32", scalar.cast(x, "int32") - zero) * scale, dtype)

    return _converted(emitter, node, value)


def real(emitter: Emitter, node: fx.Node, numbers: Any, codes: Codes) -> Any:
    """What float32 numbers stand for, which are means of codes, in the layout in which they lie."""
    scale, zero = (tirx.const(value, "float32") for value in (codes.scale, float(codes.zero_point)))

    def compute(x: Any) -> Any:
        return te.compute(x.shape, lambda *i: (x(*i) - zero) * scale, name="real")

    return emitter.te(node, compute, numbers)


def _converted(emitter: Emitter, node: fx.Node, value: Callable[[Any, Any, Any], Any]) -> Any:
    """Emit ``value(element, its scale, its zero point)`` for each element, in the layout in which the input lies.

    Parameters of their own for each channel take the plain layout.
    """
    x = emitter.arguments(node)["input"]
    pair, variables = _parameters(emitter, node)
    read = _reader(emitter, pair, _axis(emitter, node))
    if not variables:
        return emit_elements(emitter, node, [x], [], lambda loads, _: value(loads[x], *read((), ())))

    def compute(x: Any, *tensors: Any, shape: Sequence[Size]) -> Any:
        return te.compute(shape, lambda *i: value(x(*i), *read(tensors, i)), name="converted")

    return emitter.te(node, compute, emitter.plain(x), *variables, shape=emitter.shape(node))
