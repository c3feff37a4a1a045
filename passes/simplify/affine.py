"""Calls that scale and shift by constants: batch norms, and arithmetic with constants."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from shave.ir.ops import argument, op_name
from shave.ir.program import Program


@dataclass(frozen=True)
class Affine:
    """A call that computes ``scale * source + shift``.

    Attributes:
        source: What it reads.
        scale: float64, of the source's rank; sizes are 1 or the source's.
        shift: As ``scale``.
    """

    source: fx.Node
    scale: torch.Tensor
    shift: torch.Tensor

    def per_channel(self, axis: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Scale and shift of each channel, shape [channels], float64; None if they vary along another axis."""
        channels = self.source.meta["val"].shape[axis]
        vectors = []
        for factor in (self.scale, self.shift):
            if factor.numel() != factor.shape[axis]:
                return None
            vectors.append(factor.reshape(-1).expand(int(channels)))
        return vectors[0], vectors[1]


def affine_of(program: Program, node: fx.Node) -> Affine | None:
    """Read a call as an affine one; None if it is none, or if its factors are not constants."""
    name = op_name(node)
    if name == "aten.batch_norm":
        return _batch_norm(program, node)
    if name in ("aten.mul", "aten.div", "aten.add", "aten.sub", "aten.rsub"):
        return _arithmetic(program, node, name.removeprefix("aten."))
    return None


def _batch_norm(program: Program, node: fx.Node) -> Affine | None:
    """``gamma * (x - mean) / sqrt(variance + epsilon) + beta`` along axis 1."""
    source = argument(node, "input")
    named = {name: argument(node, name) for name in ("weight", "bias", "running_mean", "running_var")}
    if argument(node, "training") or named["running_mean"] is None or named["running_var"] is None:
        return None
    constants = {name: _constant(program, value) for name, value in named.items() if value is not None}
    if any(value is None for value in constants.values()):
        return None
    scale = (constants["running_var"] + argument(node, "eps")).rsqrt()
    if named["weight"] is not None:
        scale = scale * constants["weight"]
    shift = -constants["running_mean"] * scale  # type: ignore[operator]
    if named["bias"] is not None:
        shift = shift + constants["bias"]
    shape = [1] * source.meta["val"].dim()
    shape[1] = -1
    return Affine(source, scale.reshape(shape), shift.reshape(shape))


def _arithmetic(program: Program, node: fx.Node, name: str) -> Affine | None:
    """An operand that is a constant (a number or a weight), the other the source."""
    if "rounding_mode" in node.kwargs or len(node.args) < 2 or not node.meta["val"].dtype.is_floating_point:
        return None
    left, right = (_constant(program, argument) for argument in node.args[:2])
    source = node.args[1] if left is not None else node.args[0]
    if (left is None) == (right is None) or not isinstance(source, fx.Node):
        return None
    constant = left if left is not None else right
    assert constant is not None
    value, result = source.meta["val"], node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return None  # A size times a weight.
    if constant.dim() > value.dim() or value.dim() != result.dim() or value.dtype != result.dtype:
        return None
    constant = constant.reshape([1] * (value.dim() - constant.dim()) + list(constant.shape))
    if any(size != 1 and size != have for size, have in zip(constant.shape, value.shape, strict=True)):
        return None  # It would make the source larger.
    one, zero = torch.ones_like(constant), torch.zeros_like(constant)
    alpha = 1.0 if name in ("mul", "div") else float(argument(node, "alpha"))  # ATen: left + alpha * right
    factors = {
        ("mul", True): (constant, zero),
        ("mul", False): (constant, zero),
        ("div", False): (1 / constant, zero),
        ("add", True): (one * alpha, constant),
        ("add", False): (one, constant * alpha),
        ("sub", True): (-one * alpha, constant),
        ("sub", False): (one, -constant * alpha),
        ("rsub", True): (one, -constant * alpha),
        ("rsub", False): (-one * alpha, constant),
    }.get((name, left is not None))
    return None if factors is None else Affine(source, *factors)


def _constant(program: Program, value: object) -> torch.Tensor | None:
    """A number or the tensor of a weight, in float64; None for anything else."""
    if isinstance(value, (int, float)):
        return torch.tensor(float(value), dtype=torch.float64)
    if isinstance(value, fx.Node) and value.op == "get_attr":
        return program.weight(value).detach().to(torch.float64)
    return None
