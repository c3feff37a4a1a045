"""Regions: which nodes become one kernel call.

A region starts at an *anchor* (a convolution or a matrix product) and swallows the chain of nodes behind it that the
kernel's epilogue can compute while the result is in registers: activations, and sums and products with a value per
channel or with a tensor of the same shape. Some kernels also pool at the end, or put the channels of images first.
A chain only: each inner value has one reader, so nothing is computed twice and nothing else misses a value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shave.backends.tvm.kernels.epilogue import (
    Activation,
    Bias,
    Factor,
    OperandStep,
    PerElement,
    Residual,
    Scale,
    Slope,
    Step,
)
from shave.backends.tvm.quantized import Codes, dequantized, quantized
from shave.ir.ops import Trait, argument, has_trait, op_name

_PRODUCTS = ("aten.linear", "aten.matmul", "aten.mm", "aten.addmm")
"""Anchors whose channels are the last axis; those of a convolution are axis 1."""

_CONVOLUTIONS = ("aten.conv2d", "aten.conv3d", "aten.convolution", "shave.winograd_conv2d")

_POOLING = ("shave.winograd_conv2d",)
"""Anchors whose kernels can pool: their tiles hold whole windows."""


@dataclass(frozen=True)
class Region:
    """An anchor and what its kernel computes besides.

    Attributes:
        nodes: The anchor first, the node whose value the kernel stores last.
        steps: Epilogue steps after the anchor's own bias, in order.
        operands: The tensor of each step that takes one, in order.
        codes: What the last node makes of the result, if it quantizes.
    """

    nodes: tuple[fx.Node, ...]
    steps: tuple[Step, ...] = ()
    operands: tuple[fx.Node, ...] = ()
    codes: Codes | None = None

    @property
    def pooled(self) -> bool:
        """Whether the kernel stores the largest of each 2x2 window."""
        return _halves(self.nodes[-1])

    @property
    def channels_first(self) -> bool:
        """Whether rows of a matrix product are stored as pixels of blocked images."""
        return any(_puts_channels_first(node) for node in self.nodes)


def find_regions(graph: fx.Graph, is_anchor: Callable[[fx.Node], bool]) -> dict[fx.Node, Region]:
    """Grow a region from every anchor, in the order of the graph; each node belongs to one region at most.

    Args:
        graph: Every node carries its FakeTensor.
        is_anchor: Whether a kernel with an epilogue computes this call.

    Returns:
        The region of each anchor.
    """
    taken: set[fx.Node] = set()
    regions = {}
    for node in graph.nodes:
        if node.op == "call_function" and is_anchor(node):
            region = _grow(node, taken)
            taken.update(region.nodes)
            regions[node] = region
    return regions


def _grow(anchor: fx.Node, taken: set[fx.Node]) -> Region:
    nodes = [anchor]
    steps: list[Step] = []
    operands: list[fx.Node] = []
    channels_last = op_name(anchor) in _PRODUCTS
    while True:
        last = nodes[-1]
        if (gate := _gated(last)) is not None and not taken & set(gate[0]):
            nodes += gate[0]
            steps.append(gate[1])
            continue
        reader = _only_reader(last)
        if reader is None or reader in taken:
            break
        activation = activation_of(reader, last)
        combined = _combined(reader, last, channels_last)
        whole_maps = any(isinstance(step, PerElement) for step in steps)
        if channels_last and _puts_channels_first(reader) and feeds_blocks(reader) and not whole_maps:
            channels_last = False
        elif activation is not None:
            steps.append(activation)
        elif combined is not None and not (whole_maps and isinstance(combined[0], PerElement)):
            # The kernel runs where the last node stood, so the other operand is there by then.
            steps.append(combined[0])
            operands.append(combined[1])
        else:
            break
        nodes.append(reader)
    if reader is not None and reader not in taken and op_name(anchor) in _POOLING and _halves(reader):
        nodes.append(reader)
    codes = quantized(reader) if reader is not None and reader not in taken and not _halves(nodes[-1]) else None
    if codes is not None:
        nodes.append(codes.node)
    return Region(tuple(nodes), tuple(steps), tuple(operands), codes)


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].op == "call_function" else None


def find_channel_norms(graph: fx.Graph) -> dict[fx.Node, Region]:
    """LayerNorms over the channels of channels-last images that are channels-first before and behind.

    Returns:
        The region of each LayerNorm: itself, and the permute that puts the channels first for a convolution.
    """
    regions = {}
    for node in graph.nodes:
        if node.op != "call_function" or op_name(node) != "aten.layer_norm" or not _is_float32(node):
            continue
        reader = _only_reader(node)
        if reader is None or not _puts_channels_first(reader) or not feeds_blocks(reader):
            continue
        if _puts_channels_last(node.args[0]) and len(argument(node, "normalized_shape")) == 1:
            regions[node] = Region((node, reader))
    return regions


def _is_float32(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _puts_channels_last(node: Any) -> bool:
    """Whether a node is a permute of channels-first images to channels-last."""
    return _moves(node, lambda rank: [0, *range(2, rank), 1])


def _puts_channels_first(node: fx.Node) -> bool:
    """Whether a node is a permute of channels-last images of known extents to channels-first."""
    return _moves(node, lambda rank: [0, rank - 1, *range(1, rank - 1)]) and all(
        isinstance(size, int) for size in node.meta["val"].shape
    )


def _moves(node: Any, order: Callable[[int], list[int]]) -> bool:
    """Whether a node permutes the axes of images to ``order(number of axes)``."""
    if not isinstance(node, fx.Node) or op_name(node) != "aten.permute" or node.meta["val"].dim() not in (4, 5):
        return False
    rank = node.meta["val"].dim()
    return [axis % rank for axis in argument(node, "dims")] == order(rank)


def feeds_blocks(node: fx.Node, steps: int = 4) -> bool:
    """Whether blocks of an image are read, directly or through a few elementwise operators.

    Convolutions read them, and normalisations of the channels of each pixel.
    """
    if len(node.meta["val"].shape) not in (4, 5):
        return False
    for reader in node.users:
        if op_name(reader) in _CONVOLUTIONS:
            return True
        if _puts_channels_last(reader) and any(op_name(further) == "aten.layer_norm" for further in reader.users):
            return True
        if steps and has_trait(reader, Trait.ELEMENTWISE) and feeds_blocks(reader, steps - 1):
            return True
    return False


def _halves(node: fx.Node) -> bool:
    """Whether a call takes the largest element of each whole 2x2 window."""
    if op_name(node) != "aten.max_pool2d":
        return False
    given = [argument(node, name) for name in ("kernel_size", "stride", "padding", "dilation")]
    given[1] = given[1] or given[0]
    lists = [set(value) if isinstance(value, (list, tuple)) else {value} for value in given]
    plain = lists == [{2}, {2}, {0}, {1}]
    extents = node.args[0].meta["val"].shape[-2:] if isinstance(node.args[0], fx.Node) else ()
    even = all(isinstance(size, int) and size % 2 == 0 for size in extents)
    large = all(isinstance(size, int) and size >= 2 for size in extents)
    return plain and large and (even or not argument(node, "ceil_mode"))


def _combined(reader: fx.Node, value: fx.Node, channels_last: bool) -> tuple[OperandStep, fx.Node] | None:
    """The step that combines ``value`` with another tensor, and that tensor; None where ``reader`` does not."""
    name = op_name(reader)
    if name == "aten.prelu":
        return _prelu(reader, value, channels_last)
    if name not in ("aten.add", "aten.mul") or (name == "aten.add" and argument(reader, "alpha") != 1):
        return None
    operands = [a for a in (argument(reader, "self"), argument(reader, "other")) if isinstance(a, fx.Node)]
    if len(operands) != 2 or operands[0] is operands[1] or value not in operands:
        return None
    other = operands[1] if operands[0] is value else operands[0]
    if not _same_dtype(other, value):
        return None
    mine, its = [str(size) for size in value.meta["val"].shape], [str(size) for size in other.meta["val"].shape]
    if mine == its:
        if name == "aten.add":
            return Residual("float32" if dequantized(other) is None else "uint8"), other
        return Factor(), other
    step = Bias if name == "aten.add" else Scale
    repeated = ["1"] * (len(mine) - len(its)) + its
    axis = len(mine) - 1 if channels_last else 1
    if len(repeated) != len(mine) or mine[axis] == "1" or repeated[axis] != mine[axis]:
        return None
    elsewhere = [size for position, size in enumerate(repeated) if position != axis]
    if set(elsewhere) == {"1"}:
        return step(), other
    per_image = not channels_last and repeated[0] == mine[0] and set(elsewhere[1:]) == {"1"}
    return (step(per_image=True), other) if per_image else None


def _prelu(reader: fx.Node, value: fx.Node, channels_last: bool) -> tuple[OperandStep, fx.Node] | None:
    """PReLU has its slopes, one or one for each channel, along axis 1."""
    slope = argument(reader, "weight")
    count, shape = slope.meta["val"].numel(), value.meta["val"].shape
    one_for_all = count == 1 and slope.op == "get_attr"
    for_channels = len(shape) >= 2 and count == shape[1] and (len(shape) == 2 or not channels_last)
    if argument(reader, "self") is not value or not _same_dtype(slope, value):
        return None
    return (Slope(), slope) if one_for_all or for_channels else None


def _same_dtype(a: fx.Node, b: fx.Node) -> bool:
    value = a.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == b.meta["val"].dtype


def _gated(value: fx.Node) -> tuple[list[fx.Node], Step] | None:
    """``x * sigmoid(x)`` and ``x * hardsigmoid(x)`` written out: the nodes and the activation they are."""
    gates = {"aten.sigmoid": "silu", "aten.hardsigmoid": "hardswish"}
    readers = list(value.users)
    if len(readers) != 2 or any(r.op != "call_function" for r in readers):
        return None
    for gate, product in (readers, readers[::-1]):
        kind = gates.get(op_name(gate))
        is_product = list(gate.users) == [product] and op_name(product) == "aten.mul"
        if kind and is_product and set(product.args) == {value, gate}:
            return [gate, product], Activation(kind)
    return None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _clip(node: fx.Node, low: str, high: str) -> Activation | None:
    bounds = [_number(argument(node, low)), _number(argument(node, high))]
    if bounds[0] == 0 and argument(node, high) is None:
        return Activation("relu")
    return None if None in bounds else Activation("clip", (bounds[0], bounds[1]))  # type: ignore[arg-type]


def _elu(node: fx.Node) -> Activation | None:
    alpha = _number(argument(node, "alpha"))
    plain = argument(node, "scale") == 1 and argument(node, "input_scale") == 1
    return Activation("elu", (alpha,)) if plain and alpha is not None else None


def _leaky_relu(node: fx.Node) -> Activation | None:
    slope = _number(argument(node, "negative_slope"))
    return None if slope is None else Activation("leaky_relu", (slope,))


def _softplus(node: fx.Node) -> Activation | None:
    return Activation("softplus") if argument(node, "beta") == 1 and argument(node, "threshold") >= 15 else None


_ACTIVATIONS: dict[str, Callable[[fx.Node], Activation | None]] = {
    "aten.relu": lambda _: Activation("relu"),
    "aten.relu6": lambda _: Activation("clip", (0.0, 6.0)),
    "aten.hardtanh": lambda n: _clip(n, "min_val", "max_val"),
    "aten.clamp": lambda n: _clip(n, "min", "max"),
    "aten.clamp_min": lambda n: Activation("relu") if argument(n, "min") == 0 else None,
    "aten.leaky_relu": _leaky_relu,
    "aten.hardsigmoid": lambda _: Activation("hardsigmoid", (1 / 6, 0.5)),
    "aten.hardswish": lambda _: Activation("hardswish"),
    "aten.sigmoid": lambda _: Activation("sigmoid"),
    "aten.tanh": lambda _: Activation("tanh"),
    "aten.silu": lambda _: Activation("silu"),
    "aten.gelu": lambda n: Activation("gelu_tanh" if argument(n, "approximate") == "tanh" else "gelu"),
    "aten.elu": _elu,
    "aten.softplus": _softplus,
    "aten.mish": lambda _: Activation("mish"),
}


def activation_of(node: fx.Node, value: fx.Node) -> Activation | None:
    """The epilogue step that a call is, applied to ``value``; None if it is none."""
    find = _ACTIVATIONS.get(op_name(node))
    return find(node) if find is not None and node.args and node.args[0] is value else None
