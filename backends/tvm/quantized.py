"""What quantize and dequantize nodes stand for: codes of 8 bits with a scale, and weights that kernels multiply.

A tensor of codes is uint8 with one scale and one zero point: ``(code - zero_point) * scale``. Weights are int8 with a
scale for each output channel and no zero point. :mod:`integers` brings other forms to these. Scale and zero point are
numbers, or found in the values while the program runs, then perhaps for each row.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from shave.backends.tvm.kernels.parameters import Measured
from shave.ir.ops import argument, op_name
from shave.ir.program import attribute

QUANTIZE = "quantized_decomposed.quantize_per_tensor"
DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor"
DEQUANTIZE_CHANNELS = "quantized_decomposed.dequantize_per_channel"
QUANTIZE_ROWS = "quantized_decomposed.quantize_per_token"
DEQUANTIZE_ROWS = "quantized_decomposed.dequantize_per_token"
CHOOSE = "quantized_decomposed.choose_qparams"
CHOOSE_ROWS = "quantized_decomposed.choose_qparams_per_token_asymmetric"
ROWS_LEAST = -128
"""The least code of :data:`CHOOSE_ROWS`."""

PRODUCTS = {
    "aten.conv1d": (0, 0), "aten.conv2d": (0, 0), "aten.conv3d": (0, 0), "aten.convolution": (0, 0),
    "aten.linear": (0, 0), "aten.matmul": (0, 1), "aten.mm": (0, 1), "aten.addmm": (1, 1),
}  # fmt: skip
"""Operators whose kernels multiply codes with integer weights: the position of the codes among their arguments, behind
which the weights come, and the axis of the weights that is the output's."""


@dataclass(frozen=True)
class Codes:
    """A tensor as uint8 codes.

    Attributes:
        node: The codes.
        scale: Difference between two codes.
        zero_point: The code of 0.
        low: Least code in use.
        high: Largest code in use.
    """

    node: fx.Node
    scale: float
    zero_point: int
    low: int
    high: int

    @property
    def measured(self) -> Measured:
        """What has a scale and a zero point of its own that is only known while the program runs."""
        return "nothing"


@dataclass(frozen=True)
class MeasuredCodes:
    """A tensor as uint8 codes whose scale and zero point are found in its values while the program runs.

    Attributes:
        node: The codes.
        choice: The call that finds scale and zero point.
        between: The calls between the two.
        by_row: Whether each row has its own, else there is one for the tensor.
        offset: What the zero point is more than that of codes from 0 on.
        low: Least code in use.
        high: Largest code in use.
    """

    node: fx.Node
    choice: fx.Node
    between: tuple[fx.Node, ...]
    by_row: bool
    offset: int
    low: int
    high: int

    scale: ClassVar[float] = 1.0
    zero_point: ClassVar[int] = 1
    """What is computed ahead with these is multiplied with those that are found."""

    @property
    def measured(self) -> Measured:
        """As in :class:`Codes`."""
        return "row" if self.by_row else "tensor"


@dataclass(frozen=True)
class Weights:
    """Constant int8 weights.

    Attributes:
        node: The ``get_attr`` node of the integers.
        scales: One for each output channel, or one for all.
    """

    node: fx.Node
    scales: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Product:
    """The operands of a call that is computed in integers: codes times weights."""

    x: Codes | MeasuredCodes
    weights: Weights


def _codes(node: fx.Node, codes: fx.Node) -> Codes | None:
    """The parameters of a quantize or dequantize node, of uint8 ``codes``; None where there are none now."""
    given = {name: argument(node, name) for name in ("scale", "zero_point", "quant_min", "quant_max")}
    known = all(isinstance(value, (int, float)) for value in given.values())
    if not known or codes.meta["val"].dtype != torch.uint8 or argument(node, "dtype") != torch.uint8:
        return None
    zero_point, low, high = (int(given[name]) for name in ("zero_point", "quant_min", "quant_max"))
    if not 0 <= low <= high <= 255 or not 0 <= zero_point <= 255:
        return None
    return Codes(codes, float(given["scale"]), zero_point, low, high)


