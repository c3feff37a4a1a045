"""The epilogue of a region's kernel, and its operands: bias, what the region computes besides, requantization.

Kernels of integers give sums that count in the product of the scales of input and weights; results are stored as
codes that count in the scale of the output. In between, the registers may hold the true values divided by any factor
that the steps do not mind: relu minds none, a sigmoid wants the true values, and codes that are added want values in
their own scale, so that adding them is all there is to do. The factor is chosen so that the fewest steps are needed:
mostly one multiply-add, with scale and bias divided ahead of time, and then rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from shave.backends.tvm.emit.emitter import Emitter
from shave.backends.tvm.emit.operands import Operands, code_numbers, vector_of
from shave.backends.tvm.kernels.base import Array
from shave.backends.tvm.kernels.epilogue import (
    Activation,
    Bias,
    CodeRange,
    Epilogue,
    PerChannel,
    PerElement,
    Residual,
    Scale,
    Step,
)
from shave.backends.tvm.kernels.pieces import by_pieces
from shave.backends.tvm.quantized import Codes, dequantized
from shave.backends.tvm.regions import Region

_HOMOGENEOUS = ("relu", "leaky_relu")
"""Activations f with f(a x) = a f(x) for positive a."""


def emit_epilogue(
    emitter: Emitter,
    region: Region,
    operands: Operands,
    channels: int,
    bias: fx.Node | None,
    scale: Array | None = None,
) -> tuple[Epilogue, list[Any]]:
    """The epilogue of a region's kernel, and the variables of its operands.

    Args:
        emitter: Knows the constants.
        region: What the kernel computes.
        operands: Where operands come from.
        channels: Of the result.
        bias: The anchor's own.
        scale: What a sum of integers counts, by channel; None for a kernel of floats.
    """
    chain = _Chain(region.nodes[0].name, channels)
    wanted = [_wanted(step, node) for step, node in _with_operands(region)]
    steps = list(_with_operands(region))
    codes = region.codes
    low, high = (0, 255) if codes is None else (codes.low, codes.high)
    if codes is not None:
        while steps and isinstance(steps[-1][0], Activation) and _bounds(steps[-1][0], codes) is not None:
            found = _bounds(steps.pop()[0], codes)
            assert found is not None
            low, high = max(low, found[0]), min(high, found[1])
        wanted[len(steps) :] = [codes.scale]
    else:
        wanted.append(1.0)
    first = next(factor for factor in wanted if factor is not None)
    if scale is not None:
        chain.factor = first
        chain.scale(scale / np.float32(first))
        chain.bias((np.zeros(channels) if bias is None else vector_of(emitter, bias, channels)) / np.float32(first))
    elif bias is not None:
        chain.take(Bias(), bias)
    for (step, node), factor in zip(steps, wanted, strict=False):
        chain.reach(factor)
        taken = dequantized(node) if isinstance(step, PerElement) and step.dtype == "uint8" else None
        if taken is not None:
            chain.bias(np.full(channels, -taken.zero_point, np.float32))
        if codes is not None and isinstance(step, Activation):
            step = by_pieces(step, emitter.target)
        chain.take(step, node)
    chain.reach(wanted[len(steps)])
    if codes is not None:
        chain.quantize(CodeRange(codes.zero_point, low, high))
    return chain.emitted(operands)


def _with_operands(region: Region) -> list[tuple[Step, fx.Node | None]]:
    """The steps of a region, each with its operand."""
    operands = iter(region.operands)
    return [(step, next(operands) if isinstance(step, (PerChannel, PerElement)) else None) for step in region.steps]


def _wanted(step: Step, node: fx.Node | None) -> float | None:
    """The factor by which values are to be divided ahead of a step; None where any will do."""
    if isinstance(step, Residual) and step.dtype == "uint8":
        taken = dequantized(node)
        assert taken is not None
        return taken.scale
    return None if isinstance(step, Activation) and step.kind in _HOMOGENEOUS else 1.0


def _bounds(step: Step, codes: Codes) -> tuple[int, int] | None:
    """The codes that an activation ahead of a quantize leaves; None if it does more than bound its argument."""
    if not isinstance(step, Activation) or step.kind not in ("relu", "clip"):
        return None
    limits = (0.0, np.inf) if step.kind == "relu" else step.parameters
    inverse = np.float32(1) / np.float32(codes.scale)
    low, high = (
        float(np.clip(np.rint(np.float32(limit) * inverse) + codes.zero_point, codes.low, codes.high))
        for limit in limits
    )
    return int(low), int(high)


@dataclass
class _Constant:
    """A step with a constant operand."""

    step: PerChannel
    values: Array


class _Chain:
    """Steps in the making, and the factor by which the values in the registers are divided."""

    def __init__(self, name: str, channels: int) -> None:
        self.factor = 1.0
        self._name = name
        self._channels = channels
        self._steps: list[_Constant | CodeRange | tuple[Step, fx.Node | None]] = []
        self._open: _Constant | None = None
        """A bias behind which nothing but sums came, so that constants can still go into it."""

    def scale(self, values: Array) -> None:
        """Multiply by a constant vector."""
        self._steps.append(_Constant(Scale(), values.astype(np.float32)))
        self._open = None

    def bias(self, values: Array) -> None:
        """Add a constant vector."""
        if not values.any() and self._steps:
            return
        if self._open is None:
            self._open = _Constant(Bias(), np.zeros(self._channels, np.float32))
            self._steps.append(self._open)
        self._open.values = (self._open.values + values).astype(np.float32)

    def reach(self, factor: float | None) -> None:
        """Have the values divided by ``factor``."""
        if factor is not None and factor != self.factor:
            self.scale(np.full(self._channels, self.factor / factor))
            self.factor = factor

    def take(self, step: Step, node: fx.Node | None) -> None:
        """Append a step of the region."""
        self._steps.append((step, node))
        if not isinstance(step, Residual):
            self._open = None

    def quantize(self, codes: CodeRange) -> None:
        """Round to codes, as the last step."""
        self._steps.append(codes)

    def emitted(self, operands: Operands) -> tuple[Epilogue, list[Any]]:
        """The epilogue, and the variables of its operands."""
        steps: list[Step] = []
        variables = []
        for number, entry in enumerate(self._steps):
            if isinstance(entry, _Constant):
                steps.append(entry.step)
                variables.append(operands.vector(f"{self._name}.{number}", entry.values))
            elif isinstance(entry, CodeRange):
                steps.append(entry.step)
                variables.append(code_numbers(operands.emitter, entry))
            else:
                steps.append(entry[0])
                if isinstance(entry[0], (PerChannel, PerElement)):
                    assert entry[1] is not None
                    variables.append(operands.computed(entry[0], entry[1]))
        return Epilogue(tuple(steps)), variables
