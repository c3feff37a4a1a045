"""How long products take in floats and in integers, as a cost oracle has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import fx

from shave.ir.cook_toom import POINTS, TAPS
from shave.ir.ops import argument, op_name
from shave.ir.shapes import hints
from shave.passes.problems import BatchMatmul, Conv2d, Conversion, Matmul, Measured, Oracle, Problem, WinogradConv2d
from shave.passes.quantize.table import PRODUCTS

_CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.convolution")


@dataclass(frozen=True)
class Times:
    """Seconds of one product.

    Attributes:
        floats: In float32, by the fastest method.
        integers: In 8-bit integers; None where the target has no kernel for that.
        direct: Whether the fastest method in float32 reads the weights as they are, not transformed ahead.
    """

    floats: float
    integers: float | None
    direct: bool = True


def times_of(node: fx.Node, weights: bool, oracle: Oracle, sizes: Mapping[str, int]) -> Times | None:
    """Ask for both times of a product.

    Estimates are not set against measurements: where integers were not measured, floats count as estimated too.

    Args:
        node: The call.
        weights: Whether one of its factors is constant.
        oracle: Is asked.
        sizes: Values of symbols in its shapes.

    Returns:
        None where the oracle does not know it in floats, or nothing can be asked about such a product.
    """
    methods = _methods(node, weights, sizes)
    if not methods:
        return None
    integers = oracle(replace(methods[0], precision="int8"))
    found = [oracle(method) for method in methods]
    if not isinstance(integers, Measured):
        found = [each.estimate if isinstance(each, Measured) else each for each in found]
    known = [each for each in found if each is not None]
    return Times(min(known), integers, min(known) == found[0]) if known else None


def conversion(value: fx.Node, oracle: Oracle, sizes: Mapping[str, int], measured: bool = False) -> float:
    """Seconds that it takes to turn a value into codes, or back; nothing where that is not known."""
    return oracle(Conversion(prod(hints(value.meta["val"].shape, sizes)), measured)) or 0.0


def milliseconds(seconds: float) -> str:
    """A time as reports print it."""
    return f"{1e3 * seconds:.3g} ms"


def _methods(node: fx.Node, weights: bool, sizes: Mapping[str, int]) -> list[Any]:
    """The ways to compute a product in floats, the direct one first; none for operators that no problem describes."""
    operands = PRODUCTS[op_name(node)]
    data, weight = (hints(argument(node, name).meta["val"].shape, sizes) for name in (operands.data, operands.weight))
    result = hints(node.meta["val"].shape, sizes)
    if op_name(node) in _CONVOLUTIONS:
        return _convolution(node, data, weight)
    if "conv" in op_name(node) or len(result) < 2:
        return []
    if weights and len(weight) == 2:
        return [Matmul(prod(result[:-1]), data[-1], result[-1])]
    return [BatchMatmul(prod(result[:-2]), result[-2], data[-1], result[-1])]


def _convolution(node: fx.Node, data: tuple[int, ...], weight: tuple[int, ...]) -> list[Problem]:
    rank = len(weight) - 2
    transposed = op_name(node) == "aten.convolution" and argument(node, "transposed")
    if rank > 2 or transposed or len(data) != rank + 2:
        return []

    def pair(value: Any, single: int) -> tuple[int, int]:
        """(height, width) of what may be one number; a lone axis is the width."""
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        height, width = ([single] * (2 - rank) + values * (rank if len(values) == 1 else 1))[-2:]
        return int(height), int(width)

    stride, dilation = pair(argument(node, "stride"), 1), pair(argument(node, "dilation"), 1)
    kernel, (height, width) = pair(weight[2:], 1), pair(data[2:], 1)
    padding = argument(node, "padding")
    if padding == "same":
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)][2 - rank :]
    groups = int(argument(node, "groups"))
    pads = pair(0 if padding == "valid" else padding, 0)
    direct = Conv2d(data[0], data[1], weight[0], height, width, kernel, stride, pads, dilation, groups)
    plain = kernel == (TAPS, TAPS) and {*stride, *dilation, groups} == {1} and max(pads) < TAPS
    tiles = POINTS if plain else ()
    return [direct, *(WinogradConv2d(*_sizes(direct), pads, tile) for tile in tiles)]


def _sizes(problem: Conv2d) -> tuple[int | None, int, int, int, int]:
    return problem.batch, problem.in_channels, problem.out_channels, problem.height, problem.width
