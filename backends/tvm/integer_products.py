"""Dynamic quantization as ONNX writes it, as products of what its integers stand for.

Codes with the scale and zero point that the range of their tensor asks for (DynamicQuantizeLinear), less the zero
point, are multiplied with centred weights into int32 (MatMulInteger, ConvInteger), converted to float32 and multiplied
by both scales. That is a product of dequantized codes with dequantized weights, whose kernels multiply 8 bits. A code
of which ONNX has the quotient by the scale then comes from a product with its reciprocal: at a tie it may be another.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from shave.backends.tvm.quantized import PRODUCTS
from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter

_q = torch.ops.quantized_decomposed

_SMALLEST_SCALE = 2.0**-100
"""Its reciprocal and its products with other scales are numbers of float32."""

_COPIES = frozenset(
    f"aten.{name}" for name in ("_to_copy", "to", "reshape", "view", "squeeze", "unsqueeze", "clone", "alias")
)
"""Operators that give the elements that they are given, in another shape or dtype."""


@dataclass(frozen=True)
class _Codes:
    """uint8 codes of a tensor.

    Attributes:
        node: The codes.
        x: The tensor.
        scale: The node of the scale that was found in it.
    """

    node: fx.Node
    x: fx.Node
    scale: fx.Node


@dataclass(frozen=True)
class _Product:
    """One that is written out.

    Attributes:
        node: The product of int32.
        position: Of the left factor among its arguments.
        codes: Those of the left factor.
        weight: int8.
        scales: Of the weights, one for each output.
        axis: Of the outputs in the weights.
    """

    node: fx.Node
    position: int
    codes: _Codes
    weight: torch.Tensor
    scales: torch.Tensor
    axis: int


def as_real_products(program: Program, rewriter: Rewriter) -> None:
    """Rewrite all of them whose weights fit 8 bits."""
    reals: dict[fx.Node, fx.Node] = {}
    for node in program.calls:
        if op_name(node) != "aten.mul":
            continue
        for factors in (node.args[:2], node.args[1::-1]):
            found = _read(program, node, *factors)
            if found is not None:
                codes = found.codes
                real = reals[codes.node] if codes.node in reals else _dequantized(rewriter, codes)
                reals[codes.node] = real
                _rewrite(rewriter, node, found, real)
                break
    rewriter.sweep()


def _read(program: Program, scaled: fx.Node, product: Any, scales: Any) -> _Product | None:
    """The product of integers that ``scaled`` multiplies with the scales of both factors."""
    if not isinstance(product, fx.Node) or op_name(product) not in ("aten._to_copy", "aten.to"):
        return None
    node = product.args[0]
    if not isinstance(node, fx.Node) or op_name(node) not in PRODUCTS or _bias(node):
        return None
    only = set(product.users) == {scaled} and set(node.users) == {product}
    if not only or (product.meta["val"].dtype, node.meta["val"].dtype) != (torch.float32, torch.int32):
        return None
    position, axis = PRODUCTS[op_name(node)]
    codes, weight = _codes(node.args[position]), _value(program, node.args[position + 1])
    if codes is None or weight is None or weight.dim() < 2 or weight.min() < -128 or weight.max() > 127:
        return None
    steps = _weight_scales(program, scales, codes.scale, node, weight.shape[axis])
    if steps is None:
        return None
    return _Product(node, position, codes, weight.to(torch.int8), steps.expand(weight.shape[axis]).clone(), axis)


def _dequantized(rewriter: Rewriter, codes: _Codes) -> fx.Node:
    """The codes in torch's operators, and what they stand for."""

    def call(target: Callable[..., Any], *arguments: Any) -> fx.Node:
        return rewriter.call(target, arguments, before=codes.node, sources=[codes.node])

    chosen = call(_q.choose_qparams.tensor, codes.x, 0, 255, _SMALLEST_SCALE, torch.uint8)
    how = (call(operator.getitem, chosen, 0), call(operator.getitem, chosen, 1), 0, 255, torch.uint8)
    made = call(_q.quantize_per_tensor.tensor, codes.x, *how)
    return call(_q.dequantize_per_tensor.tensor, made, *how)


def _rewrite(rewriter: Rewriter, scaled: fx.Node, found: _Product, left: fx.Node) -> None:
    def call(target: Callable[..., Any], *arguments: Any) -> fx.Node:
        return rewriter.call(target, arguments, before=scaled, sources=[found.node, scaled])

    stored = rewriter.weight(f"{found.node.name}_weight", found.weight, sources=[found.node])
    scales = rewriter.weight(f"{found.node.name}_scales", found.scales, sources=[scaled])
    right = call(_q.dequantize_per_channel.default, stored, scales, None, found.axis, -128, 127, torch.int8)
    arguments = list(found.node.args)
    arguments[found.position : found.position + 2] = [left, right]
    rewriter.replace(scaled, call(cast(Any, found.node.target), *arguments))


