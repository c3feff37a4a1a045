"""The bias of a layer, which takes up what an error of the weights adds to the mean of the output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from shave.ir.ops import argument, op_name
from shave.ir.rewrite import Rewriter, as_trainable

_PLACES = {
    "aten.linear": (2, "bias"),
    "aten.conv2d": (2, "bias"),
    "aten.convolution": (2, "bias"),
    "aten.addmm": (0, "self"),
}


@dataclass(frozen=True)
class Bias:
    """Where a layer takes its bias.

    Attributes:
        layer: The call.
        position: Of the argument.
        node: What stands there, a weight; None for nothing.
    """

    layer: fx.Node
    position: int
    node: fx.Node | None

    def shift(self, rewriter: Rewriter, by: torch.Tensor, weight: fx.Node) -> None:
        """Add a vector [channels] to the bias, or let it be one; ``weight`` is that of the layer."""
        if self.node is None:
            name = str(weight.target).removesuffix("weight") + "bias"
            fresh = rewriter.weight(name, as_trainable(by, rewriter.program.weight(weight)), sources=[weight])
            rewriter.set_argument(self.layer, self.position, fresh)
        else:
            old = rewriter.program.weight(self.node)
            rewriter.set_weight(self.layer, self.node, old.detach() + by.to(old.dtype))


def bias_of(layer: fx.Node) -> Bias | None:
    """The place for a bias of a layer; None if it has none, or another value than a weight stands there."""
    if op_name(layer) not in _PLACES:
        return None
    position, name = _PLACES[op_name(layer)]
    node = argument(layer, name)
    return Bias(layer, position, node) if node is None or node.op == "get_attr" else None
