"""Puts pairs of quantize and dequantize where they were decided to go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers torch.ops.quantized_decomposed

from shave.ir.rewrite import Rewriter
from shave.passes.quantize.affine import Affine

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
    first = next(node for node in rewriter.program.graph.nodes if node.op in ("call_function", "output"))
    made = {}
    for value, wanting in readers.items():
        affine = parameters[value]
        scheme = affine.scheme
        how = (affine.scale, affine.zero_point, scheme.low, scheme.high, scheme.dtype)
        before = value.next if value.op == "call_function" else first
        narrow = rewriter.call(_Q.quantize_per_tensor.default, (value, *how), before=before, sources=[value])
        wide = rewriter.call(_Q.dequantize_per_tensor.default, (narrow, *how), before=before, sources=[value])
        for reader in wanting:
            reader.replace_input_with(value, wide)
        made[value] = wide
    return made
