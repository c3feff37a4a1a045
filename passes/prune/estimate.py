"""What a program will cost once groups are cut, from the sizes alone: for searches that try many cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import fx

from shave.ir.program import Program
from shave.passes.prune.groups import Group

Counts = Mapping[str, int]
"""For each group to cut, by name, the number of units that stay."""

_Axis = tuple[tuple[str, float], ...]
"""Groups that have channels on an axis, each with its share of the axis."""


@dataclass(frozen=True)
class Estimate:
    """Costs of a program after a cut.

    Attributes:
        macs: Multiply-accumulates for one sample.
        params: Elements of all weights.
        size: Bytes of all weights.
    """

    macs: float
    params: float
    size: float


class Estimator:
    """Estimates what is left of a program's costs.

    A weight shrinks along each axis by the share of the channels that go; a layer's multiply-accumulates shrink like
    its weight, those of a product of two activations like the axes that hold channels of the groups. It is exact for
    convolutions and linear layers, and close for attention.

    Args:
        program: Before the cut.
        groups: Its groups.
    """

    def __init__(self, program: Program, groups: Sequence[Group]) -> None:
        cost = program.cost()
        self._units = {group.name: group.units for group in groups}
        self._factors = {group.name: frozenset(group.factors) for group in groups}
        self._weights: list[tuple[int, int, tuple[_Axis, ...]]] = []
        weight_axes = _weight_axes(groups)
        nodes = {str(node.target): node for node in program.graph.find_nodes(op="get_attr")}
        for name, tensor in program.weights():
            axes = weight_axes.get(nodes[name], {})
            self._weights.append((tensor.numel(), tensor.element_size(), tuple(axes.values())))
        value_axes = _value_axes(groups)
        self._macs = [
            (macs, _axes_of_product(node, weight_axes, value_axes))
            for node in program.calls
            if (macs := cost.macs_by_node.get(node.name, 0))
        ]

    def __call__(self, counts: Counts) -> Estimate:
        """Estimate the costs with so many units left; groups that are not named stay whole."""
        gone = {name: 1 - counts.get(name, units) / units for name, units in self._units.items()}
        params = size = macs = 0.0
        for elements, width, axes in self._weights:
            left = elements * prod(self._left(axis, gone) for axis in axes)
            params += left
            size += left * width
        for full, axes in self._macs:
            macs += full * prod(self._left(axis, gone) for axis in axes)
        return Estimate(macs, params, size)

    def _left(self, axis: _Axis, gone: Mapping[str, float]) -> float:
        """Share of an axis that stays: groups side by side add up, those nested in each other multiply."""
        taken, kept = 0.0, 1.0
        names = {name for name, _ in axis}
        for name, share in axis:
            if names & self._factors[name]:
                kept *= 1 - share * gone[name]
            else:
                taken += share * gone[name]
        return kept * max(0.0, 1 - taken)


def _weight_axes(groups: Sequence[Group]) -> dict[fx.Node, dict[int, _Axis]]:
    """By weight and axis, which groups have which share of it; readers of a shared weight count once."""
    found: dict[fx.Node, dict[int, dict[tuple[str, bytes], tuple[str, float]]]] = {}
    for group in groups:
        for part in group.slices:
            share = part.index.size / int(part.weight.meta["val"].shape[part.axis])
            of_axis = found.setdefault(part.weight, {}).setdefault(part.axis, {})
            of_axis[group.name, part.index.tobytes()] = (group.name, share)
    return {node: {axis: tuple(shares.values()) for axis, shares in axes.items()} for node, axes in found.items()}


def _value_axes(groups: Sequence[Group]) -> dict[fx.Node, dict[int, _Axis]]:
    found: dict[fx.Node, dict[int, _Axis]] = {}
    for group in groups:
        for channels in group.values:
            size: Any = channels.node.meta["val"].shape[channels.axis]
            if isinstance(size, int):
                axes = found.setdefault(channels.node, {})
                axes[channels.axis] = (*axes.get(channels.axis, ()), (group.name, channels.index.size / size))
    return found


def _axes_of_product(
    node: fx.Node,
    weights: Mapping[fx.Node, Mapping[int, _Axis]],
    values: Mapping[fx.Node, Mapping[int, _Axis]],
) -> tuple[_Axis, ...]:
    """The axes by which the multiply-accumulates of a call shrink."""
    tensors = [each for each in node.all_input_nodes if each.op == "get_attr" and each.meta["val"].dim() > 1]
    if tensors:
        return tuple(weights.get(tensors[0], {}).values())
    seen: dict[frozenset[str], _Axis] = {}
    for each in (node, *node.all_input_nodes):
        for axis in values.get(each, {}).values():
            seen.setdefault(frozenset(name for name, _ in axis), axis)
    return tuple(seen.values())
