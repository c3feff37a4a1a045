"""Attention: one kernel for a region, or two batched products around a softmax where no kernel fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from shave.backends.tvm.adapter import te, tirx
from shave.backends.tvm.attention_regions import AttentionRegion, Mask
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import Emitter, number
from shave.backends.tvm.emit.matmul import batched
from shave.backends.tvm.emit.reduction import accumulator, reduce_over
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.kernels import attention
from shave.backends.tvm.kernels.attention import View
from shave.backends.tvm.kernels.base import ceil_div
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.sizes import Size, product
from shave.ir.errors import UnsupportedError


@emits("aten.scaled_dot_product_attention")
def _attention(emitter: Emitter, node: fx.Node) -> Any:
    """softmax(scale * Q K^T + mask) V over [..., heads, length, size]; several query heads may share a key head."""
    region = emitter.region(node)
    if isinstance(region, AttentionRegion):
        return fused(emitter, region)
    arguments = emitter.arguments(node)
    query, key, value, mask = (arguments[n] for n in ("query", "key", "value", "attn_mask"))
    if arguments["dropout_p"]:
        raise UnsupportedError("attention with dropout")
    (*lead, rows, size), dtype = emitter.result(query)
    (*key_lead, columns, _), width = emitter.shape(key), emitter.shape(value)[-1]
    scale = arguments["scale"]
    scale = (1 / math.sqrt(size) if isinstance(size, int) else None) if scale is None else scale
    if scale is None:
        raise UnsupportedError("attention over a dynamic head size without a scale")
    shared = _heads_per_key(lead, key_lead)
    # Query heads that share a key head lie next to each other: together they are one taller matrix.
    batch = [*key_lead, shared * rows]
    q = emitter.reshape(emitter.plain(query), [*batch, size])
    scores = batched(emitter, node, q, emitter.plain(key), True)
    scores = emitter.reshape(scores, [*lead, rows, columns])
    mask_inputs = [] if mask is None else [emitter.plain(mask)]
    causal = bool(arguments["is_causal"])
    mask_shape = None if mask is None else emitter.shape(mask)

    def build(x: Any, *mask_: Any, scale: Any) -> Any:
        return _weights(x, mask_, mask_shape, scale, causal, dtype)

    weights = emitter.te(node, build, scores, *mask_inputs, scale=scale)
    weights = emitter.reshape(weights, [*batch, columns])
    result = batched(emitter, node, weights, emitter.plain(value), False)
    return emitter.reshape(result, [*lead, rows, width])


def fused(emitter: Emitter, region: AttentionRegion) -> Any:
    """One call of the attention kernel, on the tensors in which queries, keys and values lie."""
    assert region.shape is not None
    shape = region.shape
    inputs = []
    for source, name in zip(region.sources, ("query", "key", "value"), strict=True):
        extents = emitter.shape(source)
        seen: list[Size] = [product(extents)]
        if name == "key" and shape.columns is None:
            # The kernel finds the number of columns in the shape of the keys.
            axis = len(extents) - 1
            while product(extents[axis:]) != shape.key.row:
                axis -= 1
            seen = [product(extents[: axis - 1]), extents[axis - 1], shape.key.row]
        inputs.append(emitter.reshape(emitter.plain(source), seen))
    views = []
    for mask in region.masks:
        made = _mask(emitter, region, mask)
        if made is not None:
            variable, view = made
            inputs.append(variable)
            views.append(view)
    shape = replace(shape, masks=tuple(views))
    known = emitter.sizes.shape(region.extents)
    result = [*(known[axis] for axis in attention.result_order(shape)), shape.width]
    made = emitter.call_kernel(attention, shape, Epilogue(), inputs, result, region.nodes)
    return emitter.reshape(made, emitter.shape(region.nodes[-1]))


def _mask(emitter: Emitter, region: AttentionRegion, mask: Mask) -> tuple[Any, View] | None:
    """A mask as one row of float32, its rows whole vectors, each element once; None for one that changes nothing."""
    assert region.shape is not None
    columns, source = region.shape.columns, mask.strided.source
    assert columns is not None
    steps = mask.strided.tensor.stride()
    pitch = ceil_div(columns, emitter.lanes) * emitter.lanes
    extents: list[Any] = [
        1 if isinstance(step, int) and step == 0 else extent
        for step, extent in zip(steps[:-1], region.extents, strict=True)
    ]
    view = _rows_of(extents, pitch)
    constant = emitter.constant(source)
    if constant is not None and all(isinstance(e, int) for e in extents):
        return _constant_mask(emitter, mask, constant, extents, pitch, view)
    start, *sizes = emitter.sizes.shape([mask.strided.tensor.storage_offset(), *steps])

    def compute(x: Any, start: Any, steps: Sequence[Any], shape: Sequence[Size]) -> Any:
        def element(*i: Any) -> Any:
            at = start
            for index, step in zip([*i[:-1], tirx.min(i[-1], columns - 1)], steps, strict=True):
                at = at + index * step
            value = x(at)
            if mask.hide is None:
                return scalar.cast(value, "float32")
            nothing, filler = tirx.const(0, "float32"), tirx.const(mask.filler, "float32")
            return tirx.Select(value, filler, nothing) if mask.hide else tirx.Select(value, nothing, filler)

        return te.compute(shape, element, name="mask")

    flat = emitter.reshape(emitter.plain(source), [product(emitter.shape(source))])
    shape = [*emitter.sizes.shape(extents), pitch]
    made = emitter.te(region.nodes[-1], compute, flat, start, sizes, shape=shape)
    return emitter.reshape(made, [product(shape)]), view


def _constant_mask(
    emitter: Emitter, mask: Mask, constant: torch.Tensor, extents: list[int], pitch: int, view: View
) -> tuple[Any, View] | None:
    tensor = mask.strided.tensor
    picked = constant.contiguous().as_strided((*extents, tensor.shape[-1]), tensor.stride(), tensor.storage_offset())
    if mask.hide is not None:
        picked = torch.where(picked if mask.hide else ~picked, mask.filler, 0.0)
    if not picked.any():
        return None
    padded = np.zeros((*extents, pitch), np.float32)
    padded[..., : picked.shape[-1]] = picked.numpy()
    name = f"{mask.strided.source.target}.mask{'x'.join(map(str, (*extents, picked.shape[-1], *tensor.stride())))}"
    return emitter.weights.add(f"{name}+{tensor.storage_offset()}", padded.reshape(-1)), view


def _rows_of(extents: Sequence[Any], pitch: int) -> View:
    """Steps of contiguous [*extents, pitch], 0 along axes of extent 1; None for what only the call knows."""
    lead: list[int | None] = []
    *outer, rows = extents
    inside: Any = pitch * rows
    for extent in reversed(outer):
        one = isinstance(extent, int) and extent == 1
        lead.append(0 if one else inside if isinstance(inside, int) else None)
        inside = inside * extent
    return View(tuple(reversed(lead)), 0 if isinstance(rows, int) and rows == 1 else pitch)


def _heads_per_key(lead: Sequence[Size], key_lead: Sequence[Size]) -> int:
    if not lead or not key_lead or not isinstance(lead[-1], int) or not isinstance(key_lead[-1], int):
        return 1
    return lead[-1] // key_lead[-1]


def _weights(
    scores: Any, mask: Sequence[Any], mask_shape: Sequence[Size] | None, scale: Any, causal: bool, dtype: str
) -> Any:
    """The softmax over the last axis; a row in which nothing may be seen gives zeros, as in torch."""
    work = accumulator(dtype)
    hidden = tirx.const(-math.inf, work)
    last = len(scores.shape) - 1

    def score(*i: Any) -> Any:
        value = scalar.cast(scores(*i), work) * number(scale, work)
        for m in mask:
            assert mask_shape is not None
            at = [
                0 if isinstance(s, int) and s == 1 else k
                for s, k in zip(mask_shape, i[-len(mask_shape) :], strict=True)
            ]
            is_bool = str(m.dtype) == "bool"
            value = tirx.Select(m(*at), value, hidden) if is_bool else value + scalar.cast(m(*at), work)
        return tirx.Select(i[-1] <= i[-2], value, hidden) if causal else value

    def at(i: Sequence[Any]) -> list[Any]:
        return [*i[:last], 0]

    seen = te.compute(scores.shape, score, name="score")
    top = reduce_over(seen, [last], te.max, lambda *i: seen(*i), True, name="top")
    powers = te.compute(
        scores.shape,
        lambda *i: tirx.Select(scalar.equal(seen(*i), hidden), tirx.const(0, work), tirx.exp(seen(*i) - top(*at(i)))),
        name="power",
    )
    total = reduce_over(powers, [last], te.sum, lambda *i: powers(*i), True, name="total")
    inverse = te.compute(
        total.shape,
        lambda *i: tirx.Select(
            scalar.equal(total(*i), tirx.const(0, work)), tirx.const(0, work), tirx.const(1, work) / total(*i)
        ),
        name="inverse",
    )
    return te.compute(scores.shape, lambda *i: scalar.cast(powers(*i) * inverse(*at(i)), dtype), name="weights")
