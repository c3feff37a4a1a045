"""Shape arithmetic with symbolic dimensions, in NumPy on object arrays.

The interpreter comes here when all inputs of a node are host values and some of their elements are symbols. NumPy
applies Python's operators to the elements, so ``torch.SymInt`` does the algebra. Operators that move data do so here
if the data alone is symbolic; a constant that is moved by symbolic amounts is traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch

from shave.ir.from_onnx.registry import OnnxNode, symbolic_op
from shave.ir.from_onnx.values import as_ints, host


def _truncated_quotient(a: Any, b: Any) -> Any:
    if isinstance(a, (float, torch.SymFloat)) or isinstance(b, (float, torch.SymFloat)):
        return a / b
    # Sizes are not negative, so flooring is truncation; a negative constant is handled by its sign.
    return a // b if a >= 0 and b > 0 else int(a / b) if b != 0 else 0


_to_float: Callable[[Any], Any] = torch.sym_float


def _binary(function: Callable[[Any, Any], Any]) -> Callable[..., np.ndarray]:
    vectorized = np.frompyfunc(function, 2, 1)

    def apply(node: OnnxNode, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return host(vectorized(a.astype(object), b.astype(object)))

    return apply


def _unary(function: Callable[[Any], Any]) -> Callable[..., np.ndarray]:
    vectorized = np.frompyfunc(function, 1, 1)

    def apply(node: OnnxNode, x: np.ndarray) -> np.ndarray:
        return host(vectorized(x))

    return apply


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": _truncated_quotient,
    "Mod": lambda a, b: a % b,
    "Equal": lambda a, b: bool(a == b),
    "Greater": lambda a, b: bool(a > b),
    "GreaterOrEqual": lambda a, b: bool(a >= b),
    "Less": lambda a, b: bool(a < b),
    "LessOrEqual": lambda a, b: bool(a <= b),
}

_UNARY: dict[str, Callable[[Any], Any]] = {
    "Neg": lambda x: -x,
    "Abs": abs,
    "Floor": lambda x: _to_float(math.floor(x)) if isinstance(x, (float, torch.SymFloat)) else x,
    "Ceil": lambda x: _to_float(math.ceil(x)) if isinstance(x, (float, torch.SymFloat)) else x,
    "Sqrt": torch.sym_sqrt,
}

for _name, _binary_function in _BINARY.items():
    symbolic_op(_name)(_binary(_binary_function))
for _name, _unary_function in _UNARY.items():
    symbolic_op(_name)(_unary(_unary_function))


@symbolic_op("Max")
def maximum(node: OnnxNode, *values: np.ndarray) -> np.ndarray:
    """Largest of several shapes' elements."""
    return _fold(torch.sym_max, values)


@symbolic_op("Min")
def minimum(node: OnnxNode, *values: np.ndarray) -> np.ndarray:
    """Smallest of several shapes' elements."""
    return _fold(torch.sym_min, values)


def _fold(function: Callable[[Any, Any], Any], values: tuple[np.ndarray, ...]) -> np.ndarray:
    vectorized = np.frompyfunc(function, 2, 1)
    result = values[0].astype(object)
    for value in values[1:]:
        result = vectorized(result, value.astype(object))
    return host(result)


@symbolic_op("Cast")
def cast(node: OnnxNode, x: np.ndarray) -> np.ndarray:
    """Integers to floats and back; back cuts off."""
    to = node.attr("to")
    if to in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16):
        return host(np.frompyfunc(_to_float, 1, 1)(x))
    if to in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
        return host(np.frompyfunc(torch.sym_int, 1, 1)(x))
    raise ValueError(f"a dimension is cast to {onnx.TensorProto.DataType.Name(to)}")


@symbolic_op("Identity")
def identity(node: OnnxNode, x: np.ndarray) -> np.ndarray:
    """The same."""
    return x


