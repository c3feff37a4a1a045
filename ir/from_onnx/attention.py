"""Attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Value

# Attributes that torch's attention can express; ``softcap`` only where it is zero.
_PLAIN = {"is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap"}


@onnx_op("Attention")
def attention(
    node: OnnxNode,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> list[Value | None]:
    """Scaled dot-product attention over heads, with a cache of past keys and values.

    Kept whole as torch's attention where it computes the same: no soft cap, window or softmax in another
    precision, no output of the scores, no lengths of padded caches. Else the operator's own definition is expanded.
    """
    wants_scores = node.n_outputs > 3 and bool(node.outputs[3])
    if wants_scores or lengths is not None or node.attr("softcap", 0.0) or node.spec.attributes.keys() - _PLAIN:
        return node.run_body([query, key, value, mask, past_key, past_value, lengths])
    is_flat = query.ndim == 3
    if is_flat:
        query = _split_heads(query, node.attr("q_num_heads"))
        key, value = _split_heads(key, node.attr("kv_num_heads")), _split_heads(value, node.attr("kv_num_heads"))
    past_length = 0 if past_key is None else past_key.shape[2]
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
    is_causal = bool(node.attr("is_causal", 0))
    if mask is not None and mask.shape[-1] != key.shape[2]:
        # A mask for fewer keys than there are hides the rest.
        missing = key.shape[2] - mask.shape[-1]
        mask = F.pad(mask, (0, missing), value=False if mask.dtype is torch.bool else float("-inf"))
    if is_causal and (mask is not None or past_key is not None):
        rows = torch.arange(query.shape[2]).unsqueeze(1) + past_length
        allowed = rows >= torch.arange(key.shape[2])
        if mask is None:
            mask = allowed
        elif mask.dtype is torch.bool:
            mask = mask & allowed
        else:
            mask = torch.where(allowed, mask, torch.full((), float("-inf"), dtype=mask.dtype))
        is_causal = False
    result = F.scaled_dot_product_attention(
        query,
        key,
        value,
        mask,
        is_causal=is_causal,
        scale=node.attr("scale"),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    if is_flat:
        result = result.transpose(1, 2).flatten(2)
    return [result, key, value]


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """``(batch, length, heads * size)`` as ``(batch, heads, length, size)``."""
    return x.reshape([x.shape[0], x.shape[1], heads, -1]).transpose(1, 2)