def _bias(product: fx.Node) -> bool:
    """Whether integers are added to the sums."""
    name = op_name(product)
    return name == "aten.addmm" or (("conv" in name or name == "aten.linear") and argument(product, "bias") is not None)


def _codes(centred: Any) -> _Codes | None:
    """The codes of which ``centred`` is the distance from their zero point; None if it is anything else."""
    if not isinstance(centred, fx.Node) or op_name(centred) != "aten.sub" or argument(centred, "alpha") != 1:
        return None
    codes, zero = (_origin(each) for each in centred.args[:2])
    # clamp(round(x / scale) + zero, 0, 255)
    shifted = _argument(codes, "aten.clamp", min=0, max=255)
    steps = _argument(shifted, "aten.add", alpha=1)
    quotient = _argument(_origin(steps), "aten.round")
    if codes is None or shifted is None or quotient is None or op_name(quotient) != "aten.div":
        return None
    x, scale = quotient.args[0], _origin(quotient.args[1])
    if not isinstance(x, fx.Node) or scale is None or _origin(shifted.args[1]) is not zero:
        return None
    low = _lowest(x, scale)
    # clamp(-low / scale, 0, 255), rounded
    ratio = _argument(_argument(zero, "aten.round"), "aten.clamp", min=0, max=255)
    if ratio is None or low is None or op_name(ratio) != "aten.div" or _origin(ratio.args[1]) is not scale:
        return None
    if _argument(_origin(ratio.args[0]), "aten.neg") is not low:
        return None
    same = centred.meta["val"].shape == x.meta["val"].shape and x.meta["val"].dtype == torch.float32
    return _Codes(codes, x, scale) if same else None


def _lowest(x: fx.Node, scale: fx.Node) -> fx.Node | None:
    """The least value of a tensor or 0, if a scale is its range, 0 in it, in 255 steps; a range of 0 counts as 1."""
    if op_name(scale) != "aten.div" or scale.args[1] != 255:
        return None
    span = _origin(scale.args[0])
    if span is not None and op_name(span) == "aten.where" and span.args[1] == 1:
        span = _origin(span.args[2])
    if span is None or op_name(span) != "aten.sub" or argument(span, "alpha") != 1:
        return None
    high, low = (_origin(each) for each in span.args[:2])
    ends = (
        _argument(_argument(high, "aten.clamp", min=0, max=None), "aten.max"),
        _argument(_argument(low, "aten.clamp", min=None, max=0), "aten.min"),
    )
    return low if ends == (x, x) else None


def _argument(node: fx.Node | None, name: str, **options: Any) -> fx.Node | None:
    """The first argument of a call of an operator with some options; None if the node is no such call."""
    if node is None or op_name(node) != name or not isinstance(node.args[0], fx.Node):
        return None
    return node.args[0] if all(argument(node, key) == value for key, value in options.items()) else None


def _origin(node: Any) -> fx.Node | None:
    """What a node is a copy of; what makes integers of floats is none unless those are whole numbers."""
    while isinstance(node, fx.Node) and op_name(node) in _COPIES:
        source = node.args[0]
        if not isinstance(source, fx.Node):
            return None
        cut = source.meta["val"].dtype.is_floating_point and not node.meta["val"].dtype.is_floating_point
        if cut and op_name(source) not in ("aten.round", "aten.clamp"):
            return node
        node = source
    return node if isinstance(node, fx.Node) else None


def _weight_scales(
    program: Program, scales: Any, scale: fx.Node, product: fx.Node, channels: int
) -> torch.Tensor | None:
    """The scales of the weights, [channels] or [1], in the product of all scales; None if it is anything else."""
    if not isinstance(scales, fx.Node) or op_name(scales) != "aten.mul":
        return None
    for found, held in (scales.args[:2], scales.args[1::-1]):
        of_codes = _origin(found) is scale
        values = torch.tensor(float(held)) if isinstance(held, (int, float)) else _value(program, held)
        if not of_codes or values is None:
            continue
        if values.numel() == 1:
            return values.reshape(1).float()
        shape = [1] * product.meta["val"].dim()
        shape[1 if "conv" in op_name(product) else -1] = channels
        if values.numel() == channels and list(torch.zeros(shape).add(values).shape) == shape:
            return values.reshape(-1).float()
    return None


def _value(program: Program, node: Any) -> torch.Tensor | None:
    """The tensor that a node gives whatever the inputs are; None if it depends on them."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "get_attr":
        return program.weight(node).detach()
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or not node.all_input_nodes:
        return None
    inputs = {each: _value(program, each) for each in node.all_input_nodes}
    if any(value is None for value in inputs.values()):
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: inputs[each])
    with torch.no_grad():
        return cast(torch.Tensor, node.target(*args, **kwargs))
