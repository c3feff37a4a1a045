"""Elementwise arithmetic, functions of one variable, matrix products and running sums."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Value, as_int, as_tensor

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Det": torch.linalg.det,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

# Torch has these types but hardly any arithmetic on them; int64 arithmetic wraps to the same bits.
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def register_unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    """Register an operator that is one torch function of one tensor."""

    @onnx_op(name)
    def unary(node: OnnxNode, x: Tensor) -> Value:
        return function(x)


for _name, _function in _UNARY.items():
    register_unary(_name, _function)


def operands(a: Value, b: Value) -> tuple[Tensor | float, Tensor | float]:
    """The operands of an elementwise operation: a one-element host value beside a tensor becomes a plain number.

    Numbers keep the graph readable and let later passes see constants; ONNX gives both operands the same type, so the
    result keeps it.
    """
    return _number(a, beside=b), _number(b, beside=a)


def _number(value: Value, beside: Value) -> Tensor | float:
    if (
        isinstance(value, np.ndarray)
        and isinstance(beside, Tensor)
        and value.size == 1
        and value.ndim <= beside.ndim
        and value.dtype.type not in (np.bool_, np.uint64, np.object_, np.complex64, np.complex128)
        and beside.dtype not in _UNSIGNED
        and np.isfinite(value.astype(np.float64)).all()
    ):
        number: float = value.reshape(-1)[0].item()
        return number
    return as_tensor(value)


def widened(function: Callable[..., Tensor], *operands: Tensor | float) -> Tensor:
    """Apply a function to operands, in int64 where torch lacks it for their unsigned type."""
    kinds = {operand.dtype for operand in operands if isinstance(operand, Tensor)}
    unsigned = next((kind for kind in kinds if kind in _UNSIGNED), None)
    if unsigned is None:
        return function(*operands)
    wide = [operand.to(torch.int64) if isinstance(operand, Tensor) else operand for operand in operands]
    result = function(*wide)
    return result.to(unsigned) if result.dtype == torch.int64 else result


def _check_legacy_broadcast(node: OnnxNode) -> None:
    if node.opset < 7 and node.attr("broadcast", 0):
        raise ValueError("one-sided broadcasting of versions before 7 is not supported; convert the model to opset 13")


@onnx_op("Add")
def add(node: OnnxNode, a: Value, b: Value) -> Value:
    """Sum."""
    _check_legacy_broadcast(node)
    return widened(torch.add, *_tensor_first(*operands(a, b)))


@onnx_op("Mul")
def mul(node: OnnxNode, a: Value, b: Value) -> Value:
    """Product."""
    _check_legacy_broadcast(node)
    return widened(torch.mul, *_tensor_first(*operands(a, b)))


def _tensor_first(a: Tensor | float, b: Tensor | float) -> tuple[Tensor | float, Tensor | float]:
    """Operands of a commutative operation in the one order that patterns then have to know."""
    return (a, b) if isinstance(a, Tensor) else (b, a)


@onnx_op("Sub")
def sub(node: OnnxNode, a: Value, b: Value) -> Value:
    """Difference."""
    _check_legacy_broadcast(node)
    return widened(lambda x, y: x - y, *operands(a, b))


@onnx_op("Div")
def div(node: OnnxNode, a: Value, b: Value) -> Value:
    """Quotient; integers are divided towards zero."""
    _check_legacy_broadcast(node)
    x, y = operands(a, b)
    kind = next(operand.dtype for operand in (x, y) if isinstance(operand, Tensor))
    if kind.is_floating_point or kind.is_complex:
        if not isinstance(x, Tensor) and x == 1:
            return torch.reciprocal(as_tensor(b))
        return widened(lambda n, d: n / d, x, y)
    if kind is torch.uint64:
        raise ValueError("division of uint64 is not supported")
    return widened(lambda n, d: torch.div(as_like(n, d), d, rounding_mode="trunc"), x, y)


def as_like(number: Tensor | float, other: Tensor | float) -> Tensor:
    """A number as a tensor of the type of the tensor beside it; a tensor stays as it is."""
    if isinstance(number, Tensor):
        return number
    assert isinstance(other, Tensor)
    return torch.full((), number, dtype=other.dtype)


@onnx_op("Mod")
def mod(node: OnnxNode, a: Value, b: Value) -> Value:
    """Remainder: of the divisor's sign, or with ``fmod`` of the dividend's."""
    x, y = operands(a, b)
    function = torch.fmod if node.attr("fmod", 0) else torch.remainder
    return widened(lambda n, d: function(as_like(n, d), d), x, y)


@onnx_op("Pow")
def pow_(node: OnnxNode, a: Value, b: Value) -> Value:
    """Power, of the base's type."""
    _check_legacy_broadcast(node)
    base = as_tensor(a)
    exponent = _number(b, beside=base)
    return torch.pow(base, exponent).to(base.dtype)


def _fold_left(function: Callable[[Tensor, Tensor], Tensor], values: tuple[Tensor, ...]) -> Tensor:
    return functools.reduce(lambda a, b: widened(function, a, b), values)


