"""Multiply-accumulates of one call, from the shapes of its arguments (dynamic sizes at their traced example)."""

from __future__ import annotations

import math
from typing import cast

from torch import fx

from shave.ir.shapes import hints


def convolution(node: fx.Node) -> int:
    """Output elements x (input channels per group x kernel): weight is [out, in/groups, *kernel]."""
    weight = _shape(node.args[1])
    return math.prod(_shape(node)) * math.prod(weight[1:])


def transposed_convolution(node: fx.Node) -> int:
    """Input elements x (output channels per group x kernel): weight is [in, out/groups, *kernel]."""
    weight = _shape(node.args[1])
    return math.prod(_shape(node.args[0])) * math.prod(weight[1:])


def linear(node: fx.Node) -> int:
    """Output elements x input features."""
    return math.prod(_shape(node)) * _shape(node.args[0])[-1]


def matmul(node: fx.Node) -> int:
    """Output elements x contracted length."""
    return math.prod(_shape(node)) * _shape(node.args[0])[-1]


def addmm(node: fx.Node) -> int:
    """As :func:`matmul`, of the second and third argument."""
    return math.prod(_shape(node)) * _shape(node.args[1])[-1]


def bilinear(node: fx.Node) -> int:
    """Output elements x both input feature counts."""
    return math.prod(_shape(node)) * _shape(node.args[0])[-1] * _shape(node.args[1])[-1]


def einsum(node: fx.Node) -> int:
    """Product of the sizes of all labels (a single contraction, no intermediate order)."""
    equation, operands = cast("tuple[str, list[fx.Node]]", node.args[:2])
    sizes: dict[str, int] = {}
    for labels, operand in zip(equation.split("->")[0].replace(" ", "").split(","), operands, strict=True):
        if "..." in labels:
            return 0
        sizes.update(zip(labels, _shape(operand), strict=True))
    return math.prod(sizes.values()) if len(operands) > 1 else 0


def attention(node: fx.Node) -> int:
    """Scores and weighted sum: batch x heads x queries x keys x (head size + value size)."""
    query, key, value = (_shape(argument) for argument in node.args[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def recurrent(node: fx.Node) -> int:
    """Steps x batch x every weight matrix."""
    steps_and_batch = math.prod(_shape(node.args[0])[:2])
    matrices = [
        cast(fx.Node, w) for argument in node.args[1:4] if isinstance(argument, (list, tuple)) for w in argument
    ]
    return steps_and_batch * sum(math.prod(_shape(w)) for w in matrices if len(_shape(w)) == 2)


def _shape(value: object) -> tuple[int, ...]:
    return hints(cast(fx.Node, value).meta["val"].shape)
