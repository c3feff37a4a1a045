"""What each operator is to quantization, as data: the rows of the decision table."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from enum import Enum

import torch
from torch import fx

from shave.ir.ops import OPS, Trait, argument, op_name
from shave.ir.program import Program


class Kind(Enum):
    """How an operator takes part."""

    PRODUCT = "product"
    """Sums products: here integers pay. Its inputs and weights become integers wherever that is possible."""
    POOLING = "pooling"
    """Combines neighbours: in integers if what it gives goes on as integers."""
    MOVEMENT = "movement"
    """Moves elements: bytes instead of floats, with one scale before and behind."""
    POINTWISE = "pointwise"
    """Element by element: on the result of a product before that is rounded, or by itself on integers."""
    NORMALISATION = "normalisation"
    """Divides by a statistic: in float, since small statistics of integers are noise."""
    OTHER = "other"
    """In float."""


@dataclass(frozen=True)
class Operands:
    """Where a product takes its factors: names of arguments.

    Attributes:
        data: The activation.
        weight: The other factor: constant weights, or for matrix products a second activation.
        axis: Axis of the outputs in a constant second factor; None: one scale for all of it.
    """

    data: str
    weight: str
    axis: int | None


_CONV = Operands("input", "weight", 0)
PRODUCTS = {
    "aten.conv1d": _CONV,
    "aten.conv2d": _CONV,
    "aten.conv3d": _CONV,
    "aten.convolution": _CONV,
    "aten.conv_transpose1d": Operands("input", "weight", 1),
    "aten.conv_transpose2d": Operands("input", "weight", 1),
    "aten.conv_transpose3d": Operands("input", "weight", 1),
    "aten.linear": _CONV,
    "aten.matmul": Operands("self", "other", -1),
    "aten.mm": Operands("self", "mat2", -1),
    "aten.bmm": Operands("self", "mat2", -1),
    "aten.addmm": Operands("mat1", "mat2", -1),
    "aten.baddbmm": Operands("batch1", "batch2", -1),
}
"""Every product with its factors."""

_POOLINGS = """
max_pool1d max_pool2d max_pool3d adaptive_max_pool1d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d mean amax upsample_bilinear2d
upsample_linear1d upsample_trilinear3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
"""
_SAME_RANGE = """
max_pool1d max_pool2d max_pool3d adaptive_max_pool1d amax upsample_bilinear2d upsample_linear1d upsample_trilinear3d
upsample_nearest1d upsample_nearest2d upsample_nearest3d
"""
_MOVEMENTS = """
broadcast_to cat channel_shuffle chunk constant_pad_nd expand flatten flip index_select movedim narrow numpy_T pad
permute pixel_shuffle pixel_unshuffle repeat reshape roll select slice split split_with_sizes squeeze stack swapaxes t
tile transpose unbind unflatten unsqueeze
"""
_TABLE = {
    **{f"aten.{name}": Kind.POOLING for name in _POOLINGS.split()},
    **{f"aten.{name}": Kind.MOVEMENT for name in _MOVEMENTS.split()},
    **dict.fromkeys(PRODUCTS, Kind.PRODUCT),
    "aten.batch_norm": Kind.POINTWISE,  # its statistics are constants here
    "aten.scaled_dot_product_attention": Kind.NORMALISATION,
}
SAME_RANGE = frozenset(f"aten.{name}" for name in _SAME_RANGE.split())
"""Poolings whose results keep the range of what they read, so that one scale serves both. Averages are narrower."""


def kind_of(node: fx.Node) -> Kind:
    """The row of a call."""
    if node.target is operator.getitem:
        return Kind.MOVEMENT
    name = op_name(node)
    if name in ("aten.pad", "aten.constant_pad_nd"):
        constant = name == "aten.constant_pad_nd" or argument(node, "mode") == "constant"
        return Kind.MOVEMENT if constant and not argument(node, "value") else Kind.OTHER
    if name in _TABLE:
        return _TABLE[name]
    row = OPS.get(name)
    if row is None:
        return Kind.OTHER
    if Trait.NORMALISATION in row.traits:
        return Kind.NORMALISATION
    return Kind.POINTWISE if Trait.ELEMENTWISE in row.traits else Kind.OTHER


def is_product(node: fx.Node) -> bool:
    """Whether a call sums products."""
    return op_name(node) in PRODUCTS


def is_float(node: object) -> bool:
    """Whether a node's value is a float32 tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def constants_of(program: Program) -> set[fx.Node]:
    """The weights, and what is computed from them and from sizes alone."""
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "get_attr":
            found.add(node)
        elif node.op == "call_function":
            sizes = (torch.SymInt, int, float)
            if found.issuperset(each for each in node.all_input_nodes if not isinstance(each.meta.get("val"), sizes)):
                found.add(node)
    return found
