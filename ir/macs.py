"""Multiply-accumulates of one call, from the shapes of its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

from torch import fx

ShapeOf = Callable[[object], tuple[int, ...]]
"""Gives the sizes of a node's value as numbers."""


def convolution(node: fx.Node, shape: ShapeOf) -> int:
    """Output elements x (input channels per group x kernel): weight is [out, in/groups, *kernel]."""
    weight = shape(node.args[1])
    return math.prod(shape(node)) * math.prod(weight[1:])


def winograd_convolution(node: fx.Node, shape: ShapeOf) -> int:
    """Tiles x products per tile x channels in and out: weight is [products, out, in]. Transforms are not counted."""
    batch, _, height, width = shape(node)
    tile = cast(int, node.args[4])
    return batch * -(-height // tile) * -(-width // tile) * math.prod(shape(node.args[1]))


def transposed_convolution(node: fx.Node, shape: ShapeOf) -> int:
    """Input elements x (output channels per group x kernel): weight is [in, out/groups, *kernel]."""
    weight = shape(node.args[1])
    return math.prod(shape(node.args[0])) * math.prod(weight[1:])


def linear(node: fx.Node, shape: ShapeOf) -> int:
    """Output elements x input features."""
    return math.prod(shape(node)) * shape(node.args[0])[-1]


def matmul(node: fx.Node, shape: ShapeOf) -> int:
    """Output elements x contracted length."""
    return math.prod(shape(node)) * shape(node.args[0])[-1]


def addmm(node: fx.Node, shape: ShapeOf) -> int:
    """As :func:`matmul`, of the second and third argument."""
    return math.prod(shape(node)) * shape(node.args[1])[-1]


def bilinear(node: fx.Node, shape: ShapeOf) -> int:
    """Output elements x both input feature counts."""
    return math.prod(shape(node)) * shape(node.args[0])[-1] * shape(node.args[1])[-1]


def einsum(node: fx.Node, shape: ShapeOf) -> int:
    """Product of the sizes of all labels (a single contraction, no intermediate order)."""
    equation, operands = cast("tuple[str, list[fx.Node]]", node.args[:2])
    sizes: dict[str, int] = {}
    for labels, operand in zip(equation.split("->")[0].replace(" ", "").split(","), operands, strict=True):
        if "..." in labels:
            return 0
        sizes.update(zip(labels, shape(operand), strict=True))
    return math.prod(sizes.values()) if len(operands) > 1 else 0


def attention(node: fx.Node, shape: ShapeOf) -> int:
    """Scores and weighted sum: batch x heads x queries x keys x (head size + value size)."""
    query, key, value = (shape(argument) for argument in node.args[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def recurrent(node: fx.Node, shape: ShapeOf) -> int:
    """Steps x batch x every weight matrix."""
    steps_and_batch = math.prod(shape(node.args[0])[:2])
    matrices = [
        cast(fx.Node, w) for argument in node.args[1:4] if isinstance(argument, (list, tuple)) for w in argument
    ]
    return steps_and_batch * sum(math.prod(shape(w)) for w in matrices if len(shape(w)) == 2)
