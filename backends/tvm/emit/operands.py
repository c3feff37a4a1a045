"""Operands of kernels' epilogues, in the layouts in which the kernels read them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from shave.backends.tvm.emit.emitter import Emitter
from shave.backends.tvm.kernels.base import Array, ceil_div, pad_channels
from shave.backends.tvm.kernels.epilogue import PerElement
from shave.backends.tvm.layout import Value
from shave.backends.tvm.regions import Region
from shave.backends.tvm.sizes import Size


def blocked_operands(emitter: Emitter, region: Region, channels: int) -> list[Any]:
    """Variables with the operands of a region whose result is blocked; ``kernels.operands.BlockedOperands``."""
    found = []
    for step, node in zip(region.epilogue().operands, region.operands, strict=True):
        if isinstance(step, PerElement):
            found.append(emitter.blocked(node))
        elif not step.per_image and emitter.constant(node) is not None:
            found.append(blocked_vector(emitter, node, channels))
        else:
            found.append(_blocked_values(emitter, node, channels, step.per_image))
    return found


def row_operands(emitter: Emitter, region: Region, rows: Size, columns: int) -> list[Any]:
    """Variables with the operands of a region whose result is [rows, columns]; ``kernels.operands.RowOperands``."""
    found = []
    for step, node in zip(region.epilogue().operands, region.operands, strict=True):
        if isinstance(step, PerElement):
            found.append(emitter.reshape(emitter.plain(node), (rows, columns)))
        elif emitter.constant(node) is not None:
            found.append(row_vector(emitter, node, columns))
        else:
            found.append(emitter.reshape(emitter.plain(node), (columns,)))
    return found


def blocked_vector(emitter: Emitter, node: fx.Node, channels: int) -> Any:
    """A constant with a value per channel, or one for all, as [blocks, lanes]."""
    vector = pad_channels(_vector(emitter, node, channels), emitter.lanes)
    return emitter.weights.add(f"{node.target}.blocked{channels}", vector)


def row_vector(emitter: Emitter, node: fx.Node, columns: int) -> Any:
    """The same as [columns]."""
    return emitter.weights.add(f"{node.target}.row{columns}", _vector(emitter, node, columns))


def _vector(emitter: Emitter, node: fx.Node, channels: int) -> Array:
    constant = emitter.constant(node)
    assert constant is not None
    return np.array(constant.float().reshape(-1).expand(channels).numpy())


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