@symbolic_op("Gather", first_only=True)
def gather(node: OnnxNode, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Some elements of a shape."""
    return host(np.take(x, indices.astype(np.int64), axis=node.attr("axis", 0)))


@symbolic_op("Concat")
def concat(node: OnnxNode, *values: np.ndarray) -> np.ndarray:
    """Shapes one after the other."""
    return host(np.concatenate([value.astype(object) for value in values], axis=node.attr("axis", 0)))


@symbolic_op("Slice", first_only=True)
def slice_(node: OnnxNode, x: np.ndarray, *bounds: np.ndarray | None) -> np.ndarray:
    """A range of a shape's elements."""
    if node.opset < 10:
        starts, ends, axes = node.attr("starts"), node.attr("ends"), node.attr("axes")
        steps = None
    else:
        starts, ends, axes, steps = (None if b is None else as_ints(b) for b in (*bounds, *[None] * (4 - len(bounds))))
    index = [slice(None)] * x.ndim
    for i, axis in enumerate(axes or range(len(starts))):
        index[axis] = slice(starts[i], ends[i], steps[i] if steps else 1)
    return host(x[tuple(index)])


@symbolic_op("Split", first_only=True)
def split(node: OnnxNode, x: np.ndarray, sizes: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """A shape cut in parts."""
    axis = node.attr("axis", 0)
    given: list[int] | None = node.attr("split") if sizes is None else as_ints(sizes)
    count = node.n_outputs
    lengths = given or [math.ceil(x.shape[axis] / count)] * (count - 1)
    return tuple(host(part) for part in np.split(x, np.cumsum(lengths)[: count - 1], axis=axis))


def _axes(node: OnnxNode, axes: np.ndarray | None) -> list[Any] | None:
    return node.attr("axes") if axes is None else as_ints(axes)


@symbolic_op("Squeeze", first_only=True)
def squeeze(node: OnnxNode, x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    """Drop axes of size one."""
    given = _axes(node, axes)
    return np.squeeze(x, tuple(given) if given else None)


@symbolic_op("Unsqueeze", first_only=True)
def unsqueeze(node: OnnxNode, x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    """Insert axes of size one."""
    return np.expand_dims(x, tuple(_axes(node, axes) or ()))


@symbolic_op("Reshape", first_only=True)
def reshape(node: OnnxNode, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """The same elements in another shape."""
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(as_ints(shape))])


@symbolic_op("Transpose", first_only=True)
def transpose(node: OnnxNode, x: np.ndarray) -> np.ndarray:
    """Axes in another order."""
    return np.transpose(x, node.attr("perm"))


@symbolic_op("Expand", first_only=True)
def expand(node: OnnxNode, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Repeat by broadcasting."""
    return np.array(np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(as_ints(shape)))))


@symbolic_op("Where")
def where(node: OnnxNode, condition: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Elements of one of two shapes."""
    return host(np.where(condition.astype(bool), a.astype(object), b.astype(object)))


@symbolic_op("ReduceProd", first_only=True)
def reduce_prod(node: OnnxNode, x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    """Product of a shape's elements."""
    return _reduce(node, x, axes, np.multiply)


@symbolic_op("ReduceSum", first_only=True)
def reduce_sum(node: OnnxNode, x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    """Sum of a shape's elements."""
    return _reduce(node, x, axes, np.add)


def _reduce(node: OnnxNode, x: np.ndarray, axes: np.ndarray | None, function: np.ufunc) -> np.ndarray:
    given = _axes(node, axes)
    if not given and node.attr("noop_with_empty_axes", 0):
        return x
    return host(function.reduce(x, axis=tuple(given) if given else None, keepdims=bool(node.attr("keepdims", 1))))


@symbolic_op("ReduceMax", first_only=True)
def reduce_max(node: OnnxNode, x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    """Largest of a shape's elements."""
    return _reduce(node, x, axes, np.frompyfunc(torch.sym_max, 2, 1))


@symbolic_op("ReduceMin", first_only=True)
def reduce_min(node: OnnxNode, x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    """Smallest of a shape's elements."""
    return _reduce(node, x, axes, np.frompyfunc(torch.sym_min, 2, 1))


@symbolic_op("ScatterElements", "ScatterND")
def scatter(node: OnnxNode, x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
    """Replace some elements of a shape."""
    if x.ndim != 1 or node.attr("reduction", "none") != "none":
        raise ValueError("only elements of a shape (rank 1) can be replaced")
    result = x.astype(object)
    result[indices.astype(np.int64).reshape(-1)] = updates.astype(object).reshape(-1)
    return host(result)


@symbolic_op("Tile", first_only=True)
def tile(node: OnnxNode, x: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """Repeat a shape's elements."""
    return np.tile(x, as_ints(repeats))


@symbolic_op("Size")
def size(node: OnnxNode, x: np.ndarray) -> np.ndarray:
    """How many elements there are."""
    return host(x.size)


@symbolic_op("Shape")
def shape(node: OnnxNode, x: np.ndarray) -> np.ndarray:
    """The shape of a host value."""
    start, end = node.attr("start", 0), node.attr("end")
    return host(list(x.shape[start:end]))
