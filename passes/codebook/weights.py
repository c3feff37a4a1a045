"""Weights as the pass sees them, and why some stay as they are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shave.ir.ops import Trait, argument, has_trait, op_name
from shave.ir.program import Program

_LAYERS = {
    **{f"aten.conv{rank}d": ("weight", 0) for rank in (1, 2, 3)},
    **{f"aten.conv_transpose{rank}d": ("weight", 1) for rank in (1, 2, 3)},
    "aten.convolution": ("weight", 0),
    "aten.linear": ("weight", 0),
    "aten.embedding": ("weight", 0),
    "aten.matmul": ("other", -1),
    "aten.mm": ("mat2", -1),
    "aten.addmm": ("mat2", -1),
}
"""The argument that is a weight, and the axis of its output channels."""


@dataclass(frozen=True)
class Weight:
    """A weight that can become a lookup.

    Attributes:
        node: The ``get_attr``.
        readers: The layers that read it; nothing else does.
        tensor: Its values.
        axis: That of the output channels.
    """

    node: fx.Node
    readers: tuple[fx.Node, ...]
    tensor: torch.Tensor
    axis: int

    @property
    def matrix(self) -> torch.Tensor:
        """The values, float64 [channels, the rest]."""
        return self.tensor.detach().double().movedim(self.axis, 0).flatten(1)

    def restored(self, matrix: torch.Tensor) -> torch.Tensor:
        """A matrix like :attr:`matrix` in the shape of the weight."""
        moved = self.tensor.movedim(self.axis, 0).shape
        return matrix.reshape(moved).movedim(0, self.axis).contiguous()


def is_candidate(node: fx.Node) -> bool:
    """Whether a call is a layer whose second operand is a weight, or computed from weights alone."""
    if op_name(node) not in _LAYERS:
        return False
    weight = argument(node, _LAYERS[op_name(node)][0])
    return isinstance(weight, fx.Node) and (_is_constant(weight) and weight.meta["val"].dim() >= 2)


def weight_of(node: fx.Node) -> fx.Node:
    """The weight of a candidate."""
    weight: fx.Node = argument(node, _LAYERS[op_name(node)][0])
    return weight


def read(program: Program, node: fx.Node, chosen: Collection[fx.Node]) -> Weight | str:
    """Read the weight of a candidate, or say why it stays.

    Args:
        program: Whose.
        node: The candidate.
        chosen: All candidates that the pass shall work on.
    """
    weight = weight_of(node)
    if weight.op != "get_attr":
        if has_trait(weight, Trait.OPAQUE):
            return f"its weight is stored in a small form already ({op_name(weight)})"
        return "its weight is computed: run fold-constants first"
    readers = tuple(weight.users)
    if others := [reader.name for reader in readers if reader not in chosen]:
        return f"its weight is shared with {', '.join(others)}, which stays as it is"
    if any(weight_of(reader) is not weight or _operands(reader).count(weight) > 1 for reader in readers):
        return "its weight is another operand too"
    axes = {_axis(reader) for reader in readers}
    if len(axes) > 1:
        return "its weight is shared with a layer that has other output channels"
    tensor = program.weight(weight)
    if not tensor.dtype.is_floating_point:
        return f"its weight is {tensor.dtype}".replace("torch.", "")
    if not tensor.isfinite().all():
        return "its weight is not finite"
    if not tensor.numel():
        return "its weight is empty"
    return Weight(weight, readers, tensor, axes.pop())


def _operands(node: fx.Node) -> list[Any]:
    return [*node.args, *node.kwargs.values()]


def _axis(node: fx.Node) -> int:
    transposed = op_name(node) == "aten.convolution" and argument(node, "transposed")
    return 1 if transposed else int(_LAYERS[op_name(node)][1] % weight_of(node).meta["val"].dim())


def _is_constant(node: fx.Node) -> bool:
    return node.op == "get_attr" or (node.op == "call_function" and all(map(_is_constant, node.all_input_nodes)))
