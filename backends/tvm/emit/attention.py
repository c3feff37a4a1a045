"""Scaled dot-product attention: two batched kernels around one softmax pass over the scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import fx

from shave.backends.tvm.adapter import te, tirx
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import Emitter, number
from shave.backends.tvm.emit.matmul import batched
from shave.backends.tvm.emit.reduction import accumulator, reduce_over
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.sizes import Size
from shave.ir.errors import UnsupportedError


@emits("aten.scaled_dot_product_attention")
def _attention(emitter: Emitter, node: fx.Node) -> Any:
    """softmax(scale * Q K^T + mask) V over [..., heads, length, size]; several query heads may share a key head."""
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
