"""The steps of a chain that stands for a layer, as data: what they cost, and how they become nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx

from shave.ir.cook_toom import POINTS, TAPS
from shave.ir.rewrite import Rewriter
from shave.passes.factorize.layer import Layer, Window
from shave.passes.problems import Conv2d, Matmul, Measured, Oracle, Problem, Transpose, WinogradConv2d

aten = torch.ops.aten


@dataclass(frozen=True)
class Convolve:
    """A convolution of [images, inputs, *size]; its weight is [outputs, inputs / groups, *kernel]."""

    images: int
    inputs: int
    outputs: int
    size: tuple[int, int]
    window: Window
    groups: int = 1

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of its weight."""
        return (self.outputs, self.inputs // self.groups, *self.window.kernel)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all images."""
        return self.images * prod(self.window.outputs(self.size)) * prod(self.weight_shape)

    def methods(self) -> list[Problem]:
        """The ways to compute it: directly, and by Winograd's method where that is defined."""
        w, sizes = self.window, (self.images, self.inputs, self.outputs, *self.size)
        direct = Conv2d(*sizes, w.kernel, w.stride, w.padding, w.dilation, self.groups)
        plain = w.kernel == (TAPS, TAPS) and {*w.stride, *w.dilation, self.groups} == {1} and max(w.padding) < TAPS
        return [direct, *(WinogradConv2d(*sizes, w.padding, tile) for tile in (POINTS if plain else ()))]

    def call(self, source: fx.Node, weight: fx.Node, bias: fx.Node | None) -> tuple[Callable[..., Any], list[Any]]:
        """Operator and arguments."""
        w = self.window
        arguments = [source, weight, bias, list(w.stride), list(w.padding), list(w.dilation), self.groups]
        return aten.conv2d.default, arguments


@dataclass(frozen=True)
class Multiply:
    """A linear layer on ``rows`` rows; its weight is [outputs, inputs]."""

    rows: int
    inputs: int
    outputs: int

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of its weight."""
        return (self.outputs, self.inputs)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all rows."""
        return self.rows * self.inputs * self.outputs

    def methods(self) -> list[Problem]:
        """The one way to compute it."""
        return [Matmul(self.rows, self.inputs, self.outputs)]

    def call(self, source: fx.Node, weight: fx.Node, bias: fx.Node | None) -> tuple[Callable[..., Any], list[Any]]:
        """Operator and arguments."""
        return aten.linear.default, [source, weight, bias]


@dataclass(frozen=True)
class Reorder:
    """Elements in another order: seen as ``before``, axes permuted, seen as ``after``; the batch is the first axis.

    Attributes:
        elements: Of one call.
        before: Extents behind the batch.
        axes: Which of the axes of ``before``, counted from 0, the permuted ones are; empty where the order stays.
        after: Extents behind what then is the batch.
    """

    elements: int
    before: tuple[int, ...]
    axes: tuple[int, ...]
    after: tuple[int, ...]

    weight_shape = ()
    macs = 0

    def methods(self) -> list[Problem]:
        """One pass over memory, or nothing at all."""
        return [Transpose(self.elements)] if self.axes else []


Step = Convolve | Multiply | Reorder


@dataclass(frozen=True)
class Costs:
    """What a layer or the chain in its place costs.

    Attributes:
        macs: Multiply-accumulates of one sample.
        params: Elements of the weights, biases apart.
        time: Seconds by the oracle; None without one, or where it does not know.
    """

    macs: int
    params: int
    time: float | None


def whole(layer: Layer) -> Step:
    """The layer itself as a step."""
    outputs, inputs = layer.channels
    if layer.window is None:
        return Multiply(layer.rows, inputs, outputs)
    return Convolve(layer.rows, inputs, outputs, layer.size, layer.window)


def costs(steps: Sequence[Step], oracle: Oracle | None) -> Costs:
    """Add up what steps cost, each by the fastest method that the oracle knows for it.

    Times are estimates throughout: who has measured the layer has not measured the chain that may come in its place.
    """
    times = [_seconds(step, oracle) for step in steps] if oracle is not None else [None]
    known = [time for time in times if time is not None]
    return Costs(
        sum(step.macs for step in steps),
        sum(prod(step.weight_shape) for step in steps if step.weight_shape),
        sum(known) if len(known) == len(times) else None,
    )


def _seconds(step: Step, oracle: Oracle) -> float | None:
    methods = step.methods()
    found = [time.estimate if isinstance(time, Measured) else time for time in map(oracle, methods)]
    known = [time for time in found if time is not None]
    return min(known) if known else None if methods else 0.0


def emit(
    rewriter: Rewriter,
    layer: Layer,
    steps: Sequence[Step],
    weights: Sequence[fx.Node],
    bias: fx.Node | None,
) -> fx.Node:
    """Write a chain into the graph ahead of the layer's node; the bias goes to the last step, or is added behind it.

    Returns:
        The node that stands for the layer.
    """

    def call(target: Callable[..., Any], *arguments: Any) -> fx.Node:
        return rewriter.call(target, arguments, before=layer.node, sources=[layer.node])

    left, value = list(weights), layer.source
    for step in steps:
        if isinstance(step, Reorder):
            value = call(aten.reshape.default, value, [-1, *step.before])
            if step.axes:
                value = call(aten.permute.default, value, [0, *(axis + 1 for axis in step.axes)])
                value = call(aten.reshape.default, value, [-1, *step.after])
        else:
            weight = left.pop(0)
            target, arguments = step.call(value, weight, bias if step is steps[-1] else None)
            value = call(target, *arguments)
    if isinstance(steps[-1], Reorder):
        value = call(aten.reshape.default, value, [*_lead(call, layer.source), layer.channels[0]])
        value = value if bias is None else call(aten.add.Tensor, value, bias)
    return value


def _lead(call: Callable[..., fx.Node], source: fx.Node) -> list[int | fx.Node]:
    """All extents of a tensor but the last; the one that is dynamic as -1, several as what asks for them."""
    lead = list(source.meta["val"].shape[:-1])
    dynamic = [axis for axis, size in enumerate(lead) if isinstance(size, torch.SymInt)]
    if len(dynamic) == 1:
        return [-1 if axis in dynamic else int(size) for axis, size in enumerate(lead)]
    return [call(aten.sym_size.int, source, k) if k in dynamic else int(size) for k, size in enumerate(lead)]
