"""Random small programs for hypothesis: what networks are made of, and what compilers trip over.

Calls that lead to no output stay as dead code; repeated steps are duplicate subexpressions; weights of equal shape are
shared at times; and weights may be computed from other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from shave.ir.program import Program
from tests.passes.handmade import program_of

aten = torch.ops.aten

Values = Sequence[Any]
Weights = Mapping[str, Any]
Step = Callable[[Values, Weights], Any]
"""Computes one more value from those before it and the weights; runs on proxies and on meta tensors alike."""

MAX_STEPS = 9


class Sketch:
    """A program while it is drawn: steps, the shapes they give, and the weights they read."""

    def __init__(self, draw: DrawFn, inputs: Mapping[str, torch.Tensor]) -> None:
        self.draw = draw
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
        self.inputs = len(inputs)
        self.values = [tensor.to("meta") for tensor in inputs.values()]
        self.steps: list[Step] = []
        self.weights: dict[str, torch.Tensor] = {}

    def add(self, step: Step) -> int:
        """Append a step; give the index of its value."""
        self.values.append(
            step(self.values, {name: tensor.detach().to("meta") for name, tensor in self.weights.items()})
        )
        self.steps.append(step)
        return len(self.values) - 1

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        """Draw a weight of magnitudes from 0.5 to 1.5 times the scale and either sign, or share one of its shape."""
        same = [name for name, tensor in self.weights.items() if tuple(tensor.shape) == shape]
        if same and self.draw(st.booleans()):
            return str(self.draw(st.sampled_from(same)))
        name = f"layer{len(self.weights)}.weight"
        tensor = torch.rand(shape, generator=self.generator) + 0.5
        tensor *= scale * (torch.randint(0, 2, shape, generator=self.generator) * 2 - 1)
        self.weights[name] = torch.nn.Parameter(tensor) if self.draw(st.booleans()) else tensor
        return name

    def matrix(self, *shape: int, fan_in: int) -> Callable[[Weights], Any]:
        """A weight that keeps the magnitude of what goes through its layer; at times computed from another."""
        name, scale = self.weight(*shape, scale=fan_in**-0.5), self.draw(st.sampled_from([None, None, -1.5]))
        return lambda weights: weights[name] if scale is None else aten.mul.Tensor(weights[name], scale)

    def optional_bias(self, size: int) -> Callable[[Weights], Any]:
        if self.draw(st.booleans()):
            return lambda weights: None
        name = self.weight(size)
        return lambda weights: weights[name]

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        """Run all steps and give all values."""
        values = list(arguments[: self.inputs])
        weights = dict(zip(self.weights, arguments[self.inputs :], strict=True))
        for step in self.steps:
            values.append(step(values, weights))
        return tuple(values)


@st.composite
def programs(draw: DrawFn) -> Program:
    """A program of four to nine steps with one to three outputs; its batch dimension varies at times."""
    shape = draw(st.sampled_from([(2, 4, 6, 5), (2, 5, 4), (3, 6)]))
    inputs = {"x": torch.zeros(shape)}
    if draw(st.booleans()):
        inputs["other"] = torch.zeros(shape)  # It is read at times, and at others not.
    sketch = Sketch(draw, inputs)
    for _ in range(draw(st.integers(4, MAX_STEPS))):
        # Mostly the newest value goes on, so that the program grows deep.
        newest = len(sketch.values) - 1
        source = draw(st.integers(0, newest)) if draw(st.integers(0, 4)) == 4 else newest
        rank = sketch.values[source].dim()
        draw(st.sampled_from([*_OF_RANK[rank], *_ANY_RANK]))(sketch, source)
    made = range(sketch.inputs, len(sketch.values))
    outputs = {made[-1], *draw(st.lists(st.sampled_from(made), max_size=2))}
    return program_of(
        lambda *arguments: itemgetter(*sorted(outputs))(sketch(*arguments)),
        inputs,
        sketch.weights,
        dynamic={name: {0: "batch"} for name in inputs} if draw(st.booleans()) else None,
    )


# Each of these appends a step, or several, that read the value at ``i``.


def _activation(sketch: Sketch, i: int) -> None:
    kinds = (aten.relu, aten.sigmoid, aten.tanh, aten.gelu, aten.silu, aten.hardswish, aten.abs)
    kind = sketch.draw(st.sampled_from(kinds))
    sketch.add(lambda v, w: kind.default(v[i]))


def _identity(sketch: Sketch, i: int) -> None:
    rank = sketch.values[i].dim()
    kinds: list[Callable[[Any], Any]] = [
        lambda x: aten.dropout.default(x, 0.5, False),
        lambda x: aten.mul.Tensor(x, 1.0),
        lambda x: aten.sub.Tensor(x, 0),
        lambda x: aten.add.Tensor(x, 0),
        lambda x: aten.cat.default([x], 1),
        lambda x: aten.to.dtype(x, torch.float32),
        lambda x: aten.permute.default(x, list(range(rank))),
        lambda x: aten.transpose.int(aten.transpose.int(x, 0, 1), 1, 0),
        lambda x: aten.relu.default(aten.relu.default(x)),
        lambda x: aten.slice.Tensor(x, 1, 0, 2**31),
    ]
    kind = sketch.draw(st.sampled_from(kinds))
    sketch.add(lambda v, w: kind(v[i]))


def _affine(sketch: Sketch, i: int) -> None:
    """Arithmetic with one number, or with one for each channel: a piece of a decomposed batch norm."""
    shape = sketch.values[i].shape
    channels = (shape[1], 1, 1) if len(shape) == 4 else (shape[-1],)
    name = sketch.weight(*channels)
    kinds: list[Callable[[Any, Any], Any]] = [
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.rsub.Tensor,
        lambda x, c: aten.add.Tensor(c, x, alpha=2),
        lambda x, c: aten.sub.Tensor(c, x),
        lambda x, c: aten.mul.Tensor(c, x),
        lambda x, c: aten.div.Tensor(x, 0.75),
        lambda x, c: aten.rsub.Scalar(x, 1.5, 2),
        lambda x, c: aten.add.Scalar(x, 0.5, 2),
    ]
    kind = sketch.draw(st.sampled_from(kinds))
    sketch.add(lambda v, w: kind(v[i], w[name]))


def _residual(sketch: Sketch, i: int) -> None:
    shape = sketch.values[i].shape
    j = sketch.draw(st.sampled_from([j for j, value in enumerate(sketch.values) if value.shape == shape]))
    sketch.add(lambda v, w: aten.add.Tensor(v[i], v[j]))


def _concatenation(sketch: Sketch, i: int) -> None:
    shape = sketch.values[i].shape
    alike = [j for j, value in enumerate(sketch.values) if value.dim() == len(shape) and value.shape[2:] == shape[2:]]
    j = sketch.draw(st.sampled_from(alike))
    sketch.add(lambda v, w: aten.cat.default([v[i], v[j]], 1))


def _halves(sketch: Sketch, i: int) -> None:
    channels = sketch.values[i].shape[1]
    size = (channels + 1) // 2
    piece = sketch.draw(st.sampled_from([0, 1] if channels > 1 else [0]))
    sketch.add(lambda v, w: aten.split.Tensor(v[i], size, 1)[piece])


def _again(sketch: Sketch, i: int) -> None:
    """A step that was there before."""
    if sketch.steps:
        sketch.add(sketch.draw(st.sampled_from(sketch.steps)))


def _norm(sketch: Sketch, i: int) -> None:
    channels = sketch.values[i].shape[1]
    gamma, beta, mean = (sketch.weight(channels) for _ in range(3))
    variance = f"layer{len(sketch.weights)}.variance"
    sketch.weights[variance] = torch.rand(channels, generator=sketch.generator) + 0.5
    sketch.add(
        lambda v, w: aten.batch_norm.default(v[i], w[gamma], w[beta], w[mean], w[variance], False, 0.1, 1e-5, False)
    )


def _convolution(sketch: Sketch, i: int) -> None:
    _, channels, height, width = sketch.values[i].shape
    size = sketch.draw(st.sampled_from([n for n in (1, 2, 3) if n <= min(height, width)]))
    groups = sketch.draw(st.sampled_from([n for n in {1, 2, channels} if channels % n == 0]))
    out = groups * sketch.draw(st.integers(1, 2))
    stride, padding = sketch.draw(st.integers(1, 2)), sketch.draw(st.integers(0, size // 2))
    matrix = sketch.matrix(out, channels // groups, size, size, fan_in=channels // groups * size**2)
    bias = sketch.optional_bias(out)
    more = ([stride] * 2, [padding] * 2, [1, 1], groups)
    sketch.add(lambda v, w: aten.conv2d.default(v[i], matrix(w), bias(w), *more))


def _transposed(sketch: Sketch, i: int) -> None:
    _, channels, height, width = sketch.values[i].shape
    if max(height, width) > 8:
        return
    groups = sketch.draw(st.sampled_from([n for n in {1, 2} if channels % n == 0]))
    matrix = sketch.matrix(channels, 2, 2, 2, fan_in=channels)
    bias = sketch.optional_bias(2 * groups)
    stride = sketch.draw(st.integers(1, 2))
    sketch.add(lambda v, w: aten.conv_transpose2d.input(v[i], matrix(w), bias(w), [stride] * 2, [0, 0], [0, 0], groups))


def _block(sketch: Sketch, i: int) -> None:
    """A layer between two norms (or their pieces), each of which may be missing."""
    layers = {4: (_convolution, _transposed), 3: (_linear,), 2: (_linear,)}[sketch.values[i].dim()]
    for kinds in ((_nothing, _norm, _affine), layers, (_norm, _affine, _nothing)):
        before = len(sketch.values)
        sketch.draw(st.sampled_from(kinds))(sketch, i)
        if len(sketch.values) > before:
            i = len(sketch.values) - 1


def _nothing(sketch: Sketch, i: int) -> None:
    pass


def _pooling(sketch: Sketch, i: int) -> None:
    size = sketch.draw(st.integers(1, min(2, *sketch.values[i].shape[2:])))
    kind = sketch.draw(st.sampled_from([aten.max_pool2d.default, aten.avg_pool2d.default]))
    sketch.add(lambda v, w: kind(v[i], [size, size], [1, 1]))


def _to_sequence(sketch: Sketch, i: int) -> None:
    sketch.add(lambda v, w: aten.permute.default(aten.flatten.using_ints(v[i], 2, 3), [0, 2, 1]))


def _linear(sketch: Sketch, i: int) -> None:
    size, out = sketch.values[i].shape[-1], sketch.draw(st.sampled_from([3, 4, 6]))
    bias = sketch.optional_bias(out)
    if sketch.draw(st.integers(0, 2)):
        matrix = sketch.matrix(out, size, fan_in=size)
        sketch.add(lambda v, w: aten.linear.default(v[i], matrix(w), bias(w)))
    else:
        stored = sketch.matrix(size, out, fan_in=size)
        sketch.add(lambda v, w: aten.linear.default(v[i], aten.t.default(stored(w)), bias(w)))


def _layer_norm(sketch: Sketch, i: int) -> None:
    size = sketch.values[i].shape[-1]
    gamma, beta = sketch.weight(size), sketch.weight(size)
    sketch.add(lambda v, w: aten.layer_norm.default(v[i], [size], w[gamma], w[beta], 1e-2))


def _attention(sketch: Sketch, i: int) -> None:
    size = sketch.values[i].shape[-1]
    q, k, v = (
        sketch.add(partial(_projection, i, sketch.matrix(size, size, fan_in=size), sketch.optional_bias(size)))
        for _ in range(3)
    )
    sketch.add(lambda values, w: aten.scaled_dot_product_attention.default(values[q], values[k], values[v]))


def _projection(i: int, matrix: Callable[[Weights], Any], bias: Callable[[Weights], Any], v: Values, w: Weights) -> Any:
    return aten.linear.default(v[i], matrix(w), bias(w))


def _mean(sketch: Sketch, i: int) -> None:
    axes = [2, 3] if sketch.values[i].dim() == 4 else [1]
    sketch.add(lambda v, w: aten.mean.dim(v[i], axes))


def _reshapes(sketch: Sketch, i: int) -> None:
    _, length, size = sketch.values[i].shape
    sketch.add(lambda v, w: aten.reshape.default(aten.reshape.default(v[i], [-1, size]), [-1, length, size]))


_ANY_RANK = (_activation, _identity, _affine, _residual, _concatenation, _halves, _again)
_OF_RANK: dict[int, tuple[Callable[[Sketch, int], None], ...]] = {
    # Blocks come often, as most passes look for a layer beside a norm.
    4: (_block, _block, _convolution, _block, _norm, _transposed, _pooling, _to_sequence, _mean),
    3: (_block, _block, _linear, _norm, _layer_norm, _attention, _mean, _reshapes),
    2: (_block, _block, _linear, _norm, _layer_norm),
}
