"""The model as it was, run as if some of its channels were not there.

Nothing is cut here: tensors keep their shapes. Where an operator sums over an axis, the removed positions of that axis
are left out of the sum (which is what setting to zero the weights that consume them does); where it takes statistics
over an axis, they are left out of the statistics. In all other places they are filled with NaN, at first in the
weights: whatever way they took to an output would be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from shave.ir.axes.contraction import einsum_labels
from shave.ir.axes.reduction import reduced_axes
from shave.ir.ops import argument, op_name
from shave.ir.program import Program

Removed = Mapping[fx.Node, Mapping[int, NDArray[np.bool_]]]
"""For values that hold removed channels: for each axis along which they lie, a mask of the positions to leave out."""


class Ablated(fx.Interpreter):
    """Runs a program without some of its channels.

    Attributes:
        restated: Names of calls whose statistics (means, variances, softmax) leave channels out. Without one, the
            program with zeroed weights gives the same.
    """

    def __init__(self, program: Program, removed: Removed) -> None:
        super().__init__(program.module)
        self.removed = removed
        self.restated: list[str] = []

    def run_node(self, node: fx.Node) -> Any:
        """Run one call; see the class."""
        if node.op == "get_attr":
            value = super().run_node(node)
            for axis in self.removed.get(node, ()):
                value = _filled(value.detach(), self, node, axis, torch.nan)
            return value
        rule = _RULES.get(op_name(node)) if node.op == "call_function" else None
        if rule is None or not any(each in self.removed for each in node.all_input_nodes):
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        return rule(_Call(self, node, args, kwargs))


class _Call:
    """One call on values, with what is removed from them."""

    def __init__(self, run: Ablated, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.run, self.node, self.args, self.kwargs = run, node, list(args), dict(kwargs)

    def __call__(self) -> Any:
        return cast("Callable[..., Any]", self.node.target)(*self.args, **self.kwargs)

    def value(self, name: str) -> Any:
        """An argument as a value."""
        found = argument(self.node, name)
        return fx.map_arg(found, lambda node: self.run.env[node])

    def axes(self, position: int) -> Mapping[int, NDArray[np.bool_]]:
        """What is removed from the argument at a position."""
        node = self.node.args[position]
        return self.run.removed.get(node, {}) if isinstance(node, fx.Node) else {}

    def fill(self, position: int, axis: int, value: float) -> None:
        """Fill what is removed along one axis of an argument."""
        node, tensor = self.node.args[position], self.args[position]
        assert isinstance(node, fx.Node)
        self.args[position] = _filled(tensor, self.run, node, axis % tensor.dim(), value)

    def keep(self, position: int, axes: Sequence[int]) -> bool:
        """Take what is removed along some axes out of an argument. Tells whether there was any."""
        changed = False
        for axis, mask in self.axes(position).items():
            if axis in axes:
                kept = _kept(mask, self.args[position].shape[axis])
                self.args[position] = self.args[position].index_select(axis, kept)
                changed = True
        if changed:
            self.run.restated.append(self.node.name)
        return changed

    def restore(self, result: torch.Tensor, position: int, axes: Sequence[int]) -> torch.Tensor:
        """Put a result back where its positions were, NaN in the places between."""
        for axis, mask in self.axes(position).items():
            if axis in axes:
                shape = list(result.shape)
                shape[axis] = self.run.env[cast("fx.Node", self.node.args[position])].shape[axis]
                full = result.new_full(shape, torch.nan)
                result = full.index_copy(axis, _kept(mask, shape[axis]), result)
        return result


def _filled(tensor: torch.Tensor, run: Ablated, node: fx.Node, axis: int, value: float) -> torch.Tensor:
    mask = run.removed.get(node, {}).get(axis)
    if mask is None or not tensor.dtype.is_floating_point:
        return tensor
    shape = [-1 if i == axis else 1 for i in range(tensor.dim())]
    return tensor.masked_fill(torch.from_numpy(_fitted(mask, tensor.shape[axis])).reshape(shape), value)


def _fitted(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """The mask of a dynamic axis at another size than the traced one: whole channels, one sample after the other."""
    return mask if len(mask) == size else np.resize(mask, size)


def _kept(mask: NDArray[np.bool_], size: int) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(~_fitted(mask, size)))


def _convolution(call: _Call) -> Any:
    transposed = "transpose" in op_name(call.node) or (
        op_name(call.node) == "aten.convolution" and bool(call.value("transposed"))
    )
    data, weight = call.args[0], call.args[1]
    call.fill(0, data.dim() - weight.dim() + 1, 0.0)
    # Within a group all channels are summed over; the groups themselves are separate.
    call.fill(1, 0 if transposed else 1, 0.0)
    return call()


def _linear(call: _Call) -> Any:
    call.fill(0, -1, 0.0)
    call.fill(1, -1, 0.0)
    return call()


def _product(left: int) -> Callable[[_Call], Any]:
    def run(call: _Call) -> Any:
        call.fill(left, -1, 0.0)
        call.fill(left + 1, -2 if call.args[left + 1].dim() > 1 else 0, 0.0)
        return call()

    return run


def _einsum(call: _Call) -> Any:
    operands = list(call.args[1])
    *labels, result = einsum_labels(call.args[0], [operand.dim() for operand in operands])
    nodes = cast("Sequence[fx.Node]", call.node.args[1])
    for i, (letters, node) in enumerate(zip(labels, nodes, strict=True)):
        for axis, letter in enumerate(letters):
            if letter not in result:
                operands[i] = _filled(operands[i], call.run, node, axis, 0.0)
    call.args[1] = operands
    return call()


def _attention(call: _Call) -> Any:
    """Scores leave out removed dims of a head; removed keys get no weight. The scale stays that of all dims."""
    query, key = call.args[:2]
    scale = call.value("scale")
    call.fill(0, -1, 0.0)
    call.fill(1, -1, 0.0)
    rank = key.dim()
    removed = call.axes(1).get(rank - 2)
    if removed is None:
        return call()
    call.run.restated.append(call.node.name)
    for position in (1, 2):
        call.fill(position, -2, 0.0)
    query, key, value = call.args[:3]
    groups = query.shape[-3] // key.shape[-3] if call.value("enable_gqa") else 1
    key, value = (each.repeat_interleave(groups, -3) if groups > 1 else each for each in (key, value))
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if call.value("is_causal"):
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    mask = call.value("attn_mask")
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.masked_fill(torch.from_numpy(removed), -torch.inf).softmax(-1) @ value


def _reduction(call: _Call) -> Any:
    call.keep(0, reduced_axes(call.node, call.args[0].dim()))
    return call()


def _sum(call: _Call) -> Any:
    for axis in reduced_axes(call.node, call.args[0].dim()):
        call.fill(0, axis, 0.0)
    return call()


def _softmax(call: _Call) -> Any:
    axis = call.value("dim") % call.args[0].dim()
    if axis in call.axes(0):
        call.run.restated.append(call.node.name)
        call.fill(0, axis, -torch.inf)
    return call()


def _layer_norm(call: _Call) -> Any:
    """Over the last axes, scale and shift along."""
    rank, inner = call.args[0].dim(), len(call.value("normalized_shape"))
    axes = range(rank - inner, rank)
    if not call.keep(0, axes):
        return call()
    names = [parameter.name for parameter in call.node.target._schema.arguments]  # type: ignore[union-attr]
    call.args[1] = list(call.args[0].shape[rank - inner :])
    for name in ("weight", "bias"):
        place = names.index(name) if name in names else len(call.args)
        if place < len(call.args) and call.args[place] is not None:
            for axis, mask in call.axes(0).items():
                if axis in axes:
                    kept = torch.from_numpy(np.flatnonzero(~mask))
                    call.args[place] = call.args[place].index_select(axis - (rank - inner), kept)
    result = call()
    if isinstance(result, tuple):
        return (call.restore(result[0], 0, axes), *result[1:])
    return call.restore(result, 0, axes)


def _group_norm(call: _Call) -> Any:
    """Each group of channels by itself, over what is left of it."""
    x = call.args[0]
    mask = call.axes(0).get(1)
    if mask is None:
        return call()
    name = "num_groups" if op_name(call.node) == "aten.group_norm" else "group"
    groups, eps = call.value(name), call.value("eps")
    kept = torch.from_numpy(~mask).reshape(1, groups, -1, *[1] * (x.dim() - 2))
    if bool((kept.sum(2) % kept.shape[2]).any()):
        call.run.restated.append(call.node.name)
    grouped = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    over = tuple(range(2, grouped.dim()))
    present = grouped.where(kept, 0.0)
    count = kept.expand(grouped.shape).sum(over, keepdim=True)
    mean = present.sum(over, keepdim=True) / count
    variance = ((grouped - mean).square().where(kept, 0.0)).sum(over, keepdim=True) / count
    result = ((grouped - mean) / (variance + eps).sqrt()).reshape(x.shape)
    for each, combine in (("weight", torch.mul), ("bias", torch.add)):
        scale = call.value(each)
        if scale is not None:
            result = combine(result, scale.reshape(1, -1, *[1] * (x.dim() - 2)))
    return result if op_name(call.node) == "aten.group_norm" else (result, None, None)


def _batch_norm(call: _Call) -> Any:
    """With running statistics each channel is by itself; with those of the batch, its positions are averaged."""
    batch_statistics = call.value("use_input_stats" if op_name(call.node) == "aten.instance_norm" else "training")
    axes = [axis for axis in range(call.args[0].dim()) if axis != 1 and batch_statistics]
    call.keep(0, axes)
    result = call()
    if isinstance(result, tuple):
        return (call.restore(result[0], 0, axes), *result[1:])
    return call.restore(result, 0, axes)


_RULES: dict[str, Callable[[_Call], Any]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution),
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _product(0)),
    **dict.fromkeys(("addmm", "baddbmm"), _product(1)),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "sum": _sum,
    **dict.fromkeys(("all", "amax", "amin", "any", "count_nonzero", "linalg_vector_norm", "logsumexp"), _reduction),
    **dict.fromkeys(("max", "mean", "min", "norm", "prod", "std", "std_mean", "var", "var_mean"), _reduction),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), _softmax),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"), _layer_norm),
    **dict.fromkeys(("group_norm", "native_group_norm"), _group_norm),
    **dict.fromkeys(("batch_norm", "instance_norm", "_native_batch_norm_legit", "native_batch_norm"), _batch_norm),
}
_RULES = {f"aten.{name}": rule for name, rule in _RULES.items()}
