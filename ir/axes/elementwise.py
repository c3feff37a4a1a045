"""Axis maps of operators that work position by position, and of those that make tensors of one value."""

from __future__ import annotations

from torch import fx

from shave.ir.axes.relations import Axes, AxisMap, Relations, tensors


def pointwise(node: fx.Node, relations: Relations) -> Axes:
    """Operands are broadcast against each other."""
    out = relations.fresh(node)
    relations.broadcast(out, *map(relations.of, tensors(node)))
    return out


def like_first(node: fx.Node, relations: Relations) -> Axes:
    """The result has the axes of the first operand."""
    return relations.of(node.args[0])


def prelu(node: fx.Node, relations: Relations) -> Axes:
    """One slope for each channel, which is axis 1."""
    axes, weight = relations.argument(node, "self"), relations.argument(node, "weight")
    if len(axes) > 1 and weight and weight[0].size == axes[1].size:
        relations.unify(weight[0], axes[1])
    return axes


def filled(node: fx.Node, relations: Relations) -> Axes:
    """Every position of the result holds the same."""
    return relations.fresh(node)


def counted(node: fx.Node, relations: Relations) -> Axes:
    """Values tell positions, so that none may go."""
    out = relations.fresh(node)
    relations.fix(out, "numbers it")
    return out


def none(node: fx.Node, relations: Relations) -> Axes:
    """Gives no tensor, and asks nothing of those it reads."""
    return ()


MAPS: dict[str, AxisMap] = {
    "aten.prelu": prelu,
    **dict.fromkeys(("aten._prelu_kernel", "aten.copy"), pointwise),
    **dict.fromkeys(("aten.fill", "aten.zero"), like_first),
    "aten._assert_tensor_metadata": none,
    "aten._assert_async": none,
    **dict.fromkeys(("aten.empty", "aten.full", "aten.ones", "aten.zeros", "aten.scalar_tensor"), filled),
    **dict.fromkeys(("aten.new_empty", "aten.new_full", "aten.new_ones", "aten.new_zeros"), filled),
    **dict.fromkeys(
        ("aten.empty_like", "aten.full_like", "aten.ones_like", "aten.zeros_like", "aten.lift_fresh_copy"), like_first
    ),
    **dict.fromkeys(("aten.arange", "aten.eye", "aten.linspace"), counted),
}
