"""Operands of kernels' epilogues, in the layouts in which the kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import fx

from shave.backends.tvm.emit.emitter import Emitter
from shave.backends.tvm.kernels.base import Array, ceil_div, pad_channels
from shave.backends.tvm.kernels.epilogue import CodeRange, PerChannel, PerElement
from shave.backends.tvm.layout import Value
from shave.backends.tvm.quantized import dequantized
from shave.backends.tvm.sizes import Size


class Operands(Protocol):
    """Gives the variables of operands to one kernel."""

    @property
    def emitter(self) -> Emitter:
        """Collects the variables."""

    def vector(self, name: str, values: Array) -> Any:
        """A constant with a value per channel [channels]; equal names stand for equal values."""

    def computed(self, step: PerChannel | PerElement, node: fx.Node) -> Any:
        """What a step combines with the result."""


@dataclass(frozen=True)
class Blocks:
    """Operands of a kernel whose result is blocked; ``kernels.operands.BlockedOperands``.

    Attributes:
        emitter: Collects the variables.
        channels: Of the result.
        shape: That of the result where the kernel sees it in another than the program.
    """

    emitter: Emitter
    channels: int
    shape: Sequence[Size] | None = None

    def vector(self, name: str, values: Array) -> Any:
        """As [blocks, lanes]."""
        return self.emitter.weights.add(f"{name}.blocked{self.channels}", pad_channels(values, self.emitter.lanes))

    def computed(self, step: PerChannel | PerElement, node: fx.Node) -> Any:
        """A blocked map, [blocks, lanes] or [N, blocks, lanes]."""
        if isinstance(step, PerElement):
            variable = self.emitter.blocked(_stored(step, node))
            return variable if self.shape is None else self.emitter.reshape(variable, self.shape)
        if not step.per_image and self.emitter.constant(node) is not None:
            return self.vector(str(node.target), vector_of(self.emitter, node, self.channels))
        return _blocked_values(self.emitter, node, self.channels, step.per_image)


@dataclass(frozen=True)
class Rows:
    """Operands of a kernel whose result is [rows, columns]; ``kernels.operands.RowOperands``."""

    emitter: Emitter
    rows: Size
    columns: int

    def vector(self, name: str, values: Array) -> Any:
        """As [columns]."""
        return self.emitter.weights.add(f"{name}.row{self.columns}", values)

    def computed(self, step: PerChannel | PerElement, node: fx.Node) -> Any:
        """Rows, or [columns]."""
        if isinstance(step, PerElement):
            return self.emitter.reshape(self.emitter.plain(_stored(step, node)), (self.rows, self.columns))
        if self.emitter.constant(node) is not None:
            return self.vector(str(node.target), vector_of(self.emitter, node, self.columns))
        return self.emitter.reshape(self.emitter.plain(node), (self.columns,))


def code_numbers(emitter: Emitter, codes: CodeRange) -> Any:
    """The operand of a ``Quantize``; equal ranges are one tensor."""
    name = f"codes({codes.zero_point}, {codes.low}, {codes.high})"
    return emitter.weights.add(name, codes.numbers)


def vector_of(emitter: Emitter, node: fx.Node, channels: int) -> Array:
    """A constant with a value per channel, or one for all, as [channels]."""
    constant = emitter.constant(node)
    assert constant is not None
    return np.array(constant.float().reshape(-1).expand(channels).numpy())


def _stored(step: PerElement, node: fx.Node) -> fx.Node:
    """The node whose value a step reads: codes where it takes them."""
    codes = dequantized(node) if step.dtype == "uint8" else None
    return node if codes is None else codes.node


def _blocked_values(emitter: Emitter, node: fx.Node, channels: int, per_image: bool) -> Any:
    """A computed tensor with a value per channel, or per image and channel: [blocks, lanes] or [N, blocks, lanes]."""
    images: Size = emitter.shape(node)[0] if per_image else 1
    value = emitter.value(node)
    if value.shape[:2] != (images, channels) or not 3 <= len(value.shape) <= 5:
        shape = (images, channels, 1)
        value = Value(shape, value.dtype, plain=emitter.reshape(emitter.plain(node), shape))
    blocked = emitter.blocked(value)
    blocks, lanes = ceil_div(channels, emitter.lanes), emitter.lanes
    return emitter.reshape(blocked, (images, blocks, lanes) if per_image else (blocks, lanes))
