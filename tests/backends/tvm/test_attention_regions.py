"""Which nodes the attention kernel computes, and on which tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from shave.backends.tvm.attention_regions import AttentionRegion, find_attention
from shave.ir.from_torch import trace
from shave.ir.ops import op_name
from tests.backends.tvm.compiled import Compiled, worst

Tensor = torch.Tensor


class _Call(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def _found(function: Callable[..., Any], *inputs: Tensor) -> list[AttentionRegion]:
    return list(find_attention(trace(_Call(function), inputs).graph).values())


def _the_one(function: Callable[..., Any], *inputs: Tensor) -> AttentionRegion:
    (region,) = _found(function, *inputs)
    assert region.shape is not None
    return region


def _names(region: AttentionRegion) -> list[str]:
    return [op_name(node).removeprefix("aten.") for node in region.nodes]


def _heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask)


def _written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v


def _windows(qkv: Tensor, bias: Tensor, shift: Tensor) -> Tensor:
    """Attention in windows as Swin writes it: [batch x windows, 9, 3 x 2 x 8]."""
    q, k, v = qkv.view(-1, 9, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q * 0.3) @ k.transpose(-2, -1) + bias
    scores = scores.view(-1, 4, 2, 9, 9) + shift.unsqueeze(1).unsqueeze(0)
    scores = scores.view(-1, 2, 9, 9)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 9, 16)


_HEADS = torch.randn(2, 3, 7, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 5)


def test_one_tensor_of_three_projections_is_read_where_it_lies() -> None:
    def call(x: Tensor) -> Tensor:
        q, k, v = x.view(2, 7, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        return _heads(q, k, v).transpose(1, 2).reshape(2, 7, 32)

    region = _the_one(call, torch.randn(2, 7, 96))
    assert region.shape is not None
    assert _names(region) == ["scaled_dot_product_attention", "transpose"]
    assert [source.op for source in region.sources] == ["placeholder"] * 3
    views = region.shape.query, region.shape.key, region.shape.value
    assert [(v.lead, v.row, v.start) for v in views] == [((672, 8), 96, start) for start in (0, 32, 64)]
    assert (region.shape.result.lead, region.shape.result.row) == ((224, 8), 32)


def test_products_and_softmax_written_out() -> None:
    region = _the_one(_written_out, *_HEADS)
    assert region.shape is not None
    assert _names(region) == ["matmul", "div", "softmax", "matmul"]
    assert region.shape.scale == 0.5
    assert not region.shape.hidden


def test_windows_with_two_masks() -> None:
    region = _the_one(_windows, torch.randn(8, 9, 48), torch.randn(1, 2, 9, 9), torch.randn(4, 9, 9))
    assert region.shape is not None
    assert region.shape.lead == (2, 4, 2)
    assert region.shape.scale == pytest.approx(0.3)
    assert [mask.strided.tensor.stride() for mask in region.masks] == [(0, 0, 81, 9, 1), (0, 81, 0, 9, 1)]


def test_query_heads_that_share_keys() -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    region = _the_one(call, torch.randn(2, 6, 7, 8), *_HEADS[1:])
    assert region.shape is not None
    assert region.shape.lead == (2, 3, 2)
    assert region.shape.shared == 1


def test_a_copy_is_read_where_rows_would_have_gaps() -> None:
    region = _the_one(lambda q, k, v: _heads(q.mT, k, v), torch.randn(2, 3, 8, 7), *_HEADS[1:])
    assert op_name(region.sources[0]) in ("aten.transpose", "aten.mT")


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda q, k, v: (q @ k.mT).softmax(-2) @ v, id="another axis"),
        pytest.param(lambda q, k, v: ((s := (q @ k.mT).softmax(-1)) @ v, s), id="weights are a result"),
        pytest.param(lambda q, k, v: ((s := q @ k.mT).softmax(-1) @ v, s), id="scores are read"),
        pytest.param(lambda q, k, v: (q[..., :1] * k[..., 0].unsqueeze(-2)).softmax(-1) @ v, id="no product"),
        pytest.param(lambda q, k, v: (q @ k.mT).sigmoid().softmax(-1) @ v, id="a function of scores"),
        pytest.param(lambda q, k, v: ((q @ k.mT + q[..., :1]) * 2).softmax(-1) @ v, id="a scaled mask"),
        pytest.param(lambda q, k, v: (q @ k.mT).softmax(-1) + v.sum(), id="no values"),
        pytest.param(lambda q, k, v: (q @ k.mT).masked_fill(q[..., :1] > 0, -3.0).softmax(-1) @ v, id="a mild mask"),
    ],
)  # fmt: skip
def test_what_is_no_attention_stays_as_it_is(call: Callable[..., Any]) -> None:
    assert not _found(call, *_HEADS)


def test_results_agree_with_torch() -> None:
    torch.manual_seed(0)
    q, k, v = _HEADS
    few = torch.randn(2, 1, 9, 8), torch.randn(2, 1, 9, 5)
    keep, hide = torch.rand(2, 1, 1, 9) > 0.3, torch.rand(7, 9) > 0.6
    window = torch.randn(8, 9, 48), torch.randn(1, 2, 9, 9), torch.randn(4, 9, 9)

    def call(*x: Tensor) -> tuple[Tensor, ...]:
        q, k, v, keep, hide, qkv, bias, shift, one_k, one_v = x
        return (
            _windows(qkv, bias, shift),
            _heads(q, k, v, keep),
            (q @ k.mT).masked_fill(hide, float("-inf")).softmax(-1) @ v,
            (q @ k.mT + bias[0, 0, :7]).softmax(-1) @ v,
            F.scaled_dot_product_attention(q, one_k, one_v, enable_gqa=True, is_causal=True),
            _heads(q[0, 0], k[0, 0], v[0, 0]),
        )

    inputs = (q, k, v, keep, hide, *window, *few)
    compiled = Compiled(trace(_Call(call), inputs))
    assert sum(call.family == "attention" for call in compiled.lowered.kernels) == 6
    for result, expected in zip(compiled(*inputs), call(*inputs), strict=True):
        assert worst(result, expected) < 2e-6


def test_constant_masks_are_padded_ahead_and_dropped_where_they_hide_nothing() -> None:
    class Masked(torch.nn.Module):
        def __init__(self, mask: Tensor) -> None:
            super().__init__()
            self.register_buffer("mask", mask)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return _heads(q, k, v, self.mask.expand(2, 1, 7, 9))

    for mask, tensors in ((torch.ones(1, 1, 1, 9, dtype=torch.bool), 0), (torch.tensor([[False] * 4 + [True] * 5]), 1)):
        module = Masked(mask)
        compiled = Compiled(trace(module, _HEADS))
        assert len(compiled.lowered.weights) == tensors
        assert worst(compiled(*_HEADS)[0], module(*_HEADS)) < 2e-6


def test_dynamic_batch_and_lengths() -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = [x.view(x.shape[0], x.shape[1], 2, 8).transpose(1, 2) for x in (q, k, v)]
        return _heads(*heads).transpose(1, 2).flatten(2)

    batch, rows, columns = (torch.export.Dim(n, min=2, max=99) for n in ("batch", "rows", "columns"))
    inputs = torch.randn(2, 7, 16), torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    program = trace(
        _Call(call), inputs, dynamic_shapes={"inputs": ({0: batch, 1: rows}, *[{0: batch, 1: columns}] * 2)}
    )
    (region,) = find_attention(program.graph).values()
    assert region.shape is not None
    assert (region.shape.lead, region.shape.rows, region.shape.columns) == ((None, 2), None, None)
    compiled = Compiled(program)
    for b, n, m in ((2, 7, 9), (3, 20, 33)):
        q, k, v = torch.randn(b, n, 16), torch.randn(b, m, 16), torch.randn(b, m, 16)
        assert worst(compiled(q, k, v)[0], call(q, k, v)) < 2e-6
