"""What a layer of a cut program should give: what the whole program gives there, or at the next sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.shapes import same_shape
from shave.passes.repair.layer import Layer
from shave.passes.repair.walk import Walk
from shave.passes.simplify.affine import affine_of

Kept = Mapping[str, Mapping[int, torch.Tensor]]
"""By node of the whole program and axis of its value, the positions that stay."""

_LEAST_SCALE = 1e-2
"""A norm that scales a channel by less than this share of the others' median hides what is wrong with it."""


@dataclass(frozen=True)
class Join:
    """The sum that a layer's output goes into, through nothing but a scale and shift of each channel.

    Attributes:
        node: The addition.
        other: Its other operand.
        scale: [channels], of the layer's output on its way.
        shift: [channels].
    """

    node: fx.Node
    other: fx.Node
    scale: torch.Tensor
    shift: torch.Tensor


def join_of(program: Program, layer: Layer) -> Join | None:
    """Find the sum that a layer's output alone goes into, or None.

    A target at the sum lets the layer make up for what is wrong with the other operand (He et al. 2017, "Channel
    Pruning for Accelerating Very Deep Neural Networks", section 3.2).
    """
    channels = int(layer.node.meta["val"].shape[layer.axis])
    scale, shift = torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    node = layer.node
    while len(node.users) == 1:
        user = next(iter(node.users))
        if op_name(user) == "aten.add" and argument(user, "alpha") == 1:
            others = [each for each in user.all_input_nodes if each is not node]
            if len(others) == 1 and others[0].op == "call_function" and _alike(user, node, others[0]):
                return Join(user, others[0], scale, shift)
        affine = affine_of(program, user)
        factors = None if affine is None or affine.source is not node else affine.per_channel(layer.axis)
        if factors is None:
            return None
        scale, shift = scale * factors[0], shift * factors[0] + factors[1]
        node = user
    return None


def _alike(*nodes: fx.Node) -> bool:
    values = [node.meta["val"] for node in nodes]
    return all(isinstance(value, torch.Tensor) and same_shape(value.shape, values[0].shape) for value in values)


def at_layer(layer: Layer, original: fx.Node, whole: Walk, kept: Kept) -> Iterator[torch.Tensor]:
    """What the whole program gives in the layer's place, batch by batch, as [rows, channels]."""
    for value in whole.values(original):
        yield layer.outputs(select(value, kept.get(original.name, {})))


def at_join(
    layer: Layer, join: Join, original: fx.Node, whole: Walk, cut: Walk, kept: Kept, plain: Iterator[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """What the layer has to give for the sum to be that of the whole program, batch by batch, as [rows, channels].

    Args:
        layer: The layer.
        join: Where its output goes.
        original: The addition in the whole program.
        whole: The whole program's values.
        cut: The cut program's values; that of the join's other operand must be there.
        kept: What stays of the values of the whole program.
        plain: :func:`at_layer`, for channels that the join can hardly tell.
    """
    size = join.scale.abs()
    weak = size <= _LEAST_SCALE * size.median()
    scale = torch.where(weak, 1.0, join.scale).float()
    for total, other, own in zip(whole.values(original), cut.values(join.other), plain, strict=True):
        wanted = layer.outputs(select(total, kept.get(original.name, {}))) - layer.outputs(other)
        yield torch.where(weak, own, (wanted - join.shift.float()) / scale)


def select(value: torch.Tensor, kept: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """Take the positions that stay."""
    for axis, positions in kept.items():
        value = value.index_select(axis, positions)
    return value
