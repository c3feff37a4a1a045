"""Axis maps of operators that sum up, compare or normalise."""

from __future__ import annotations

from typing import Any

from torch import fx

from shave.ir.axes.relations import Axes, AxisMap, Relations, axis
from shave.ir.axes.terms import Term
from shave.ir.ops import argument, op_name

NORM_GROUPS = "norm groups"
"""Kind of the atom that counts the groups of a GroupNorm."""


def reduced_axes(node: fx.Node, rank: int) -> list[int]:
    """The axes that a reduction goes over: those of its argument ``dim``, or all."""
    names = [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr]
    dims = argument(node, "dim") if "dim" in names else None
    if dims is None or dims == []:
        return list(range(rank))
    return sorted({dim % max(rank, 1) for dim in (dims if isinstance(dims, (list, tuple)) else [dims])})


def _kept(node: fx.Node, axes: Axes) -> Axes:
    names = [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr]
    over = reduced_axes(node, len(axes))
    if "keepdim" in names and argument(node, "keepdim"):
        return tuple(Term(1) if i in over else term for i, term in enumerate(axes))
    return tuple(term for i, term in enumerate(axes) if i not in over)


def reduction(node: fx.Node, relations: Relations) -> Axes | list[Axes]:
    """The axes that are not summed up."""
    out = _kept(node, relations.of(node.args[0]))
    value = node.meta["val"]
    return [out] * len(value) if isinstance(value, (tuple, list)) else out


def search(node: fx.Node, relations: Relations) -> Axes | list[Axes]:
    """As a reduction, and tells positions along the axes that it goes over."""
    axes = relations.of(node.args[0])
    relations.fix([axes[i] for i in reduced_axes(node, len(axes))], "tells positions of it")
    return reduction(node, relations)


def extremum(node: fx.Node, relations: Relations) -> Axes | list[Axes]:
    """``max`` and ``min``: a search, where positions come with the values."""
    several = isinstance(node.meta["val"], (tuple, list))
    if several and any(user.args[1] == 1 for user in node.users):
        return search(node, relations)
    if len(node.args) > 1 and isinstance(node.args[1], fx.Node):  # of two tensors, position by position
        out = relations.fresh(node)
        relations.broadcast(out, *map(relations.of, node.args[:2]))
        return out
    return reduction(node, relations)


def scan(node: fx.Node, relations: Relations) -> Axes | list[Axes]:
    """What depends on the order along one axis."""
    axes = relations.of(node.args[0])
    relations.fix([axes[axis(argument(node, "dim"), axes)]], "depends on its order")
    return axes


def ordered(node: fx.Node, relations: Relations) -> list[Axes]:
    """``sort`` and ``topk``: values and their positions along one axis."""
    axes = relations.of(node.args[0])
    place = axis(argument(node, "dim"), axes)
    out = Term(int(node.meta["val"][0].shape[place]))
    relations.fix([axes[place], out], "sorts it")
    return [(*axes[:place], out, *axes[place + 1 :])] * 2


def spatial(count: int) -> AxisMap:
    """Makes the map of an operator that slides over, or resamples, the last ``count`` axes."""

    def over_space(node: fx.Node, relations: Relations) -> Axes | list[Axes]:
        axes, value = relations.of(node.args[0]), node.meta["val"]
        several = isinstance(value, (tuple, list))
        shape = (value[0] if several else value).shape
        space = tuple(Term(int(size)) if isinstance(size, int) else Term(2) for size in shape[len(shape) - count :])
        relations.fix([*axes[len(axes) - count :], *space], "slides over it")
        out = (*axes[: len(axes) - count], *space)
        return [out] * len(value) if several else out

    return over_space


def batch_norm(node: fx.Node, relations: Relations) -> Axes | list[Axes]:
    """A scale and shift for each channel, which is axis 1."""
    axes = relations.argument(node, "input")
    for each in node.all_input_nodes:
        weight = relations.of(each)
        if len(weight) == 1:  # scale, shift and running statistics
            relations.unify(weight[0], axes[1])
    return _with_statistics(node, axes)


def layer_norm(node: fx.Node, relations: Relations) -> Axes | list[Axes]:
    """Statistics over the last axes; a scale and shift for each position of them."""
    axes = relations.argument(node, "input")
    for name in ("weight", "bias"):
        if name in [parameter.name for parameter in node.target._schema.arguments]:  # type: ignore[union-attr]
            weight = relations.argument(node, name)
            relations.unify_all(weight, axes[len(axes) - len(weight) :])
    return _with_statistics(node, axes)


def group_norm(node: fx.Node, relations: Relations) -> Axes | list[Axes]:
    """Statistics over groups of channels, which are axis 1."""
    axes = relations.argument(node, "input")
    groups = Term(int(argument(node, "num_groups" if op_name(node) == "aten.group_norm" else "group")))
    within = Term(axes[1].size // groups.size)
    if within.size > 1:  # else each group is a channel
        relations.mark([groups], NORM_GROUPS)
    relations.align([groups, within], [axes[1]])
    for name in ("weight", "bias"):
        if weight := relations.argument(node, name):
            relations.unify(weight[0], axes[1])
    return _with_statistics(node, axes)


def _with_statistics(node: fx.Node, axes: Axes) -> Axes | list[Axes]:
    """The result; a native operator gives mean and deviation beside it."""
    value = node.meta["val"]
    if not isinstance(value, (tuple, list)):
        return axes
    return [axes, *(tuple(Term(int(size)) for size in each.shape) for each in value[1:])]


def same(node: fx.Node, relations: Relations) -> Axes:
    """Softmax and its kin: the axes stay."""
    return relations.of(node.args[0])


def _named(names: str, axis_map: AxisMap) -> dict[str, AxisMap]:
    return {f"aten.{name}": axis_map for name in names.split()}


MAPS: dict[str, Any] = {
    **_named(
        "all amax amin any count_nonzero linalg_vector_norm logsumexp mean norm prod std std_mean sum var var_mean",
        reduction,
    ),
    **_named("argmax argmin median", search),
    **_named("max min", extremum),
    **_named("cumsum cumprod", scan),
    **_named("sort topk", ordered),
    **_named("avg_pool1d max_pool1d adaptive_avg_pool1d adaptive_max_pool1d", spatial(1)),
    **_named("upsample_nearest1d upsample_linear1d", spatial(1)),
    **_named("replication_pad1d reflection_pad1d", spatial(1)),
    **_named("avg_pool2d max_pool2d max_pool2d_with_indices adaptive_avg_pool2d _adaptive_avg_pool2d", spatial(2)),
    **_named("adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d", spatial(2)),
    **_named("_upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact2d", spatial(2)),
    **_named("replication_pad2d reflection_pad2d", spatial(2)),
    **_named("avg_pool3d max_pool3d max_pool3d_with_indices adaptive_avg_pool3d _adaptive_avg_pool3d", spatial(3)),
    **_named("adaptive_max_pool3d upsample_nearest3d upsample_trilinear3d", spatial(3)),
    **_named("replication_pad3d reflection_pad3d", spatial(3)),
    **_named("batch_norm instance_norm _native_batch_norm_legit native_batch_norm", batch_norm),
    **_named("layer_norm native_layer_norm rms_norm _fused_rms_norm", layer_norm),
    **_named("group_norm native_group_norm", group_norm),
    **_named("softmax _softmax log_softmax _log_softmax", same),
}
