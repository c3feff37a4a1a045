"""What a weight does with a set of channels: makes it, sums over it, or goes along with it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import pairwise

from torch import fx

from shave.ir.axes.analysis import Layout
from shave.ir.axes.contraction import einsum_labels
from shave.ir.axes.terms import Term, atoms
from shave.ir.ops import argument, op_name


class Role(Enum):
    """What a weight does with the channels of a group."""

    PRODUCES = "produces"
    """Makes them: rows of a convolution or linear layer, its bias, columns of an embedding."""
    CONSUMES = "consumes"
    """Sums over them: input columns of a layer."""
    CARRIES = "carries"
    """Acts on each by itself: scale, shift and statistics of a norm, a depthwise filter, PReLU, position embedding."""


_TRANSPOSED = ("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
_CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution", *_TRANSPOSED)
_PRODUCTS = {"aten.matmul": 0, "aten.mm": 0, "aten.bmm": 0, "aten.mv": 0, "aten.addmm": 1, "aten.baddbmm": 1}
"""Matrix products, and at which argument the left operand is."""


def role_of(reader: fx.Node, path: Sequence[fx.Node], axis: int, atom: Term, layout: Layout) -> Role:
    """Tell what a call does with one axis of a weight.

    Args:
        reader: The call.
        path: The weight, and calls from there to what the reader takes.
        axis: Axis of the weight.
        atom: The channels along it that are asked for.
        layout: Of the program.
    """
    taken, name = path[-1], op_name(reader)
    place = _follow(path, axis, layout)
    if name == "aten.linear" or name in _CONVOLUTIONS:
        if argument(reader, "bias") is taken:
            return Role.CARRIES if _is_depthwise(reader, atom, layout) else Role.PRODUCES
        if argument(reader, "weight") is not taken:
            return Role.CARRIES
        summed, made = (0, 1) if _is_transposed(reader) else (1, 0)
        if place is None:
            place = next((i for i in (summed, made) if atom in set(atoms(layout.axes[taken][i]))), -1)
        if _is_depthwise(reader, atom, layout) or place not in (summed, made):
            return Role.CARRIES
        return Role.CONSUMES if place == summed else Role.PRODUCES
    if name in _PRODUCTS:
        return _role_in_product(reader, taken, place, atom, layout)
    if name == "aten.einsum":
        return _role_in_einsum(reader, taken, place)
    is_table = name == "aten.embedding" and argument(reader, "weight") is taken
    return Role.PRODUCES if is_table and place != 0 else Role.CARRIES


def _is_transposed(reader: fx.Node) -> bool:
    name = op_name(reader)
    return name in _TRANSPOSED or (name == "aten.convolution" and bool(argument(reader, "transposed")))


def _is_depthwise(reader: fx.Node, atom: Term, layout: Layout) -> bool:
    """Whether the channels go through a grouped convolution each by itself, as its groups or part of them."""
    if op_name(reader) == "aten.linear" or argument(reader, "groups") == 1:
        return False
    data = argument(reader, "input")
    place = len(layout.axes[data]) - len(reader.meta["val"].shape[2:]) - 1
    weight = layout.axes[argument(reader, "weight")]
    within = weight[1].root  # the axis that counts within a group, on one side
    inside = set(atoms(layout.axes[data][place])) & set(atoms(layout.axes[reader][place]))
    return atom in inside and atom not in set(atoms(within))


def _role_in_product(reader: fx.Node, taken: fx.Node, place: int | None, atom: Term, layout: Layout) -> Role:
    first = _PRODUCTS[op_name(reader)]
    left, right = reader.args[first : first + 2]
    if taken is not left and taken is not right:
        return Role.PRODUCES  # what addmm adds, its bias
    axes = layout.axes[taken]
    summed = len(axes) - 1 if taken is left else max(len(axes) - 2, 0)
    free = len(axes) - 2 if taken is left else len(axes) - 1
    if place is None:
        place = next((i for i in (summed, free) if i >= 0 and atom in set(atoms(axes[i]))), -1)
    if place == summed:
        return Role.CONSUMES
    return Role.PRODUCES if place == free else Role.CARRIES


def _role_in_einsum(reader: fx.Node, taken: fx.Node, place: int | None) -> Role:
    operands = argument(reader, "tensors")
    ranks = [each.meta["val"].dim() for each in operands]
    *labels, result = einsum_labels(str(argument(reader, "equation")), ranks)
    if place is None:
        return Role.CARRIES
    own = labels[list(operands).index(taken)]
    others = "".join(text for text, operand in zip(labels, operands, strict=True) if operand is not taken)
    letter = own[place]
    if letter not in result:
        return Role.CONSUMES
    return Role.CARRIES if letter in others else Role.PRODUCES


def _follow(path: Sequence[fx.Node], axis: int, layout: Layout) -> int | None:
    """Where an axis of a weight lies in what is made of it; None where it is mixed with others."""
    for source, node in pairwise(path):
        rank, name = len(layout.axes[source]), op_name(node)
        if name in ("aten.t", "aten.numpy_T"):
            axis = rank - 1 - axis
        elif name == "aten.transpose":
            one, other = (argument(node, each) % rank for each in ("dim0", "dim1"))
            axis = {one: other, other: one}.get(axis, axis)
        elif name == "aten.permute":
            axis = [dim % rank for dim in argument(node, "dims")].index(axis)
        elif node not in layout.axes or len(layout.axes[node]) != rank:
            same = [
                i for i, term in enumerate(layout.axes.get(node, ())) if term.root is layout.axes[source][axis].root
            ]
            if len(same) != 1:
                return None
            axis = same[0]
    return axis