def dequantized(node: Any) -> Codes | None:
    """The codes that a node turns into float32, if it does only that."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or op_name(node) != DEQUANTIZE:
        return None
    if node.meta["val"].dtype != torch.float32:
        return None
    return _codes(node, cast(fx.Node, node.args[0]))


def quantized(node: fx.Node) -> Codes | None:
    """What a node turns its argument into, if that is uint8 codes."""
    return _codes(node, node) if node.op == "call_function" and op_name(node) == QUANTIZE else None


def measured(node: Any) -> MeasuredCodes | None:
    """What a node turns its argument into, if that is uint8 codes whose scale it finds in the same argument.

    Nothing but their dequantize calls reads scale and zero point besides.
    """
    if not isinstance(node, fx.Node) or node.op != "call_function" or op_name(node) not in (QUANTIZE, QUANTIZE_ROWS):
        return None
    if len(node.args) < 6:
        return None
    x, scale, zero, low, high, dtype = node.args[:6]
    if dtype != torch.uint8 or not (isinstance(scale, fx.Node) and isinstance(zero, fx.Node)):
        return None
    added = 0
    between: tuple[fx.Node, ...] = (scale, zero)
    if op_name(zero) == "aten.add" and isinstance(zero.args[1], int) and isinstance(zero.args[0], fx.Node):
        added, between = zero.args[1], (scale, zero.args[0], zero)
    if any(item.target is not operator.getitem for item in between[:2]):
        return None
    choice = cast(fx.Node, scale.args[0])
    by_row = op_name(node) == QUANTIZE_ROWS
    if [item.args for item in between[:2]] != [(choice, 0), (choice, 1)] or choice.args[0] is not x:
        return None
    if op_name(choice) != (CHOOSE_ROWS if by_row else CHOOSE) or cast(fx.Node, x).meta["val"].dtype != torch.float32:
        return None
    readers = {node, *between, *(user for user in node.users if _undoes(user, node))}
    if any(set(each.users) - readers for each in (choice, *between)):
        return None
    least = ROWS_LEAST if by_row else cast(int, choice.args[1])
    return MeasuredCodes(node, choice, between, by_row, added + least, cast(int, low), cast(int, high))


def _undoes(node: fx.Node, codes: fx.Node) -> bool:
    """Whether a node dequantizes codes with the parameters that they were quantized with."""
    return op_name(node) in (DEQUANTIZE, DEQUANTIZE_ROWS) and node.args[:3] == (codes, *codes.args[1:3])


def dequantized_measured(node: Any) -> MeasuredCodes | None:
    """The codes with parameters found while the program runs that a node turns into float32, if it does only that."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or node.meta["val"].dtype != torch.float32:
        return None
    codes = measured(node.args[0]) if op_name(node) in (DEQUANTIZE, DEQUANTIZE_ROWS) else None
    return codes if codes is not None and _undoes(node, codes.node) else None


def weights_of(node: Any, axis: int) -> Weights | None:
    """The int8 weights that a node dequantizes with scales along ``axis``, or with one for all."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    name, one = op_name(node), op_name(node) == DEQUANTIZE
    if not one and name != DEQUANTIZE_CHANNELS:
        return None
    codes, scales, zeros = (
        argument(node, key) for key in ("input", *(("scale", "zero_point") if one else ("scales", "zero_points")))
    )
    if codes.op != "get_attr" or codes.meta["val"].dtype != torch.int8 or node.meta["val"].dtype != torch.float32:
        return None
    scale, zero = constant(scales), constant(zeros if zeros is not None else 0)
    along = one or argument(node, "axis") % codes.meta["val"].dim() == axis
    if scale is None or zero is None or not along or zero.any():
        return None
    return Weights(codes, scale.reshape(-1).astype(np.float32))


def constant(value: Any) -> npt.NDArray[Any] | None:
    """A number or a weight as an array; None for what is computed."""
    if isinstance(value, fx.Node):
        if value.op != "get_attr":
            return None
        return cast(torch.Tensor, attribute(cast(Any, value.graph.owning_module), str(value.target))).detach().numpy()
    return np.asarray(value)


def product_of(node: fx.Node) -> Product | None:
    """The operands of a call whose kernel multiplies integers; None for any other call."""
    if op_name(node) not in PRODUCTS or node.meta["val"].dtype != torch.float32:
        return None
    first, axis = PRODUCTS[op_name(node)]
    if op_name(node) == "aten.convolution" and argument(node, "transposed"):
        return None
    if any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return None
    x = dequantized(node.args[first]) or dequantized_measured(node.args[first])
    weights = weights_of(node.args[first + 1], axis)
    if x is None or weights is None or (axis == 1 and weights.node.meta["val"].dim() != 2):
        return None
    # A row of an image is no sum of a convolution.
    if isinstance(x, MeasuredCodes) and x.by_row and "conv" in op_name(node):
        return None
    return Product(x, weights)


def is_weight(node: fx.Node, reader: fx.Node) -> bool:
    """Whether a call multiplies codes with the integers that a node dequantizes."""
    return product_of(reader) is not None and reader.args[PRODUCTS[op_name(reader)][0] + 1] is node
