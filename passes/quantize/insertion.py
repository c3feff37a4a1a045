"""Puts pairs of quantize and dequantize where they were decided to go."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers torch.ops.quantized_decomposed

from shave.ir.rewrite import Rewriter
from shave.passes.quantize.affine import SMALLEST_SCALE, UINT8, Affine

_Q = torch.ops.quantized_decomposed


def insert_pairs(
    rewriter: Rewriter,
    readers: Mapping[fx.Node, Sequence[fx.Node]],
    parameters: Mapping[fx.Node, Affine],
) -> dict[fx.Node, fx.Node]:
    """Quantize values, and let some of their readers read what comes of it; the others go on reading the floats.

    Returns:
        For each value its dequantize call.
    """
    made = {}
    for value, wanting in readers.items():
        affine = parameters[value]
        scheme = affine.scheme
        how = (affine.scale, affine.zero_point, scheme.low, scheme.high, scheme.dtype)
        before = behind(rewriter, value)
        narrow = rewriter.call(_Q.quantize_per_tensor.default, (value, *how), before=before, sources=[value])
        wide = rewriter.call(_Q.dequantize_per_tensor.default, (narrow, *how), before=before, sources=[value])
        for reader in wanting:
            reader.replace_input_with(value, wide)
        made[value] = wide
    return made


def insert_measured_pair(rewriter: Rewriter, value: fx.Node, by_row: bool) -> fx.Node:
    """Quantize a value within bounds that are found whenever the program runs.

    Torch's own operators keep zero within the bounds and exact, and scales above 0 whatever the values.

    Args:
        rewriter: Inserts.
        value: A float32 tensor.
        by_row: Whether each row of the last axis has bounds of its own.

    Returns:
        The dequantize call, which nothing reads yet.
    """
    before = behind(rewriter, value)

    def call(target: Callable[..., Any], *args: Any) -> fx.Node:
        return rewriter.call(target, args, before=before, sources=[value])

    if by_row:
        ends: tuple[Any, ...] = (-128, 127, torch.int8)  # as the operator for rows has it
        chosen = call(_Q.choose_qparams_per_token_asymmetric.default, value, torch.int8)
    else:
        ends = (UINT8.low, UINT8.high, UINT8.dtype)
        chosen = call(_Q.choose_qparams.tensor, value, UINT8.low, UINT8.high, SMALLEST_SCALE, UINT8.dtype)
    how = (call(operator.getitem, chosen, 0), call(operator.getitem, chosen, 1), *ends)
    if by_row:
        narrow = call(_Q.quantize_per_token.default, value, *how)
        return call(_Q.dequantize_per_token.default, narrow, *how, torch.float32)
    narrow = call(_Q.quantize_per_tensor.tensor, value, *how)
    return call(_Q.dequantize_per_tensor.tensor, narrow, *how)


def behind(rewriter: Rewriter, value: fx.Node) -> fx.Node:
    """The first node ahead of which all may be inserted that reads a value."""
    calls = (node for node in rewriter.program.graph.nodes if node.op in ("call_function", "output"))
    reader: fx.Node = value.next if value.op == "call_function" else next(calls)
    return reader