@onnx_op("Sum")
def sum_(node: OnnxNode, *values: Tensor) -> Value:
    """Sum of any number of tensors."""
    return _fold_left(torch.add, values)


@onnx_op("Mean")
def mean(node: OnnxNode, *values: Tensor) -> Value:
    """Mean of any number of tensors."""
    return _fold_left(torch.add, values) / len(values)


@onnx_op("Max")
def max_(node: OnnxNode, *values: Tensor) -> Value:
    """Largest of any number of tensors."""
    return _fold_left(torch.maximum, values)


@onnx_op("Min")
def min_(node: OnnxNode, *values: Tensor) -> Value:
    """Smallest of any number of tensors."""
    return _fold_left(torch.minimum, values)


@onnx_op("Clip")
def clip_attributes(node: OnnxNode, x: Tensor) -> Value:
    """Clamp to bounds given as attributes."""
    return torch.clamp(x, node.attr("min"), node.attr("max")) if node.spec.attributes else x


@onnx_op("Clip", since=11)
def clip(node: OnnxNode, x: Tensor, low: Value | None = None, high: Value | None = None) -> Value:
    """Clamp to bounds given as inputs; numbers where they are known."""
    bounds: list[Any] = [None if bound is None else _number(bound, beside=x) for bound in (low, high)]
    if all(bound is None for bound in bounds):
        return x
    if any(isinstance(bound, Tensor) for bound in bounds):
        bounds = [None if bound is None else as_like(bound, x) for bound in bounds]
    if x.dtype in _UNSIGNED:
        wide = [None if bound is None else bound.to(torch.int64) for bound in bounds]
        return torch.clamp(x.to(torch.int64), *wide).to(x.dtype)
    return torch.clamp(x, *bounds)


@onnx_op("BitShift")
def bit_shift(node: OnnxNode, x: Tensor, amount: Tensor) -> Value:
    """Shift bits to the left or right; unsigned values take in zeros."""
    left = node.attr("direction") == "LEFT"
    if x.dtype is not torch.uint64:
        return widened(torch.bitwise_left_shift if left else torch.bitwise_right_shift, x, amount)
    bits, count = x.view(torch.int64), amount.view(torch.int64)
    if left:
        return torch.bitwise_left_shift(bits, count).view(torch.uint64)
    # The arithmetic shift copies the sign: clear what it brought in.
    mask = ~torch.bitwise_left_shift(torch.full((), -1, dtype=torch.int64), 64 - count)
    shifted = torch.bitwise_right_shift(bits, count)
    return torch.where(count == 0, bits, shifted & mask).view(torch.uint64)


@onnx_op("MatMul")
def matmul(node: OnnxNode, a: Tensor, b: Tensor) -> Value:
    """Matrix product with NumPy's broadcasting."""
    return widened(torch.matmul, a, b)


@onnx_op("Gemm")
def gemm(node: OnnxNode, a: Tensor, b: Tensor, c: Tensor | None = None) -> Value:
    """``alpha * A' @ B' + beta * C``."""
    alpha, beta = node.attr("alpha", 1.0), node.attr("beta", 1.0)
    a = a.t() if node.attr("transA", 0) else a
    if not a.is_floating_point():
        alpha, beta = int(alpha), int(beta)
    if node.attr("transB", 0):
        # The form of a torch Linear layer.
        if (
            alpha == 1
            and beta == 1
            and a.is_floating_point()
            and (c is None or (c.ndim == 1 and c.shape[0] == b.shape[0]))
        ):
            return torch.nn.functional.linear(a, b, c)
        b = b.t()
    if c is None:
        product = widened(torch.mm, a, b)
        return product if alpha == 1 else product * alpha
    if a.dtype in _UNSIGNED:
        return widened(lambda x, y, z: alpha * (x @ y) + beta * z, a, b, c)
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


@onnx_op("Einsum")
def einsum(node: OnnxNode, *values: Tensor) -> Value:
    """Sum of products over named axes."""
    return torch.einsum(node.attr("equation"), *values)


@onnx_op("CumSum")
def cumsum(node: OnnxNode, x: Tensor, axis: Value) -> Value:
    """Running sum along an axis."""
    return _scan(node, x, as_int(axis), torch.cumsum, neutral=0)


@onnx_op("CumProd")
def cumprod(node: OnnxNode, x: Tensor, axis: Value) -> Value:
    """Running product along an axis."""
    return _scan(node, x, as_int(axis), torch.cumprod, neutral=1)


def _scan(node: OnnxNode, x: Tensor, axis: int, function: Callable[..., Tensor], neutral: int) -> Tensor:
    """A running reduction; ``exclusive`` leaves out the element itself, ``reverse`` starts at the end."""
    dtype = x.dtype
    if node.attr("reverse", 0):
        x = x.flip(axis)
    if node.attr("exclusive", 0):
        first = torch.full_like(x.narrow(axis, 0, 1), neutral)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], dim=axis)
    result = function(x, axis, dtype=dtype)
    return result.flip(axis) if node.attr("reverse", 0) else result
