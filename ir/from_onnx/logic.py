"""Comparisons, boolean and bitwise logic, selection by condition."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shave.ir.from_onnx.math import operands, register_unary, widened
from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Value

_COMPARISONS: dict[str, Callable[..., Tensor]] = {
    "Equal": lambda a, b: a == b,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "Less": lambda a, b: a < b,
    "LessOrEqual": lambda a, b: a <= b,
}

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}


def _register_comparison(name: str, function: Callable[..., Tensor]) -> None:
    @onnx_op(name)
    def comparison(node: OnnxNode, a: Value, b: Value) -> Value:
        return widened(function, *operands(a, b))


def _register_binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @onnx_op(name)
    def binary(node: OnnxNode, a: Tensor, b: Tensor) -> Value:
        return widened(function, a, b)


for _name, _comparison in _COMPARISONS.items():
    _register_comparison(_name, _comparison)
for _name, _function in _BINARY.items():
    _register_binary(_name, _function)
register_unary("Not", torch.logical_not)
register_unary("BitwiseNot", lambda x: widened(torch.bitwise_not, x))
register_unary("IsNaN", torch.isnan)


@onnx_op("IsInf")
def is_inf(node: OnnxNode, x: Tensor) -> Value:
    """Where infinities of the asked signs are."""
    negative, positive = node.attr("detect_negative", 1), node.attr("detect_positive", 1)
    if negative and positive:
        return torch.isinf(x)
    if positive:
        return torch.isposinf(x)
    return torch.isneginf(x) if negative else torch.zeros_like(x, dtype=torch.bool)


@onnx_op("Where")
def where(node: OnnxNode, condition: Tensor, a: Tensor, b: Tensor) -> Value:
    """Elements of ``a`` where the condition holds, else of ``b``."""
    return widened(lambda x, y: torch.where(condition, x, y), a, b)
