"""Weights as integers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers torch.ops.quantized_decomposed

from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.passes.quantize.affine import SMALLEST_SCALE, Scheme
from shave.passes.quantize.table import PRODUCTS

_Q = torch.ops.quantized_decomposed


@dataclass(frozen=True)
class Integers:
    """A weight as integers with symmetric scales.

    Attributes:
        values: int8, in the weight's shape.
        scales: float32 [channels], or [1] where one serves the whole tensor.
        axis: The axis of the channels; None: one scale.
        scheme: The integers.
    """

    values: torch.Tensor
    scales: torch.Tensor
    axis: int | None
    scheme: Scheme

    @property
    def reals(self) -> torch.Tensor:
        """What the integers stand for, float32."""
        return self.values.float() * along(self.scales, self.axis, self.values.dim())


def weight_axis(node: fx.Node, weight: fx.Node) -> int | None:
    """The axis of a product's weight along which its outputs lie; None where no axis of the weight has them all."""
    operands = PRODUCTS[op_name(node)]
    rank = len(weight.meta["val"].shape)
    if rank < 2:
        return None
    if operands.axis in (0, 1):
        names = [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr]
        transposed = operands.axis == 1 or ("transposed" in names and bool(argument(node, "transposed")))
        if transposed:
            return 1 if int(argument(node, "groups")) == 1 else None
        return 0
    first = argument(node, operands.data) is weight
    return rank - 2 if first else rank - 1


def scales_of(weight: torch.Tensor, axis: int | None, scheme: Scheme) -> torch.Tensor:
    """The scales that map the largest magnitude of each channel onto the largest integer; 1 for channels of zeros."""
    magnitude = weight.detach().abs().float()
    if axis is None:
        largest = magnitude.amax().reshape(1) if magnitude.numel() else torch.zeros(1)
    else:
        largest = magnitude.movedim(axis, 0).flatten(1).amax(1)
    return torch.where(largest == 0, 1.0, (largest / scheme.high).clamp_min(SMALLEST_SCALE))


def to_nearest(weight: torch.Tensor, scales: torch.Tensor, axis: int | None, scheme: Scheme) -> Integers:
    """Round each weight to the nearest integer, ties to even."""
    steps = torch.round(weight.detach().float() / along(scales, axis, weight.dim()))
    return Integers(steps.clamp(scheme.low, scheme.high).to(torch.int8), scales, axis, scheme)


def along(scales: torch.Tensor, axis: int | None, rank: int) -> torch.Tensor:
    """Scales in a shape that broadcasts against a tensor of that rank."""
    shape = [1] * rank
    if axis is not None:
        shape[axis] = -1
    return scales.reshape(shape)


def insert(rewriter: Rewriter, integers: Integers, weight: fx.Node, name: str, before: fx.Node) -> fx.Node:
    """Add the integers, their scales and the dequantize call that gives the reals."""
    scheme = integers.scheme
    stored = rewriter.weight(name, integers.values, sources=[weight])
    ends = (scheme.low, scheme.high, scheme.dtype)
    if integers.axis is None:
        return rewriter.call(
            _Q.dequantize_per_tensor.default,
            (stored, float(integers.scales), 0, *ends),
            before=before,
            sources=[weight],
        )
    scales = rewriter.weight(f"{name}_scale", integers.scales, sources=[weight])
    return rewriter.call(
        _Q.dequantize_per_channel.default,
        (stored, scales, None, integers.axis, *ends),  # symmetric: no zero points
        before=before,
        sources=[weight],
    )


def insert_groups(rewriter: Rewriter, integers: Integers, weight: fx.Node, name: str, before: fx.Node) -> fx.Node:
    """The same for integers [groups, size], of which as many rows as it takes make one row of the weight."""
    flat = insert(rewriter, integers, weight, name, before)
    shape = list(weight.meta["val"].shape)
    return rewriter.call(torch.ops.aten.reshape.default, (flat, shape), before=before, sources=[weight])


def is_integer(program: Program, weight: fx.Node, axis: int | None) -> bool:
    """Whether a weight lies as symmetric 8-bit integers, of one scale or one per output, behind a dequantize call."""
    name = op_name(weight) if weight.op == "call_function" else ""
    if name not in ("quantized_decomposed.dequantize_per_channel", "quantized_decomposed.dequantize_per_tensor"):
        return False
    values = weight.args[0]
    if not isinstance(values, fx.Node) or program.weight(values).dtype != torch.int8:
        return False
    if name.endswith("per_tensor"):
        return bool(weight.args[2] == 0)
    _, _, zeros, where, *_ = weight.args
    rank = len(weight.meta["val"].shape)
    centred = not isinstance(zeros, fx.Node) or not bool(program.weight(zeros).any())
    return centred and isinstance(where, int) and where % rank == axis
