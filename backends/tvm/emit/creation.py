"""Operators that make tensors from sizes and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from shave.backends.tvm.adapter import te, tirx
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import Emitter, number
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.sizes import Size


def _filled(emitter: Emitter, node: fx.Node, value: Any) -> Any:
    dtype = emitter.dtype(node)
    if isinstance(value, fx.Node):

        def spread(x: Any, shape: Sequence[Size]) -> Any:
            return te.compute(shape, lambda *_: scalar.cast(x(), dtype), name="full")

        return emitter.te(node, spread, emitter.plain(value), shape=emitter.shape(node))

    def compute(value: Any, shape: Sequence[Size]) -> Any:
        return te.compute(shape, lambda *_: number(value, dtype), name="full")

    return emitter.te(node, compute, value, shape=emitter.shape(node))


@emits("aten.full", "aten.full_like", "aten.new_full", "aten.scalar_tensor", "aten.fill")
def _full(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    for name in ("fill_value", "s", "value"):
        if name in arguments:
            return _filled(emitter, node, arguments[name])
    raise AssertionError(node.target)


@emits("aten.zeros", "aten.zeros_like", "aten.new_zeros", "aten.empty", "aten.empty_like", "aten.new_empty",
       "aten.empty_permuted", "aten.empty_strided", "aten.new_empty_strided")  # fmt: skip
def _zeros(emitter: Emitter, node: fx.Node) -> Any:
    return _filled(emitter, node, 0)


@emits("aten.ones", "aten.ones_like", "aten.new_ones")
def _ones(emitter: Emitter, node: fx.Node) -> Any:
    return _filled(emitter, node, 1)


@emits("aten.arange", "prims.iota")
def _arange(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    start, step = arguments.get("start", 0), arguments.get("step", 1)
    dtype = emitter.dtype(node)
    # torch computes start + i * step in double precision for floats.
    wide = "int64" if "int" in dtype else "float64"

    def compute(start: Any, step: Any, shape: Sequence[Size]) -> Any:
        def element(i: Any) -> Any:
            return scalar.cast(number(start, wide) + tirx.Cast(wide, i) * number(step, wide), dtype)

        return te.compute(shape, element, name="arange")

    return emitter.te(node, compute, start, step, shape=emitter.shape(node))


@emits("aten.linspace")
def _linspace(emitter: Emitter, node: fx.Node) -> Any:
    arguments = emitter.arguments(node)
    start, end, steps = arguments["start"], arguments["end"], arguments["steps"]
    dtype = emitter.dtype(node)

    def compute(start: Any, end: Any, steps: Any, shape: Sequence[Size]) -> Any:
        first, last, count = (number(v, "float64") for v in (start, end, steps))
        step = (last - first) / tirx.max(count - number(1, "float64"), number(1, "float64"))

        def element(i: Any) -> Any:
            # As torch does: from the nearer end.
            place = tirx.Cast("float64", i)
            from_end = last - step * (count - number(1, "float64") - place)
            return scalar.cast(tirx.Select(place * number(2, "float64") < count, first + step * place, from_end), dtype)

        return te.compute(shape, element, name="linspace")

    return emitter.te(node, compute, start, end, steps, shape=emitter.shape(node))


@emits("aten.eye")
def _eye(emitter: Emitter, node: fx.Node) -> Any:
    dtype = emitter.dtype(node)

    def compute(shape: Sequence[Size]) -> Any:
        one, zero = tirx.const(1, dtype), tirx.const(0, dtype)
        return te.compute(shape, lambda i, j: tirx.Select(scalar.equal(i, j), one, zero), name="eye")

    return emitter.te(node, compute, shape=emitter.shape(node))
