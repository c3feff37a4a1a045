"""Where a factor for each channel can be moved from what makes an activation to what reads it, changing no output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter, as_trainable
from shave.passes.quantize.products import Product, product_of
from shave.passes.quantize.table import PRODUCTS

_CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d")
_MATRICES = ("aten.linear", "aten.matmul", "aten.mm", "aten.addmm")
_NORMS = ("aten.layer_norm", "aten.rms_norm")
_HOMOGENEOUS = """
relu leaky_relu max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d
"""
_THROUGH = {f"aten.{name}" for name in _HOMOGENEOUS.split()}
"""Operators that give s times as much for inputs s times as large, for any s above 0, channel by channel."""

FACTORS = (1e-4, 1e4)
"""Least and largest factor of a channel."""


@dataclass(frozen=True)
class Link:
    """An activation whose channels can be scaled.

    Attributes:
        value: What the consumers read.
        axis: Its channels.
        producer: The convolution, linear layer or norm that it comes from.
        consumers: Products that read the value.
    """

    value: fx.Node
    axis: int
    producer: fx.Node
    consumers: tuple[Product, ...]

    def magnitudes(self, program: Program) -> torch.Tensor:
        """The largest weight that multiplies each channel, over all consumers [channels]."""
        found = [_by_input(program, product).abs().flatten(1).amax(1) for product in self.consumers]
        return torch.stack(found).amax(0)

    def made(self, program: Program) -> torch.Tensor:
        """The largest weight that makes each channel, biases left out [channels]."""
        _, node, axis = self._weights(program)[0]
        magnitude = program.weight(node).detach().double().abs().movedim(axis, 0)
        return magnitude.reshape(len(magnitude), -1).amax(1)

    def scale(self, program: Program, rewriter: Rewriter, factors: torch.Tensor) -> None:
        """Divide what makes the channels by ``factors`` [channels], and multiply what reads them."""
        for reader, node, axis in self._weights(program):
            old = program.weight(node)
            shape = [1] * old.dim()
            shape[axis] = -1
            _set(rewriter, reader, node, old, old.detach().double() / factors.reshape(shape))
        for product in self.consumers:
            node = argument(product.node, product.weight)
            old = program.weight(node)
            groups, form = _form(product, old)
            scaled = old.detach().double().reshape(form) * factors.reshape(groups)
            _set(rewriter, product.node, node, old, scaled.reshape(old.shape))

    def _weights(self, program: Program) -> tuple[tuple[fx.Node, fx.Node, int], ...]:
        """As they are now: other links may have scaled the same weights along another axis."""
        found = _weights(program, self.producer, self.axis)
        assert not isinstance(found, str)
        return found


def find(program: Program, refuse: Callable[[fx.Node, str], None]) -> list[Link]:
    """Every link of a program; ``refuse`` is told of each activation that products read, but that is none, and why."""
    found = []
    for value in [*program.inputs, *program.calls]:
        readers = [node for node in value.users if op_name(node) in PRODUCTS]
        if not readers:
            continue
        link = _link(program, value)
        if isinstance(link, Link):
            found.append(link)
        else:
            refuse(value, link)
    return found


def _link(program: Program, value: fx.Node) -> Link | str:
    products = []
    for user in value.users:
        product = product_of(program, user)
        if product is None or argument(user, product.data) is not value:
            return f"{user.name} reads it, too, which has no weights to take a factor"
        if op_name(user) not in (*_CONVOLUTIONS, *_MATRICES) or not _is_plain(program, argument(user, product.weight)):
            return f"{user.name} has weights that cannot take a factor"
        if product.data not in ("input", "self", "mat1"):
            return f"{user.name} has its weights first"
        products.append(product)
    if value in program.outputs:
        return "it is an output"
    kinds = {op_name(product.node) in _CONVOLUTIONS for product in products}
    if len(kinds) != 1:
        return "its readers take different axes for channels"
    axis = 1 if kinds.pop() else value.meta["val"].dim() - 1
    node = value
    while op_name(node) in _THROUGH or _is_rectifier(node):
        node = node.all_input_nodes[0]
        if len(node.users) > 1 or node in program.outputs:
            return f"{node.name}, which it comes from, is read by others, too"
    weights = _weights(program, node, axis)
    return weights if isinstance(weights, str) else Link(value, axis, node, tuple(products))


def _weights(program: Program, node: fx.Node, axis: int) -> tuple[tuple[fx.Node, fx.Node, int], ...] | str:
    """What a producer multiplies and adds per channel: by reader, with the axis of the channels."""
    name = op_name(node) if node.op == "call_function" else "an input"
    if name in _NORMS:
        weight, bias = argument(node, "weight"), argument(node, "bias") if name == "aten.layer_norm" else None
        if weight is None or len(argument(node, "normalized_shape")) != 1 or axis != node.meta["val"].dim() - 1:
            return f"{node.name} has no weight for each channel"
        return tuple((node, each, 0) for each in (weight, bias) if each is not None)
    if name == "aten.add":  # the bias of a matrix product
        products = [product_of(program, each) for each in node.all_input_nodes if op_name(each) in _MATRICES]
        product = next((each for each in products if each and each.bias and each.bias[1] is node), None)
    else:
        product = product_of(program, node) if name in (*_CONVOLUTIONS, *_MATRICES) else None
    if product is None or product.axis != axis:
        return f"it comes from {name}, which has no weights to take a factor"
    weight = argument(product.node, product.weight)
    if not _is_plain(program, weight):
        return f"the weights of {product.node.name} are integers already"
    own = product.bias is not None and product.bias[1] in (node, product.node)
    if product.bias is not None and product.bias[1] is not node and product.bias[1] is not product.node:
        return f"{product.node.name} is read before its bias is added"
    out = 0 if op_name(product.node) in (*_CONVOLUTIONS, "aten.linear") else 1
    found = [(product.node, weight, out)]
    if own and product.bias is not None:
        found.append((product.bias[1], product.bias[0], 0))
    elif argument(product.node, "bias") is not None if product.can_take_bias else False:
        return f"the bias of {product.node.name} is computed"
    return tuple(found)


def _by_input(program: Program, product: Product) -> torch.Tensor:
    """The weights of a product with its input channels first, float64 [channels, ...]."""
    weight = program.weight(argument(product.node, product.weight)).detach().double()
    groups, form = _form(product, weight)
    spread = weight.reshape(form)
    channel_axes = [axis for axis, size in enumerate(groups) if size != 1]
    rest = [axis for axis in range(spread.dim()) if axis not in channel_axes]
    channels = 1
    for axis in channel_axes:
        channels *= spread.shape[axis]
    return spread.permute(*channel_axes, *rest).reshape(channels, -1)


def _form(product: Product, weight: torch.Tensor) -> tuple[list[int], list[int]]:
    """Shapes: of the factors, and of the weights that they are multiplied with."""
    name = op_name(product.node)
    if name in _CONVOLUTIONS:
        groups = int(argument(product.node, "groups"))
        out, channels, *kernel = weight.shape
        form = [groups, out // groups, channels, *kernel]
        return [groups, 1, channels, *(1 for _ in kernel)], form
    if name == "aten.linear":
        return [1, weight.shape[1]], list(weight.shape)
    return [weight.shape[0], 1], list(weight.shape)


def _is_rectifier(node: fx.Node) -> bool:
    if op_name(node) == "aten.clamp_min":
        return bool(argument(node, "min") == 0)
    return bool(op_name(node) == "aten.clamp" and argument(node, "min") == 0 and argument(node, "max") is None)


def _is_plain(program: Program, weight: fx.Node) -> bool:
    return weight.op == "get_attr" and program.weight(weight).is_floating_point() and program.weight(weight).dim() >= 2


def _set(rewriter: Rewriter, reader: fx.Node, node: fx.Node, old: torch.Tensor, new: torch.Tensor) -> None:
    rewriter.set_weight(reader, node, as_trainable(new.to(old.dtype).contiguous(), old))
