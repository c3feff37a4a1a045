"""Products of a quantized program, read back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.passes.quantize.affine import Affine, Scheme
from shave.passes.quantize.table import PRODUCTS

_QUANTIZE = "quantized_decomposed.quantize_per_tensor"
_DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor"


@dataclass(frozen=True)
class Product:
    """A product with constant weights.

    Attributes:
        node: The call.
        data: Name of the argument that is the activation.
        weight: Name of the argument that is the weights.
        axis: Axis of the result along which the weights have their outputs.
        bias: The weight that is added to each output, and the call that adds it; None if there is none.
    """

    node: fx.Node
    data: str
    weight: str
    axis: int
    bias: tuple[fx.Node, fx.Node] | None

    @property
    def can_take_bias(self) -> bool:
        """Whether a bias can be given to it that has none."""
        return any(parameter.name == "bias" for parameter in self.node.target._schema.arguments)  # type: ignore[union-attr]


def product_of(program: Program, node: fx.Node) -> Product | None:
    """Read a call; None if it is no product, or has no constant weights."""
    operands = PRODUCTS.get(op_name(node))
    if operands is None:
        return None
    factors = [name for name in (operands.data, operands.weight) if is_weight(argument(node, name))]
    if len(factors) != 1 or len(argument(node, factors[0]).meta["val"].shape) < 2:
        return None
    weight = factors[0]
    data = operands.weight if weight == operands.data else operands.data
    rank = node.meta["val"].dim()
    if operands.axis in (0, 1) and op_name(node) != "aten.linear":
        axis = rank - argument(node, "weight").meta["val"].dim() + 1
    else:
        axis = rank - 2 if weight == operands.data else rank - 1
    return Product(node, data, weight, axis, _bias(program, node, axis == rank - 1))


def affine_of(node: fx.Node) -> Affine | None:
    """The parameters of an activation that has gone through a pair of quantize and dequantize; None if computed."""
    if op_name(node) != _DEQUANTIZE or not isinstance(node.args[0], fx.Node) or op_name(node.args[0]) != _QUANTIZE:
        return None
    scale, zero, low, high, dtype = (argument(node, name) for name in ("scale", "zero_point", *_ENDS))
    if isinstance(scale, fx.Node) or isinstance(zero, fx.Node):
        return None
    return Affine(scale, zero, Scheme(low, high, dtype, symmetric=zero == 0 and low < 0))


_ENDS = ("quant_min", "quant_max", "dtype")


def is_weight(node: object) -> bool:
    """Whether a node is a weight, be it in plain form or behind a dequantize call."""
    if not isinstance(node, fx.Node):
        return False
    packed = op_name(node).startswith("quantized_decomposed.dequantize") if node.op == "call_function" else False
    return node.op == "get_attr" or (packed and all(each.op == "get_attr" for each in node.all_input_nodes))


def _bias(program: Program, node: fx.Node, last: bool) -> tuple[fx.Node, fx.Node] | None:
    names = [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr]
    if "bias" in names:
        bias = argument(node, "bias")
        return (bias, node) if isinstance(bias, fx.Node) and bias.op == "get_attr" else None
    if op_name(node) == "aten.addmm":
        bias = argument(node, "self")
        plain = bias.op == "get_attr" and bias.meta["val"].dim() == 1 and argument(node, "beta") == 1
        return (bias, node) if plain else None
    if not last or len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if op_name(user) != "aten.add" or argument(user, "alpha") != 1:
        return None
    outputs = node.meta["val"].shape[-1]
    for other in user.all_input_nodes:
        if other.op == "get_attr" and tuple(other.meta["val"].shape) == (outputs,):
            return other, user
    return None
