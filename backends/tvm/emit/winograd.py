"""Winograd convolutions, whose weights a pass has transformed."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from shave.backends.tvm.emit.emitter import Emitter
from shave.backends.tvm.emit.epilogues import emit_epilogue
from shave.backends.tvm.emit.operands import Blocks
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.kernels import winograd
from shave.backends.tvm.kernels.winograd_shape import WinogradShape
from shave.backends.tvm.layout import Value, blocked_shape
from shave.ir.errors import UnsupportedError
from shave.ir.ops import op_name

OPERATOR = "shave.winograd_conv2d"


def is_kernel(node: fx.Node) -> bool:
    """Whether the kernel computes a call: constant float32 weights, known extents but for the batch."""
    if op_name(node) != OPERATOR:
        return False
    x, weight, bias = cast("tuple[fx.Node, fx.Node, fx.Node | None]", node.args[:3])
    value = x.meta["val"]
    constants = weight.op == "get_attr" and (bias is None or bias.op == "get_attr")
    known = not any(isinstance(size, torch.SymInt) for size in value.shape[1:])
    return constants and known and value.dtype == torch.float32


@emits(OPERATOR)
def _winograd(emitter: Emitter, node: fx.Node) -> Any:
    if not is_kernel(node):
        raise UnsupportedError("weights and bias must be constants, in float32, and height and width known")
    a = emitter.arguments(node)
    weight = cast(torch.Tensor, emitter.constant(a["weight"])).numpy()
    batch, channels, *spatial = emitter.shape(a["x"])
    height, width = cast("list[int]", spatial)
    top, left = a["padding"]
    region = emitter.region(node)
    shape = WinogradShape(
        batch if isinstance(batch, int) else None, cast(int, channels), weight.shape[1], (height, width),
        (top, left), a["tile"], region.pooled,
    )  # fmt: skip
    packed = winograd.pack(weight, shape, emitter.target)
    inputs = [emitter.blocked(a["x"]), emitter.weights.add(f"{a['weight'].target}.winograd", packed)]
    operands = Blocks(emitter, shape.out_channels)
    epilogue, given = emit_epilogue(emitter, region, operands, shape.out_channels, a["bias"])
    result = (batch, shape.out_channels, *shape.stored_spatial)
    stored = blocked_shape(result, emitter.lanes)
    made = emitter.call_kernel(winograd, shape, epilogue, [*inputs, *given], stored, region.nodes)
    return Value(result, epilogue.dtype, blocked=made)
