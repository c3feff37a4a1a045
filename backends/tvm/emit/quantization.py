"""quantize and dequantize: round half to even, add the zero point, saturate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from shave.backends.tvm.adapter import te, tirx
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import Emitter, number
from shave.backends.tvm.emit.registry import emits
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
    arguments = emitter.arguments(node)
    shape, dtype = emitter.result(node)
    pair, variables = _parameters(emitter, node)
    read = _reader(emitter, pair, _axis(emitter, node))
    low, high = arguments["quant_min"], arguments["quant_max"]

    def compute(x: Any, *tensors: Any, shape: Sequence[Size]) -> Any:
        def element(*i: Any) -> Any:
            scale, zero = read(tensors, i)
            # torch multiplies by the reciprocal and adds the zero point before it saturates.
            steps = tirx.nearbyint(scalar.cast(x(*i), "float32") * (tirx.const(1, "float32") / scale))
            shifted = steps + tirx.Cast("float32", zero)
            kept = scalar.clamp(shifted, tirx.const(float(low), "float32"), tirx.const(float(high), "float32"))
            return scalar.cast(kept, dtype)

        return te.compute(shape, element, name="quantize")

    x = arguments["input"]
    return emitter.te(node, compute, emitter.plain(x), *variables, shape=shape)


@emits(f"{_D}.dequantize_per_tensor", f"{_D}.dequantize_per_channel")
def _dequantize(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    shape, dtype = emitter.result(node)
    pair, variables = _parameters(emitter, node)
    read = _reader(emitter, pair, _axis(emitter, node))

    def compute(x: Any, *tensors: Any, shape: Sequence[Size]) -> Any:
        def element(*i: Any) -> Any:
            scale, zero = read(tensors, i)
            return scalar.cast(tirx.Cast("float32", scalar.cast(x(*i), "int32") - zero) * scale, dtype)

        return te.compute(shape, element, name="dequantize")

    return emitter.te(node, compute, emitter.plain(arguments["input"]), *variables, shape=shape)
