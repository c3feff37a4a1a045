"""Convolutions, transposed convolutions and linear layers with constant weights, as one thing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter, as_trainable

_TRANSPOSED = ("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
_LAYERS = ("aten.linear", "aten.conv1d", "aten.conv2d", "aten.conv3d", *_TRANSPOSED)


@dataclass(frozen=True)
class LinearLayer:
    """One layer ``y = W x + b``.

    Attributes:
        node: The call.
        weight: [out, in / groups, *kernel], for a transposed convolution [in, out / groups, *kernel]; float64.
        bias: [out], float64; zeros if the layer has none.
        groups: Number of groups of channels.
        transposed: Whether it is a transposed convolution.
    """

    node: fx.Node
    weight: torch.Tensor
    bias: torch.Tensor
    groups: int
    transposed: bool

    @property
    def axis(self) -> int:
        """Axis of the channels in input and output: what follows are the axes of the kernel."""
        return int(self.node.meta["val"].dim()) - (self.weight.dim() - 2) - 1

    @property
    def pads(self) -> bool:
        """Whether some outputs see fewer inputs than others: zeros at the border, or a transposed layer's overlaps."""
        if self.transposed:
            return True
        if op_name(self.node) == "aten.linear":
            return False
        padding = argument(self.node, "padding")
        return padding != "valid" if isinstance(padding, str) else any(width != 0 for width in padding)

    def scale_output(self, scale: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of ``scale * y + shift``; both are of shape [out]."""
        return self._scaled(scale, of_output=True), self.bias * scale + shift

    def scale_input(self, scale: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of the layer on ``scale * x + shift``; both are of shape [in]. Exact if it does not pad."""
        if not shift.any():
            return self._scaled(scale, of_output=False), self.bias
        moved = self._scaled(shift, of_output=False)
        return self._scaled(scale, of_output=False), self.bias + moved.flatten(1).sum(1)

    def _scaled(self, factor: torch.Tensor, *, of_output: bool) -> torch.Tensor:
        """Multiply along the output or input channels.

        The first axis of a weight counts through all groups, the second only within its group.
        """
        grouped = self.weight.reshape(self.groups, -1, *self.weight.shape[1:])
        along_first = of_output != self.transposed
        shape = [self.groups, -1, 1] if along_first else [self.groups, 1, -1]
        factor = factor.reshape(shape + [1] * (self.weight.dim() - 2))
        return (grouped * factor).reshape(self.weight.shape)

    def rebuild(
        self,
        program: Program,
        rewriter: Rewriter,
        weight: torch.Tensor,
        bias: torch.Tensor,
        *,
        before: fx.Node,
        source: fx.Node,
        merged: fx.Node,
    ) -> fx.Node | str:
        """Insert the layer with other weights, reading ``source``; or say why its dtype cannot hold them."""
        arguments = [argument(self.node, parameter.name) for parameter in self.node.target._schema.arguments]  # type: ignore[union-attr]
        old = program.weight(arguments[1])
        weight, bias = weight.to(old.dtype, copy=True), bias.to(old.dtype, copy=True)
        if not (weight.isfinite().all() and bias.isfinite().all()):
            return f"the folded weights are not finite in {old.dtype}"
        name = str(arguments[1].target)
        arguments[0] = source
        new = as_trainable(weight.contiguous(), old)
        arguments[1] = rewriter.weight(name, new, sources=[arguments[1]])
        if arguments[2] is not None or bias.any():
            bias_name = str(arguments[2].target) if arguments[2] is not None else f"{name.rpartition('.')[0]}.bias"
            arguments[2] = rewriter.weight(bias_name.lstrip("."), as_trainable(bias, old), sources=[merged])
        assert callable(self.node.target)
        return rewriter.call(self.node.target, arguments, before=before, sources=[merged, self.node])


def linear_layer(program: Program, node: object) -> LinearLayer | None:
    """Read a call as a layer; None if it is none, or if its weights are computed."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or op_name(node) not in _LAYERS:
        return None
    weight, bias = argument(node, "weight"), argument(node, "bias")
    if weight.op != "get_attr" or (bias is not None and bias.op != "get_attr"):
        return None
    transposed = op_name(node) in _TRANSPOSED
    groups = 1 if op_name(node) == "aten.linear" else int(argument(node, "groups"))
    values = program.weight(weight).detach().to(torch.float64)
    if bias is not None:
        offset = program.weight(bias).detach().to(torch.float64)
    else:
        offset = torch.zeros(values.shape[1] * groups if transposed else values.shape[0], dtype=torch.float64)
    return LinearLayer(node, values, offset, groups, transposed)
